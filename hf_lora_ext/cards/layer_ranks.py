"""An adapter's rank layer by layer, told in a few lines."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby

__all__ = ["ModuleRanks", "module_and_layer", "place_of", "ranks_by_module"]


@dataclass(frozen=True, slots=True)
class ModuleRanks:
    """The ranks that one kind of module has along the layers."""

    module: str
    """The module's name within its layer, such as `self_attn.q_proj`."""
    ranges: tuple[tuple[int, int, int], ...]
    """First layer, last layer, rank; in order. Rank 0: no adapter there."""

    @property
    def lowest(self) -> int:
        """The lowest rank, 0 where it left a layer."""
        return min(rank for _, _, rank in self.ranges)

    @property
    def highest(self) -> int:
        """The highest rank."""
        return max(rank for _, _, rank in self.ranges)

    @property
    def mean(self) -> float:
        """The mean over the layers."""
        counts = [(last - first + 1, rank) for first, last, rank in self.ranges]
        return sum(count * rank for count, rank in counts) / sum(count for count, _ in counts)

    @property
    def words(self) -> str:
        """The ranges as text.

        >>> ModuleRanks("self_attn.q_proj", ((0, 2, 8), (3, 3, 0))).words
        '8 in layers 0–2, none in 3'
        """
        told = [(f"{a}–{b}" if b > a else f"{a}", str(rank) if rank else "none") for a, b, rank in self.ranges]
        return ", ".join(f"{rank} in {'' if i else 'layers '}{where}" for i, (where, rank) in enumerate(told))


def place_of(name: str) -> tuple[str, int | None, str]:
    """Return the stack of layers that a module is in, its layer's index, and its name within the layer.

    >>> place_of("model.layers.11.self_attn.q_proj")
    ('model.layers', 11, 'self_attn.q_proj')
    >>> place_of("lm_head")
    ('', None, 'lm_head')
    """
    found = re.fullmatch(r"(?:(.*?)\.)??(\d+)\.(.+)", name)
    return (found[1] or "", int(found[2]), found[3]) if found else ("", None, name)


def module_and_layer(name: str) -> tuple[str, int]:
    """Return a module's name within its layer and the layer's index; 0 where it is in none.

    >>> module_and_layer("model.layers.11.self_attn.q_proj")
    ('self_attn.q_proj', 11)
    """
    _, layer, module = place_of(name)
    return module, layer or 0


def ranks_by_module(ranks: Mapping[str, int]) -> tuple[ModuleRanks, ...]:
    """Return the ranks of each kind of module, neighbouring layers of equal rank as one range.

    Args:
        ranks: Full name of a module → its rank. A layer between the first and the last that is not named has rank 0.
    """
    places = {module_and_layer(name): rank for name, rank in ranks.items()}
    found = []
    numbers = [layer for _, layer in places]
    for module in sorted({module for module, _ in places}):
        along = [(layer, places.get((module, layer), 0)) for layer in range(min(numbers), max(numbers) + 1)]
        runs = [list(run) for _, run in groupby(along, key=lambda pair: pair[1])]
        found.append(ModuleRanks(module, tuple((run[0][0], run[-1][0], run[0][1]) for run in runs)))
    return tuple(found)
