"""Memory that does not grow: many events, and many checkpoints, of one process."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import linear_regression
from typing import Any

import psutil
from calls import Tally
from transformers import PrinterCallback, TrainerCallback

__all__ = ["Growth", "events_stay_flat", "saves_stay_flat"]

MOST_KIB = 8.0
"""KiB of resident memory that one event or save may leave behind, by a line through the second half."""
MOST_FACTS = 400_000
"""Bytes of `facts.json`, however long the run."""


@dataclass(frozen=True, slots=True)
class Growth:
    """Resident memory after each of many repetitions."""

    bytes: tuple[int, ...]

    @property
    def kib_each(self) -> float:
        """KiB that a repetition adds, by least squares over the second half: the first fills caches."""
        half = self.bytes[len(self.bytes) // 2 :]
        return linear_regression(range(len(half)), half).slope / 1024


class _Weighs(TrainerCallback):
    """Takes the process's resident memory whenever something has happened."""

    def __init__(self, happened: Callable[[Any], int]) -> None:
        self.happened, self.seen, self.weights = happened, 0, list[int]()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        count = self.happened(state)
        if count > self.seen:
            self.seen = count
            gc.collect()
            self.weights.append(psutil.Process().memory_info().rss)


def events_stay_flat(model: Path, scratch: Path, count: int, seed: int, say: Callable[[str], None]) -> Tally:
    """Move ranks in `count` events of one run."""
    from adaptive_runs import adapted, build, callback

    watch = callback(target_rank=2, mode="fixed", events=count, probe_steps=8, first=0.01, last=0.99)
    weighs = _Weighs(lambda state: len(watch.state_.history) if hasattr(watch, "state_") else 0)
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        run = build(adapted(model), Path(folder), watch, weighs, max_steps=count * 10, seed=seed, logging_steps=50)
        run.remove_callback(PrinterCallback)
        run.train()
    return _judged("events", Growth(tuple(weighs.weights)), count, say)


def saves_stay_flat(model: Path, scratch: Path, count: int, seed: int, say: Callable[[str], None]) -> Tally:
    """Save `count` checkpoints of one run with facts and adaptive rank; `facts.json` must stay short too."""
    from adaptive_runs import adapted, build, callback

    from hf_lora_ext import FactsCallback

    weighs = _Weighs(lambda state: state.global_step)
    with tempfile.TemporaryDirectory(dir=scratch) as name:
        folder = Path(name)
        run = build(
            adapted(model), folder, callback(), FactsCallback(), weighs, max_steps=count, seed=seed,
            save_strategy="steps", save_steps=1, save_total_limit=1,
        )  # fmt: skip
        run.remove_callback(PrinterCallback)
        run.train()
        facts = (folder / "facts.json").stat().st_size
    tally = _judged("saves", Growth(tuple(weighs.weights)), count, say)
    tally.beside["bytes of facts.json"] = facts
    if facts > MOST_FACTS:
        tally.add("facts grow", f"facts.json has {facts:,} bytes, at most {MOST_FACTS:,} were to be")
    return tally


def _judged(name: str, growth: Growth, wanted: int, say: Callable[[str], None]) -> Tally:
    tally = Tally(name=f"{name} in one process")
    say(f"  {len(growth.bytes)} {name}: {growth.kib_each:+.2f} KiB each")
    tally.beside["bytes that each leaves"] = round(1024 * growth.kib_each)
    if len(growth.bytes) < wanted:
        tally.add("too few", f"{len(growth.bytes)} {name} of {wanted}")
    elif growth.kib_each > MOST_KIB:
        tally.add("grows", f"{growth.kib_each:.2f} KiB of memory with each, at most {MOST_KIB} were to be")
    tally.endings["done"] += len(growth.bytes)
    return tally
