"""Which directions of which layers to keep under a budget of parameters. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from .errors import BudgetError

__all__ = ["allocate_ranks", "parameters_of"]


def allocate_ranks(
    scores: Mapping[str, Sequence[float]],
    costs: Mapping[str, int],
    budget: int,
    *,
    least: Mapping[str, int] | None = None,
    most: Mapping[str, int] | None = None,
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
        if index == ranks[name] < most.get(name, len(scores[name])) and costs[name] <= left:
            ranks[name] += 1
            left -= costs[name]
    return ranks


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
