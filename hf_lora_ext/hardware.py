"""The hardware a preset is made for: a plain value, found by `machine.find_hardware` or declared by the user."""

from dataclasses import dataclass
from typing import Literal

from .errors import ConfigError

__all__ = ["Hardware", "declared_hardware"]

DeviceKind = Literal["cuda", "mps", "cpu"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """What a training run may use."""

    kind: DeviceKind
    """Kind of device that computes."""
    devices: int = 1
    """Devices used together; 1 on a CPU."""
    memory_gib: float | None = None
    """Memory of one device in GiB (2**30 bytes); None when unknown."""
    has_bfloat16: bool = False
    """Whether the device multiplies bfloat16 in hardware (NVIDIA: compute capability 8.0, Ampere, and up)."""
    name: str = "CPU"
    """The device's name, as its driver gives it."""
    declared: bool = False
    """Whether the user declared it, rather than it being found."""

    def __str__(self) -> str:
        memory = f", {self.memory_gib:g} GiB each" if self.memory_gib and self.kind != "cpu" else ""
        count = f"{self.devices}× " if self.kind != "cpu" else ""
        return f"{count}{self.name}{memory} ({'declared' if self.declared else 'found'})"


def declared_hardware(found: Hardware, gpu_memory_gib: float | None, gpus: int | None) -> Hardware:
    """Return the hardware that the user declared, or `found` where nothing was declared.

    A declared GPU that this machine does not have is taken to be an NVIDIA card with bfloat16.

    Raises:
        ConfigError: If a declared number is not positive.
    """
    if gpu_memory_gib is not None and not (isinstance(gpu_memory_gib, (int, float)) and gpu_memory_gib > 0):
        raise ConfigError(f"gpu_memory_gib={gpu_memory_gib!r} must be above 0; give one card's memory, e.g. 24")
    if gpus is not None and not (isinstance(gpus, int) and not isinstance(gpus, bool) and gpus >= 1):
        raise ConfigError(f"gpus={gpus!r} must be a whole number from 1; leave it out to use what is found")
    if gpu_memory_gib is None and gpus is None:
        return found
    has_card = found.kind == "cuda"
    return Hardware(
        kind="cuda",
        devices=gpus if gpus is not None else 1,
        memory_gib=gpu_memory_gib if gpu_memory_gib is not None else found.memory_gib if has_card else None,
        has_bfloat16=found.has_bfloat16 if has_card else True,
        name=found.name if has_card else "NVIDIA GPU",
        declared=True,
    )
