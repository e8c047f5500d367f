"""Cells of the rank benchmark: run once, kept as a file, tuned on seeds of their own."""

from __future__ import annotations

import json
import math
import random
import statistics
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from rank_keys import cell_key
from rank_methods import METHODS
from rank_tasks import Sizes, Task, layer_costs
from rank_training import Cell, Job, Trained

Result = dict[str, Any]
"""What a cell gave, as it lies in its file; `error` instead of `value` where it failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """What the benchmark runs."""

    methods: Sequence[str]
    budgets: Sequence[int]
    """In parameters."""
    seeds: Sequence[int]
    tune_seeds: Sequence[int]
    learning_rates: Sequence[float]
    scale: float
    adalora_scales: Sequence[float]
    """Tried for AdaLoRA beside the learning rates, since its scale is divided by another rank."""
    also: Sequence[tuple[str, int]] = ()
    """Further methods, each at a budget of its own."""
    share_rates: bool = False
    """Whether a variant of a method takes that method's learning rate instead of being tuned."""

    @property
    def pairs(self) -> list[tuple[str, int]]:
        """Every method with every budget, and the further ones."""
        return [*self.also, *((method, budget) for budget in self.budgets for method in self.methods)]


@dataclass(slots=True)
class Bench:
    """Runs the cells of one task, each at most once."""

    task: Task
    sizes: Sizes
    out: Path
    retry: bool = False
    """Whether cells that failed before are run again."""
    seen: dict[str, Result] = field(default_factory=dict)

    def result(self, cell: Cell) -> Result:
        """Return a cell's result, from its file if it was run before."""
        key = cell_key(cell, self.task, self.sizes, METHODS[cell.method].modules)
        if key in self.seen:
            return self.seen[key]
        file = self.out / "cells" / f"{cell.method}-{cell.budget}-{cell.seed}-{cell.learning_rate:g}-{key}.json"
        found = json.loads(file.read_text(encoding="utf8")) if file.is_file() else None
        if found is None or (self.retry and "error" in found):
            found = {"key": key} | self._run(cell)
            write_whole(file, json.dumps(found, indent=1))
        self.seen[key] = found
        return found

    def _run(self, cell: Cell) -> Result:
        say(f"{cell.method}, {cell.budget:,} parameters, seed {cell.seed}, rate {cell.learning_rate:g} …")
        try:
            job = Job(cell, self.task, self.sizes, self.out / "shared")
            told = measured(job, METHODS[cell.method].run(job))
        except Exception as problem:  # a method that fails is a result, and the others go on
            error = f"{type(problem).__name__}: {problem}"
            say(f"    failed: {error}")
            return {"cell": asdict(cell), "error": error, "traceback": traceback.format_exc()}
        say(f"    {told['value']:.4f}, {told['parameters']:,} parameters, {told['seconds']:.0f} s")
        if not math.isfinite(told["value"]):
            return {"cell": asdict(cell), "error": f"diverged: {told['value']}"}
        return {"cell": asdict(cell)} | told

    def tuned(self, method: str, budget: int, choices: Choices) -> tuple[float, float]:
        """Return the learning rate and scale of the lowest mean over the tuning seeds.

        A pair that fails on a seed comes last; if all do, the first is returned, and its cells will say why.
        """
        original = METHODS[method].variant_of
        if original and choices.share_rates:
            return self.tuned(original, budget, choices)
        tried = combinations(method, choices)
        if len(tried) == 1:
            return tried[0]
        return min(tried, key=lambda pair: self._mean(method, budget, pair, choices))

    def _mean(self, method: str, budget: int, pair: tuple[float, float], choices: Choices) -> float:
        found = [self.of(method, budget, seed, pair, choices) for seed in choices.tune_seeds]
        return math.inf if any("error" in one for one in found) else statistics.mean(one["value"] for one in found)

    def of(self, method: str, budget: int, seed: int, pair: tuple[float, float], choices: Choices) -> Result:
        """Return the result of a method at a rate and scale, after that of the method that it needs."""
        given, needs = None, METHODS[method].needs
        if needs:
            source = self.of(needs, budget, seed, self.tuned(needs, budget, choices), choices)
            if "error" in source:
                return source
            given = source["ranks"]
        cell = Cell(method=method, seed=seed, budget=budget, learning_rate=pair[0], scale=pair[1], given=given)
        return self.result(cell)


def combinations(method: str, choices: Choices) -> list[tuple[float, float]]:
    """Return the pairs of learning rate and scale to try."""
    scales = choices.adalora_scales if method == "adalora" else [choices.scale]
    return [(rate, scale) for rate in choices.learning_rates for scale in scales]


def measured(job: Job, trained: Trained) -> Result:
    """Return all that is reported of a cell."""
    began = time.perf_counter()
    told: Result = dict(job.prepared.measure(trained.model))
    parameters = sum(rank * job.costs[name] for name, rank in trained.ranks.items())
    tokens = job.prepared.supervised_tokens
    told |= {
        "parameters": parameters, "peak_parameters": trained.peak, "mean_parameters": round(trained.mean),
        "max_rank": max(trained.ranks.values()), "ranks": trained.ranks, "supervised_tokens": tokens,
        "binds": binds(parameters, tokens), "seconds": round(trained.seconds, 1),
        "extra_seconds": round(trained.extra_seconds, 1), "measure_seconds": round(time.perf_counter() - began, 1),
        "threads": torch.get_num_threads(),
    }  # fmt: skip
    if job.prepared.true_ranks is not None:
        told["correlation"] = rank_correlation(trained.ranks, job.prepared.true_ranks)
    return told


def binds(parameters: int, supervised_tokens: int) -> bool:
    """Return whether the budget can be what limits the result.

    An adapter holds about 2 bits a parameter, and a token gives about 1 bit at most (Schulman and Thinking Machines
    Lab, "LoRA Without Regret", 2025): below that many tokens every rank holds what there is to learn.
    """
    return 2 * parameters <= supervised_tokens


def rank_correlation(found: dict[str, int], true: dict[str, int]) -> float | None:
    """Return Spearman's correlation over layers, ties at their mean place; None where all ranks are the same."""
    one, other = ([ranks[name] for name in true] for ranks in (found, true))
    if len(set(one)) < 2 or len(set(other)) < 2:
        return None
    return round(statistics.correlation(places(one), places(other)), 3)


def places(values: list[int]) -> list[float]:
    """Return each value's place in order; equal values share the mean of theirs."""
    ordered = sorted(values)
    return [ordered.index(value) + (ordered.count(value) - 1) / 2 for value in values]


def budgets_in_parameters(texts: Sequence[str], task: Task, seed: int) -> list[int]:
    """Return budgets given as uniform ranks (`2`, `1.2`) or as parameters (`10445p`)."""
    costs = layer_costs(task.prepare(seed, Sizes(steps=1, batch=1)).base, task.targets)
    return [int(text[:-1]) if text.endswith("p") else round(float(text) * sum(costs.values())) for text in texts]


def write_whole(file: Path, text: str) -> None:
    """Write a file, whole or not at all; two runs may share a folder."""
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_suffix(f".{random.SystemRandom().randrange(10**9)}")
    draft.write_text(text, encoding="utf8")
    draft.replace(file)


def say(line: str) -> None:
    """Tell how far the benchmark is."""
    print(line, file=sys.stderr, flush=True)
