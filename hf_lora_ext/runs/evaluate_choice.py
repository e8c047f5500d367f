"""What can be measured of an adapter, and what a recipe asks for when its run is over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ..errors import ConfigError, nearest
from .recipe_rules import FROM_1, Rule, find_problems, is_whole

__all__ = ["ANSWERED", "CLASS_METRICS", "TEXT_METRICS", "EvaluateChoice", "checked_metrics", "evaluate_problems"]

TEXT_METRICS: Final = ("loss", "perplexity", "token_accuracy", "exact_match", "rouge")
"""What can be asked of a model that writes; the first three take one pass over the rows."""
ANSWERED: Final = ("exact_match", "rouge")
"""Those of them that a model has to write answers for."""
CLASS_METRICS: Final = ("loss", "accuracy", "f1")
"""What can be asked of a classifier."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateChoice:
    """What is measured at the end of a run, of base and adapter, on the rows that it held out."""

    metrics: tuple[str, ...]
    """Names in `TEXT_METRICS`."""
    examples: int | None = None
    """Measure at most this many of the held-out rows."""
    max_new_tokens: int | None = None
    """Tokens that an answer can have; else as many as the longest real answer."""


_RULES: Final = {
    "metrics": Rule(
        lambda v: isinstance(v, (list, tuple)) and bool(v) and set(map(str, v)) <= {*TEXT_METRICS},
        f"a list of {', '.join(TEXT_METRICS)}",
    ),
    "examples": Rule(lambda v: is_whole(v, 2), "a whole number from 2"),
    "max_new_tokens": FROM_1,
}


def evaluate_problems(raw: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with a recipe's `evaluate`, one line each."""
    return find_problems(raw, _RULES, required=("metrics",), prefix="evaluate.")


def checked_metrics(wanted: Sequence[str] | None, classifies: bool) -> tuple[str, ...]:
    """Return the metrics to measure; of none wanted, those that need no answers.

    >>> checked_metrics(None, classifies=False)
    ('loss', 'perplexity', 'token_accuracy')

    Args:
        wanted: Names.
        classifies: Whether the adapter is a classifier's.

    Raises:
        ConfigError: If a name is none that this adapter can be measured by.
    """
    valid = CLASS_METRICS if classifies else TEXT_METRICS
    if not wanted:
        return tuple(name for name in valid if name not in ANSWERED)
    for name in wanted:
        if name not in valid:
            kind = "a classifier" if classifies else "a model that writes"
            raise ConfigError(f"metric {name!r} is none for {kind}; {nearest(name, valid)}")
    return tuple(name for name in valid if name in wanted)
