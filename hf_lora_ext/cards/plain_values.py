"""Whether values read from JSON are what a dataclass or a TypedDict says of itself by its annotations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Union, get_args, get_origin, get_type_hints, is_typeddict

__all__ = ["misfit"]

_WORDS: Final = {str: "text", bool: "true or false", int: "a whole number", float: "a number", NoneType: "nothing"}


def misfit(value: Any, wanted: Any, where: str) -> str | None:
    """Return what is wrong with a plain value, in words; None where it fits.

    `null` fits where a number is wanted: JSON has no other word for one that is not finite. Keys that a TypedDict does
    not name are free; a dataclass takes its own alone, and needs those without a default.

    Args:
        value: What JSON has no other kinds than: text, numbers, lists, mappings.
        wanted: A type, as an annotation says it.
        where: The value's dotted name.

    >>> misfit({"steps": "many"}, dict[str, int], "run")
    'run.steps is text, needed a whole number'
    """
    if wanted is Any or (wanted is float and value is None):
        return None
    origin, inner = get_origin(wanted), get_args(wanted)
    if origin is Annotated:  # what is said to people and type checkers, and then what is read of it
        return misfit(value, inner[1], where)
    if origin in (Union, UnionType):
        if value is None and NoneType in inner:
            return None
        problems = [misfit(value, each, where) for each in inner if each is not NoneType]
        return None if None in problems else problems[0]
    if is_dataclass(wanted) or is_typeddict(wanted):
        return _misfit_of_keys(value, wanted, where)
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            return _needed(value, where, "a mapping")
        return _first(misfit(each, inner[1], f"{where}.{key}") for key, each in value.items())
    if origin is not None and issubclass(origin, Sequence):
        if not isinstance(value, (list, tuple)):
            return _needed(value, where, "a list")
        return _first(misfit(each, inner[0], f"{where}[{number}]") for number, each in enumerate(value))
    is_number = isinstance(value, (int, float) if wanted is float else int) and not isinstance(value, bool)
    fits = is_number if wanted in (int, float) else isinstance(value, wanted)
    return None if fits else _needed(value, where, _WORDS[wanted])


def _misfit_of_keys(value: Any, wanted: Any, where: str) -> str | None:
    """Return what is wrong with the mapping that a dataclass or a TypedDict is made from."""
    if not isinstance(value, Mapping):
        return _needed(value, where, "a mapping")
    hints = get_type_hints(wanted, include_extras=True)
    if is_dataclass(wanted):
        if unknown := sorted(str(key) for key in value if key not in hints):
            return f"{where}.{unknown[0]} is not known"
        needed = [f.name for f in fields(wanted) if f.default is MISSING and f.default_factory is MISSING]
        if missing := [name for name in needed if name not in value]:
            return f"{where}.{missing[0]} is missing"
    return _first(misfit(each, hints[key], f"{where}.{key}") for key, each in value.items() if key in hints)


def _first(problems: Any) -> str | None:
    return next((problem for problem in problems if problem is not None), None)


def _needed(value: Any, where: str, wanted: str) -> str:
    return f"{where} is {_found(value)}, needed {wanted}"


def _found(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "a list"
    return "a mapping" if isinstance(value, Mapping) else _WORDS[type(value)]
