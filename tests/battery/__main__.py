"""The battery: what users, strangers and machines do to this library, seeded and counted.

    python tests/battery
    python tests/battery adapters recipes --count 200 --seed 3
    python tests/battery kills --count 5 --out build/battery

Each trial is a number of attempts. `done` and `refused` (exit code 2 and one message) are good ends; anything else is
wrong, counted under its name, and the first of each is told. Exit code 1 if there is one. With `--out` each trial
leaves its counts there as JSON with seed and versions, and the table is of all that lie there, so that a battery can
be carried out in parts. The disks' trials need a kernel that gives this user a mount namespace; they say so if not.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent / "benchmarks"), str(HERE.parents[1])]

from trials import COUNTS, NEEDS_MOUNT  # noqa: E402 - the path comes first

from hf_lora_ext.machine import software_versions  # noqa: E402

MEETS_A_HUB: Final = {"adapters", "names", "faults"}
"""Trials that meet the tests' stand-in of the Hub; the others are offline."""


def table(results: Sequence[dict[str, Any]]) -> str:
    """Return what trials found as a Markdown table, and below it what went wrong first.

    Args:
        results: What each trial leaves in `--out`.
    """
    lines = ["| trial | attempts | done | refused | wrong | beside | seed |", "|---|---:|---:|---:|---:|---|---:|"]
    told = []
    for result in results:
        for tally in result["tallies"]:
            good = [tally["endings"].get(ending, 0) for ending in ("done", "refused")]
            attempts = sum(tally["endings"].values())
            beside = ", ".join(f"{number:,} {what}" for what, number in tally["beside"].items())
            counts = " | ".join(f"{number:,}" for number in (attempts, *good, attempts - sum(good)))
            lines.append(f"| {tally['name']} | {counts} | {beside} | {result['seed']} |")
            told += [f"{tally['name']}: {ending}: {first}" for ending, first in tally["wrong"].items()]
    return "\n".join([*lines, *([""] if told else []), *told])


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out the trials; return 1 if one ended wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trials", nargs="*", metavar="TRIAL", help=f"{', '.join(COUNTS)}; all if none is named")
    parser.add_argument("--count", type=int, help="attempts, in place of the trial's own number")
    parser.add_argument("--seed", type=int, default=0, help="of everything that is drawn")
    parser.add_argument("--out", type=Path, help="folder for the counts as JSON, a file a trial")
    parser.add_argument("--scratch", type=Path, help="keep what ended wrong in this folder")
    options = parser.parse_args(arguments)
    if unknown := set(options.trials) - set(COUNTS):
        parser.error(f"no trial {', '.join(sorted(unknown))}; there are {', '.join(COUNTS)}")
    results = {}
    with tempfile.TemporaryDirectory(prefix="hf-lora-battery-") as name:
        for trial in options.trials or COUNTS:
            folder = (options.scratch or Path(name)) / trial
            count = COUNTS[trial] if options.count is None else options.count
            results[trial] = _result(trial, folder.absolute(), count, options.seed)
            if options.out is not None:
                options.out.mkdir(parents=True, exist_ok=True)
                text = json.dumps(results[trial], indent=1, ensure_ascii=True)
                (options.out / f"{trial}.json").write_text(text + "\n", encoding="utf8")
    if options.out is not None:
        results = {trial: json.loads(file.read_bytes()) for trial in COUNTS
                   if (file := options.out / f"{trial}.json").is_file()}  # fmt: skip
    print(table([*results.values()]))
    return int(any(tally["wrong"] for result in results.values() for tally in result["tallies"]))


def _result(trial: str, folder: Path, count: int, seed: int) -> dict[str, Any]:
    """Carry out a trial in a process and with caches of its own, so that none meets what another has loaded."""
    began = time.monotonic()
    command = [sys.executable, str(HERE / "trials.py"), trial, str(folder), str(count), str(seed)]
    if trial in NEEDS_MOUNT:
        command = ["unshare", "--map-root-user", "--mount", *command]
    done = subprocess.run(command, env=_environment(trial, folder), stdout=subprocess.PIPE, text=True, check=False)
    tallies = [json.loads(line) for line in done.stdout.splitlines()]
    if done.returncode:
        wrong = {"broke off": f"exit {done.returncode}"}
        tallies.append({"name": trial, "endings": {"broke off": 1}, "wrong": wrong, "beside": {}})
    seconds = round(time.monotonic() - began)
    print(f"{trial}: {seconds} s", file=sys.stderr, flush=True)
    return {"trial": trial, "count": count, "seed": seed, "seconds": seconds, "versions": software_versions(),
            "tallies": tallies}  # fmt: skip


def _environment(trial: str, folder: Path) -> dict[str, str]:
    """Return the environment of a trial, whose caches and temporary files lie in its own folder."""
    places = {"HF_HOME": "caches/hf", "MPLCONFIGDIR": "caches/mpl", "XDG_CACHE_HOME": "caches/xdg", "TMPDIR": "tmp"}
    for place in places.values():
        (folder / place).mkdir(parents=True, exist_ok=True)
    own = {variable: str(folder / place) for variable, place in places.items()}
    packages = [str(HERE.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    own["PYTHONPATH"] = os.pathsep.join(packages)
    return os.environ | own | ({} if trial in MEETS_A_HUB else {"HF_HUB_OFFLINE": "1"})


if __name__ == "__main__":
    sys.exit(main())
