"""What a run needed beside what was planned for it. Pure: an estimate and measured peaks in, plain numbers out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from .fitting import Fit

__all__ = ["departures", "peaks_against_plan"]

GIB: Final = 2**30
_SETTINGS: Final = ("micro_batch", "sequence", "checkpointing", "devices")


def departures(found: Fit, **run: Any) -> list[str]:
    """Return how a run differs from its plan in what decides memory, in words; empty where it is as planned.

    Args:
        found: The plan.
        **run: What the run does, by the plan's names: `micro_batch`, `sequence`, `checkpointing`, `devices`; None is
            what is not known, which counts as another.
    """
    planned = {name: getattr(found.plan, name) for name in _SETTINGS}
    return [
        f"{name} {run.get(name)} instead of {planned[name]}" for name in _SETTINGS if run.get(name) != planned[name]
    ]


def peaks_against_plan(found: Fit, measured: Mapping[str, float]) -> dict[str, float]:
    """Return planned and measured GiB of a GPU and measured / planned, for each kind of peak that was measured.

    The peak of loading counts too, since a process's counters do.

    Args:
        found: The plan.
        measured: `gpu_allocated_gib` and `gpu_reserved_gib`, as `machine.peak_memory` gives them; without a GPU none.
    """
    told: dict[str, float] = {}
    for kind in ("allocated", "reserved"):
        if (seen := measured.get(f"gpu_{kind}_gib")) is not None:
            planned = max(getattr(found.estimate, kind), found.estimate.loading) / GIB
            told |= {f"{kind}_planned_gib": round(planned, 2), f"{kind}_measured_gib": seen}
            told[f"{kind}_measured_to_planned"] = round(seen / planned, 3)
    return told
