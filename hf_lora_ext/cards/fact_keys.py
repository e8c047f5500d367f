"""The keys that are read in the freer sections of facts, which may hold more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

__all__ = ["AdapterFacts", "ConfigFacts", "EmissionFacts", "EnvironmentFacts", "RunFacts"]


class AdapterFacts(TypedDict, total=False):
    """What is read of the adapter's facts; there may be more."""

    kind: str
    """PEFT's name of the method."""
    trainable_parameters: int
    """Numbers that trained."""
    bytes: int
    """Size of the weights file."""
    layer_ranks: Mapping[str, int]
    """Module → rank, where they differ."""
    labels: Sequence[str]
    """Classes, in the order of the head's rows."""
    config: ConfigFacts
    """The whole PEFT config."""


class ConfigFacts(TypedDict, total=False):
    """What is read of a PEFT config in the facts."""

    rank_pattern: Mapping[str, float] | None
    """Module → rank, where it is not the config's."""
    alpha_pattern: Mapping[str, float] | None
    """Module → alpha, likewise."""


class RunFacts(TypedDict, total=False):
    """What is read of the run's facts; there may be more."""

    method: str
    """Name of the trainer's method: `sft`, `dpo`."""
    train_seconds: float
    """Time in training."""
    peak_memory: Mapping[str, float]
    """Where → GiB."""
    emissions: EmissionFacts
    """What codecarbon measured."""


class EmissionFacts(TypedDict, total=False):
    """Energy and what it emitted."""

    energy_kwh: float
    """Kilowatt hours."""
    grams: float
    """CO2 equivalents."""


class EnvironmentFacts(TypedDict, total=False):
    """Where the run was."""

    versions: Mapping[str, str]
    """Library → version."""
    hardware: Mapping[str, Any]
    """Device and its memory."""
