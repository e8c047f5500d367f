"""Metrics as values of any draw of examples, which is what a bootstrap asks for. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Final

from ..metrics.definitions import averaged_f1
from .bootstrap import Statistic

__all__ = ["f1_statistic", "mean_statistic", "perplexity_statistic", "ratio_statistic"]

_LARGEST_LOSS: Final = 700.0
"""In nats; e to a little more than that is no finite number."""


def ratio_statistic(totals: Sequence[float], weights: Sequence[float]) -> Statistic:
    """Return Σ totals / Σ weights over a draw, such as nats over tokens.

    >>> ratio_statistic([2.0, 4.0], [1, 3])([0, 1, 1])
    1.4285714285714286
    """
    total, weight = totals.__getitem__, weights.__getitem__
    return lambda drawn: math.fsum(map(total, drawn)) / math.fsum(map(weight, drawn))


def perplexity_statistic(nats: Sequence[float], tokens: Sequence[float]) -> Statistic:
    """Return e to the loss a token, over a draw."""
    loss = ratio_statistic(nats, tokens)
    return lambda drawn: math.exp(min(loss(drawn), _LARGEST_LOSS))


def mean_statistic(values: Sequence[float]) -> Statistic:
    """Return the mean over a draw."""
    value = values.__getitem__
    return lambda drawn: math.fsum(map(value, drawn)) / len(drawn)


def f1_statistic(references: Sequence[int], predictions: Sequence[int], average: str) -> Statistic:
    """Return an averaged F1 over a draw (`f1_score`)."""
    pairs = list(zip(references, predictions, strict=True))
    return lambda drawn: averaged_f1(Counter(map(pairs.__getitem__, drawn)), average)
