"""When a run overfits: the training loss falls while the held-out loss rises beyond its noise. Pure.

The rule compares the last few evaluations with the best few before them, so that no single one decides (patience as
in Prechelt, "Early Stopping - But When?", 1998, whose criteria watch strips of several epochs). The rise must be
larger than the noise of the losses, which their second differences tell: a trend cancels in them (Gasser, Sroka and
Jennen-Steinmetz, "Residual variance and residual pattern in nonlinear regression", 1986). Departures: the strips are
evaluations, the noise is taken by the median, so that the steep beginning of a run counts little, and no relative
threshold is needed, so that neither the unit nor the level of the loss matters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Final

__all__ = ["PATIENCE", "Overfitting", "find_overfitting", "noise_of"]

PATIENCE: Final = 3
"""Evaluations that are taken together; two of such groups must be there before anything is said."""
NOISE_FACTOR: Final = 4.0
"""Standard errors by which the held-out loss must have risen: the best of many groups is lucky, so that fewer would
be passed by a level loss with noise (`test_overfitting` counts how often)."""
_NORMAL_MEDIAN: Final = 0.6745
"""Median of a standard normal's absolute value."""
_ROUNDING: Final = 1e-6
"""Share of a loss that float32 may round away, and so no rise."""

Row = Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Overfitting:
    """A rise of the held-out loss while the training loss fell."""

    since_step: int
    """Step of the lowest held-out loss."""
    held_out: tuple[float, float]
    """Mean held-out loss of the best group of evaluations, and of the last one."""
    training: tuple[float, float]
    """Mean training loss of the same steps."""
    noise: float
    """Standard error of the rise, by the noise of the held-out losses."""

    def __str__(self) -> str:
        (best, last), (before, now) = self.held_out, self.training
        return (
            f"held-out loss rose from {best:.3f} to {last:.3f} (noise {self.noise:.3f}) while the training loss fell "
            f"from {before:.3f} to {now:.3f}; the lowest held-out loss was at step {self.since_step}"
        )


def find_overfitting(history: Sequence[Row], patience: int = PATIENCE) -> Overfitting | None:
    """Return the overfitting that a run's losses show at their last evaluation, or None.

    >>> held_out = [1.0, 0.9, 0.8, 0.9, 1.0, 1.1]
    >>> rows = [{"step": n, "loss": 1 - n / 10, "eval_loss": loss} for n, loss in enumerate(held_out, start=1)]
    >>> find_overfitting(rows, patience=2).since_step
    3

    Args:
        history: Rows of `step` with `loss` (training) or `eval_loss` (held out), by step; a loss that is not finite
            does not count.
        patience: Evaluations that are taken together.
    """
    evaluated = _finite(history, "eval_loss")
    if len(evaluated) < 2 * patience:
        return None
    steps, losses = [step for step, _ in evaluated], [loss for _, loss in evaluated]
    means = [fmean(losses[first : first + patience]) for first in range(len(losses) - patience + 1)]
    last = len(means) - 1
    best = min(range(last - patience + 1), key=means.__getitem__)
    error = noise_of(losses) * math.sqrt(2 / patience)
    if means[last] - means[best] <= max(NOISE_FACTOR * error, _ROUNDING * max(map(abs, losses))):
        return None
    ends = [-math.inf, *steps]  # a group begins after the evaluation before it
    before, now = (
        _mean_within(history, ends[first], steps[first + patience - 1]) for first in (best, last)
    )  # fmt: skip
    if before is None or now is None or now >= before:
        return None
    return Overfitting(
        since_step=int(steps[min(range(len(losses)), key=losses.__getitem__)]),
        held_out=(means[best], means[last]),
        training=(before, now),
        noise=error,
    )


def noise_of(losses: Sequence[float]) -> float:
    """Return the standard deviation of the losses around their trend, from the size of their second differences."""
    bends = [abs(a - 2 * b + c) for a, b, c in zip(losses, losses[1:], losses[2:], strict=False)]
    return median(bends) / (_NORMAL_MEDIAN * math.sqrt(6)) if bends else 0.0


def _finite(history: Sequence[Row], key: str) -> list[tuple[float, float]]:
    return [(row["step"], row[key]) for row in history if key in row and math.isfinite(row[key])]


def _mean_within(history: Sequence[Row], after: float, until: float) -> float | None:
    """Return the mean training loss logged in some steps; None where none was."""
    seen = [loss for step, loss in _finite(history, "loss") if after < step <= until]
    return fmean(seen) if seen else None
