"""When AdaLoRA drops ranks: its three phases as step numbers, from steps or shares of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ..errors import ConfigError

__all__ = ["ADALORA_SCHEDULE", "ADALORA_SHARES", "RankSchedule", "check_ranks", "plan_schedule"]

ADALORA_SCHEDULE: Final = {"total_step": 1000, "tinit": 100, "tfinal": 300, "deltaT": 10}
"""What peft needs to be told before the run's length is known; the callback replaces it."""
ADALORA_SHARES: Final = {"tinit": 0.1, "tfinal": 0.3}
"""Hold a tenth of the steps, move rank, leave the last three tenths alone (AdaLoRA, section 4.1 and its tables)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankSchedule:
    """The phases of one run; steps count from 1."""

    tinit: int
    """Last step at which every rank is kept."""
    freeze_step: int
    """Step at which the final budget is reached; from here on the ranks stay."""
    total_steps: int
    """Steps of the run."""

    @property
    def tfinal(self) -> int:
        """Steps after the freeze, as PEFT counts them."""
        return self.total_steps - self.freeze_step


def plan_schedule(total_steps: int, tinit: float, tfinal: float) -> RankSchedule:
    """Return the phases of a run of `total_steps`.

    >>> plan_schedule(100, 0.1, 30)
    RankSchedule(tinit=10, freeze_step=70, total_steps=100)

    Args:
        total_steps: Optimizer steps of the run.
        tinit: Steps before the first rank is dropped; below 1 a share of the run.
        tfinal: Steps that train at the final ranks; below 1 a share of the run.

    Raises:
        ConfigError: If a value cannot be right, or no step is left for dropping ranks.
    """
    first, last = _steps("tinit", tinit, total_steps), _steps("tfinal", tfinal, total_steps)
    if first + last >= total_steps:
        raise ConfigError(
            f"tinit={first} and tfinal={last} steps leave none of the run's {total_steps} for dropping ranks; "
            "lower them, or give shares of the run such as AdaLoraCallback(tinit=0.1, tfinal=0.3)"
        )
    if total_steps - last < 2:  # a step scores the directions before another drops some
        raise ConfigError(
            f"a run of {total_steps} steps with the last {last} at the final ranks drops ranks at its first step, when "
            "no direction has a score yet; train three steps or more"
        )
    return RankSchedule(tinit=first, freeze_step=total_steps - last, total_steps=total_steps)


def _steps(name: str, value: float, total_steps: int) -> int:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or value < 0 or (value >= 1 and value != int(value)):
        raise ConfigError(f"{name}={value!r} must be a whole number of steps, or a share of the run from 0 up to 1")
    return round(value * total_steps) if value < 1 else int(value)


def check_ranks(init_r: int, target_r: int, delta_t: int) -> None:
    """Raise unless there are ranks to drop and an interval at which to drop them.

    Raises:
        ConfigError: With what was found, what is needed, and how to fix it.
    """
    if not 1 <= target_r < init_r:
        raise ConfigError(
            f"target_r={target_r} must be from 1 up to, not including, init_r={init_r}, or AdaLoRA has no rank to "
            f"drop; raise init_r (1.5 x target_r is customary), or use a plain LoraConfig(r={init_r})"
        )
    if delta_t < 1:
        raise ConfigError(f"deltaT={delta_t} must be a whole number of steps from 1; 1 to 100 are customary")
