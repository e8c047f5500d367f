"""What the keys of a recipe may be: rules for values, and every way in which a mapping breaks them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from ..errors import nearest

__all__ = [
    "FRACTION",
    "FROM_0",
    "FROM_1",
    "NOT_NEGATIVE",
    "POSITIVE",
    "SWITCH",
    "TEXT",
    "Rule",
    "find_problems",
    "is_names",
    "is_number",
    "is_whole",
    "one_of",
]


@dataclass(frozen=True, slots=True)
class Rule:
    """What a key's value must be."""

    accepts: Callable[[Any], bool]
    """Whether a value is right."""
    need: str
    """What is right, in words."""


def is_whole(value: Any, least: int) -> bool:
    """Return whether a value is a whole number, no truth value, and not below `least`."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def is_number(value: Any, least: float, below: float = float("inf")) -> bool:
    """Return whether a value is a number, no truth value, from `least` up to, not including, `below`."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and least <= value < below


def is_names(value: Any) -> bool:
    """Return whether a value is a list of names, with at least one."""
    return isinstance(value, (list, tuple)) and bool(value) and all(isinstance(v, str) and v for v in value)


def one_of(*words: str) -> Rule:
    """Return the rule that a value is one of these words."""
    return Rule(lambda v: v in words, " or ".join(words))


TEXT: Final = Rule(lambda v: isinstance(v, str) and bool(v.strip()), "some text")
SWITCH: Final = Rule(lambda v: isinstance(v, bool), "true or false")
FROM_1: Final = Rule(lambda v: is_whole(v, 1), "a whole number from 1")
FROM_0: Final = Rule(lambda v: is_whole(v, 0), "a whole number from 0")
POSITIVE: Final = Rule(lambda v: is_number(v, 0) and v > 0, "a number above 0")
NOT_NEGATIVE: Final = Rule(lambda v: is_number(v, 0), "a number from 0")
FRACTION: Final = Rule(lambda v: is_number(v, 0, 1), "a number from 0 up to, not including, 1")


def find_problems(
    raw: Mapping[Any, Any],
    rules: Mapping[str, Rule],
    required: Iterable[str] = (),
    prefix: str = "",
    meaning: Mapping[str, str] | None = None,
) -> list[str]:
    """Return what is wrong with a mapping's keys and values, one line each.

    Args:
        raw: The mapping; a value of None is one that is not given.
        rules: Key → rule.
        required: Keys that must be given.
        prefix: What each line's key begins with.
        meaning: Key of other tools → the one that it is here.
    """
    found = [f"{prefix}{key}: missing; needed: {rules[key].need}" for key in required if raw.get(key) is None]
    for key, value in raw.items():
        rule = rules.get(key) if isinstance(key, str) else None
        if rule is None:
            found.append(f"{prefix}{key}: unknown key; {nearest(str(key), rules, meaning)}")
        elif value is not None and not rule.accepts(value):
            found.append(f"{prefix}{key}: found {value!r}, needed {rule.need}")
    return found
