"""What chance alone would give: the singular values of a product of random factors.

The null model: A `(rank, n)` and B `(m, rank)` have independent Gaussian entries, each factor of one variance. Those
are factors as they are drawn before any training, at the shape that a module has; the variances cancel, because only
σ / ‖B A‖_F is looked at, so that neither alpha nor the learning rate enters. LoRA itself starts with B = 0, whose
product has no spectrum to compare with; this is the start with both factors drawn. What a spectrum has beyond these
edges is not from shape and rank. Of an A with uniform entries, as PEFT draws it, rows differ less in length, so that
it passes the edges more seldom.

With Aᵀ = Q_A R_A and B = Q_B R_B, σ(B A) = σ(R_B R_Aᵀ). R of a Gaussian matrix of n rows has independent entries:
χ with n, n-1, … degrees of freedom on the diagonal, and standard normal ones above it (Bartlett 1933; Anderson, An
Introduction to Multivariate Statistical Analysis, chapter 7). So a draw costs rank³ at any width. We know of no closed
form for these quantiles; Akemann, Ipsen and Kieburg, arXiv 1307.7560, have the joint density for complex entries.

The edges are order statistics of simulated draws. Of `draws` and one more from the same law, the one more is among the
k most extreme with probability k / (draws + 1) (Barnard 1963; Besag and Clifford 1991): with k = level · (draws + 1)
the false-positive rate is `level` over all seeds. At one seed it differs from that by a standard deviation of
√(level (1 - level) / draws): 0.16 points at 1 % and the 3999 draws of ranks up to 32, 1.0 at the 99 of ranks above 88.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import torch
from torch import Tensor

from .spectra import ENERGIES, Edges

__all__ = ["LEVEL", "edges_of"]

LEVEL: Final = 0.01
"""Probability of passing an edge by chance, per module and edge."""
SEED: Final = 20070903
_CUBES: Final = 1.4e8
"""Draws times rank³ that are worth their time: less than a second."""
_AT_ONCE: Final = 2**21
"""Numbers of the draws that are made together."""


def edges_of(rank: int, rows: int, columns: int, level: float = LEVEL) -> Edges:
    """Return the edges of a product of random factors of this rank and shape.

    Args:
        rank: Rows of A.
        rows: Rows of B.
        columns: Columns of A.
        level: Probability of passing an edge, of 1 %, 2 %, 5 % and other whole hundredths.
    """
    return _edges(rank, *sorted((rows, columns)), level)


@lru_cache(maxsize=256)
def _edges(rank: int, shorter: int, longer: int, level: float) -> Edges:
    draws = next((draws for draws in (3999, 999, 199) if draws * rank**3 <= _CUBES), 99)
    values = _draw(rank, shorter, longer, draws)
    energy = (values / values.norm(dim=1, keepdim=True)).square()
    extreme = round(level * (draws + 1))
    needed = (energy.cumsum(1) < ENERGIES[-1]).sum(1) + 1
    return Edges(
        largest=float(energy[:, 0].topk(extreme).values[-1].sqrt()),
        smallest=float(energy[:, -1].topk(extreme, largest=False).values[-1].sqrt()),
        needed=int(needed.topk(extreme, largest=False).values[-1]),
        level=level,
    )


def _draw(rank: int, rows: int, columns: int, draws: int) -> Tensor:
    """Return the singular values `(draws, least of the sizes)` of products of random factors."""
    generator = torch.Generator().manual_seed(SEED)
    some = max(1, _AT_ONCE // rank**2)
    counts = [min(some, draws - start) for start in range(0, draws, some)]
    return torch.cat(
        [
            torch.linalg.svdvals(
                _triangles(count, rows, rank, generator) @ _triangles(count, columns, rank, generator).mT
            )
            for count in counts
        ]
    )


def _triangles(count: int, rows: int, rank: int, generator: torch.Generator) -> Tensor:
    """Return R factors of Gaussian matrices `(rows, rank)`; of fewer rows than columns, the matrices themselves."""
    gaussian = torch.randn(count, min(rows, rank), rank, generator=generator, dtype=torch.float64)
    if rows < rank:
        return gaussian
    freedom = torch.arange(rows, rows - rank, -1, dtype=torch.float64).expand(count, -1)
    # torch.distributions.Chi2 samples in this way too, and takes no generator.
    chi = (2 * torch._standard_gamma(freedom / 2, generator=generator)).sqrt()
    return gaussian.triu(1) + torch.diag_embed(chi)
