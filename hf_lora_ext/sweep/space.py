"""The space of a sweep: what each key may be, and the points that a grid or chance takes from it.

A point maps dotted recipe keys to values. Everything here is decided by its arguments alone, so that processes which
share a sweep agree on its points without asking each other.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Final

__all__ = ["Choices", "Point", "Range", "Space", "ends", "grid", "grid_size", "point_key", "random_points", "spoken"]

Point = Mapping[str, Any]
"""Dotted recipe key → value."""

DIGITS: Final = 3
"""Digits that a drawn number keeps: a recipe reads better, and half a percent of a learning rate decides nothing."""
MOST_MISSES: Final = 10_000
"""Draws in a row without a new point after which a space counts as drawn empty: a range may have few rounded values."""


@dataclass(frozen=True, slots=True)
class Choices:
    """A key that takes one of these values."""

    values: tuple[Any, ...]
    """The values, in the order of the file."""

    @property
    def size(self) -> int:
        """How many values there are."""
        return len(self.values)

    @property
    def ends(self) -> tuple[Any, ...]:
        """The values that bound the others: here all, since they have no order."""
        return self.values

    def on_grid(self) -> tuple[Any, ...]:
        """Return the values that a grid takes."""
        return self.values

    def drawn(self, share: float) -> Any:
        """Return the value that a number from 0 up to, not including, 1 stands for, each as likely."""
        return self.values[int(share * len(self.values))]


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """A key that takes a number between two; a whole number where both are."""

    low: float
    """Least value."""
    high: float
    """Greatest value."""
    log: bool = False
    """Whether equal steps are equal factors."""
    steps: int | None = None
    """How many values a grid takes, both ends among them."""

    @property
    def is_whole(self) -> bool:
        """Whether the values are whole numbers."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    @property
    def size(self) -> int | None:
        """How many values there are; None where they cannot be counted."""
        return int(self.high) - int(self.low) + 1 if self.is_whole else None

    @property
    def ends(self) -> tuple[Any, ...]:
        """The least and the greatest value."""
        return self.low, self.high

    def on_grid(self) -> tuple[Any, ...]:
        """Return the values that a grid takes: evenly spaced, and fewer where whole numbers coincide."""
        steps = self.steps or 2
        between = (self._between(self.low, self.high, step / (steps - 1)) for step in range(1, steps - 1))
        return tuple(dict.fromkeys((self.low, *between, self.high)))

    def drawn(self, share: float) -> Any:
        """Return the value that a number from 0 up to, not including, 1 stands for."""
        beyond = 0.5 if self.is_whole else 0.0  # else the two ends would be half as likely as the rest
        return self._between(self.low - beyond, self.high + beyond, share)

    def _between(self, low: float, high: float, share: float) -> Any:
        if self.log:
            return self.tidy(math.exp(math.log(low) + share * (math.log(high) - math.log(low))))
        return self.tidy(low + share * (high - low))

    def tidy(self, value: float) -> Any:
        """Return a number as a recipe has it: whole, or with few digits, and never outside the range."""
        rounded = round(value) if self.is_whole else float(f"{value:.{DIGITS}g}")
        return min(max(rounded, self.low), self.high)


Space = Mapping[str, "Choices | Range"]
"""Dotted recipe key → what it may be."""


def grid(space: Space) -> Iterator[dict[str, Any]]:
    """Yield every point of the grid; the last key changes fastest."""
    for values in product(*(axis.on_grid() for axis in space.values())):
        yield dict(zip(space, values, strict=True))


def grid_size(space: Space) -> int:
    """Return how many points the grid has, without making them."""
    return math.prod(len(axis.on_grid()) for axis in space.values())


def ends(space: Space) -> Iterator[dict[str, Any]]:
    """Yield the points that bound the space: every choice, with the least and the greatest of every range."""
    for values in product(*(axis.ends for axis in space.values())):
        yield dict(zip(space, values, strict=True))


def random_points(space: Space, count: int, seed: int) -> list[dict[str, Any]]:
    """Return distinct points drawn evenly from the space; fewer than `count` where it has fewer, or no new one is met.

    More points begin with the same ones, so a sweep can be made longer.
    """
    sizes = [axis.size for axis in space.values()]
    known = [size for size in sizes if size is not None]
    is_counted = len(known) == len(sizes)
    wanted = min(count, math.prod(known)) if is_counted else count
    chance, found, misses = random.Random(seed), dict[str, dict[str, Any]](), 0
    while len(found) < wanted and (is_counted or misses < MOST_MISSES):
        point = {key: axis.drawn(chance.random()) for key, axis in space.items()}
        misses = misses + 1 if (name := point_key(point)) in found else 0
        found.setdefault(name, point)
    return list(found.values())


def point_key(point: Point) -> str:
    """Return a text that two points share exactly where they are equal."""
    return json.dumps({key: _plain(value) for key, value in point.items()}, sort_keys=True)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def spoken(point: Point, among: Iterable[str] | None = None) -> str:
    """Return a point as people say it.

    >>> spoken({"rank": 8, "training.learning_rate": 0.001})
    'rank 8, learning_rate 0.001'
    """
    keys = list(point if among is None else among)
    return ", ".join(f"{key.rpartition('.')[2]} {shown(point[key])}" for key in keys if key in point)


def shown(value: Any) -> str:
    """Return a value in few characters."""
    if value is None:
        return "unset"
    if isinstance(value, float):
        return f"{value:.{DIGITS}g}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "+".join(map(str, value))
    return str(value)
