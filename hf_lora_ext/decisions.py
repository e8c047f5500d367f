"""A decided value with its reason: what every choice of a preset is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["Choice"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One decided value, and why."""

    name: str
    """The setting."""
    value: Any
    """What it was set to."""
    why: str
    """The reason, in a few words."""
    source: str
    """Paper, documentation or measurement behind it."""
