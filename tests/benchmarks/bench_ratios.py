"""The ratios that `make bench-quick` holds against recorded ones, and what has moved. Plain values in and out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True, slots=True)
class Ratio:
    """A ratio of two things that are measured by turns on one machine."""

    group: str
    """The probe that measures it; a process of its own."""
    factor: float
    """It has moved where it is more than so many times the recorded one, or less than its inverse."""


PROCESS, STEP, EVENT, LOSS, PUSH, WIDE = 1.3, 1.2, 2.0, 1.05, 1.5, 3.0
"""Factors. Losses are computed, so that only rounding moves them; what a Python's start or a memory's speed is compared
with differs most between machines."""
RATIOS = {
    "import hf_lora_ext / python": Ratio("startup", PROCESS),
    'preset("7B") / python': Ratio("startup", PROCESS),
    "plan 7B / python": Ratio("startup", PROCESS),
    "plan 13B in 4 bits / python": Ratio("startup", PROCESS),
    "plan 70B in 4 bits on 2 / python": Ratio("startup", PROCESS),
    "plan of Mixtral 8x7B / python": Ratio("startup", PROCESS),
    'preset("7B") / import peft': Ratio("startup", 2.0),
    "adaptive step before a probe / plain of start rank": Ratio("rank", STEP),
    "adaptive step in a probe / plain of start rank": Ratio("rank", STEP),
    "adaptive step after the last event / plain of target rank": Ratio("rank", STEP),
    "event, its bases / 10 Adam steps": Ratio("event", EVENT),
    "event, its allocation / 10 Adam steps": Ratio("event", EVENT),
    "event, its change / 10 Adam steps": Ratio("event", EVENT),
    "KL by singular values / PEFT's, rank 1": Ratio("compress", LOSS),
    "KL by what the loss would miss / PEFT's, rank 1": Ratio("compress", LOSS),
    "KL by singular values / PEFT's, rank 4": Ratio("compress", LOSS),
    "KL by what the loss would miss / PEFT's, rank 4": Ratio("compress", LOSS),
    "seconds a wide module / PEFT's": Ratio("compress", WIDE),
    "push_adapter, verified / upload_folder, 1 MB": Ratio("push", PUSH),
    "training a token, preset / stock, made equal": Ratio("speed", STEP),
}
GROUPS = tuple(dict.fromkeys(ratio.group for ratio in RATIOS.values()))


@dataclass(frozen=True, slots=True)
class Moved:
    """A ratio that is not what was recorded."""

    name: str
    found: float | None
    recorded: float | None
    factor: float

    def __str__(self) -> str:
        if self.recorded is None:
            return f"{self.name}: nothing is recorded; record it with `make bench-quick RECORD=1`"
        if self.found is None:
            return f"{self.name}: was not measured; recorded is {self.recorded:.3g}"
        low, high = self.recorded / self.factor, self.recorded * self.factor
        return f"{self.name}: found {self.found:.3g}, recorded {self.recorded:.3g}, allowed {low:.3g} to {high:.3g}"


def paired_median(samples: Sequence[Sequence[float]]) -> float:
    """Return the median ratio of pairs, so that what hits both of one turn does not count.

    Args:
        samples: Pairs (numerator, denominator) of one turn each.

    Raises:
        ValueError: There is no pair, or a denominator is not above 0.
    """
    if not samples or any(below <= 0 for _, below in samples):
        raise ValueError(f"a ratio needs pairs with denominators above 0, found {list(samples)}")
    return median(above / below for above, below in samples)


def moved(
    found: Mapping[str, float], recorded: Mapping[str, float], ratios: Mapping[str, Ratio] = RATIOS
) -> list[Moved]:
    """Return the ratios that are outside of what is allowed, not measured or not recorded.

    Args:
        found: Ratios by name.
        recorded: The recorded ones by name.
        ratios: Those that are compared, with their factors.
    """
    whole = [Moved(name, found.get(name), recorded.get(name), ratio.factor) for name, ratio in ratios.items()]
    return [one for one in whole if not _is_near(one)]


def _is_near(one: Moved) -> bool:
    if one.found is None or one.recorded is None:
        return False
    return one.recorded / one.factor <= one.found <= one.recorded * one.factor
