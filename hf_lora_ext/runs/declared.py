"""The hardware that a recipe is written for: its section, what is wrong with one, and what a machine lacks of it.

Pure. The section is no part of what a run is: the same run may go on where there is more, or less.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from ..hardware import Hardware
from .recipe_rules import FROM_1, POSITIVE, find_problems

__all__ = ["HardwareChoice", "hardware_problems", "shortfall"]

_RULES: Final = {"gpus": FROM_1, "gpu_memory_gib": POSITIVE, "machines": FROM_1, "host_gib": POSITIVE}
_SAME: Final = 0.95
"""Share of a card's customary size that its driver must report: a card of 24 GB has 22.5 to 24 GiB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HardwareChoice:
    """What a recipe is written for; without `gpu_memory_gib`, a machine without a GPU."""

    gpus: int = 1
    """GPUs of one machine."""
    gpu_memory_gib: float | None = None
    """Memory of one GPU in GiB."""
    machines: int = 1
    """Such machines that train together."""
    host_gib: float | None = None
    """Memory of one machine's host in GiB."""

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of `preset` that declare it."""
        if self.gpu_memory_gib is None:
            return {"host_gib": self.host_gib}
        return {name: getattr(self, name) for name in _RULES}

    def __str__(self) -> str:
        if self.gpu_memory_gib is None:
            return f"a CPU with {self.host_gib:g} GiB of memory"
        cards = "a GPU of" if self.gpus == 1 else f"{self.gpus} GPUs of"
        each = "" if self.gpus == 1 else " each"
        machines = f"{self.machines} machines, each with " if self.machines > 1 else ""
        host = f", and {self.host_gib:g} GiB of host memory" if self.host_gib is not None else ""
        return f"{machines}{cards} {self.gpu_memory_gib:g} GiB{each}{host}"


def hardware_problems(raw: Mapping[str, Any]) -> list[str]:
    """Return every problem of a raw `hardware` section, one line each."""
    problems = find_problems(raw, _RULES, prefix="hardware.")
    if problems:
        return problems
    if "gpu_memory_gib" not in raw:
        alone = [name for name in ("gpus", "machines") if raw.get(name, 1) != 1]
        if alone:
            return [f"hardware.{alone[0]}: says nothing without gpu_memory_gib; add it, e.g. gpu_memory_gib: 24"]
        if "host_gib" not in raw:
            return ["hardware: found nothing in it, needed gpu_memory_gib, or host_gib for a machine without a GPU"]
    return []


def shortfall(declared: HardwareChoice, found: Hardware) -> tuple[str, ...]:
    """Return what a machine lacks of what was declared, in words; empty where it has as much.

    Args:
        declared: What a recipe is written for.
        found: What is here; its devices are those that take part in the run.
    """
    lacks = []
    if declared.gpu_memory_gib is not None:
        wanted = declared.gpus * declared.machines
        has = found.devices if found.kind == "cuda" else 0
        if has < wanted:
            lacks.append(f"{has} of {wanted} GPUs" if has else "no GPU")
        if has and found.memory_gib is not None and found.memory_gib < _SAME * declared.gpu_memory_gib:
            lacks.append(f"{found.memory_gib:g} of {declared.gpu_memory_gib:g} GiB on each GPU")
    known = found.host_memory_gib
    if declared.host_gib is not None and known is not None and known < _SAME * declared.host_gib:
        lacks.append(f"{known:g} of {declared.host_gib:g} GiB of host memory")
    return tuple(lacks)
