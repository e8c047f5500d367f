"""An adapter's rank layer by layer, told in a few lines."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby

__all__ = ["ModuleRanks", "module_and_layer", "ranks_by_module"]


@dataclass(frozen=True, slots=True)
class ModuleRanks:
    """The ranks that one kind of module has along the layers."""

    module: str
    """The module's name within its layer, such as `self_attn.q_proj`."""
    ranges: tuple[tuple[int, int, int], ...]
    """First layer, last layer, rank; in order. Rank 0: no adapter there."""

    @property
    def words(self) -> str:
        """The ranges as text.

        >>> ModuleRanks("self_attn.q_proj", ((0, 2, 8), (3, 3, 0))).words
        '8 in layers 0–2, none in 3'
        """
        told = [(f"{a}–{b}" if b > a else f"{a}", str(rank) if rank else "none") for a, b, rank in self.ranges]
        return ", ".join(f"{rank} in {'' if i else 'layers '}{where}" for i, (where, rank) in enumerate(told))


def module_and_layer(name: str) -> tuple[str, int]:
    """Return a module's kind and its layer's index; 0 where the name has none.

    >>> module_and_layer("model.layers.11.self_attn.q_proj")
    ('self_attn.q_proj', 11)
    """
    found = re.search(r"(?:^|\.)(\d+)\.(.+)$", name)
    return (found[2], int(found[1])) if found else (name, 0)


def ranks_by_module(ranks: Mapping[str, int]) -> tuple[ModuleRanks, ...]:
    """Return the ranks of each kind of module, neighbouring layers of equal rank as one range.

    Args:
        ranks: Full name of a module → its rank. A layer that others are in and this module is not has rank 0.
    """
    places = {module_and_layer(name): rank for name, rank in ranks.items()}
    layers = sorted({layer for _, layer in places})
    found = []
    for module in sorted({module for module, _ in places}):
        along = [(layer, places.get((module, layer), 0)) for layer in layers]
        runs = [list(run) for _, run in groupby(along, key=lambda pair: pair[1])]
        found.append(ModuleRanks(module, tuple((run[0][0], run[-1][0], run[0][1]) for run in runs)))
    return tuple(found)
