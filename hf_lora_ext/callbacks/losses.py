"""What a trainer's log tells of losses and evaluations, and which evaluation is that of the adapter it ends with."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Final

__all__ = ["KEPT_STEP", "MOST_POINTS", "evaluation_in", "kept_step", "loss_history", "thinned"]

Log = list[dict[str, Any]]
KEPT_STEP: Final = "overfit/kept_step"
"""Key of the log's row that says of which step the adapter is that a run ends with."""
MOST_POINTS: Final = 500
"""Points of a curve that facts keep, so that `facts.json` does not grow with the steps: 249 stretches of a low and a
high each, and a picture of the curve shows no more."""
_METRIC_NAMES: Final = {"mean_token_accuracy": "token accuracy"}
_NOT_METRICS: Final = (
    *("*_per_second", "runtime", "num_tokens", "entropy", "model_preparation_time", "jit_compilation_time"),
    *("logits/*", "logps/*", "clip_ratio/*", "sampling/*", "frac_reward_zero_std", "*/std", "min_reward", "max_reward"),
    *("completions/min_*", "completions/max_*", "completions/mean_terminated_length"),
)
"""What trainers log of an evaluation beside its metrics: time, and what no reader compares adapters by."""


def loss_history(log: Log, name: str = "loss") -> tuple[dict[str, float], ...]:
    """Return the losses in a trainer's log, one row per step and kind; a repeated row counts once, the later.

    Args:
        log: The log.
        name: `reward` for what learns from rewards, whose loss says nothing.
    """
    rows: dict[tuple[float, str], dict[str, float]] = {}
    for entry in log:
        for key in (name, f"eval_{name}"):
            if key in entry:
                rows[entry["step"], key] = {"step": entry["step"], key: round(float(entry[key]), 6)}
    return tuple(rows[key] for key in sorted(rows))


def thinned(history: Sequence[Mapping[str, float]], most: int = MOST_POINTS) -> tuple[dict[str, float], ...]:
    """Return a history with at most so many points of each curve: what a picture of it shows, and no more.

    A curve that is short enough stays as it is. Of a longer one the first and the last point stay, and of each of
    `most // 2 - 1` stretches between, equally many points long, the lowest and the highest; so do the lowest and the
    highest of all, and a spike of one step. The same points always leave the same ones, so that a resumed run's facts
    are those of one that was not stopped.

    Args:
        history: What `loss_history` returns.
        most: Points of each curve, from 4.

    >>> thinned([{"step": n, "loss": float(n == 7)} for n in range(100)], most=6)[2]
    {'step': 7, 'loss': 1.0}
    """
    curves: dict[str, list[Mapping[str, float]]] = {}
    for row in history:
        curves.setdefault(next(key for key in row if key != "step"), []).append(row)
    kept = (row for key, curve in curves.items() for row in _outline(curve, key, most))
    return tuple(dict(row) for row in sorted(kept, key=lambda row: (row["step"], *sorted(row))))


def _outline(curve: Sequence[Mapping[str, float]], key: str, most: int) -> Sequence[Mapping[str, float]]:
    """Return the points that the outline of one curve needs, in their order."""
    if len(curve) <= most:
        return curve

    def height(index: int) -> float:
        value = curve[index][key]
        return math.inf if math.isnan(value) else value  # so that what broke is kept too

    stretches, inner = most // 2 - 1, len(curve) - 2
    kept = {0, len(curve) - 1}
    for number in range(stretches):
        indices = range(1 + number * inner // stretches, 1 + (number + 1) * inner // stretches)
        kept |= {min(indices, key=height), max(indices, key=height)}
    return [curve[index] for index in sorted(kept)]


def kept_step(log: Log) -> int | None:
    """Return the step of the adapter that was given back at the end of a run, or None where none was."""
    return next((int(entry[KEPT_STEP]) for entry in reversed(log) if KEPT_STEP in entry), None)


def evaluation_in(log: Log, adapter_of: int | None = None, untold: Sequence[str] = ()) -> dict[str, dict[str, float]]:
    """Return the held-out metrics at step 0, where the adapter is still the base, and those of the adapter.

    Args:
        log: The trainer's log.
        adapter_of: Step of the adapter that the run ends with, where it is not the last one.
        untold: Names of what is logged and says nothing of the adapter.
    """
    evaluated = [entry for entry in log if "eval_loss" in entry]
    if not evaluated:
        return {}
    own = [entry for entry in evaluated if entry["step"] == adapter_of] or evaluated
    measured = {"adapter": own[-1]} | ({"base": evaluated[0]} if evaluated[0]["step"] == 0 else {})
    return {who: _metrics(entry, untold) for who, entry in measured.items()}


def _metrics(entry: Mapping[str, Any], untold: Sequence[str]) -> dict[str, float]:
    """Return the metrics in a row of the trainer's log: the loss, and what `compute_metrics` or trl measured."""
    named = {key.removeprefix("eval_"): value for key, value in entry.items() if key.startswith("eval_")}
    return {
        _METRIC_NAMES.get(name, name): round(float(value), 6)
        for name, value in named.items()
        if isinstance(value, (int, float)) and not any(fnmatchcase(name, part) for part in (*_NOT_METRICS, *untold))
    }
