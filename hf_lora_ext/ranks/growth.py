"""New directions for a LoRA update B A: which rows A could grow, and what each would win.

Shapes: x is a layer's input `(tokens, in_features)`, δ the loss's gradient at its output `(tokens, out_features)`.
Nothing of the size of the dense gradient E[δ xᵀ] is built. Decompositions are in float64 on the CPU.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from .events import FEWEST_PASSES

__all__ = ["COLUMNS", "candidate_rows", "expected_gains", "new_rows"]

COLUMNS: Final = 8
"""Columns of a sketch, and so the most directions that one layer grows at an event."""
NOISE: Final = 1e-6
"""A sketch's singular value below this share of the largest one is float32's rounding."""


def candidate_rows(sketch: Tensor, a: Tensor) -> Tensor:
    """Return the rows that A could grow, `(candidates, in_features)`, orthonormal, the strongest first.

    They span what the sketch G'Ω has outside the rows of A: a randomised range finder (Halko, Martinsson and Tropp,
    arXiv 0909.4061, algorithm 4.1), ordered by singular value.

    Args:
        sketch: Σ x (Ωᵀ δ)ᵀ `(in_features, columns)`, with a Gaussian Ω.
        a: A `(rank, in_features)`; the rank may be 0.
    """
    sketch, a = sketch.detach().double().cpu(), a.detach().double().cpu()
    if not bool(sketch.any()):
        return sketch.new_zeros(0, len(sketch))
    left, values, _ = torch.linalg.svd(_outside(sketch.T, a).T, full_matrices=False)
    most = min(int((values > NOISE * torch.linalg.matrix_norm(sketch, 2)).sum()), len(sketch) - len(a))
    return left[:, : max(0, most)].T.contiguous()


def new_rows(candidates: Tensor, a: Tensor, length: float) -> Tensor:
    """Return candidates as rows of A, each of a length, orthogonal to A's rows and to one another.

    Args:
        candidates: Some rows of `candidate_rows`, found when A was a little different.
        a: A `(rank, in_features)` as it is now.
        length: Norm of each row.
    """
    fresh = _outside(candidates.double().cpu(), a.detach().double().cpu())
    return torch.linalg.qr(fresh.T)[0].T.contiguous() * length


def _outside(rows: Tensor, a: Tensor) -> Tensor:
    """Return the part of each row that is orthogonal to all rows of A."""
    basis = torch.linalg.qr(a.T)[0]
    for _ in range(2):  # once more takes away what rounding has left
        rows = rows - rows @ basis @ basis.T
    return rows


def expected_gains(passes: Tensor) -> tuple[Tensor, Tensor]:
    """Return what each candidate would win, in nats a token, and its standard error.

    Along u aᵀ the loss has slope E[(uᵀδ)(aᵀx)] and, under K-FAC's approximation (Martens and Grosse, arXiv
    1503.05671), curvature E[(uᵀδ)²] E[(aᵀx)²], so that the best step lowers it by ½ ρ², with ρ the correlation of
    uᵀδ and aᵀx. The square of the slope is taken over pairs of different passes (a U-statistic), which noise alone
    does not raise; the error is the jackknife's over passes.

    Args:
        passes: `(passes, 4, candidates)`: a pass's sums of (uᵀδ)(aᵀx), (uᵀδ)² and (aᵀx)², and its tokens. Each
            pass's u was chosen without it.

    Returns:
        Gains and errors, `(candidates,)` each. With fewer than three passes nothing is known: 0, give or take infinity.
    """
    count, passes = len(passes), passes.double().cpu()
    if count < FEWEST_PASSES - 1:
        nothing = torch.zeros(passes.shape[-1], dtype=torch.float64)
        return nothing, torch.full_like(nothing, torch.inf)
    without = torch.stack([_gain(torch.cat([passes[:one], passes[one + 1 :]])) for one in range(count)])
    return _gain(passes), ((without - without.mean(0)).square().sum(0) * (count - 1) / count).sqrt()


def _gain(passes: Tensor) -> Tensor:
    tiny = torch.finfo(torch.float64).tiny
    slopes, along_u, along_a, tokens = passes.unbind(1)
    pairs = slopes.sum(0).square() - slopes.square().sum(0)
    weights = tokens.sum(0).square() - tokens.square().sum(0)
    curvature = along_u.sum(0) * along_a.sum(0) / tokens.sum(0).square().clamp_min(1)
    return pairs / weights.clamp_min(1) / curvature.clamp_min(tiny) / 2
