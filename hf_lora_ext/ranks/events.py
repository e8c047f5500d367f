"""When adaptive rank changes ranks, and how many parameters each event may leave. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, get_args

from ..errors import BudgetError, ConfigError, nearest

__all__ = [
    "FEWEST_PASSES",
    "LAST_EVENT",
    "Mode",
    "RankEvent",
    "check_mode",
    "check_target",
    "plan_events",
    "plan_moves",
    "short_run_warning",
]

Mode = Literal["anneal", "fixed"]
FEWEST_PASSES: Final = 4
"""Passes that new directions are judged by: one aims them, and three leave a jackknife pairs to compare."""
LAST_EVENT: Final[Mapping[Mode, float]] = {"anneal": 0.3, "fixed": 0.6}
"""Share of the run after which no rank changes. What is cut has to be learned again, at a falling learning rate."""
SHORT_RUN: Final = 120
"""Steps of the shortest run that was measured (Results in `callbacks/adaptive_rank.md`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankEvent:
    """One change of ranks."""

    step: int
    """Optimizer step after which the ranks change; steps count from 1."""
    probe_from: int
    """First step whose passes are watched for it."""
    budget: int
    """Parameters that all directions may have together from then on."""

    @property
    def turn(self) -> int:
        """First step of the second half of the watched ones, which judges what the first has found."""
        return self.probe_from + (self.step - self.probe_from + 1) // 2

    @property
    def judged(self) -> int:
        """Steps of that half."""
        return self.step - self.turn + 1


def plan_events(
    total_steps: int, start: int, target: int, *, events: int, first: float, last: float, probe_steps: int
) -> tuple[RankEvent, ...]:
    """Return the events of a run: evenly spaced, with budgets that fall from `start` to `target` by a cubic.

    The cubic (Zhu and Gupta, arXiv 1710.01878; AdaLoRA, arXiv 2303.10512, equation 12) drops much while much is
    still to be trained, and little near the end. A run with fewer steps than events gets fewer events, and one of two
    steps or more gets one.

    >>> [(event.step, event.budget) for event in plan_events(100, 800, 100, events=2, first=0.1, last=0.5,
    ...  probe_steps=4)]
    [(30, 188), (50, 100)]

    Args:
        total_steps: Optimizer steps of the run.
        start: Parameters of the adapter as it starts.
        target: Parameters that it may have in the end.
        events: How many changes.
        first: Share of the run before which nothing changes.
        last: Share of the run after which nothing changes.
        probe_steps: Steps watched before each event, at most.

    Raises:
        ConfigError: If the run is too short for one event, or a value cannot be right.
    """
    _check(events, first, last, probe_steps)
    begin = math.floor(first * total_steps)
    end = max(math.floor(last * total_steps), min(begin + 1, total_steps - 1))
    if begin >= end:
        raise ConfigError(
            f"a run of {total_steps} steps has none between {first:g} and {last:g} of it at which ranks could change; "
            "train for more steps, or use a plain LoraConfig of the target rank"
        )
    steps = sorted({begin + max(1, round((end - begin) * index / events)) for index in range(1, events + 1)})
    planned, previous = [], begin
    for index, step in enumerate(steps, 1):
        budget = target + round((start - target) * (1 - index / len(steps)) ** 3)
        planned.append(RankEvent(step=step, probe_from=max(previous + 1, step - probe_steps + 1), budget=budget))
        previous = step
    return tuple(planned)


def short_run_warning(max_steps: int, last_event: int, mode: Mode) -> str | None:
    """Return why a run may be too short to start wide; None for a longer one, and where nothing starts wide.

    Args:
        max_steps: Optimizer steps of the run.
        last_event: Step of its last event.
        mode: Of the callback.
    """
    if mode == "fixed" or max_steps >= SHORT_RUN:
        return None
    return (
        f"adaptive rank in {max_steps} steps: what an event cuts has to be learned again, and {max_steps - last_event} "
        f"steps follow the last one; the shortest run that was measured had {SHORT_RUN}; train for as many or more, or "
        "use a plain LoraConfig of the target rank"
    )


def _check(events: int, first: float, last: float, probe_steps: int) -> None:
    for name, value in (("events", events), ("probe_steps", probe_steps)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(f"{name}={value!r} must be a whole number from 1")
    if not 0 <= first < last <= 1:
        raise ConfigError(f"first={first!r} and last={last!r} must be shares of the run, 0 <= first < last <= 1")


def check_mode(mode: str, start_factor: float | None, criterion: str) -> None:
    """Raise for a mode that is not known, or what has no meaning in it.

    Args:
        mode: The mode.
        start_factor: The start factor that the user named; None for the default.
        criterion: What a direction is worth.

    Raises:
        ConfigError: With what was found, and what works.
    """
    if mode not in get_args(Mode):
        raise ConfigError(f"mode {mode!r} is not known; {nearest(str(mode), get_args(Mode))}")
    if mode == "fixed" and start_factor is not None:
        raise ConfigError(
            f"start_factor={start_factor!r} has no meaning with mode='fixed', which starts at the budget; leave it "
            "out, or use mode='anneal'"
        )
    if mode == "fixed" and criterion != "whitened":
        raise ConfigError(
            f"criterion {criterion!r} does not compare with what a new direction wins; use criterion='whitened' with "
            "mode='fixed'"
        )
    if start_factor is not None and not start_factor > 1:
        raise ConfigError(f"start_factor={start_factor!r} must be above 1, or there is no rank to drop")


def plan_moves(
    total_steps: int, budget: int, *, events: int, first: float, last: float, probe_steps: int, accumulation: int
) -> tuple[RankEvent, ...]:
    """Return the events of a run in mode `fixed`: as many, up to `events`, as leave each the steps to watch.

    Args:
        total_steps: Optimizer steps of the run.
        budget: Parameters that the adapter may have.
        events: How many changes, at most.
        first: Share of the run before which nothing changes.
        last: Share of the run after which nothing changes.
        probe_steps: Steps watched before each event, at most.
        accumulation: Passes of a step.

    Raises:
        ConfigError: If not even one event has enough steps to find new directions, and then to judge them.
    """
    shares = {"first": first, "last": last, "probe_steps": probe_steps}
    for count in range(events, 0, -1):
        plan = plan_events(total_steps, budget, budget, events=count, **shares)  # type: ignore[arg-type]
        if all(event.turn > event.probe_from and event.judged * accumulation >= FEWEST_PASSES for event in plan):
            return plan
    (event,) = plan
    raise ConfigError(
        f"one event alone has {event.step - event.probe_from + 1} watched steps, the second half of them with "
        f"{event.judged * accumulation} passes, where mode='fixed' needs {FEWEST_PASSES}; raise probe_steps, or train "
        "for more steps"
    )


def check_target(start: int, target: int, dearest: int, mode: str = "anneal") -> None:
    """Raise unless the adapter starts where the mode needs it, and the target holds a direction of any layer.

    That is above the target in mode `anneal`, and not above it in mode `fixed`. With a smaller target, the layers
    whose directions fit could have left the adapter before the last event.

    Args:
        start: Parameters of the adapter as it starts.
        target: Parameters that it may have in the end.
        dearest: Parameters of the largest layer's direction.
        mode: `anneal` or `fixed`.

    Raises:
        BudgetError: With what was found, what is needed, and how to fix it.
    """
    if target < dearest:
        raise BudgetError(
            f"a budget of {target:,} parameters holds no direction of the largest layer, which has {dearest:,}; raise "
            "budget_parameters or target_rank, or leave that layer out of the targets"
        )
    if mode == "fixed" and start > target:
        raise BudgetError(
            f"the adapter starts with {start:,} parameters, over the budget of {target:,}, which mode='fixed' never "
            "exceeds; lower r in the LoraConfig, raise target_rank or budget_parameters, or use mode='anneal'"
        )
    if mode == "anneal" and start <= target:
        raise BudgetError(
            f"the adapter starts with {start:,} parameters, which is not above the budget of {target:,}, so no rank "
            "can move; raise start_factor, or lower target_rank or budget_parameters"
        )
