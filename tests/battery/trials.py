"""The trials of the battery, by name; each one alone in a process prints its counts as lines of JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent / "benchmarks")]

from calls import Tally  # noqa: E402 - the path comes first

__all__ = ["COUNTS", "NEEDS_MOUNT", "tallies"]

Say = Callable[[str], None]
COUNTS: Final = {
    "recipes": 5000,
    "adapters": 2000,
    "kills": 50,
    "races": 10,
    "full-disks": 20,
    "read-only-disks": 10,
    "events": 200,
    "saves": 1000,
    "templates": 0,
    "names": 0,
    "pickles": 0,
    "faults": 0,
}
"""Trial → attempts; 0 where their number is given by what there is."""
NEEDS_MOUNT: Final = {"full-disks", "read-only-disks"}
IN_FORKS: Final = {"kills", "races", "pickles", *NEEDS_MOUNT}
"""Trials of whole runs, each forked from a process that has loaded the libraries and computed nothing."""


def tallies(trial: str, scratch: Path, count: int, seed: int, say: Say) -> list[Tally]:
    """Carry out one trial in a folder of its own."""
    if trial in IN_FORKS:
        return [_in_forks(trial, scratch, count, seed, say)]
    caches = [scratch / "caches", scratch / "tmp"]
    match trial:
        case "recipes":
            from mutated_recipes import mutate_recipes

            return mutate_recipes(_base(scratch), scratch / "files", count, seed, caches)
        case "adapters":
            from mutated_adapters import mutate_adapters

            with _hub_beside(scratch / "hub"):
                return mutate_adapters(_pristine(scratch), scratch / "cases", count, seed, caches)
        case "templates":
            from strangers import plant_templates

            return [plant_templates(_pristine(scratch), scratch)]
        case "names":
            from git_hub import git_hub_on_loopback
            from push_runs import pushing_to
            from strangers import plant_names

            with git_hub_on_loopback(scratch / "hub") as hub, pushing_to(hub):
                return [plant_names(_pristine(scratch), hub)]
        case "faults":
            from push_faults import strike_pushes
            from push_runs import saved_adapter

            return [strike_pushes(saved_adapter(scratch / "adapter", _base(scratch)), scratch, count, seed, say)]
    import flat

    measure = flat.events_stay_flat if trial == "events" else flat.saves_stay_flat
    return [measure(_base(scratch), scratch, count, seed, say)]


def _in_forks(trial: str, scratch: Path, count: int, seed: int, say: Say) -> Tally:
    base = scratch / "base"
    _in_a_child(lambda: _base(scratch))
    if trial == "pickles":
        from strangers import plant_pickles

        return plant_pickles(base, scratch, say)
    if trial in NEEDS_MOUNT:
        import disks

        if not disks.can_mount(scratch):
            return Tally(name=f"{trial}: not tried, no file system may be mounted here")
        return (disks.fill_disks if trial == "full-disks" else disks.protect_disks)(base, scratch, count, seed, say)
    from kills import kill_runs, race_runs

    return (kill_runs if trial == "kills" else race_runs)(base, scratch, count, seed, say)


@contextmanager
def _hub_beside(root: Path) -> Iterator[None]:
    """Be met by a Hub in a process of its own, for what is watched here must not see what it writes."""
    from git_hub_access import WRITE_TOKEN

    command = [sys.executable, str(HERE.parent / "git_hub.py"), "--port", "0", "--root", str(root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as hub:
        assert hub.stdout
        os.environ |= {"HF_ENDPOINT": hub.stdout.readline().split()[-1], "HF_TOKEN": WRITE_TOKEN}
        try:
            yield
        finally:
            hub.terminate()


def _in_a_child(act: Callable[[], object]) -> None:
    """Act in a process that ends: one that has computed has threads, and must not be forked."""
    if pid := os.fork():
        if os.waitpid(pid, 0)[1]:
            raise RuntimeError("what the trial needs could not be made")
        return
    code = 1
    try:
        act()
        code = 0
    finally:
        os._exit(code)


def _base(scratch: Path) -> Path:
    """Save the small base."""
    from cards import small_base

    folder: Path = small_base(scratch / "base")
    return folder


def _pristine(scratch: Path) -> Path:
    """Save an adapter of the small base with facts and card."""
    import matplotlib.font_manager  # noqa: F401 - builds its cache
    from mutated_adapters import explained
    from push_runs import saved_adapter

    return explained(saved_adapter(scratch / "pristine", _base(scratch)))


def _print(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main(trial: str, folder: str, count: str, seed: str) -> None:
    """Carry out one trial and print what it counted."""
    for tally in tallies(trial, Path(folder), int(count), int(seed), _print):
        print(json.dumps(vars(tally)), flush=True)  # asdict would count a Counter's pairs


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(*sys.argv[1:])
