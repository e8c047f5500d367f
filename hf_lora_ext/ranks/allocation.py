"""Which directions of which layers to keep under a budget of parameters. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..errors import BudgetError

__all__ = ["Gain", "allocate_moves", "allocate_ranks", "parameters_of"]


@dataclass(frozen=True, slots=True)
class Gain:
    """What a direction that is not there yet is expected to win."""

    worth: float
    """Nats a token by which the loss would fall."""
    error: float
    """Standard error of that."""

    @property
    def sure(self) -> float:
        """What it wins even if it was overestimated by one standard error."""
        return self.worth - self.error


def allocate_ranks(
    scores: Mapping[str, Sequence[float]],
    costs: Mapping[str, int],
    budget: int,
    *,
    least: Mapping[str, int] | None = None,
    most: Mapping[str, int] | None = None,
    nested: bool = False,
) -> dict[str, int]:
    """Return the rank of each module that keeps the most score within the budget.

    Directions are taken by score per parameter, the densest first; one that no longer fits is passed over for
    cheaper ones. Because a module's scores descend, no choice that spends as much has a higher sum, and none within
    the budget has one higher by more than the score of a single direction. Ties go to the direction that comes first
    in its module, then to the first name, so that where all is worth the same the ranks are uniform.

    >>> allocate_ranks({"q": [9.0, 1.0], "v": [4.0, 3.0]}, {"q": 10, "v": 10}, 30)
    {'q': 1, 'v': 2}

    Args:
        scores: What each direction is worth, descending, by module: what the loss would rise by without it.
        costs: Parameters of one direction, by module.
        budget: Parameters that all kept directions may have together.
        least: Directions that a module keeps whatever they are worth; 0 where it is not named.
        most: Directions that a module may keep; all where it is not named.
        nested: Whether to stop at the first direction that no longer fits, so that what a budget keeps is part of what
            every larger one keeps.

    Raises:
        BudgetError: If the budget does not hold even the least ranks.
        ValueError: If scores ascend or the names differ.
    """
    _check(scores, costs)
    least, most = dict(least or {}), dict(most or {})
    ranks = {name: min(least.get(name, 0), len(values)) for name, values in scores.items()}
    left = budget - parameters_of(ranks, costs)
    if left < 0:
        raise BudgetError(
            f"a budget of {budget:,} parameters is below the {budget - left:,} that the least ranks of {len(ranks)} "
            "modules need; raise the budget, lower the least rank, or adapt fewer modules"
        )
    for _, index, name in _by_density(scores, costs):
        if not index == ranks[name] < most.get(name, len(scores[name])):
            continue
        if costs[name] <= left:
            ranks[name] += 1
            left -= costs[name]
        elif nested:
            break
    return ranks


def allocate_moves(
    scores: Mapping[str, Sequence[float]],
    gains: Mapping[str, Sequence[Gain]],
    costs: Mapping[str, int],
    budget: int,
) -> tuple[dict[str, int], dict[str, tuple[int, ...]]]:
    """Return how many directions each module keeps, and which new ones it grows, within the budget.

    New directions compete with those that are there, by score per parameter; a new one counts with what it wins for
    sure, one standard error below what is expected. Where such an exchange would lose more than it wins, because
    directions of unlike cost leave a gap, nothing that is there leaves, and only what fits beside it grows.

    >>> allocate_moves({"q": [9.0, 1.0], "v": []}, {"v": [Gain(4.0, 1.0)]}, {"q": 10, "v": 10}, 20)
    ({'q': 1, 'v': 0}, {'v': (0,)})

    Args:
        scores: What the loss would rise by without each direction, descending, by module; empty at rank 0.
        gains: What each candidate is expected to win, by module, in any order.
        costs: Parameters of one direction, by module.
        budget: Parameters that all directions may have together; those that are there must fit.

    Returns:
        Kept directions by module, and the indices of the candidates that grow, by module, the surest first.

    Raises:
        BudgetError: If what is there is over the budget.
        ValueError: If scores ascend or the names differ.
    """
    _check(scores, costs)
    now = {name: len(values) for name, values in scores.items()}
    free = budget - parameters_of(now, costs)
    if free < 0:
        raise BudgetError(f"{budget - free:,} parameters are there already, over the budget of {budget:,}")
    order = {name: _surest(found) for name, found in gains.items()}
    sure = {name: [gains[name][index].sure for index in indices] for name, indices in order.items()}
    beside = now, allocate_ranks(sure, {name: costs[name] for name in sure}, free)
    exchanged = _pooled(scores, sure, costs, budget)
    kept, grown = max(
        beside, exchanged, key=lambda choice: _kept_worth(scores, choice[0]) + _kept_worth(sure, choice[1])
    )
    return kept, {name: order[name][:rank] for name, rank in grown.items() if rank}


def _surest(gains: Sequence[Gain]) -> tuple[int, ...]:
    """Return the indices of the gains that are above 0 for sure, the largest first."""
    return tuple(sorted((i for i, gain in enumerate(gains) if gain.sure > 0), key=lambda i: (-gains[i].sure, i)))


def _pooled(
    scores: Mapping[str, Sequence[float]], sure: Mapping[str, Sequence[float]], costs: Mapping[str, int], budget: int
) -> tuple[dict[str, int], dict[str, int]]:
    """Return how many of the directions that are there, and of the new ones, are the best of all by density."""
    there, new = ({name: f"{kind} {name}" for name in of} for kind, of in enumerate((scores, sure)))
    both = {there[name]: scores[name] for name in there} | {new[name]: sure[name] for name in new}
    ranks = allocate_ranks(both, {key: costs[key[2:]] for key in both}, budget)
    return {name: ranks[key] for name, key in there.items()}, {name: ranks[key] for name, key in new.items()}


def _kept_worth(scores: Mapping[str, Sequence[float]], ranks: Mapping[str, int]) -> float:
    return sum(sum(values[: ranks[name]]) for name, values in scores.items())


def parameters_of(ranks: Mapping[str, int], costs: Mapping[str, int]) -> int:
    """Return the parameters that all modules have at these ranks."""
    return sum(rank * costs[name] for name, rank in ranks.items())


def _by_density(scores: Mapping[str, Sequence[float]], costs: Mapping[str, int]) -> list[tuple[float, int, str]]:
    """Return (minus score per parameter, index, module) of each direction, the densest first."""
    return sorted(
        (-value / costs[name], index, name) for name, values in scores.items() for index, value in enumerate(values)
    )


def _check(scores: Mapping[str, Sequence[float]], costs: Mapping[str, int]) -> None:
    if scores.keys() != costs.keys():
        raise ValueError(f"scores and costs name different modules: {sorted(scores.keys() ^ costs.keys())}")
    for name, values in scores.items():
        if any(later > earlier for earlier, later in itertools.pairwise(values)):
            raise ValueError(f"the scores of {name} must descend, as the directions do: {list(values)}")
