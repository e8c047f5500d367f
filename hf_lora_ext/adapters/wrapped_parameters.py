"""Which parameter each of a module's wrappers is of, where PEFT's `target_parameters` names several. Pure.

PEFT wraps the parameters of one module (the weights of its experts) around each other, and stacks the factors of all
experts. The names in a file say neither which parameter is the outer one nor how many experts there are; the ranks of
the config do, since the number of experts is one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import permutations
from typing import Any, Final

from ..errors import AdapterError
from .patterns import rank_of, scaling_of
from .tensor_names import CONFIG

__all__ = ["Wrapped", "find_wrapped"]

INNER: Final = ".base_layer"
"""What PEFT appends to a module's name for each further parameter of it that is wrapped."""
_MOST: Final = 6
"""Parameters of one module that are told apart by trying every order."""


@dataclass(frozen=True, slots=True)
class Wrapped:
    """What the config says of one wrapper."""

    parameter: str | None
    """Full name of the parameter; None where the config does not say which of several it is."""
    rank: int
    """Rank of each expert."""
    scaling: float
    """What B A is multiplied by."""


def find_wrapped(rows: Mapping[str, int], config: Mapping[str, Any]) -> dict[str, Wrapped]:
    """Return the modules that are wrappers of parameters, by name.

    Args:
        rows: Module → rows of its A, which are those of all experts.
        config: The adapter's config; empty where it is not known.

    Raises:
        AdapterError: If the config is needed and not there, or does not fit.
    """
    if not (listed := config.get("target_parameters")):
        if inner := next((name for name in sorted(rows) if name.endswith(INNER)), None):
            raise AdapterError(
                f"{inner} is an expert's or another wrapped parameter, and no target_parameters say which; give the "
                f"folder with its {CONFIG}"
            )
        return {}
    found: dict[str, Wrapped] = {}
    for owner, names in _owners(rows).items():
        if targets := [f"{owner}.{parameter}" for parameter in _parameters_of(owner, listed)]:
            found |= _told_apart(owner, {name: rows[name] for name in names}, targets, config)
    return found


def _owners(names: Iterable[str]) -> dict[str, list[str]]:
    """Return module → the names of its wrappers, outermost first."""
    owners: dict[str, list[str]] = {}
    for name in sorted(names, key=len):
        owner = name
        while owner.endswith(INNER):
            owner = owner.removesuffix(INNER)
        owners.setdefault(owner, []).append(name)
    return owners


def _parameters_of(owner: str, targets: Iterable[str]) -> Iterator[str]:
    """Yield the parameters of a module that are among PEFT's `target_parameters`, by their own name."""
    for target in sorted(set(targets)):
        module, _, parameter = target.rpartition(".")
        if module and f".{owner}".endswith(f".{module}"):
            yield parameter


def _told_apart(
    owner: str, rows: Mapping[str, int], targets: list[str], config: Mapping[str, Any]
) -> dict[str, Wrapped]:
    """Return what each wrapper of a module is, by trying every order of its parameters."""
    if len(targets) > _MOST:
        raise AdapterError(f"{owner} wraps {len(targets)} parameters; at most {_MOST} can be told apart")
    fitting = [order for order in permutations(targets, len(rows)) if _is_one_number(rows.values(), order, config)]
    results = [[_said(target, config) for target in order] for order in fitting]
    if not results or any(result != results[0] for result in results):
        raise AdapterError(
            f"{owner}: factors of {', '.join(map(str, rows.values()))} rows and the ranks in {CONFIG} do not say which "
            "parameter is which; save both together, with one rank and alpha for this module's parameters"
        )
    known = fitting[0] if len(fitting) == 1 else [None] * len(rows)
    return {name: Wrapped(parameter, *said) for name, parameter, said in zip(rows, known, results[0], strict=True)}


def _is_one_number(rows: Iterable[int], order: Iterable[str], config: Mapping[str, Any]) -> bool:
    """Return whether all wrappers, in this order of parameters, are of the same whole number of experts."""
    ranks = [rank_of(config, target) for target in order]
    if not all(isinstance(rank, int) and rank > 0 for rank in ranks):
        return False
    experts = {divmod(count, rank) for count, rank in zip(rows, ranks, strict=True)}
    return len(experts) == 1 and all(number > 0 and not rest for number, rest in experts)


def _said(target: str, config: Mapping[str, Any]) -> tuple[int, float]:
    rank: int = rank_of(config, target)
    return rank, scaling_of(config, target, rank)
