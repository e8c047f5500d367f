"""One call of the command line, watched: how it ended, what it said, and what it touched that it must not."""

from __future__ import annotations

import io
import os
import sys
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

__all__ = ["Call", "Tally", "call", "watched"]

WRITING: Final = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES: Final = {
    "os.chmod": 1, "os.chown": 1, "os.link": 2, "os.mkdir": 1, "os.remove": 1, "os.rename": 2, "os.rmdir": 1,
    "os.symlink": 2, "os.truncate": 1, "os.utime": 1, "shutil.rmtree": 1,
}  # fmt: skip
"""Python's audit events that change a file system, and how many of their arguments are paths."""
FORBIDDEN: Final = {"pickle.find_class": "unpickled", "os.system": "ran", "subprocess.Popen": "ran"}
"""Audit events that reading a stranger's folder must not raise."""


@dataclass
class _Watch:
    allowed: tuple[str, ...]
    kept: tuple[str, ...]
    touched: list[str] = field(default_factory=list)
    forbidden: list[str] = field(default_factory=list)

    def see(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in FORBIDDEN:
            self.forbidden.append(f"{FORBIDDEN[event]} {arguments[:2]!r}")
        elif event == "open":
            path, mode, flags = arguments
            if isinstance(path, (str, bytes)) and (flags & WRITING if mode is None else set(mode) & set("wax+")):
                self._touch(path)
        elif event in CHANGES:
            for path in arguments[: CHANGES[event]]:
                if isinstance(path, (str, bytes)) and (os.path.isabs(path) or arguments[-1] == -1):
                    self._touch(path)  # a name within an open folder was seen when the folder was named

    def _touch(self, path: str | bytes) -> None:
        named = os.path.abspath(os.fsdecode(path))
        real = os.path.join(os.path.realpath(os.path.dirname(named)), os.path.basename(named))
        if _within(real, self.kept) or not _within(real, self.allowed):
            self.touched.append(real)


def _within(path: str, roots: Sequence[str]) -> bool:
    return any(path == root or path.startswith(root + os.sep) for root in roots)


_watching: list[_Watch] = []
_hooks: list[object] = []


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _watching and (event == "open" or event in CHANGES or event in FORBIDDEN):
        _watching[-1].see(event, arguments)


@contextmanager
def watched(allowed: Sequence[Path], kept: Sequence[Path] = ()) -> Iterator[_Watch]:
    """Record what this process unpickles or starts, and writes outside the allowed folders or inside the kept ones.

    What native code writes without Python is not seen.
    """
    if not _hooks:
        _hooks.append(_hook)
        sys.addaudithook(_hook)  # for good: Python has no way to take one back
    watch = _Watch((*map(os.path.realpath, allowed), os.devnull), (*map(os.path.realpath, kept),))
    _watching.append(watch)
    try:
        yield watch
    finally:
        _watching.remove(watch)


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """How a call ended."""

    code: int
    """Its exit code; 1 where an exception got out."""
    said: str
    """What it printed on standard error, or the traceback."""
    strayed: tuple[str, ...]
    """What it touched that it must not."""

    @property
    def ending(self) -> str:
        """`done`, `refused`, or what is wrong: `traceback`, `strayed`, `unclear`."""
        if self.strayed:
            return "strayed"
        if self.code not in (0, 2):
            return "traceback"
        return "done" if self.code == 0 else "refused" if self._is_clear else "unclear"

    @property
    def _is_clear(self) -> bool:
        """Whether a refusal says one thing, in text that a terminal shows as it is."""
        return "hf-lora: " in self.said and "Traceback" not in self.said and _is_plain(self.said)


def _is_plain(text: str) -> bool:
    return all(letter.isprintable() or letter == "\n" for letter in text)


def call(*arguments: str | Path, allowed: Sequence[Path], kept: Sequence[Path] = ()) -> Call:
    """Run the command line in this process, which may write into the allowed folders, and not into those kept."""
    from hf_lora_ext.cli import main

    out, errors, code = io.StringIO(), io.StringIO(), 0
    with watched(allowed, kept) as watch, redirect_stdout(out), redirect_stderr(errors):
        try:
            main([*map(str, arguments)])
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
        except BaseException:  # whatever gets out is what is looked for
            code = 1
            errors.write(traceback.format_exc())
    return Call(code=code, said=errors.getvalue(), strayed=(*watch.touched, *watch.forbidden))


@dataclass
class Tally:
    """Endings counted, and the first of each wrong one."""

    name: str
    """What was tried."""
    endings: Counter[str] = field(default_factory=Counter)
    """Ending → attempts."""
    wrong: dict[str, str] = field(default_factory=dict)
    """Ending that is neither `done` nor `refused` → what was told of the first."""
    beside: Counter[str] = field(default_factory=Counter)
    """What else was counted on the way."""

    def add(self, ending: str, told: str = "") -> None:
        """Count one ending; what was told is kept for the first of each that is wrong."""
        self.endings[ending] += 1
        if ending not in ("done", "refused"):
            self.wrong.setdefault(ending, told)
