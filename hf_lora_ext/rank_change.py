"""A change of ranks, applied: the factors, what the optimizer remembers of them, and the configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from .lora_layers import LoraFactors, write_ranks_
from .low_rank import Basis
from .optimizer_state import AlongAxis, carry_in_place_, forget_parameters_, swap_parameter_

if TYPE_CHECKING:
    from peft import PeftModel

__all__ = ["change_ranks_", "mask_ranks_"]


def change_ranks_(
    model: PeftModel,
    layers: Mapping[str, LoraFactors],
    bases: Mapping[str, Basis],
    ranks: Mapping[str, int],
    optimizer: torch.optim.Optimizer | None,
) -> dict[str, dict[str, Any]]:
    """Cut every layer to the first directions of its basis.

    Everything that can fail is computed before the first layer changes, so that an interrupted change leaves the
    adapter as it was. A layer that keeps all its directions is not touched.

    Args:
        model: The model.
        layers: Its LoRA layers, by name.
        bases: The directions of each, in order.
        ranks: How many each keeps; at 0 the adapter leaves the layer.
        optimizer: The optimizer that trains them; None once the training is over.

    Returns:
        What the layers that the adapter has left would need to take it up again.
    """
    for factors, basis, (a, b) in _cuts(layers, bases, ranks, least=1):
        old_a, old_b = factors.a, factors.b
        new_a, new_b = factors.replace_(a, b)
        if optimizer is not None:
            swap_parameter_(optimizer, old_a, new_a, AlongAxis(0, basis.to_b.T.to(old_a.device)))
            swap_parameter_(optimizer, old_b, new_b, AlongAxis(1, basis.to_a.to(old_b.device)))
    gone = {name: factors for name, factors in layers.items() if not ranks[name]}
    if optimizer is not None:
        forget_parameters_(optimizer, [p for factors in gone.values() for p in (factors.a, factors.b)])
    adapter = next(iter(layers.values())).adapter
    removed = {name: factors.remove_() for name, factors in gone.items()}
    write_ranks_(model, adapter, ranks)
    return removed


def mask_ranks_(
    model: PeftModel,
    layers: Mapping[str, LoraFactors],
    bases: Mapping[str, Basis],
    ranks: Mapping[str, int],
    optimizer: torch.optim.Optimizer,
) -> None:
    """Do what `change_ranks_` does with every parameter and every state in its place and of its shape, as DDP needs.

    Directions beyond the rank are 0 in A, in B and in the optimizer's state, and stay 0.
    """
    for factors, basis, (a, b) in _cuts(layers, bases, ranks, least=0):
        room = torch.zeros(factors.width, factors.width, dtype=torch.float64)
        to_a, to_b_t = room.clone(), room.clone()
        to_a[: len(a), : basis.to_a.shape[1]], to_b_t[: len(a), : len(basis.to_b)] = basis.to_a, basis.to_b.T
        carry_in_place_(optimizer, factors.a, AlongAxis(0, to_b_t.to(factors.a.device)))
        carry_in_place_(optimizer, factors.b, AlongAxis(1, to_a.to(factors.b.device)))
        factors.mask_(a, b)
    write_ranks_(model, next(iter(layers.values())).adapter, ranks)


def _cuts(
    layers: Mapping[str, LoraFactors], bases: Mapping[str, Basis], ranks: Mapping[str, int], *, least: int
) -> list[tuple[LoraFactors, Basis, tuple[torch.Tensor, torch.Tensor]]]:
    """Return each layer that loses directions and keeps `least`, its basis, and A and B in it."""
    cut = [(layers[name], bases[name].cut(rank)) for name, rank in ranks.items()
           if name in layers and least <= rank < layers[name].rank]  # fmt: skip
    return [(factors, basis, _in_basis(factors, basis)) for factors, basis in cut]


def _in_basis(factors: LoraFactors, basis: Basis) -> tuple[torch.Tensor, torch.Tensor]:
    """Return A and B in the basis, computed in float64 on the CPU."""
    a, b = factors.directions()
    return (basis.to_a @ a.double()).to(factors.a), (b.double() @ basis.to_b).to(factors.b)
