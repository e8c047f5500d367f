"""The errors this package raises on purpose.

A message says what was found, what was needed, and how to fix it::

    LoraExtError
    ├── ConfigError   (ValueError)    a recipe, preset or argument that cannot be right
    ├── BudgetError   (ValueError)    a budget that cannot be kept
    ├── AdapterError  (RuntimeError)  an adapter on disk or in memory that cannot be used
    ├── ResumeError   (RuntimeError)  a run folder that cannot be continued
    └── PushError     (RuntimeError)  a push, check or rollback on the Hub that did not happen, or is not known to have
        └── UnfitError                a release that must not leave as it is: a leak, a bad card, a duty not done
"""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches

__all__ = [
    "AdapterError",
    "BudgetError",
    "ConfigError",
    "LoraExtError",
    "PushError",
    "ResumeError",
    "UnfitError",
    "nearest",
]


class LoraExtError(Exception):
    """Base of every error that `hf_lora_ext` raises on purpose."""


class ConfigError(LoraExtError, ValueError):
    """A recipe, preset or argument that cannot be right."""


class BudgetError(LoraExtError, ValueError):
    """A budget that cannot be kept."""


class AdapterError(LoraExtError, RuntimeError):
    """An adapter, on disk or in memory, that cannot be used."""


class ResumeError(LoraExtError, RuntimeError):
    """A run folder that cannot be continued."""


class PushError(LoraExtError, RuntimeError):
    """A push, check or rollback on the Hub that did not happen, or is not known to have happened."""


class UnfitError(PushError):
    """A release that must not leave as it is; nothing was sent."""


def nearest(wrong: str, valid: Iterable[str], meaning: Mapping[str, str] | None = None) -> str:
    """Return a hint that names the valid word closest to `wrong`, or all of them when none is close.

    Args:
        wrong: What was said.
        valid: What may be said.
        meaning: Word of other tools, in small letters → what it is here; it goes before the closest.

    >>> nearest("learning_rat", ["learning_rate", "seed"])
    'did you mean `learning_rate`?'
    >>> nearest("lr", ["learning_rate", "seed"], {"lr": "learning_rate"})
    'did you mean `learning_rate`?'
    """
    if meaning and (meant := meaning.get(wrong.lower())):
        return f"did you mean `{meant}`?"
    words = sorted(valid)
    close = get_close_matches(wrong.lower(), words, n=1, cutoff=0.6)
    return f"did you mean `{close[0]}`?" if close else "valid: " + ", ".join(words)
