"""The hardware a preset is made for: a plain value, found by `machine.find_hardware` or declared by the user."""

from dataclasses import dataclass, replace
from math import isfinite
from typing import Any, Literal

from .errors import ConfigError

__all__ = ["Hardware", "declared_hardware"]

DeviceKind = Literal["cuda", "mps", "cpu"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """What a training run may use."""

    kind: DeviceKind
    """Kind of device that computes."""
    devices: int = 1
    """Devices used together, those of all machines; 1 on a CPU."""
    machines: int = 1
    """Machines that they stand in, as many in each."""
    host_memory_gib: float | None = None
    """Memory of one machine's host in GiB; None when unknown, as of a machine that is not this one."""
    memory_gib: float | None = None
    """Memory of one device in GiB (2**30 bytes); None when unknown."""
    has_bfloat16: bool = False
    """Whether the device multiplies bfloat16 in hardware (NVIDIA: compute capability 8.0, Ampere, and up)."""
    name: str = "CPU"
    """The device's name, as its driver gives it."""
    declared: bool = False
    """Whether the user declared it, rather than it being found."""

    @property
    def devices_each(self) -> int:
        """Devices of one machine."""
        return self.devices // self.machines

    def __str__(self) -> str:
        memory = f", {self.memory_gib:g} GiB each" if self.memory_gib and self.kind != "cpu" else ""
        count = f"{self.devices_each}× " if self.kind != "cpu" else ""
        together = f"{self.machines} machines with {count}" if self.machines > 1 else count
        host = f", {self.host_memory_gib:g} GiB of host memory" if self.host_memory_gib else ""
        return f"{together}{self.name}{memory}{host} ({'declared' if self.declared else 'found'})"


def declared_hardware(
    found: Hardware,
    gpu_memory_gib: float | None,
    gpus: int | None,
    *,
    machines: int | None = None,
    host_gib: float | None = None,
) -> Hardware:
    """Return the hardware that the user declared, or `found` where nothing was declared.

    A declared GPU that this machine does not have is taken to be an NVIDIA card with bfloat16, in a machine whose host
    memory is not known unless it is declared too.

    Args:
        found: What this machine has.
        gpu_memory_gib: Memory of one card in GiB.
        gpus: Cards of one machine.
        machines: Machines that train together, all alike.
        host_gib: Memory of one machine's host in GiB.

    Raises:
        ConfigError: If a declared number is not positive.
    """
    _check_memory("gpu_memory_gib", gpu_memory_gib, "give one card's memory, e.g. 24")
    _check_count("gpus", gpus, "leave it out to use what is found")
    _check_count("machines", machines, "leave it out for one")
    _check_memory("host_gib", host_gib, "give the memory of one machine's host, e.g. 64")
    if gpu_memory_gib is None and gpus is None and machines in (None, 1):
        return found if host_gib is None else replace(found, host_memory_gib=host_gib, declared=True)
    has_card = found.kind == "cuda"
    like_here = has_card and gpu_memory_gib is None
    return Hardware(
        kind="cuda",
        devices=(gpus or (found.devices if like_here else 1)) * (machines or 1),
        machines=machines or 1,
        memory_gib=gpu_memory_gib if gpu_memory_gib is not None else found.memory_gib if has_card else None,
        host_memory_gib=host_gib if host_gib is not None else found.host_memory_gib if like_here else None,
        has_bfloat16=found.has_bfloat16 if has_card else True,
        name=found.name if has_card else "NVIDIA GPU",
        declared=True,
    )


def _check_memory(name: str, value: Any, remedy: str) -> None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if value is not None and not (is_number and isfinite(value) and value > 0):
        raise ConfigError(f"{name}={value!r} must be above 0; {remedy}")


def _check_count(name: str, value: Any, remedy: str) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise ConfigError(f"{name}={value!r} must be a whole number from 1; {remedy}")
