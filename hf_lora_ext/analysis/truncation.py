"""An adapter cut to a budget: all directions of all layers in one order of worth, and the first of them kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Final, Literal, get_args

from torch import Tensor

from ..errors import BudgetError
from ..ranks.allocation import allocate_ranks, parameters_of
from ..ranks.criteria import Update, find_bases
from ..ranks.lora_layers import LoraFactors
from ..ranks.low_rank import Basis, gram_of_columns, gram_of_rows
from ..ranks.probes import Moments

__all__ = ["TRUNCATIONS", "Truncation", "TruncationCriterion", "cut_meanwhile", "truncation"]

TruncationCriterion = Literal["whitened", "svd"]
TRUNCATIONS: Final[tuple[TruncationCriterion, ...]] = get_args(TruncationCriterion)


@dataclass(frozen=True, slots=True)
class Truncation:
    """An adapter's layers, and the directions of each in order of worth."""

    layers: Mapping[str, Update]
    """What is cut, by name in the base model."""
    bases: Mapping[str, Basis]
    """Its directions."""

    @property
    def costs(self) -> dict[str, int]:
        """Parameters of one direction, by layer."""
        return {name: update.cost for name, update in self.layers.items()}

    @property
    def parameters(self) -> int:
        """Parameters of all factors; biases, magnitudes and modules that were trained whole do not count."""
        return self.parameters_at({name: update.rank for name, update in self.layers.items()})

    def parameters_at(self, ranks: Mapping[str, int]) -> int:
        """Return the parameters of all factors at these ranks."""
        return parameters_of(ranks, self.costs)

    def ranks_for(self, budget: int) -> dict[str, int]:
        """Return the rank of each layer, 0 where the adapter leaves it, within a budget of parameters.

        Directions of all layers are taken by worth a parameter until one does not fit, so that what a budget keeps is
        part of what every larger one keeps.

        Raises:
            BudgetError: If the budget does not hold the first of them.
        """
        if budget >= self.parameters:
            return {name: update.rank for name, update in self.layers.items()}
        worths = {name: basis.worths for name, basis in self.bases.items()}
        ranks = allocate_ranks(worths, self.costs, budget, nested=True)
        if not any(ranks.values()):
            raise BudgetError(
                f"a budget of {budget:,} parameters does not hold the first direction; one has up to "
                f"{max(self.costs.values()):,} parameters here, so give at least that"
            )
        return ranks

    def energy(self, ranks: Mapping[str, int]) -> float:
        """Return the share of ‖scale · B A‖² over all layers that is kept at these ranks; 1 of an update of nothing."""
        whole = kept = 0.0
        for name, update in self.layers.items():
            whole += _squared_norm(*update.directions()) * update.scale**2
            kept += _squared_norm(*self.factors(name, ranks[name])) * update.scale**2
        return kept / whole if whole else 1.0

    def factors(self, name: str, rank: int) -> tuple[Tensor, Tensor]:
        """Return a layer's A and B at a rank, computed in float64, in the dtype that they have.

        All directions are the factors themselves, untouched.
        """
        a, b = self.layers[name].directions()
        if rank == len(a):
            return a, b
        cut_a, cut_b = self.bases[name].cut(rank).factors(a, b)
        return cut_a.to(a.dtype), cut_b.to(b.dtype)


def _squared_norm(a: Tensor, b: Tensor) -> float:
    """Return ‖B A‖², the trace of Bᵀ B A Aᵀ."""
    return float((gram_of_columns(b) * gram_of_rows(a)).sum())


def truncation(
    layers: Mapping[str, Update], criterion: TruncationCriterion, moments: Mapping[str, Moments] | None = None
) -> Truncation:
    """Return an adapter's directions in order.

    Args:
        layers: The adapter's layers.
        criterion: `svd` orders by singular values of the scaled updates and needs nothing else; `whitened` by the nats
            a token that the loss is expected to rise by (`find_bases`).
        moments: What was seen of each layer, for `whitened`.
    """
    return Truncation(layers, find_bases(layers, moments or {}, criterion))


@contextmanager
def cut_meanwhile(layers: Mapping[str, LoraFactors], cut: Truncation, ranks: Mapping[str, int]) -> Iterator[None]:
    """Let a model answer as its adapter does at these ranks; then it is bit for bit what it was.

    Args:
        layers: The model's layers.
        cut: The adapter's directions, found from these layers or from the file that they were loaded from.
        ranks: The rank of each.
    """
    with ExitStack() as stack:
        for name, rank in ranks.items():
            if rank < cut.layers[name].rank:
                factors = layers[name]
                a, b = cut.factors(name, rank)
                stack.enter_context(factors.cut_meanwhile(a.to(factors.a), b.to(factors.b)))
        yield
