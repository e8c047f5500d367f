"""The one translation from a run's wishes to memory plans, and from the plan that fits back to a preset's choices.

`preset` and `hf-lora plan` both state what they want as a `PlanRequest`, so that they give the same plan. `overlaid`
puts batch, checkpointing, sharding and the memory needed into a preset's choices, with what was given up.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, Literal

from ..choices.adapter import WIDE_START, all_choices, dtype_for, starting_rank
from ..choices.methods import METHOD_FACTS, Method
from ..choices.run import RunWishes, Sharding, check_run
from ..choices.wishes import LoraWishes, stored_method, wish_features
from ..decisions import Choice
from ..errors import ConfigError
from .fitting import Fit
from .plans import BaseDtype, Plan
from .plans import Method as PlanMethod

if TYPE_CHECKING:
    from peft import LoraConfig

    from ..choices.advice import Advice
    from ..hardware import Hardware
    from ..models.sizes import ModelShape

__all__ = ["FULL", "PlanRequest", "overlaid"]

GIB: Final = 2**30
FULL: Final = "full"
"""Full fine-tuning, which no preset does: the reference that `hf-lora plan` compares with."""
SOURCE: Final = "memory planner, `hf-lora plan`"
_ATTENTION: Final[dict[str, Literal["flash", "eager", "sdpa"]]] = {
    "flash_attention_2": "flash",
    "flash_attention_3": "flash",
    "eager": "eager",
}
_TRAINED: Final[dict[str, PlanMethod]] = {"adalora": "adalora", "dora": "dora", "qdora": "dora"}
"""Methods whose adapter has more than the two factors of LoRA."""
_BASES: Final[dict[int, BaseDtype]] = {4: "nf4", 8: "int8"}


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRequest:
    """All that a user fixed of a run, whose memory is to be planned."""

    shape: ModelShape
    """The model."""
    method: Method | Literal["full"] | None = None
    """The method, which then stays; None prefers `lora` and takes `qlora` if it must be."""
    adapter: LoraWishes = field(default_factory=LoraWishes)
    """What is fixed of the adapter."""
    run: RunWishes = field(default_factory=RunWishes)
    """What is fixed of the run."""
    lora_config: LoraConfig | None = None
    """The user's own LoraConfig."""
    advice: Advice | None = None
    """The advice that a rank of `auto` takes."""
    start_factor: int = WIDE_START
    """How many times its mean rank an adapter of adaptive rank starts with."""

    def wishes(self, hardware: Hardware) -> tuple[Plan, ...]:
        """Return the plans that these wishes allow on the hardware, the most wanted first, without batch.

        Empty where the wishes do not work together with any way to share the devices.
        """
        return tuple(plan for method in self._methods() for plan in self._spread(method, hardware))

    def _methods(self) -> tuple[Method | Literal["full"], ...]:
        if self.method is not None:
            return (self.method,)
        return ("lora", "qlora") if self.shape.packed is None else (stored_method(self.shape),)

    def _spread(self, method: Method | Literal["full"], hardware: Hardware) -> Iterator[Plan]:
        """Yield the plans of one method, over the ways to share the devices that it works with."""
        one = replace(hardware, devices=1, machines=1)
        shardings: list[Sharding] = ["ddp", "fsdp", "none"] if self.run.sharding is None else [self.run.sharding]
        alone: list[Sharding] = ["none"]
        for sharding in shardings if hardware.devices > 1 else alone:
            used = one if sharding == "none" else hardware
            if method == FULL:
                plan = self._full(used, sharding)
            else:
                run = replace(self.run, sharding=sharding)
                try:
                    check_run(method, run, used, self.lora_config, wish_features(self.adapter))
                except ConfigError:
                    continue
                plan = self._plan(method, run, used)
            yield plan
            if sharding == "fsdp":
                yield replace(plan, offload=True)

    def _plan(self, method: Method, run: RunWishes, hardware: Hardware) -> Plan:
        """Translate the values that a preset would have."""
        choices = all_choices(self.shape, hardware, method, self.adapter, self.lora_config, run, self.advice)
        value: dict[str, Any] = {choice.name: choice.value for choice in choices}
        bits, dtype = METHOD_FACTS[method].bits, value["dtype"]
        return Plan(
            method=_TRAINED.get(method, "lora") if self.lora_config is None else _kind_of(self.lora_config),
            base=self.shape.packed or dtype if bits is None else _BASES[bits],
            compute=dtype,
            # ZeRO-3 loads packed weights whole on each device before it cuts them (peft issues 1844, 1972).
            loads_whole=value["sharding"] == "zero3" and bits is not None,
            adapter=value["adapter_dtype"],
            rank=starting_rank(value["rank"]) if method == "adalora" else value["rank"],
            start_factor=self.start_factor if value["adaptive_rank"] else 1,
            targets=_targets(value["targets"]),
            dropout=value["dropout"] > 0,
            autocast=dtype == "bfloat16" or (dtype == "float16" and bits is None),
            optimizer="paged_adamw_8bit" if value["optimizer"] == "paged_adamw_8bit" else "adamw",
            sequence=value["max_length"],
            packing=value["packing"],
            padding_mask=not value["packing"],
            attention=_ATTENTION.get(value["attention"], "sdpa"),
            loss="chunked",  # trl's `nll`
            sharding=value["sharding"],
            devices=hardware.devices,
        )

    def _full(self, hardware: Hardware, sharding: Sharding) -> Plan:
        """Return full fine-tuning as transformers does it: float32 weights, 16-bit matrix products."""
        lora = self._plan("lora", replace(self.run, sharding=sharding), hardware)
        return replace(lora, method="full", base="float32", compute=dtype_for(hardware)[0])


def _kind_of(config: LoraConfig) -> PlanMethod:
    return "dora" if config.use_dora else "lora"


def _targets(targets: Any) -> str | tuple[str, ...]:
    """Return module names as the planner takes them; a pattern, or peft's default, counts as all: an upper bound."""
    return targets if isinstance(targets, tuple) else "all-linear"


def overlaid(choices: tuple[Choice, ...], found: Fit, *, fixed_sharding: bool = False) -> tuple[Choice, ...]:
    """Return the choices with the planner's in place of those made without it, and the memory needed.

    Args:
        choices: A preset's choices, made for the plan's sharding.
        found: The plan that fits.
        fixed_sharding: Whether the user chose the sharding.
    """
    plan, needed = found.plan, found.estimate.needed / GIB
    together = plan.micro_batch * plan.accumulation * plan.devices
    values: dict[str, tuple[Any, str]] = {
        "micro_batch": (plan.micro_batch, "the fastest that fits"),
        "accumulation": (plan.accumulation, f"{together} examples an optimizer step"),
        "activation_checkpointing": (plan.checkpointing, "part of the fastest that fits"),
    }
    if plan.start_factor not in (1, WIDE_START):
        values["start_factor"] = (plan.start_factor, f"times wider at the start: {WIDE_START} do not fit")
    if plan.devices > 1:
        if not fixed_sharding:
            values["sharding"] = (plan.sharding, "the fastest that fits")
        values["offload"] = (plan.offload, "only so it fits" if plan.offload else "weights stay on the device")
    replaced = [
        replace(c, value=values[c.name][0], why=values[c.name][1], source=SOURCE) if c.name in values else c
        for c in choices
    ]
    return (*replaced, _memory_choice(found, round(needed, 1)))


def _memory_choice(found: Fit, needed_gib: float) -> Choice:
    gave_up = f"; gave up: {'; '.join(found.gave_up)}" if found.gave_up else ""
    host = f", and {found.host / GIB:.1f} GiB of host memory"
    why = f"of {found.available / GIB:g} GiB on each device, margin included{host}{gave_up}"
    return Choice(name="memory_gib", value=needed_gib, why=why, source=SOURCE)
