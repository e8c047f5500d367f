"""How much of an adapter is enough: budgets to look at, losses held against the whole adapter's, and the knee. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Estimate", "falling", "find_knee", "geometric_budgets", "loss_a_token"]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with its standard error."""

    mean: float
    """In nats a supervised token."""
    error: float
    """Over examples, which are what was drawn; tokens of one example are not independent. NaN of a single example."""


def loss_a_token(nats: Sequence[float], tokens: Sequence[int]) -> Estimate:
    """Return the loss a token, with the standard error of a ratio of two means over examples.

    With R = Σ nats / Σ tokens it is √(n/(n−1) · Σ (natsᵢ − R·tokensᵢ)²) / Σ tokens (Cochran, Sampling Techniques, third
    edition, equation 6.13 without the finite population's correction). Differences of nats give the paired error.

    >>> loss_a_token([2.0, 4.0], [1, 1])
    Estimate(mean=3.0, error=1.0)

    Args:
        nats: Each example's sum over its supervised tokens, or such a sum's difference from another model's.
        tokens: How many those are.
    """
    count, total = len(nats), sum(tokens)
    mean = math.fsum(nats) / total
    if count < 2:
        return Estimate(mean, math.nan)
    squares = math.fsum((n - mean * t) ** 2 for n, t in zip(nats, tokens, strict=True))
    return Estimate(mean, math.sqrt(count / (count - 1) * squares) / total)


def geometric_budgets(least: int, whole: int, count: int) -> list[int]:
    """Return budgets from the least to the whole at equal ratios, ascending, each once.

    >>> geometric_budgets(1, 1000, 4)
    [1, 10, 100, 1000]
    """
    if whole <= least or count < 2:
        return [whole]
    ratio = (whole / least) ** (1 / (count - 1))
    return sorted({least, whole, *(round(least * ratio**step) for step in range(1, count - 1))})


def falling(values: Sequence[float]) -> list[float]:
    """Return the values that never rise and are nearest to these in squares: isotonic regression.

    Neighbours that rise are pooled into their mean (pool adjacent violators: Barlow and others, Statistical Inference
    under Order Restrictions, 1972, section 1.2).

    >>> falling([3.0, 1.0, 2.0, 0.0])
    [3.0, 1.5, 1.5, 0.0]
    """
    pools: list[tuple[float, int]] = []
    for value in values:
        pools.append((value, 1))
        while len(pools) > 1 and pools[-2][0] < pools[-1][0]:
            (first, many), (second, more) = pools[-2:]
            pools[-2:] = [((first * many + second * more) / (many + more), many + more)]
    return [value for value, many in pools for _ in range(many)]


def find_knee(rises: Sequence[float], error: float) -> int:
    """Return the index of the smallest budget whose loss is within one standard error of the whole adapter's.

    It is the one-standard-error rule (Breiman and others, Classification and Regression Trees, 1984, section 3.4.3).
    A single point decides nothing: before they are compared, rises of the loss are made to fall with the budget
    (`falling`). The error is that of what the whole adapter gains over the base, paired over examples, the same for all
    budgets: each rise's own paired error shrinks as fast as the rise itself, so that against it nearly everything is
    worse than the whole, however little.

    >>> find_knee([0.9, 0.05, 0.0], 0.1)
    1

    Args:
        rises: By ascending budget, how far the loss is above the whole adapter's; the last is the whole itself.
        error: Standard error of the whole adapter's gain, in nats a token.
    """
    fitted = falling(rises)
    return next((index for index, rise in enumerate(fitted) if rise <= error), len(fitted) - 1)
