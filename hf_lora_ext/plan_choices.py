"""What a preset asks of the memory planner, and the choices that its answer makes.

`plan_preset` states the run as a `Plan` and looks for the fastest variation that fits; `overlaid` puts batch,
checkpointing, sharding and the memory needed into the preset's choices, with what was given up.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Literal

from .choices import MAX_LENGTH, LoraWishes, Method, dtype_for, starting_rank
from .decisions import Choice
from .fitting import Fit, fit
from .methods import METHOD_FACTS
from .plans import Plan
from .run_choices import RunWishes
from .sizes import size_band

if TYPE_CHECKING:
    from peft import LoraConfig

    from .hardware import Hardware
    from .sizes import ModelShape

__all__ = ["overlaid", "plan_preset"]

GIB: Final = 2**30
SOURCE: Final = "memory planner, `hf-lora plan`"
_ATTENTION: Final[dict[str, Literal["flash", "eager", "sdpa"]]] = {
    "flash_attention_2": "flash",
    "flash_attention_3": "flash",
    "eager": "eager",
}


def plan_preset(
    shape: ModelShape,
    hardware: Hardware,
    method: Method | None,
    wishes: LoraWishes,
    run: RunWishes,
    lora_config: LoraConfig | None = None,
) -> Fit | None:
    """Return the fastest plan that fits, or None where there is no GPU of known memory, or no adapter of factors.

    Args:
        shape: The model.
        hardware: The devices.
        method: The user's method, which then stays; None prefers `lora` and takes `qlora` if it must be.
        wishes: What the user fixed of the adapter.
        run: What the user fixed of the run.
        lora_config: The user's own LoraConfig.

    Raises:
        ConfigError: If nothing fits, naming what would.
    """
    if hardware.kind != "cuda" or hardware.memory_gib is None or method == "prefix":
        return None
    wanted = _wanted(shape, hardware, method or "lora", wishes, run, lora_config)
    fixed = {"base"} if method is not None else set()
    if run.sharding is not None and hardware.devices > 1:
        fixed.add("sharding")
        offload = run.sharding == "fsdp" and wanted.is_packed  # as peft documents it, and `launch` writes it
        wanted = replace(wanted, sharding=run.sharding, devices=hardware.devices, offload=offload)
    return fit(shape, hardware, wanted, fixed=frozenset(fixed))


def _wanted(
    shape: ModelShape,
    hardware: Hardware,
    method: Method,
    wishes: LoraWishes,
    run: RunWishes,
    lora_config: LoraConfig | None,
) -> Plan:
    dtype, _ = dtype_for(hardware)
    bits = METHOD_FACTS[method].bits
    rank = wishes.rank or (lora_config.r if lora_config is not None else size_band(shape.parameters).rank)
    dropout = lora_config.lora_dropout if lora_config is not None else wishes.dropout
    return Plan(
        method="adalora" if method == "adalora" else "dora" if "dora" in method else "lora",
        base={None: dtype, 4: "nf4", 8: "int8"}[bits],
        compute=dtype,
        adapter="float32" if bits is None else "bfloat16",
        rank=starting_rank(rank) if method == "adalora" else rank,
        targets=_targets(wishes.targets if lora_config is None else lora_config.target_modules),
        dropout=dropout is None or dropout > 0,
        autocast=dtype != "float32",
        optimizer="paged_adamw_8bit" if run.optimizer == "paged_adamw_8bit" else "adamw",
        sequence=min(MAX_LENGTH, shape.max_positions or MAX_LENGTH),
        packing=bool(run.packing),
        padding_mask=not run.packing,
        attention=_ATTENTION.get(run.attention or "", "sdpa"),
        loss="chunked",
    )


def _targets(targets: Any) -> str | tuple[str, ...]:
    """Return module names as the planner takes them; a pattern, or peft's default, counts as all: an upper bound."""
    return tuple(targets) if targets is not None and not isinstance(targets, str) else "all-linear"


def overlaid(choices: tuple[Choice, ...], found: Fit) -> tuple[Choice, ...]:
    """Return the choices with the planner's in place of those made without it, and the memory needed."""
    plan, needed = found.plan, found.estimate.needed / GIB
    together = plan.micro_batch * plan.accumulation * plan.devices
    values: dict[str, tuple[Any, str]] = {
        "micro_batch": (plan.micro_batch, "the fastest that fits"),
        "accumulation": (plan.accumulation, f"{together} examples an optimizer step"),
        "activation_checkpointing": (plan.checkpointing, "part of the fastest that fits"),
    }
    if plan.devices > 1:
        values["sharding"] = (plan.sharding, "the fastest that fits")
        values["offload"] = (plan.offload, "only so it fits" if plan.offload else "weights stay on the device")
    gave_up = f"; gave up: {'; '.join(found.gave_up)}" if found.gave_up else ""
    why = f"of {found.available / GIB:g} GiB on each device, margin included{gave_up}"
    replaced = (
        replace(c, value=values[c.name][0], why=values[c.name][1], source=SOURCE) if c.name in values else c
        for c in choices
    )
    return (*replaced, Choice(name="memory_gib", value=round(needed, 1), why=why, source=SOURCE))
