"""What a run without a planned GPU takes at least of the host's memory, and a warning where that is too much."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from ..choices.methods import METHOD_FACTS
from ..decisions import Choice

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..hardware import Hardware
    from ..models.sizes import ModelShape

__all__ = ["host_choice", "host_warnings", "least_host_bytes"]

GIB: Final = 2**30
SOURCE: Final = "count of the weights, without activations"
_DTYPE_BYTES: Final = {"float32": 4, "float16": 2, "bfloat16": 2}
_PACKED_SHARE: Final = 0.9
"""Share of the parameters that bitsandbytes packs, where the layers are not known (as in `memory`)."""


def least_host_bytes(shape: ModelShape, choices: Iterable[Choice]) -> int:
    """Return the bytes of the base, the adapter, its gradients and its moments, for a run on the host itself."""
    value: dict[str, Any] = {choice.name: choice.value for choice in choices}
    bits = METHOD_FACTS[value["method"]].bits
    packed = 0
    if bits is not None:
        known = shape.quantisable_parameters
        packed = round(_PACKED_SHARE * shape.parameters) if known is None else known
    base = (shape.parameters - packed) * _DTYPE_BYTES[value["dtype"]] + packed * (bits or 0) // 8
    adapter = shape.lora_parameters(value["rank"], value["targets"]) or 0
    return base + 4 * adapter * _DTYPE_BYTES[value["adapter_dtype"]]  # weight, gradient, two moments


def host_choice(shape: ModelShape, hardware: Hardware, choices: tuple[Choice, ...]) -> Choice:
    """Return what a preset says of memory where no GPU is planned for."""
    if hardware.kind == "cuda":
        known = hardware.memory_gib is not None
        why = (
            "the planner does not know what this adapter takes"
            if known
            else "the GPU's memory is not known; name it: gpu_memory_gib="
        )
        return Choice(name="memory_gib", value=None, why=why, source="memory planner")
    host = f" of {hardware.host_memory_gib:g}" if hardware.host_memory_gib is not None else ""
    least = least_host_bytes(shape, choices) / GIB
    why = f"no GPU to plan for; base and adapter alone take {least:.1f} GiB{host} of host memory"
    return Choice(name="memory_gib", value=None, why=why, source=SOURCE)


def host_warnings(shape: ModelShape, hardware: Hardware, choices: tuple[Choice, ...]) -> tuple[Choice, ...]:
    """Return a warning if the run would compute on a host that cannot hold it."""
    if hardware.kind == "cuda" or hardware.host_memory_gib is None:
        return ()
    least = least_host_bytes(shape, choices) / GIB
    if least <= hardware.host_memory_gib:
        return ()
    why = (
        f"more than the {hardware.host_memory_gib:g} GiB of this host; take a smaller model, or name the GPU it is for "
        "(gpu_memory_gib=24, --gpu 24)"
    )
    return (Choice(name="does not fit", value=f"{least:.1f} GiB", why=why, source=SOURCE),)
