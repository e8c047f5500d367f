"""Means with their intervals, and differences between methods paired by seed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over seeds and half the width of its 95 % interval, by Student's t."""

    mean: float
    half_width: float
    """Infinite for a single seed."""
    count: int

    @property
    def verdict(self) -> str:
        """What a difference says where lower is better."""
        if math.isinf(self.half_width):
            return "one seed"
        if abs(self.mean) <= self.half_width:
            return "tie"
        return "better" if self.mean < 0 else "worse"


def estimate(values: Sequence[float]) -> Estimate:
    """Return the mean of values and its interval.

    Raises:
        statistics.StatisticsError: If there is no value.
    """
    mean, count = statistics.mean(values), len(values)
    if count < 2:
        return Estimate(mean, math.inf, count)
    return Estimate(mean, t_quantile(count - 1) * statistics.stdev(values) / math.sqrt(count), count)


def paired(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Estimate | None:
    """Return the mean of ours minus theirs over the seeds that both have; None if they share none."""
    shared = sorted(ours.keys() & theirs.keys())
    return estimate([ours[seed] - theirs[seed] for seed in shared]) if shared else None


def t_quantile(freedom: int, confidence: float = CONFIDENCE) -> float:
    """Return t such that Student's distribution has `confidence` between -t and t.

    >>> round(t_quantile(4), 3)
    2.776
    """
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        if _within(middle, freedom) < confidence:
            low = middle
        else:
            high = middle
    return math.sqrt(freedom) * math.tan(low)


def _within(angle: float, freedom: int, cells: int = 400) -> float:
    """Return the mass within ±t for t = √n·tan(angle): the density is then ∝ cos(angle)^(n - 1); Simpson's rule."""
    constant = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(math.pi)
    step = angle / cells
    weights = (1 if i in (0, cells) else 4 if i % 2 else 2 for i in range(cells + 1))
    return 2 * constant * step / 3 * sum(w * math.cos(i * step) ** (freedom - 1) for i, w in enumerate(weights))
