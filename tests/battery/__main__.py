"""The battery: what users, strangers and machines do to this library, seeded and counted.

    python tests/battery
    python tests/battery adapters recipes --count 200 --seed 3
    python tests/battery kills --count 5 --json

Each trial is a number of attempts. `done` and `refused` (exit code 2 and one message) are good ends; anything else is
counted under its name, and the first of each is told. Exit code 1 if there is one. The counts of `make battery` take
about 40 minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent / "benchmarks")]

from calls import Tally  # noqa: E402 - the path comes first
from trials import COUNTS, NEEDS_MOUNT  # noqa: E402


def report(found: list[Tally]) -> str:
    """Return the counts as text, and what went wrong first."""
    width = max(len(tally.name) for tally in found)
    lines = []
    for tally in found:
        ends = ", ".join(f"{count:,} {ending}" for ending, count in sorted(tally.endings.items()))
        lines.append(f"{tally.name:<{width}}  {ends or 'nothing'}")
        lines += [f"  {ending}: {told}" for ending, told in tally.wrong.items()]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Carry out the trials; return 1 if one ended wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trials", nargs="*", metavar="TRIAL", help=f"{', '.join(COUNTS)}; all if none is named")
    parser.add_argument("--count", type=int, help="attempts, in place of the trial's own number")
    parser.add_argument("--seed", type=int, default=0, help="of everything that is drawn")
    parser.add_argument("--scratch", type=Path, help="keep what ended wrong in this folder")
    parser.add_argument("--json", action="store_true", help="print a line of JSON for each count instead")
    options = parser.parse_args(arguments)
    if unknown := set(options.trials) - set(COUNTS):
        parser.error(f"no trial {', '.join(sorted(unknown))}; there are {', '.join(COUNTS)}")
    found: list[Tally] = []
    with tempfile.TemporaryDirectory(prefix="hf-lora-battery-") as name:
        for trial in options.trials or COUNTS:
            folder = (options.scratch or Path(name)) / trial
            folder.mkdir(parents=True)
            found += _in_own_process(trial, folder, options.count or COUNTS[trial], options.seed)
    for tally in found if options.json else []:
        print(json.dumps({"trial": tally.name, "endings": tally.endings, "wrong": tally.wrong}))
    if not options.json:
        print(report(found))
    return int(any(tally.wrong for tally in found))


def _in_own_process(trial: str, folder: Path, count: int, seed: int) -> list[Tally]:
    """Carry out a trial in a process of its own, so that none meets what another has loaded."""
    began = time.monotonic()
    command = [sys.executable, str(HERE / "trials.py"), trial, str(folder), str(count), str(seed)]
    if trial in NEEDS_MOUNT:
        command = ["unshare", "--map-root-user", "--mount", *command]
    caches = {"HF_HOME": "caches/hf", "MPLCONFIGDIR": "caches/mpl", "XDG_CACHE_HOME": "caches/xdg", "TMPDIR": "tmp"}
    for place in caches.values():
        (folder / place).mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        command, env=os.environ | {key: str(folder / place) for key, place in caches.items()},
        stdout=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    print(f"{trial}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    if done.returncode:
        return [Tally(name=trial, wrong={"broke off": f"exit {done.returncode}"})]
    return [
        Tally(name=line["name"], endings=Counter(line["endings"]), wrong=line["wrong"])
        for line in map(json.loads, done.stdout.splitlines())
    ]


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    sys.exit(main())
