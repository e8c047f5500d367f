"""Whether two models differ, or the examples happened to suit one of them: the paired bootstrap. Pure.

From the examples as many are drawn again, with replacement, and both models' metrics are computed on the same draw; the
spread of their difference over many draws is the spread that other examples of the kind would give (Koehn, Statistical
Significance Tests for Machine Translation Evaluation, EMNLP 2004). The interval is the percentile one (Efron and
Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13): it is a little too narrow on few examples.

Examples are drawn, never tokens: tokens of one example are not independent. A metric over tokens weighs each drawn
example by its tokens, which is the metric's own definition on the draw.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from ..cards.comparisons import METRICS, Difference, Measured

__all__ = ["LEVEL", "RESAMPLES", "Score", "compare", "paired_bootstrap", "resampled"]

RESAMPLES: Final = 1000
"""As many as Koehn draws."""
LEVEL: Final = 0.95
Statistic = Callable[[Sequence[int]], float]
"""Indices of examples, some of them several times → a metric's value on those."""


@dataclass(frozen=True, slots=True)
class Score:
    """A metric of one model."""

    statistic: Statistic
    """Its value on any draw."""
    examples: int
    """Examples that there are to draw from."""


def resampled(examples: int, resamples: int, seed: int) -> Iterator[list[int]]:
    """Yield draws of as many indices as there are examples, with replacement; the same for the same seed.

    >>> [sorted(draw) for draw in resampled(3, 2, seed=0)]
    [[1, 2, 2], [0, 1, 1]]
    """
    drawn = random.Random(seed)
    everyone = range(examples)
    for _ in range(resamples):
        yield drawn.choices(everyone, k=examples)


def paired_bootstrap(
    pairs: Mapping[str, tuple[Statistic, Statistic]],
    examples: int,
    *,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> dict[str, Difference]:
    """Return how far the second of each pair is above the first, with an interval; all on the same draws.

    Args:
        pairs: Name → the two models' values on a draw.
        examples: How many there are; at least 2.
        resamples: Draws.
        level: Share of the draws' differences that the interval holds.
        seed: Of the draws.

    Raises:
        ValueError: If there are fewer than 2 examples, or so few draws that no end can be cut off.

    Example::

        >>> one, other = [3.0, 2.0, 4.0, 3.0], [2.5, 1.0, 3.5, 2.0]
        >>> mean = lambda nats: lambda drawn: sum(nats[i] for i in drawn) / len(drawn)
        >>> paired_bootstrap({"loss": (mean(one), mean(other))}, 4)["loss"]
        Difference(value=-0.75, low=-1.0, high=-0.5)
    """
    cut = round((1 - level) / 2 * resamples)
    if examples < 2 or not 1 <= cut < resamples / 2:
        raise ValueError(f"{examples} examples and {resamples} resamples give no interval; needed 2 and 1000, say")
    differences: dict[str, list[float]] = {name: [] for name in pairs}
    for drawn in resampled(examples, resamples, seed):
        for name, (first, second) in pairs.items():
            differences[name].append(second(drawn) - first(drawn))
    whole, found = range(examples), {}
    for name, (first, second) in pairs.items():
        ordered = sorted(differences[name])
        value = second(whole) - first(whole)
        found[name] = Difference(value=value, low=ordered[cut], high=ordered[-1 - cut])
    return found


def compare(
    base: Mapping[str, Score],
    adapter: Mapping[str, Score],
    full: Mapping[str, Score] | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[Measured, ...]:
    """Return each metric of the models with its differences, in the order of `METRICS`.

    Args:
        base: Metric → the base's.
        adapter: The same metrics of the adapted model, on the same examples.
        full: The same of a model whose weights all trained, if there is one.
        resamples: Draws behind each interval.
        seed: Of the draws.
    """
    found = {}
    for examples in sorted({score.examples for score in adapter.values()}):
        names = [name for name in adapter if adapter[name].examples == examples]
        pairs = {name: (base[name].statistic, adapter[name].statistic) for name in names}
        if full is not None:
            pairs |= {f"{name} beside": (full[name].statistic, adapter[name].statistic) for name in names}
        differences = paired_bootstrap(pairs, examples, resamples=resamples, seed=seed)
        whole = range(examples)
        for name in names:
            found[name] = Measured(
                metric=name,
                examples=examples,
                base=_kept(base[name].statistic(whole)),
                adapter=_kept(adapter[name].statistic(whole)),
                change=_kept_all(differences[name]),
                full=None if full is None else _kept(full[name].statistic(whole)),
                beside_full=None if full is None else _kept_all(differences[f"{name} beside"]),
            )
    return tuple(found[name] for name in METRICS if name in found)


def _kept(value: float) -> float:
    """Return a value with the digits that are worth keeping."""
    return float(f"{value:.8g}") if math.isfinite(value) else value


def _kept_all(difference: Difference) -> Difference:
    return Difference(value=_kept(difference.value), low=_kept(difference.low), high=_kept(difference.high))
