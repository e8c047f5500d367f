"""The trials of the battery, by name; each one alone in a process prints its counts as lines of JSON."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent / "benchmarks")]

from calls import Tally  # noqa: E402 - the path comes first

__all__ = ["COUNTS", "NEEDS_MOUNT", "tallies"]

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


def tallies(trial: str, scratch: Path, count: int, seed: int, say: Callable[[str], None]) -> list[Tally]:
    """Carry out one trial in a folder of its own."""
    base = scratch / "base"
    caches = [scratch / "caches", scratch / "tmp"]
    match trial:
        case "recipes":
            from mutated_recipes import mutate_recipes

            (scratch / "files").mkdir()
            return mutate_recipes(scratch / "files", count, seed, caches)
        case "adapters":
            from git_hub import git_hub_on_loopback
            from mutated_adapters import mutate_adapters

            with git_hub_on_loopback(scratch / "hub"):
                return mutate_adapters(_pristine(scratch), scratch / "cases", count, seed, caches)
        case "templates" | "names":
            import strangers

            planted = strangers.plant_templates if trial == "templates" else strangers.plant_names
            return [planted(_pristine(scratch), scratch, say)]
        case "faults":
            return [_faults()]
        case "events" | "saves":
            import flat

            _base_in_a_child(base)
            return [
                (flat.events_stay_flat if trial == "events" else flat.saves_stay_flat)(base, scratch, count, seed, say)
            ]
    _base_in_a_child(base)
    if trial in NEEDS_MOUNT:
        import disks

        if not disks.can_mount():
            return [Tally(name=f"{trial}: not tried, no file system may be mounted here")]
        return [(disks.fill_disks if trial == "full-disks" else disks.spoil_disks)(base, scratch, count, seed, say)]
    if trial == "pickles":
        from strangers import plant_pickles

        return [plant_pickles(base, scratch, say)]
    from kills import kill_runs, race_runs

    return [(kill_runs if trial == "kills" else race_runs)(base, scratch, count, seed, say)]


def _base_in_a_child(folder: Path) -> None:
    """Save the small base in a process that ends: one that has computed must not be forked."""
    if pid := os.fork():
        if os.waitpid(pid, 0)[1]:
            raise RuntimeError("the small base could not be saved")
        return
    from cards import small_base

    small_base(folder)
    os._exit(0)


def _pristine(scratch: Path) -> Path:
    """Save an adapter with the facts and card of the shipped example."""
    import matplotlib.font_manager  # noqa: F401 - builds its cache
    from cards import small_base
    from push_runs import saved_adapter

    adapter: Path = saved_adapter(scratch / "pristine", small_base(scratch / "base"))
    for name in ("facts.json", "README.md"):
        shutil.copy(HERE.parent.parent / "model_cards" / "quickstart" / name, adapter)
    return adapter


def _faults() -> Tally:
    """Run the push's fault matrix, which counts for itself."""
    tally = Tally(name="push faults")
    done = subprocess.run(
        [sys.executable, str(HERE.parent / "benchmarks" / "fault_matrix.py")],
        capture_output=True,
        text=True,
        check=False,
    )
    told = done.stdout.strip().splitlines()
    tally.add("done" if done.returncode == 0 else "wrong", "\n".join(told[-3:] or [done.stderr]))
    return tally


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    trial, folder, count, seed = sys.argv[1:]
    for tally in tallies(
        trial, Path(folder), int(count), int(seed), lambda line: print(line, file=sys.stderr, flush=True)
    ):
        print(json.dumps({"name": tally.name, "endings": tally.endings, "wrong": tally.wrong}), flush=True)
