"""Run the quickstart over several seeds and print its table: `python tests/benchmarks/quickstart_seeds.py`.

Finished seeds are kept under `out/seeds` and not run again. Takes about five minutes a seed on two cores.
"""

import argparse
import statistics
import sys
from dataclasses import replace
from pathlib import Path

from hf_lora_ext import Facts, load_recipe, run_recipe


def row(seed: int, facts: Facts) -> tuple[float, ...]:
    base, adapter = facts.evaluation["base"], facts.evaluation["adapter"]
    return (
        base["loss"],
        adapter["loss"],
        base["loss"] - adapter["loss"],
        base["token accuracy"],
        adapter["token accuracy"],
        facts.run["train_seconds"] / 60,
        facts.run["peak_memory"]["process_gib"],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("out/seeds"))
    options = parser.parse_args()
    recipe = load_recipe("recipes/quickstart.yaml")
    rows = []
    for seed in options.seeds:
        result = run_recipe(
            replace(recipe, seed=seed, output_dir=str(options.out / str(seed))),
            lambda line: print(line, file=sys.stderr),
        )
        rows.append(row(seed, result.facts))
    print("| seed | base loss | adapter loss | fall | base accuracy | adapter accuracy | minutes | peak GiB |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for seed, values in zip(options.seeds, rows, strict=True):
        print(f"| {seed} | " + " | ".join(f"{value:.3f}" for value in values) + " |")
    if len(rows) > 1:
        spread = [
            f"{statistics.mean(column):.3f} ± {statistics.stdev(column):.3f}" for column in zip(*rows, strict=True)
        ]
        print("| mean ± sd | " + " | ".join(spread) + " |")


if __name__ == "__main__":
    main()
