"""What a module's singular values say about its rank. Pure.

Three measures of how many directions an update uses, and a comparison with chance: `Edges` are what the spectrum of a
product of random factors of the same shape and norm would keep within (`analysis.edges` has the model).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Final, Literal

__all__ = ["ENERGIES", "Edges", "Spectrum", "Verdict"]

Verdict = Literal["over", "fits", "under", "empty"]
ENERGIES: Final = (0.90, 0.95, 0.99)
"""Shares of the energy whose directions are counted; the last one decides who has rank to spare."""
_ROUNDING: Final = 1e-12
"""Relative: sums of squares in another order differ by less, so that 99 % of 100 equal directions are 99."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Edges:
    """Bounds that the spectrum of a product of random factors passes with probability `level`, each for itself."""

    largest: float
    """Upper bound of the largest singular value, over the Frobenius norm."""
    smallest: float
    """Lower bound of the smallest singular value, over the Frobenius norm."""
    needed: int
    """Least number of directions that carry 99 % of the energy; fewer have at most that probability."""
    level: float
    """The probability."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spectrum:
    """One module's update ΔW by its singular values.

    Of experts that lie side by side it is the pooled spectrum, the root of the sum of squares over the experts, since
    all have one rank. There the edges are those of one expert, which pooled values pass more seldom.
    """

    name: str
    """Module's name in the base model."""
    kind: str
    """`linear`, `embedding`, `conv` or `parameter`."""
    target: str | None
    """Name that a `rank_pattern` has to match; None where the adapter does not say which parameter it wraps."""
    rank: int
    """Rank that it was given."""
    shape: tuple[int, int]
    """Rows and columns of ΔW."""
    parameters: int
    """Numbers in its factors."""
    scaling: float | None
    """What B A is multiplied by in ΔW; None where that is not known, and `values` are those of B A."""
    values: tuple[float, ...]
    """Singular values, descending; as many as the rank and the shape allow."""
    edges: Edges | None
    """Chance; None where there is nothing to compare, in an empty module."""
    experts: int = 1
    """Updates that are pooled."""

    @property
    def norm(self) -> float:
        """Frobenius norm of ΔW."""
        return math.hypot(*self.values)

    @property
    def energies(self) -> tuple[float, ...]:
        """Share of the squared norm that the first 1, 2, … directions carry; empty where ΔW is 0."""
        norm = self.norm
        if not norm:
            return ()
        return tuple(min(1.0, share) for share in accumulate((value / norm) ** 2 for value in self.values))

    @property
    def effective_rank(self) -> float:
        """The exponential of the entropy of σ / Σσ (Roy and Vetterli 2007, EUSIPCO); 0 where ΔW is 0."""
        total = math.fsum(self.values)
        shares = [share for value in self.values if (share := value / total)] if total else []
        return math.exp(-math.fsum(share * math.log(share) for share in shares)) if shares else 0.0

    @property
    def stable_rank(self) -> float:
        """‖ΔW‖²_F / σ₁² (Rudelson and Vershynin, arXiv math/0503442: numerical rank); 0 where ΔW is 0."""
        return (self.norm / self.values[0]) ** 2 if self.norm else 0.0

    def directions_for(self, share: float) -> int:
        """Return how many directions carry at least this share of the energy; 0 where ΔW is 0."""
        reached = (index for index, energy in enumerate(self.energies, 1) if energy >= share - _ROUNDING)
        return next(reached, len(self.energies))

    @property
    def above_chance(self) -> int:
        """Directions stronger than the strongest of random factors."""
        edge = self.edges.largest * self.norm if self.edges else math.inf
        return sum(value > edge for value in self.values)

    @property
    def last_evenness(self) -> float:
        """Energy of the last direction, over what each would have if all had the same; 0 where ΔW is 0."""
        return len(self.values) * (self.values[-1] / self.norm) ** 2 if self.norm else 0.0

    @property
    def verdict(self) -> Verdict:
        """Whether the rank fits.

        `empty`: ΔW is 0. `over`: 99 % of the energy is in fewer directions than chance would need, or the rank is above
        what the shape allows. `under`: the spectrum is as flat to its last direction as that of random factors, so
        that nothing says that it ends there. A single value, and a rank that is all the shape allows, `fits`.
        """
        if self.edges is None or not self.norm:
            return "empty"
        if self.rank > len(self.values) or self.directions_for(ENERGIES[-1]) < self.edges.needed:
            return "over"
        is_flat = self.values[-1] >= self.edges.smallest * self.norm
        return "under" if is_flat and 1 < self.rank < min(self.shape) else "fits"

    @property
    def suggested_rank(self) -> int:
        """The rank to try next: what carries 99 % of the energy, or twice the rank where the spectrum is flat.

        0 for a module that has learned nothing.
        """
        if self.verdict == "over":
            return self.directions_for(ENERGIES[-1])
        if self.verdict == "under":
            return min(2 * self.rank, *self.shape)
        return self.rank if self.verdict == "fits" else 0

    @property
    def advice(self) -> str:
        """What was found and what to do, in a sentence."""
        needed, count = self.directions_for(ENERGIES[-1]), len(self.values)
        if self.verdict == "empty":
            return "its update is 0: it has learned nothing; leave it out of target_modules, or train it longer"
        if self.verdict == "over":
            return f"{needed} of {self.rank} directions carry 99 % of its update; give it rank {self.suggested_rank}"
        if self.verdict == "under":
            return (
                f"all {count} directions carry alike, as those of random factors would; give it rank "
                f"{self.suggested_rank}, and if the loss does not fall by that, it learns noise"
            )
        return f"{needed} of {self.rank} directions carry 99 %, the last has {self.last_evenness:.0%} of an even share"

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON-ready values."""
        return {
            "name": self.name,
            "kind": self.kind,
            "rank": self.rank,
            "shape": list(self.shape),
            "experts": self.experts,
            "parameters": self.parameters,
            "scaling": self.scaling,
            "singular_values": list(self.values),
            "frobenius_norm": self.norm,
            "effective_rank": self.effective_rank,
            "stable_rank": self.stable_rank,
            "energy": list(self.energies),
            "directions_for": {f"{share:.0%}": self.directions_for(share) for share in ENERGIES},
            "above_chance": self.above_chance,
            "last_evenness": self.last_evenness,
            "chance": None
            if self.edges is None
            else {
                "largest": self.edges.largest * self.norm,
                "smallest": self.edges.smallest * self.norm,
                "directions_for_99%": self.edges.needed,
                "level": self.edges.level,
            },
            "verdict": self.verdict,
            "suggested_rank": self.suggested_rank,
            "advice": self.advice,
        }
