"""Print how long an import, a preset and `hf-lora plan` take: `python tests/benchmarks/plan_time.py`.

Beside them are a bare Python, `import peft` and `accelerate estimate-memory`. Each is a process of its own, from start
to end, and they take turns, so that what else the machine does hits all alike. `hf-lora plan FOLDER` and accelerate
read the same folder with a config.json; accelerate's question to the Hub is answered in the process, which is in its
favour. `--runs 9` sets how often.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from bench_records import markdown

from hf_lora_ext.models.popular_models import popular_config

BARE = "python -c pass"
MODEL = "meta-llama/Llama-3.1-8B"
ACCELERATE = """
import json, sys, types
from accelerate.commands import estimate
config = json.load(open(sys.argv[1] + "/config.json"))
estimate.verify_on_hub = lambda *_: types.SimpleNamespace(library_name="transformers", config=config)
estimate.main()
"""


def commands(folder: str) -> dict[str, list[str]]:
    """Return what is timed, by name."""
    plan = [sys.executable, "-m", "hf_lora_ext.cli", "plan"]
    return {
        BARE: [sys.executable, "-c", "pass"],
        "import hf_lora_ext": [sys.executable, "-c", "import hf_lora_ext"],
        'preset("7B")': [sys.executable, "-c", "from hf_lora_ext import preset; preset('7B')"],
        "import peft": [sys.executable, "-c", "import peft"],
        "hf-lora plan 7B": [*plan, "7B", "--gpu", "24"],
        f"hf-lora plan {MODEL}": [*plan, MODEL, "--gpu", "24"],
        "hf-lora plan FOLDER": [*plan, folder, "--gpu", "24"],
        "accelerate estimate-memory FOLDER": [sys.executable, "-c", ACCELERATE, folder],
    }


def seconds(command: list[str]) -> tuple[float, float]:
    """Return how long a process takes by the clock, and of the processor, which a busy machine hardly changes."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    taken, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{' '.join(command[:4])} failed: {done.stderr.strip().splitlines()[-1]}")
    return taken, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Print median and range of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7, help="how often each is timed (default: 7)")
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(dict(popular_config(MODEL) or {})), encoding="utf8")
        timed = commands(folder)
        for command in timed.values():
            seconds(command)  # writes bytecode, warms the disk
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in timed}
        for _ in range(runs):
            for name, command in timed.items():
                taken[name].append(seconds(command))
    print(f"{runs} runs each, in turns; load of the machine {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    print(f"\n{times_table(taken)}")


def times_table(taken: dict[str, list[tuple[float, float]]]) -> str:
    """Return medians, and the processor's as a multiple of a bare Python's, paired by turn."""
    rows = []
    for name, pairs in taken.items():
        clock, processor = zip(*pairs, strict=True)
        ratio = median(mine / bare for mine, (_, bare) in zip(processor, taken[BARE], strict=True))
        rows.append([name, f"{median(clock):.2f}", f"{min(clock):.2f}", f"{max(clock):.2f}",
                     f"{median(processor):.3f}", f"{ratio:.1f}"])  # fmt: skip
    return markdown(["what", "median s", "lowest", "highest", "s of the processor", "x python"], rows)


if __name__ == "__main__":
    main()
