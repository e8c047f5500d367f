"""The fastest plan that fits the declared devices, and what it gave up; or the nearest plans that would fit.

Pure: a shape, the hardware and a plan of wishes in, a frozen `Fit` out. Speeds only rank plans against each other.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final, Literal

from .choices import BATCH_EXAMPLES
from .errors import ConfigError
from .hardware import Hardware
from .memory import MemoryEstimate, estimate_memory
from .plans import BaseDtype, Plan, Sharding
from .sizes import ModelShape

__all__ = ["Fit", "fit", "relative_speed"]

GIB: Final = 2**30
CARDS: Final = (8, 12, 16, 24, 32, 40, 48, 80, 96, 141, 192)
"""GiB of customary cards."""
MARGINAL_TOKENS: Final = 400
"""Tokens of a pass at which half of a card's speed is reached (litgpt tables: batch 1 to 4 of 1,000 tokens)."""
SPEED_CHECKPOINTING: Final = 0.79
"""torchtune, 3B: activation checkpointing costs 21 %."""
SPEED_PACKED: Final = 0.8
"""QLoRA against LoRA: 0.5 to 0.64 in litgpt at batch 1; 0.9 to 1.1 in foundation-model-stack at larger ones."""
SPEED_FSDP: Final = 0.89
"""foundation-model-stack, Mistral 7B, 2 A100: 2,946 against 3,324 tokens a second on each."""
SPEED_OFFLOAD: Final = 0.4
"""PEFT's ZeRO-3 and answer.ai's FSDP examples with offload: several times slower; only its order matters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """A plan that fits, with its estimate."""

    plan: Plan
    """The plan."""
    estimate: MemoryEstimate
    """What it needs on each device."""
    available: int
    """Bytes of one device."""
    gave_up: tuple[str, ...]
    """What differs from the fastest plan that was wished for, in words."""

    @property
    def sharding(self) -> Literal["none", "ddp", "fsdp", "zero3"]:
        """How the devices share the work, in the words of a preset."""
        return "ddp" if self.plan.sharding == "zero2" else self.plan.sharding

    @property
    def headroom(self) -> int:
        """Bytes left on each device beyond the estimate and its margin."""
        return self.available - self.estimate.needed


def fit(shape: ModelShape, hardware: Hardware, wishes: Plan, *, fixed: frozenset[str] = frozenset()) -> Fit:
    """Return the fastest plan near `wishes` that fits the hardware.

    Free are the micro-batch, checkpointing, the base's type (as wished, or nf4) and the sharding; the sequence, the
    rank and the rest stay as wished.

    Args:
        shape: The model.
        hardware: The devices; their memory must be known.
        wishes: What is wanted most: method, base, rank, sequence, optimizer, and the stack's facts.
        fixed: Names of `Plan` fields that must stay as wished, of `micro_batch`, `checkpointing`, `base`, `sharding`.

    Raises:
        ConfigError: If nothing fits, naming up to three plans that would; or if the memory is unknown.
    """
    if hardware.memory_gib is None:
        raise ConfigError("the memory of the device is not known; give it, e.g. gpu_memory_gib=24")
    available = round(hardware.memory_gib * GIB)
    found = _fastest(shape, available, list(_candidates(wishes, hardware.devices, fixed)))
    if found is None:
        raise ConfigError(_nothing_fits(shape, hardware, wishes, fixed))
    return Fit(
        plan=found,
        estimate=estimate_memory(shape, found),
        available=available,
        gave_up=_gave_up(found, next(iter(_candidates(wishes, hardware.devices, fixed)))),
    )


def relative_speed(plan: Plan) -> float:
    """Return a plan's training speed relative to one device at its best, to rank plans by."""
    speed = plan.devices * plan.tokens / (plan.tokens + MARGINAL_TOKENS)
    speed *= SPEED_CHECKPOINTING if plan.checkpointing else 1
    speed *= SPEED_PACKED if plan.is_packed else 1
    speed *= SPEED_FSDP if plan.sharding in ("fsdp", "zero3") else 1
    carried = 1 if plan.is_packed else 4  # times as many bytes cross the bus
    return speed * (SPEED_OFFLOAD / carried if plan.offload else 1)


def _candidates(wishes: Plan, devices: int, fixed: frozenset[str]) -> Iterator[Plan]:
    """Yield the plans to choose from, the least compromised first."""
    bases: list[BaseDtype] = [wishes.base]
    if "base" not in fixed and not wishes.is_packed and wishes.method != "full":
        bases.append("nf4")
    spread: list[tuple[Sharding, bool]] = [("ddp", False), ("fsdp", False), ("fsdp", True)]
    if devices == 1:
        spread = [("none", False)]
    elif "sharding" in fixed:
        spread = [(wishes.sharding, wishes.offload)]
    share = max(1, BATCH_EXAMPLES // devices)
    batches = [number for number in (16, 8, 4, 2, 1) if number <= share]
    if "micro_batch" in fixed:
        batches = [wishes.micro_batch]
    for base in bases:
        for sharding, offload in spread:
            for on in [wishes.checkpointing] if "checkpointing" in fixed else [False, True]:
                for batch in batches:
                    yield replace(
                        wishes,
                        base=base,
                        sharding=sharding,
                        offload=offload,
                        devices=devices,
                        checkpointing=on,
                        micro_batch=batch,
                        accumulation=max(1, share // batch),
                    )


def _fastest(shape: ModelShape, available: int, candidates: list[Plan]) -> Plan | None:
    ranked = sorted(candidates, key=relative_speed, reverse=True)  # stable: of equals, the least compromised
    return next((plan for plan in ranked if estimate_memory(shape, plan).needed <= available), None)


def _gave_up(plan: Plan, wished: Plan) -> tuple[str, ...]:
    words = []
    if plan.base != wished.base:
        words.append(f"the base in {plan.base} instead of {wished.base}")
    if plan.sharding != wished.sharding:
        words.append(f"{plan.sharding} instead of {wished.sharding}: the weights are shared out")
    if plan.offload and not wished.offload:
        words.append("weights wait in host memory")
    if plan.checkpointing and not wished.checkpointing:
        words.append("activation checkpointing: a fifth slower")
    if plan.micro_batch < wished.micro_batch:
        words.append(f"micro-batch {plan.micro_batch} instead of {wished.micro_batch}")
    return tuple(words)


def _nothing_fits(shape: ModelShape, hardware: Hardware, wishes: Plan, fixed: frozenset[str]) -> str:
    """Return what is needed at least, and the nearest three changes that would fit."""
    memory = hardware.memory_gib or 0
    here = list(_candidates(wishes, hardware.devices, fixed))
    least = min(here, key=lambda plan: estimate_memory(shape, plan).needed)
    remedies = [
        words for find in (_larger_card, _more_devices, _less) if (words := find(shape, hardware, wishes, fixed))
    ]
    needed = estimate_memory(shape, least).needed / GIB
    return f"training needs {needed:.1f} GiB on each device at the least and {memory:g} GiB is there; " + (
        "what would fit: " + "; ".join(remedies[:3]) if remedies else "nothing near it fits"
    )


def _larger_card(shape: ModelShape, hardware: Hardware, wishes: Plan, fixed: frozenset[str]) -> str:
    here = list(_candidates(wishes, hardware.devices, fixed))
    for card in CARDS:
        if card > (hardware.memory_gib or 0) and (plan := _fastest(shape, card * GIB, here)):
            return f"cards of {card} GiB with {_describe(shape, plan)}"
    return ""


def _more_devices(shape: ModelShape, hardware: Hardware, wishes: Plan, fixed: frozenset[str]) -> str:
    for devices in (2, 4, 8, 16):
        more = list(_candidates(wishes, devices, fixed - {"sharding"}))
        available = round((hardware.memory_gib or 0) * GIB)
        if devices > hardware.devices and (plan := _fastest(shape, available, more)):
            return f"{devices} such cards with {_describe(shape, plan)}"
    return ""


def _less(shape: ModelShape, hardware: Hardware, wishes: Plan, fixed: frozenset[str]) -> str:
    """Return the longest shorter sequence that fits, everything else being free."""
    available = round((hardware.memory_gib or 0) * GIB)
    sequence = wishes.sequence // 2
    free = replace(wishes, base="nf4" if wishes.method != "full" else wishes.base, loss="chunked")
    for length in (wishes.sequence, sequence, sequence // 2, sequence // 4, sequence // 8):
        if length < 1:
            break
        plans = list(_candidates(replace(free, sequence=length), hardware.devices, frozenset()))
        if plan := _fastest(shape, available, plans):
            return f"{length} tokens and a chunked loss with {_describe(shape, plan)}"
    return ""


def _describe(shape: ModelShape, plan: Plan) -> str:
    estimate = estimate_memory(shape, plan)
    parts = [plan.base, f"micro-batch {plan.micro_batch}"]
    parts += ["checkpointing"] if plan.checkpointing else []
    parts += [plan.sharding + (" with offload" if plan.offload else "")] if plan.devices > 1 else []
    return f"{', '.join(parts)} ({estimate.needed / GIB:.1f} GiB each, {estimate.host / GIB:.0f} GiB of host memory)"
