"""What each direction of each layer is worth, by one of several criteria."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Final, Literal, Protocol, get_args

import torch
from torch import Tensor

from .low_rank import Basis, find_basis, gram_of_columns, gram_of_rows
from .probes import Moments

__all__ = ["CRITERIA", "Criterion", "Update", "find_bases"]

Criterion = Literal["whitened", "input", "svd", "sensitivity", "random"]
CRITERIA: Final[tuple[Criterion, ...]] = get_args(Criterion)


class Update(Protocol):
    """One layer's update ΔW = scale · B A: a `LoraFactors` in a model, or one that was read from a file."""

    @property
    def rank(self) -> int:
        """Directions in use."""

    @property
    def cost(self) -> int:
        """Parameters of one direction."""

    @property
    def scale(self) -> float:
        """What B A is multiplied by."""

    @property
    def is_embedding(self) -> bool:
        """Whether A is looked up, not multiplied by."""

    def directions(self) -> tuple[Tensor, Tensor]:
        """Return A `(rank, in_features)` and B `(out_features, rank)`, on the CPU."""


def find_bases(
    layers: Mapping[str, Update], moments: Mapping[str, Moments], criterion: Criterion, seed: int = 0
) -> dict[str, Basis]:
    """Return each layer's directions in order of worth; their worths compare across layers.

    - `whitened`: what removing a direction costs in nats a token, by the inputs and gradients that were seen.
    - `input`: the same with white gradients: how much the layer's output moves.
    - `svd`: the singular values of the update, as if inputs and gradients were white.
    - `sensitivity`: the mean |w · ∂L/∂w| of a direction's entries (the first-order part of AdaLoRA's score, arXiv
      2303.10512, equation 8); the directions stay as they are.
    - `random`: the singular directions, worth a random number; for ablation.

    Args:
        layers: The layers.
        moments: What a probe has seen of each; unused by `svd` and `random`.
        criterion: Which.
        seed: For `random`.
    """
    draw = random.Random(seed)
    return {name: _basis(factors, moments.get(name), criterion, draw) for name, factors in layers.items()}


def _basis(factors: Update, moments: Moments | None, criterion: Criterion, draw: random.Random) -> Basis:
    if criterion == "sensitivity":
        assert moments is not None
        return _by_sensitivity(moments.sensitivity[: factors.rank].double().cpu())
    a, b = factors.directions()
    rows = gram_of_rows(a)
    if criterion in ("whitened", "input"):
        assert moments is not None
        inputs, gradients = (mean[: factors.rank, : factors.rank] for mean in moments.means())
    else:
        inputs = rows
    if criterion != "whitened":
        gradients = gram_of_columns(b) * factors.scale**2
    if factors.is_embedding:  # B is the factor that starts drawn, and whose size is kept
        found = find_basis(gradients, inputs, gram_of_columns(b))
        found = Basis(found.values, found.to_b.T, found.to_a.T)
    else:
        found = find_basis(inputs, gradients, rows)
    if criterion == "random":
        worth = sorted((draw.random() for _ in range(factors.rank)), reverse=True)
        found = Basis(torch.tensor(worth, dtype=torch.float64), found.to_a, found.to_b)
    return found


def _by_sensitivity(sensitivity: Tensor) -> Basis:
    """Return the directions as they are, the most sensitive first; half a value's square is its worth."""
    order = sensitivity.argsort(descending=True, stable=True)
    pick = torch.eye(len(order), dtype=torch.float64)[order]
    return Basis((2 * sensitivity[order]).sqrt(), pick, pick.T)
