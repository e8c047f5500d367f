"""A change of ranks, applied: the factors, what the optimizer remembers of them, and the configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .lora_layers import LoraFactors, write_ranks_
from .low_rank import Basis, whole_basis
from .optimizer_state import (
    AlongAxis,
    carry_in_place_,
    forget_parameters_,
    join_group_,
    mean_squares,
    swap_parameter_,
)

if TYPE_CHECKING:
    from peft import PeftModel

__all__ = ["begin_again_", "change_ranks_", "mask_ranks_"]


def change_ranks_(
    model: PeftModel,
    layers: Mapping[str, LoraFactors],
    bases: Mapping[str, Basis],
    ranks: Mapping[str, int],
    optimizer: torch.optim.Optimizer | None,
    rows: Mapping[str, Tensor] | None = None,
) -> dict[str, dict[str, Any]]:
    """Cut every layer to the first directions of its basis, and grow new ones beside them.

    Everything that can fail is computed before the first layer changes, so that an interrupted change leaves the
    adapter as it was. A layer that keeps all its directions and grows none is not touched.

    Args:
        model: The model.
        layers: Its LoRA layers, by name.
        bases: The directions of each, in order.
        ranks: How many each keeps; at 0 the adapter leaves the layer, unless it grows.
        optimizer: The optimizer that trains them; None once the training is over.
        rows: Rows of A that layers grow, by name; their columns of B are 0, so that the answers stay.

    Returns:
        What the layers that the adapter has left would need to take it up again.
    """
    for change in _changes(layers, bases, ranks, rows or {}, optimizer, least=1):
        factors = change.factors
        old_a, old_b = factors.a, factors.b
        new_a, new_b = factors.replace_(change.a, change.b)
        if optimizer is not None:
            swap_parameter_(optimizer, old_a, new_a, change.along(0))
            swap_parameter_(optimizer, old_b, new_b, change.along(1))
    totals = {name: rank + len((rows or {}).get(name, ())) for name, rank in ranks.items()}
    gone = {name: factors for name, factors in layers.items() if not totals[name]}
    if optimizer is not None:
        forget_parameters_(optimizer, [p for factors in gone.values() for p in factors.parameters.values()])
    adapter = next(iter(layers.values())).adapter
    removed = {name: factors.remove_() for name, factors in gone.items()}
    write_ranks_(model, adapter, totals)
    return removed


def mask_ranks_(
    model: PeftModel,
    layers: Mapping[str, LoraFactors],
    bases: Mapping[str, Basis],
    ranks: Mapping[str, int],
    optimizer: torch.optim.Optimizer,
    rows: Mapping[str, Tensor] | None = None,
) -> None:
    """Do what `change_ranks_` does with every parameter and every state in its place and of its shape, as DDP needs.

    Directions beyond the rank are 0 in A, in B and in the optimizer's state, and stay 0. Layers of rank 0 may grow.
    """
    for change in _changes(layers, bases, ranks, rows or {}, optimizer, least=0):
        factors = change.factors
        wide = change.widened(factors.width)
        carry_in_place_(optimizer, factors.a, wide.along(0))
        carry_in_place_(optimizer, factors.b, wide.along(1))
        factors.mask_(change.a, change.b)
    totals = {name: rank + len((rows or {}).get(name, ())) for name, rank in ranks.items()}
    write_ranks_(model, next(iter(layers.values())).adapter, totals)


def begin_again_(
    factors: LoraFactors,
    rows: Tensor,
    optimizer: torch.optim.Optimizer,
    groups: Mapping[str, int],
    layers: Mapping[str, LoraFactors],
    order: Callable[[], Sequence[nn.Parameter]],
) -> None:
    """Give a layer that the adapter comes back to its first rows, and the optimizer its parameters.

    Args:
        factors: The layer.
        rows: Rows of A `(rank, in_features)`; B is 0.
        optimizer: The optimizer.
        groups: The group that each part was in.
        layers: Layers in use, from whose mean the second moments start.
        order: Gives the model's parameters in their order, once the layer has its own.
    """
    factors.begin_(rows)
    for part, parameter in factors.parameters.items():
        join_group_(optimizer, groups[part], parameter, order(), _squares_of_all(optimizer, layers, part))


@dataclass(frozen=True, slots=True)
class _Change:
    """What becomes of one layer."""

    factors: LoraFactors
    a: Tensor
    b: Tensor
    to_a: Tensor
    """`(new rank, rank)`, float64: what each direction of the new A is made of; rows of 0 for grown ones."""
    to_b: Tensor
    """The same for B."""
    grown: int
    squares: Mapping[int, Mapping[str, float]]
    """What the second moments of grown directions start at, by axis and kind."""
    scaled: float
    """The layer's new scale over its old one; B has made up for it."""

    def along(self, axis: int) -> AlongAxis:
        """Return the map of a gradient of A (axis 0) or B (axis 1); gradients go the other factor's way."""
        matrix = self.scaled * (self.to_b if axis == 0 else self.to_a).to(self.factors.a.device)
        rank = len(self.a)
        return AlongAxis(axis, matrix, tuple(range(rank - self.grown, rank)), self.squares[axis])

    def widened(self, width: int) -> _Change:
        """Return the change with room for directions that are not in use."""
        to_a, to_b = (_in_room(matrix, width) for matrix in (self.to_a, self.to_b))
        return replace(self, to_a=to_a, to_b=to_b)


def _in_room(matrix: Tensor, width: int) -> Tensor:
    room = torch.zeros(width, width, dtype=torch.float64)
    room[: matrix.shape[0], : matrix.shape[1]] = matrix
    return room


def _changes(
    layers: Mapping[str, LoraFactors],
    bases: Mapping[str, Basis],
    ranks: Mapping[str, int],
    rows: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer | None,
    *,
    least: int,
) -> list[_Change]:
    """Return what becomes of each layer that loses or grows directions and then has `least` of them."""
    return [
        _change(layers[name], bases.get(name), rank, rows.get(name), layers, optimizer)
        for name, rank in ranks.items()
        if name in layers
        and rank + len(rows.get(name, ())) >= least
        and (rank < layers[name].rank or name in rows)
    ]  # fmt: skip


def _change(
    factors: LoraFactors,
    basis: Basis | None,
    rank: int,
    rows: Tensor | None,
    layers: Mapping[str, LoraFactors],
    optimizer: torch.optim.Optimizer | None,
) -> _Change:
    """Return the layer's first directions, and the grown ones after them."""
    basis = whole_basis(rank) if basis is None or rank == factors.rank else basis.cut(rank)
    grown = 0 if rows is None else len(rows)
    scaled = factors.scale_at(rank + grown) / factors.scale if rank + grown else 1.0
    basis = replace(basis, to_b=basis.to_b / scaled)
    (a, b), to_a, to_b = _in_basis(factors, basis), basis.to_a, basis.to_b.T
    if rows is None:
        return _Change(factors, a, b, to_a, to_b, 0, {0: {}, 1: {}}, scaled)
    a, b = torch.cat([a, rows.to(a)]), torch.cat([b, b.new_zeros(len(b), grown)], dim=1)
    to_a, to_b = (torch.cat([matrix, matrix.new_zeros(grown, factors.rank)]) for matrix in (to_a, to_b))
    squares = {} if optimizer is None else {
        axis: _squares(optimizer, factors, layers, part) for axis, part in enumerate("ab")
    }  # fmt: skip
    return _Change(factors, a, b, to_a, to_b, grown, squares, scaled)


def _squares(
    optimizer: torch.optim.Optimizer, factors: LoraFactors, layers: Mapping[str, LoraFactors], part: str
) -> dict[str, float]:
    """Return the mean of each second moment of a factor; that of all layers where the factor has none yet."""
    own = mean_squares(optimizer, [_used(factors, part)])
    return own if own and all(own.values()) else _squares_of_all(optimizer, layers, part)


def _squares_of_all(optimizer: torch.optim.Optimizer, layers: Mapping[str, LoraFactors], part: str) -> dict[str, float]:
    return mean_squares(optimizer, [_used(f, part) for f in layers.values() if part in f.parameters])


def _used(factors: LoraFactors, part: str) -> tuple[nn.Parameter, int, int]:
    parameter = factors.parameters[part]
    if part == "magnitude":
        return parameter, 0, len(parameter)
    return parameter, "ab".index(part), factors.rank


def _in_basis(factors: LoraFactors, basis: Basis) -> tuple[Tensor, Tensor]:
    """Return A and B in the basis, computed in float64 on the CPU."""
    a, b = basis.factors(*factors.directions())
    return a.to(factors.a), b.to(factors.b)
