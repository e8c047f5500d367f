"""Ranks and scales by module, as a PEFT config says them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Final, TypeVar

__all__ = ["alpha_for", "exact_pattern", "in_pattern", "rank_of", "scaling_of"]

Value = TypeVar("Value")
_NO_DIVISION_BY_ZERO: Final = 1e-5
"""What PEFT's AdaLoRA adds to the rank that it divides by."""


def exact_pattern(name: str) -> str:
    r"""Return a pattern for one module: PEFT matches unescaped ends of names, and the first hit wins.

    >>> exact_pattern("layers.1.q_proj")
    '^layers\\.1\\.q_proj'
    """
    return "^" + re.escape(name)


def in_pattern(patterns: Mapping[str, Value] | None, name: str, otherwise: Value) -> Value:
    """Return a module's value in PEFT's `rank_pattern` or `alpha_pattern`, or the value of all others.

    >>> in_pattern({"q_proj": 4}, "layers.1.q_proj", 8)
    4
    """
    hits = (value for pattern, value in (patterns or {}).items() if re.match(rf"(.*\.)?({pattern})$", name))
    return next(hits, otherwise)


def rank_of(config: Mapping[str, Any], name: str) -> Any:
    """Return the rank that a LoRA config gives a module of the base model."""
    return in_pattern(config.get("rank_pattern"), name, config.get("r"))


def scaling_of(config: Mapping[str, Any], name: str, rank: int) -> float:
    """Return what PEFT multiplies a module's B A by: alpha / r, under rsLoRA alpha / √r.

    AdaLoRA's is alpha / `init_r`, whatever the rank is now.
    """
    if config.get("peft_type") == "ADALORA":
        alpha = float(config["lora_alpha"])
        return (alpha if alpha > 0 else rank) / (float(config["init_r"]) + _NO_DIVISION_BY_ZERO)
    alpha = float(in_pattern(config.get("alpha_pattern"), name, config["lora_alpha"]))
    return alpha / alpha_for(1.0, rank, bool(config.get("use_rslora")))


def alpha_for(scale: float, rank: int, rslora: bool) -> float:
    """Return the alpha that PEFT turns into `scale` at this rank.

    >>> alpha_for(2.0, 3, rslora=False)
    6.0
    """
    return scale * (math.sqrt(rank) if rslora else rank)
