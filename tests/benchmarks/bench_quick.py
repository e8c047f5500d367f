"""Compare ratios of speed and loss with recorded ones: `python tests/benchmarks/bench_quick.py`.

`make bench-quick` runs this; `make bench-quick PARTS="push speed"` a part of it. What is compared is never seconds but
a ratio of two things that take turns on this machine, mostly in seconds of the processor, so that another machine or
other load changes it little. What has moved is measured once more, and counts if it has moved then too. Ends with 1 and
a line for each: found, recorded, allowed. After a change that is meant to move them, `make bench-quick RECORD=1` writes
`tests/benchmarks/quick_ratios.json` anew, of the groups that were measured.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from bench_ratios import GROUPS, RATIOS, moved, paired_median
from bench_records import markdown

from hf_lora_ext.machine import describe_hardware, software_versions

HERE = Path(__file__).resolve().parent
RECORDED = HERE / "quick_ratios.json"
QUIET = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore",
         "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}  # fmt: skip
"""One thread, so that seconds of the processor are work and not waiting of threads for each other."""


def measured(group: str) -> dict[str, float]:
    """Run a group's probe in a process of its own; return its ratios."""
    began = time.monotonic()
    command = [sys.executable, str(HERE / "quick_probes.py"), group]
    done = subprocess.run(command, env=os.environ | QUIET, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(
            f"{done.stderr}\nthe probe {group} failed with exit code {done.returncode}; its error is above"
        )
    print(f"{group}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    samples: dict[str, list[list[float]]] = json.loads(done.stdout.splitlines()[-1])
    return {name: paired_median(pairs) for name, pairs in samples.items()}


def compared(groups: Sequence[str], recorded: dict[str, float]) -> tuple[dict[str, float], list[str]]:
    """Return all ratios as they were measured last, and what of them has moved twice."""
    found: dict[str, float] = {}
    told: list[str] = []
    for group in groups:
        ratios = {name: ratio for name, ratio in RATIOS.items() if ratio.group == group}
        found |= measured(group)
        if first := moved(found, recorded, ratios):
            print(f"{group} is measured once more: {'; '.join(map(str, first))}", file=sys.stderr, flush=True)
            found |= measured(group)
            twice = {one.name for one in first}
            told += [str(one) for one in moved(found, recorded, ratios) if one.name in twice]
    return found, told


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, then compare or record; return 1 if something has moved."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"{', '.join(GROUPS)}; all if none is named")
    parser.add_argument("--record", action="store_true", help="write what is found as what is to be expected")
    options = parser.parse_args(arguments)
    if unknown := set(options.groups) - set(GROUPS):
        parser.error(f"no group {', '.join(sorted(unknown))}; there are {', '.join(GROUPS)}")
    groups = options.groups or GROUPS
    kept: dict[str, float] = json.loads(RECORDED.read_text(encoding="utf8"))["ratios"] if RECORDED.is_file() else {}
    if options.record:
        for group in groups:
            kept |= measured(group)
        record(kept)
        return 0
    found, told = compared(groups, kept)
    rows = [[name, f"{value:.3g}", f"{kept.get(name, float('nan')):.3g}", f"{RATIOS[name].factor:g}"]
            for name, value in found.items()]  # fmt: skip
    print(markdown(["ratio", "found", "recorded", "may change by a factor of"], rows))
    if told:
        print("\nmoved, in two measurements:\n" + "\n".join(told), file=sys.stderr)
    return int(bool(told))


def record(ratios: dict[str, float]) -> None:
    """Write the ratios that are declared, with the machine and versions of the last writing."""
    text = json.dumps({
        "machine": describe_hardware(), "versions": software_versions(),
        "ratios": {name: float(f"{ratios[name]:.4g}") for name in RATIOS if name in ratios},
    }, indent=1)  # fmt: skip
    RECORDED.write_text(text + "\n", encoding="utf8")


if __name__ == "__main__":
    sys.exit(main())
