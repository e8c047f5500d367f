"""Directions of a LoRA update B A: found, ordered by what they are worth, cut, and grown.

Shapes: A is `(rank, in_features)`, B is `(out_features, rank)`; a Gram matrix is `(rank, rank)`. All arithmetic is
in float64, whatever comes in; nothing of the size of the dense product is built.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

__all__ = ["Basis", "find_basis", "gram_of_columns", "gram_of_rows", "singular_values", "whole_basis"]

RIDGE: Final = 1e-10
"""Added to a Gram matrix, relative to its mean diagonal: it bounds what a change of basis can lose to 1e-11."""


@dataclass(frozen=True, slots=True)
class Basis:
    """A module's directions in order of worth, and the way to them: B' = B @ to_b and A' = to_a @ A."""

    values: Tensor
    """`(rank,)`, descending: how much each direction moves the output, in the units of the two Gram matrices."""
    to_a: Tensor
    """`(rank, rank)`; `to_b @ to_a` is the identity, so that the product stays."""
    to_b: Tensor
    """`(rank, rank)`."""

    @property
    def worths(self) -> list[float]:
        """What the loss would rise by without each direction, descending: half of its value's square."""
        found: list[float] = (self.values.square() / 2).tolist()
        return found

    def cut(self, rank: int) -> Basis:
        """Return the first `rank` directions alone."""
        return Basis(self.values[:rank], self.to_a[:rank], self.to_b[:, :rank])

    def factors(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Return A' and B' for factors on the CPU, in float64."""
        return self.to_a @ a.double(), b.double() @ self.to_b


def whole_basis(rank: int, device: torch.device | None = None) -> Basis:
    """Return the directions as they are, all worth 0."""
    eye = torch.eye(rank, dtype=torch.float64, device=device)
    return Basis(eye.new_zeros(rank), eye, eye)


def singular_values(a: Tensor, b: Tensor) -> Tensor:
    """Return the singular values of B A, descending: as many as the least of its rank and sizes.

    Those of R_B R_Aᵀ with Aᵀ = Q_A R_A and B = Q_B R_B, to the last digits of float64; the Gram matrices that
    `find_basis` goes through lose those below 1e-5 of the largest.

    >>> singular_values(torch.eye(2, 3), torch.eye(4, 2) * 2).tolist()
    [2.0, 2.0]
    """
    right = torch.linalg.qr(a.detach().double().T, mode="r").R
    left = torch.linalg.qr(b.detach().double(), mode="r").R
    values: Tensor = torch.linalg.svdvals(left @ right.T)
    return values


def gram_of_rows(a: Tensor) -> Tensor:
    """Return A Aᵀ `(rank, rank)`: E[z zᵀ] for z = A x when the inputs x are white."""
    a = a.detach().double()
    return a @ a.T


def gram_of_columns(b: Tensor) -> Tensor:
    """Return Bᵀ B `(rank, rank)`: E[ζ ζᵀ] for ζ = Bᵀ δ when the gradients δ at the output are white."""
    b = b.detach().double()
    return b.T @ b


def find_basis(inputs: Tensor, gradients: Tensor, row_norms: Tensor) -> Basis:
    """Return the directions of B A, ordered by √(E[z zᵀ] · E[ζ ζᵀ]) along each.

    With M = L Lᵀ, K = R Rᵀ and Rᵀ L = U S Vᵀ, B' = B R⁻ᵀ U and A' = S Vᵀ L⁻¹ A; in that basis both Gram matrices
    are diagonal, and removing direction i moves the loss by ½ S_i² a token, to second order, under K-FAC's
    approximation of the Fisher matrix (Martens and Grosse, arXiv 1503.05671: E[z zᵀ ⊗ ζ ζᵀ] ≈ M ⊗ K). With
    M = A Aᵀ and K = Bᵀ B it is the singular value decomposition of B A, ordered by singular values.

    The scale between A' and B' is free; each row of A' gets the root mean square norm of A's rows, which keeps the
    optimizer's step of the size it had.

    Args:
        inputs: M = E[z zᵀ] over tokens, z = A x.
        gradients: K = E[ζ ζᵀ] over tokens, ζ = s Bᵀ δ, the gradient at A's output.
        row_norms: Gram matrix of A's rows, `gram_of_rows(a)`, for the scale.
    """
    rank = len(inputs)
    if not (inputs.any() and gradients.any()):  # nothing was seen, or B is untrained: all directions are worth 0
        return whole_basis(rank, inputs.device)
    left, left_inverse = _root(inputs)
    right, right_inverse = _root(gradients)
    u, s, vt = torch.linalg.svd(right.T @ left)
    to_a, to_b = vt @ left_inverse, right_inverse.T @ u * s
    size = torch.einsum("ij,jk,ik->i", to_a, row_norms.double(), to_a).clamp_min(0).sqrt()
    wanted = row_norms.double().diagonal().mean().sqrt()
    scale = wanted / size.clamp_min(torch.finfo(torch.float64).tiny)
    return Basis(s, to_a * scale[:, None], to_b / scale)


def _root(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Return L with L Lᵀ = gram + ridge, and its inverse."""
    gram = gram.double()
    values, vectors = torch.linalg.eigh((gram + gram.T) / 2)
    ridge = RIDGE * gram.diagonal().mean()
    root = (values.clamp_min(0) + ridge).sqrt()
    return vectors * root, (vectors / root).T
