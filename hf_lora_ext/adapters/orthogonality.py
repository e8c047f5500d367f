"""The gradient of AdaLoRA's orthogonal regulariser in closed form."""

from __future__ import annotations

from collections.abc import Sequence

import torch

__all__ = ["orthogonality_gradients"]


def orthogonality_gradients(factors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return the gradient of the regulariser to each factor, `(rank, features)` each, in float32.

    The regulariser is the mean over the n factors P of ‖P·Pᵀ − I‖ in the Frobenius norm. Its gradient to one of them
    is 2·(P·Pᵀ − I)·P / (n·‖P·Pᵀ − I‖), and 0 where P is orthonormal. That is at most 2·‖P‖ / n (spectral norm), so it
    needs no clipping.

    Args:
        factors: Tensors `(rank, features)`: each layer's A, and each layer's B transposed.

    Reference: AdaLoRA, arXiv 2303.10512, equation 4, which squares the norm and sums. As in PEFT, and unlike
    the paper, the norm is not squared and the terms are averaged, so that `orth_reg_weight` means the same.

    >>> orthogonality_gradients([torch.eye(2)])[0].abs().max().item()
    0.0
    """
    return [_gradient(factor.float()) / len(factors) for factor in factors]


def _gradient(factor: torch.Tensor) -> torch.Tensor:
    departure = factor @ factor.T - torch.eye(len(factor), device=factor.device, dtype=factor.dtype)
    norm = torch.linalg.matrix_norm(departure)
    return 2 * departure @ factor / torch.where(norm > 0, norm, 1.0)
