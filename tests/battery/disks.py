"""Disks that fill up, or can no longer be written, while a run trains: it says so, and goes on when there is room."""

from __future__ import annotations

import random
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from calls import Tally
from forked import Child, finished, load_libraries, start
from kills import recipe_for, results

__all__ = ["can_mount", "fill_disks", "spoil_disks"]

SMALL, LARGE = "96m", "400m"


def can_mount() -> bool:
    """Return whether this process may mount a file system of its own."""
    return subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True, check=False).returncode == 0


def _mounted(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True)


def _remounted(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


def _fill(folder: Path) -> None:
    """Write until nothing more goes in."""
    with (folder / "filler").open("wb", buffering=0) as stream:
        try:
            while stream.write(b"\0" * 2**16):
                pass
        except OSError:
            pass


def fill_disks(model: Path, scratch: Path, count: int, seed: int, say: Callable[[str], None]) -> Tally:
    """Fill the disk of `count` runs at random moments; then make room, and start each again."""

    def relieve(folder: Path) -> None:
        (folder / "filler").unlink()

    return _spoiled("full disks", _fill, relieve, model, scratch, count, seed, say)


def spoil_disks(model: Path, scratch: Path, count: int, seed: int, say: Callable[[str], None]) -> Tally:
    """Make the disk of `count` runs read-only at random moments; then writable again, and start each again."""

    def protect(folder: Path) -> None:
        # A file system that is being written does not become read-only: the kernel says it is busy.
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            if (
                subprocess.run(["mount", "-o", "remount,ro", str(folder)], capture_output=True, check=False).returncode
                == 0
            ):
                return
            time.sleep(0.01)

    return _spoiled(
        "read-only disks", protect, lambda folder: _remounted(folder, "rw"), model, scratch, count, seed, say
    )


def _spoiled(
    name: str, spoil: Callable[[Path], None], mend: Callable[[Path], None], model: Path, scratch: Path, count: int,
    seed: int, say: Callable[[str], None],
) -> Tally:  # fmt: skip
    load_libraries()
    recipe, draw, tally = recipe_for(model, scratch), random.Random(seed), Tally(name=name)
    began = time.monotonic()
    finished(["train", recipe], scratch / "whole.log")
    seconds, wanted = time.monotonic() - began, results(scratch / "whole")
    for number in range(count):
        disk = scratch / f"disk-{number}"
        disk.mkdir()
        _mounted(disk, f"size={SMALL}")
        command = ["train", recipe, f"output_dir={disk / 'run'}"]
        moment = draw.uniform(0, seconds)
        child = start(command, scratch / f"{name}-{number}.log")
        time.sleep(moment)
        spoil(disk)
        code = child.wait()
        first = _ending(child, code)
        mend(disk)
        again = start(command, scratch / f"{name}-{number}-again.log")
        code = again.wait()
        ending = (
            first
            if first not in ("done", "refused")
            else "done"
            if code == 0 and results(disk / "run") == wanted
            else "not mended"
        )
        tally.add(ending, f"{disk} after {moment:.2f} s: {child.said()[-1500:]} | {again.said()[-1500:]}")
        tally.endings["refused"] += first == "refused"
        say(f"  disk {number}, after {moment:.2f} s: {first}, then {ending}")
        subprocess.run(["umount", "--lazy", str(disk)], check=False)
    return tally


def _ending(child: Child, code: int) -> str:
    said = child.said()
    if code == 0:
        return "done"
    return "refused" if code == 2 and "hf-lora: " in said and "Traceback" not in said else f"exit {code}"
