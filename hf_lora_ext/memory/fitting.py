"""The fastest plan that fits the devices and the host, and what it gave up.

Pure: a shape, the hardware and plans in the order in which they are wished for in, a frozen `Fit` out. Speeds only
rank plans against each other. `remedies` says what would fit where nothing does.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any, Final, Literal

from ..choices.adapter import BATCH_EXAMPLES
from ..hardware import Hardware
from ..models.sizes import ModelShape
from .peaks import MemoryEstimate, estimate_memory
from .plans import Plan

__all__ = ["Fit", "find_fit", "least_needed", "may_fit", "relative_speed"]

GIB: Final = 2**30
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
    hardware: Hardware
    """The devices that it uses: all that there are, or one of them where that is faster."""
    estimate: MemoryEstimate
    """What it needs on each device."""
    available: int
    """Bytes of one device."""
    host: int
    """Bytes that it needs of one machine's host."""
    gave_up: tuple[str, ...]
    """What differs from the fastest plan that was wished for, in words."""

    @property
    def sharding(self) -> Literal["none", "ddp", "fsdp", "zero3"]:
        """How the devices share the work, in the words of a preset."""
        return "ddp" if self.plan.sharding == "zero2" else self.plan.sharding

    def to_dict(self) -> dict[str, Any]:
        """Return plan and estimate as plain values that JSON takes; all sizes in bytes."""
        totals = {name: getattr(self.estimate, name) for name in ("allocated", "reserved", "device", "needed")}
        return {
            "plan": asdict(self.plan),
            "gave_up": list(self.gave_up),
            "bytes": asdict(self.estimate) | totals,
            "available_bytes": self.available,
            "host_bytes": self.host,
        }


def find_fit(shape: ModelShape, hardware: Hardware, wishes: Sequence[Plan]) -> Fit | None:
    """Return the fastest plan near one of `wishes` that fits the hardware, or None where none does.

    Free are the micro-batch with its accumulation, and checkpointing. A plan fits if each device has what it needs at
    the peaks of loading and of training, with margin, and each host what sharding keeps there, where its memory is
    known.

    Args:
        shape: The model.
        hardware: The devices; their memory must be known.
        wishes: The plans, the most wanted first: of equally fast ones that fit, the earlier is taken.
    """
    candidates = [plan for wish in wishes for plan in _variations(wish)]
    ranked = sorted(candidates, key=relative_speed, reverse=True)  # stable: of equals, the earlier
    for plan in ranked:
        estimate = _estimate(shape, plan)
        if _fits(estimate, plan, hardware):
            return Fit(
                plan=plan,
                hardware=hardware if plan.devices > 1 else replace(hardware, devices=1, machines=1),
                estimate=estimate,
                available=_bytes(hardware.memory_gib),
                host=_host(estimate, plan, hardware),
                gave_up=_gave_up(plan, candidates[0]),
            )
    return None


def _fits(estimate: MemoryEstimate, plan: Plan, hardware: Hardware) -> bool:
    """Return whether each device has room, and each host where its memory is known and the weights stay in it.

    A model that is not cut is read file by file, mapped from the disk: the system can drop such pages.
    """
    if estimate.needed > _bytes(hardware.memory_gib):
        return False
    known = hardware.host_memory_gib
    return known is None or plan.shards == 1 or _host(estimate, plan, hardware) <= _bytes(known)


def least_needed(shape: ModelShape, hardware: Hardware, wishes: Sequence[Plan]) -> tuple[int, int]:
    """Return the bytes that the least demanding plan needs on each device, and what it then needs of the host."""
    estimate, plan = min(_least(shape, wishes), key=lambda pair: pair[0].needed)
    return estimate.needed, _host(estimate, plan, hardware)


def may_fit(shape: ModelShape, hardware: Hardware, wishes: Sequence[Plan]) -> bool:
    """Return whether one of the wishes fits where it is made as small as it can be: `find_fit`'s question, sooner."""
    return any(_fits(estimate, plan, hardware) for estimate, plan in _least(shape, wishes))


def _least(shape: ModelShape, wishes: Sequence[Plan]) -> list[tuple[MemoryEstimate, Plan]]:
    least = [
        replace(wish, checkpointing=True, micro_batch=1, accumulation=-(-BATCH_EXAMPLES // wish.devices))
        for wish in wishes
    ]
    return [(_estimate(shape, plan), plan) for plan in least]


@lru_cache(maxsize=4096)
def _estimate(shape: ModelShape, plan: Plan) -> MemoryEstimate:
    """Remember estimates: a search for remedies meets the same plan on card after card."""
    return estimate_memory(shape, plan)


def relative_speed(plan: Plan) -> float:
    """Return a plan's training speed relative to one device at its best, to rank plans by.

    Examples beyond the wished batch count for nothing, so that the comparison is one of equal optimizer steps.
    """
    examples = min(BATCH_EXAMPLES, plan.devices * plan.micro_batch * plan.accumulation)
    speed = examples * plan.sequence / (plan.accumulation * (plan.tokens + MARGINAL_TOKENS))
    speed *= SPEED_CHECKPOINTING if plan.checkpointing else 1
    speed *= SPEED_PACKED if plan.is_packed else 1
    speed *= SPEED_FSDP if plan.sharding in ("fsdp", "zero3") else 1
    carried = 1 if plan.is_packed else 4  # times as many bytes cross the bus
    return speed * (SPEED_OFFLOAD / carried if plan.offload else 1)


def _bytes(gib: float | None) -> int:
    return round((gib or 0) * GIB)


def _host(estimate: MemoryEstimate, plan: Plan, hardware: Hardware) -> int:
    """Return the bytes of one machine's host; under ZeRO-3 the estimate has each of all processes load the model."""
    return estimate.host // hardware.machines if plan.sharding == "zero3" else estimate.host


def _variations(wish: Plan) -> Iterator[Plan]:
    """Yield the plans to choose from, the least compromised first."""
    share, over = divmod(BATCH_EXAMPLES, wish.devices)
    shares = {max(1, share), share + bool(over)}
    batches = sorted({number for number in (16, 8, 4, 2, 1) if number <= max(shares)} | shares, reverse=True)
    for on in (False, True):
        for batch in batches:
            passes, left = divmod(BATCH_EXAMPLES, wish.devices * batch)
            for accumulation in sorted({max(1, passes), passes + bool(left)}):
                yield replace(wish, checkpointing=on, micro_batch=batch, accumulation=accumulation)


def _gave_up(plan: Plan, wished: Plan) -> tuple[str, ...]:
    words = []
    if plan.base != wished.base:
        words.append(f"the base in {plan.base} instead of {wished.base}")
    if plan.devices < wished.devices:
        words.append(f"{plan.devices} of {wished.devices} devices: what they would exchange leaves too little room")
    elif plan.sharding != wished.sharding:
        words.append(f"{plan.sharding} instead of {wished.sharding}: the weights are shared out")
    if plan.offload and not wished.offload:
        words.append("weights wait in host memory")
    if plan.checkpointing and not wished.checkpointing:
        words.append("activation checkpointing: a fifth slower")
    if plan.devices == wished.devices and plan.micro_batch < wished.micro_batch:
        words.append(f"micro-batch {plan.micro_batch} instead of {wished.micro_batch}")
    return tuple(words)
