"""Disks that fill up, or can no longer be written, while a run trains: it says so, and goes on when there is room."""

from __future__ import annotations

import random
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from calls import Tally
from forked import ending_of, finished, load_libraries, start
from kills import recipe_for, results

__all__ = ["can_mount", "fill_disks", "protect_disks"]

SIZE = "96m"
"""Of each disk, which a whole run needs a tenth of."""


def can_mount(scratch: Path) -> bool:
    """Return whether this process may mount a file system of its own."""
    folder = scratch / "mounted"
    folder.mkdir()
    return subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], capture_output=True, check=False).returncode == 0


def _mount(folder: Path, options: str, what: str = "tmpfs") -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, what, folder], check=True)


def _fill(folder: Path) -> None:
    """Write until nothing more goes in."""
    with (folder / "filler").open("wb", buffering=0) as stream:
        try:
            while stream.write(b"\0" * 2**16):
                pass
        except OSError:
            pass


def fill_disks(model: Path, scratch: Path, count: int, seed: int, say: Callable[[str], None]) -> Tally:
    """Fill the disks of `count` runs at random moments; then make room, and start each again.

    A run that had written all by then ends well on the full disk.
    """

    def disturbed(command: list[str | Path], disk: Path, log: Path, moment: float) -> str:
        child = start(command, log)
        time.sleep(moment)
        _fill(disk)
        ending = ending_of(child)
        (disk / "filler").unlink()
        return ending

    return _tried("full disks", disturbed, model, scratch, count, seed, say)


def protect_disks(model: Path, scratch: Path, count: int, seed: int, say: Callable[[str], None]) -> Tally:
    """Kill `count` runs at random moments, and start each on a disk that is read-only by then, and once more.

    It is done in this order because the kernel lets no disk become read-only that is being written.
    """

    def disturbed(command: list[str | Path], disk: Path, log: Path, moment: float) -> str:
        start(command, log).kill_after(moment)
        _mount(disk, "remount,ro")
        ending = ending_of(start(command, log))
        _mount(disk, "remount,rw")
        return ending

    return _tried("read-only disks", disturbed, model, scratch, count, seed, say)


def _tried(
    name: str, disturbed: Callable[[list[str | Path], Path, Path, float], str], model: Path, scratch: Path,
    count: int, seed: int, say: Callable[[str], None],
) -> Tally:  # fmt: skip
    """Disturb runs, each on a disk of its own, and start them once more: they end in the bytes of one in peace."""
    load_libraries()
    recipe, draw, tally = recipe_for(model, scratch), random.Random(seed), Tally(name=name)
    began = time.monotonic()
    finished(["train", recipe], scratch / "whole.log")
    seconds, wanted = time.monotonic() - began, results(scratch / "whole")
    for number in range(count):
        disk, log = scratch / f"disk-{number}", scratch / f"disk-{number}.log"
        disk.mkdir()
        _mount(disk, f"size={SIZE}")
        command, moment = ["train", recipe, f"output_dir={disk / 'run'}"], draw.uniform(0, seconds)
        first = disturbed(command, disk, log, moment)
        again = start(command, log)
        last = ending_of(again)
        if last == "done" and results(disk / "run") != wanted:
            last = "other bytes"
        ending = first if first not in ("done", "refused") else "not mended" if last == "refused" else last
        tally.add(ending, f"{disk}, {moment:.2f} s: {again.said()[-2500:]}")
        tally.beside[f"{first} meanwhile"] += 1
        say(f"  disk {number}, after {moment:.2f} s: {first}, then {ending}")
        subprocess.run(["umount", "--lazy", disk], check=False)
    return tally
