"""A decided value with its reason, and the sources that several choices cite."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

__all__ = ["QLORA", "WITHOUT_REGRET", "Choice"]

QLORA: Final = "QLoRA, arXiv 2305.14314"
WITHOUT_REGRET: Final = "LoRA Without Regret, Thinking Machines 2025"


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
