"""Pushes behind a training: one at a time, in a thread, of folders that were laid aside; the newest waits, no other."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ..errors import LoraExtError
from .gathering import Aside
from .plan import PushResult

__all__ = ["AGAIN", "Outcome", "Parcel", "PushQueue", "remove_unfinished"]

AGAIN: Final = "push_again.txt"
"""File in a folder that could not be pushed: why, and the command that pushes it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parcel:
    """What is pushed, in a folder of its own."""

    aside: Aside
    """The folder."""
    title: str
    """What it is, which is the commit's title too: `Step 40, best so far`."""
    command: str
    """The command that pushes it by hand."""
    is_last: bool = False
    """Whether it is what the training ended with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a parcel."""

    parcel: Parcel
    """The parcel."""
    result: PushResult | None = None
    """What the Hub holds now."""
    problem: str | None = None
    """Why it is not there, with the command that pushes it."""

    @property
    def line(self) -> str:
        """What became of it, in words."""
        if self.result is None:
            return f"{self.parcel.title} was not pushed, and training goes on: {self.problem}"
        if self.result.status == "declined":
            return f"{self.parcel.title} is on {self.result.repo_id} already"
        verified = ", verified" if self.result.is_verified else ""
        tag = f", tag {self.result.tag}" if self.result.tag else ""
        return (
            f"{self.parcel.title}: {self.result.status}, {self.result.repo_id} at {self.result.commit}{verified}{tag}"
        )


class PushQueue:
    """Pushes parcels in the background; what happens is told only when it is asked.

    The thread is a daemon, since a push can be killed anywhere and finished later: a training that fails ends at once.

    Args:
        send: Pushes one parcel; takes a function that it tells its steps.
    """

    def __init__(self, send: Callable[[Parcel, Callable[[str], None]], PushResult]) -> None:
        self._send = send
        self._changed = threading.Condition()
        self._waiting: Parcel | None = None
        self._running: Parcel | None = None
        self._kept: Parcel | None = None
        self._news: list[Outcome] = []
        self.step = ""
        """What the running push does."""

    def put(self, parcel: Parcel) -> Parcel | None:
        """Push a parcel as soon as no other is on its way, and return the one whose place in the queue it takes."""
        with self._changed:
            replaced, self._waiting = self._waiting, parcel
            if self._running is None:
                self._running, self._waiting = parcel, None
                threading.Thread(target=self._work, args=(parcel,), name="hf-lora-push", daemon=True).start()
        if replaced is not None:
            replaced.aside.remove_()
        return replaced

    def wait(self, seconds: float) -> bool:
        """Return whether everything is done, at most so many seconds from now."""
        with self._changed:
            return self._changed.wait_for(lambda: self._running is None, seconds)

    def outcomes(self) -> list[Outcome]:
        """Return what became of the parcels since this was asked last."""
        with self._changed:
            news, self._news = self._news, []
        return news

    def abandon(self) -> Parcel | None:
        """Leave a note beside what is still on its way, for the case that the process ends first; return it."""
        with self._changed:
            parcel = self._waiting or self._running
        if parcel is not None:
            with suppress(FileNotFoundError):  # it has landed in this moment, and its folder went
                note(parcel, "the process ended before the push did")
        return parcel

    def _work(self, parcel: Parcel | None) -> None:
        while parcel is not None:
            outcome = self._outcome(parcel)
            with self._changed:
                self._news.append(outcome)
                parcel = self._running = self._waiting
                self._waiting = None
                self._changed.notify_all()

    def _outcome(self, parcel: Parcel) -> Outcome:
        """Push a parcel; its folder goes once the Hub has it, and stays where it does not."""
        try:
            result = self._send(parcel, self._at)
        except Exception as error:  # a training must not die of its push: whatever it was, it is told
            text = str(error) if isinstance(error, LoraExtError) else f"{type(error).__name__}: {error}"
            problem = text if "again: `" in text else f"{text}\nagain: `{parcel.command}`"
            try:
                note(parcel, problem)
            except OSError as unwritten:
                problem += f"\n(its folder has no note: {unwritten})"
            self._keep(parcel)
            return Outcome(parcel=parcel, problem=problem)
        parcel.aside.remove_()
        self._keep(None)
        return Outcome(parcel=parcel, result=result)

    def _keep(self, parcel: Parcel | None) -> None:
        """Keep the newest of what failed; once a newer one has landed, none."""
        if self._kept is not None and (parcel is None or parcel.aside.folder != self._kept.aside.folder):
            self._kept.aside.remove_()
        self._kept = parcel

    def _at(self, step: str) -> None:
        self.step = step


def note(parcel: Parcel, problem: str) -> None:
    """Write beside a parcel's files why it is there and how it is pushed, and make them its own.

    A checkpoint's weights are shared with it until then, and a later run may write that checkpoint anew.
    """
    folder = parcel.aside.folder
    parcel.aside.own_()
    (folder / AGAIN).write_text(f"{problem}\n\n{parcel.command}\n{time.strftime('%Y-%m-%d %H:%M:%S')}\n", "utf8")


def remove_unfinished(folder: Path) -> None:
    """Remove what a killed run had laid aside; what has a note stays."""
    for aside in folder.iterdir() if folder.is_dir() else ():
        if aside.is_dir() and not (aside / AGAIN).is_file():
            shutil.rmtree(aside, ignore_errors=True)
