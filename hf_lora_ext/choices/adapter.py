"""The choices behind a preset: each value of the adapter and its training, with the reason and the source.

All functions are pure: a shape, the hardware and the user's wishes in, frozen `Choice` values out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal

from ..decisions import QLORA, WITHOUT_REGRET, Choice
from ..hardware import Hardware
from ..models.sizes import ModelShape, size_band
from ..models.targets import experts_choices, new_tokens_choice, targets_choice
from .methods import LORA_PAPER, METHOD_FACTS, METHODS, RSLORA, Method
from .run import RunWishes, learning_rate_choice, run_choices
from .wishes import LoraWishes, check_wishes

if TYPE_CHECKING:
    from peft import LoraConfig

    from .advice import Advice

__all__ = [
    "METHODS",
    "Choice",
    "LoraWishes",
    "Method",
    "all_choices",
    "check_wishes",
    "dtype_for",
    "short_count",
    "starting_rank",
]

MAX_LENGTH: Final = 1024
"""Tokens of an example at most (TRL's default)."""
WIDE_STARTS: Final = (8, 4, 2)
"""How many times its mean rank an adapter of adaptive rank starts with, the most wanted first: wider learns more
(`callbacks/adaptive_rank.md`) and takes more memory."""
WIDE_START: Final = WIDE_STARTS[0]
"""The same where memory does not decide."""
BATCH_EXAMPLES: Final = 16
"""Examples per optimizer step (QLoRA, appendix B; larger batches cost LoRA more than full fine-tuning)."""


def all_choices(
    shape: ModelShape,
    hardware: Hardware,
    method: Method,
    wishes: LoraWishes,
    lora_config: LoraConfig | None,
    run: RunWishes,
    advice: Advice | None = None,
) -> tuple[Choice, ...]:
    """Return every value of a preset, in the order in which `explain` shows them."""
    adapter = _adapter(shape, method, wishes, advice) if lora_config is None else _own_adapter(lora_config)
    return (
        *adapter,
        *_precision(method, hardware),
        *run_choices(shape, hardware, method, run, adapter[0].value, lora_config),
        *_optimisation(shape, method, run),
        *_batch(shape, hardware, method, run),
    )


def _adapter(shape: ModelShape, method: Method, wishes: LoraWishes, advice: Advice | None) -> tuple[Choice, ...]:
    if method == "prefix":
        return _no_factors()
    advised = {line.name: line for line in advice.lines} if advice else {}
    rank = _given("rank", wishes) or advised.get("rank") or _band_rank(shape)
    return (
        rank,
        _given("alpha", wishes) or _alpha(method, rank.value),
        _given("dropout", wishes) or _dropout(wishes, advised.get("dropout")),
        _given("targets", wishes) or targets_choice(shape),
        *experts_choices(shape, wishes.experts, rank.value, METHOD_FACTS[method].bits),
        new_tokens_choice(shape, wishes.new_tokens),
        *adaptive_choices(wishes.adaptive_rank, rank.value),
    )


def adaptive_choices(wished: bool | None, rank: int) -> tuple[Choice, ...]:
    """Return whether rank moves between layers, and how many times wider it then starts."""
    if not wished:
        return (
            Choice(name="adaptive_rank", value=False, why="the same rank in every layer", source=LORA_PAPER),
            Choice(name="start_factor", value=1, why="starts as wide as it ends", source=LORA_PAPER),
        )
    source = "callbacks/adaptive_rank.md"
    why = f"ends at a mean of {rank}; give the trainer callbacks=p.callbacks()"
    return (
        Choice(name="adaptive_rank", value=True, why=why, source=source),
        Choice(name="start_factor", value=WIDE_START, why="times wider at the start: wider learns more", source=source),
    )


def _dropout(wishes: LoraWishes, advised: Choice | None) -> Choice:
    if wishes.experts:
        return Choice(name="dropout", value=0.0, why="peft has none for experts", source="peft's target_parameters")
    return advised or Choice(name="dropout", value=0.05, why="light regularisation", source=f"{QLORA}; TRL's default")


def _given(name: str, wishes: LoraWishes) -> Choice | None:
    value = getattr(wishes, name)
    return None if value is None else Choice(name=name, value=value, why="given by you", source=f"{name}=")


def _band_rank(shape: ModelShape) -> Choice:
    band = size_band(shape.parameters)
    why = _band_text(band.above, band.up_to)
    return Choice(name="rank", value=band.rank, why=why, source=f"size key, anchor {band.anchor}")


def _alpha(method: Method, rank: int) -> Choice:
    if "rslora" in METHOD_FACTS[method].features:
        why = "the same at every rank: the update is scaled by alpha / sqrt(rank)"
        return Choice(name="alpha", value=16, why=why, source=RSLORA)
    if method == "adalora":
        why = "2 x the starting rank: the update is scaled by 2"
        return Choice(name="alpha", value=2 * starting_rank(rank), why=why, source="TRL's LoRA defaults (16, 32)")
    why = "2 x rank: the update is scaled by 2"
    return Choice(name="alpha", value=2 * rank, why=why, source="TRL's LoRA defaults (16, 32)")


def starting_rank(rank: int) -> int:
    """Return the rank that AdaLoRA starts from: half as much again, rounded up (its section 4.1)."""
    return (3 * rank + 1) // 2


def _no_factors() -> tuple[Choice, ...]:
    factors: dict[str, Any] = {"rank": 0, "alpha": 0, "dropout": 0.0, "targets": "none"}
    nothing = {**factors, "experts": (), "expert_rank": 0, "new_tokens": (), "adaptive_rank": False, "start_factor": 1}
    source = METHOD_FACTS["prefix"].source
    return tuple(Choice(name=n, value=v, why="a prefix has no factors", source=source) for n, v in nothing.items())


def _own_adapter(config: LoraConfig) -> tuple[Choice, ...]:
    targets, tokens = config.target_modules, config.trainable_token_indices or ()
    experts = tuple(sorted(config.target_parameters or ()))
    if isinstance(tokens, dict):
        tokens = {token for ids in tokens.values() for token in ids}
    values = {
        "rank": config.r,
        "alpha": config.lora_alpha,
        "dropout": config.lora_dropout,
        "targets": targets if isinstance(targets, str) else tuple(sorted(targets)) if targets else "peft's default",
        "experts": experts,
        "expert_rank": config.r if experts else 0,
        "new_tokens": tuple(sorted(tokens)),
        "adaptive_rank": False,
        "start_factor": 1,
    }
    return tuple(
        Choice(name=name, value=value, why="from your LoraConfig", source="lora_config=")
        for name, value in values.items()
    )


def _precision(method: Method, hardware: Hardware) -> tuple[Choice, ...]:
    facts = METHOD_FACTS[method]
    held = Choice(name="method", value=method, why=facts.why, source=facts.source)
    dtype, why = dtype_for(hardware)
    return (held, Choice(name="dtype", value=dtype, why=why, source="hardware"))


def dtype_for(hardware: Hardware) -> tuple[Literal["float32", "float16", "bfloat16"], str]:
    """Return the precision that a device computes in, and why."""
    if hardware.has_bfloat16:
        return "bfloat16", f"{hardware.name} multiplies bfloat16 in hardware"
    if hardware.kind == "cuda":
        return "float16", f"{hardware.name} has no bfloat16"
    return "float32", "this device is fastest and exact in float32"


def _optimisation(shape: ModelShape, method: Method, run: RunWishes) -> tuple[Choice, ...]:
    return (
        learning_rate_choice(shape, method, run),
        Choice(
            name="scheduler",
            value="constant_with_warmup",
            why="no decay to tune",
            source=f"{QLORA}; {WITHOUT_REGRET}",
        ),
        Choice(name="warmup_fraction", value=0.03, why="short warm-up", source=QLORA),
        Choice(
            name="epochs",
            value=3.0,
            why="watch the held-out loss and stop early",
            source="transformers' default",
        ),
    )


def _batch(shape: ModelShape, hardware: Hardware, method: Method, run: RunWishes) -> tuple[Choice, ...]:
    widest = {8: 4, 16: 2, 32: 1}[size_band(shape.parameters).rank]
    micro = widest if hardware.kind == "cuda" else 4
    accumulation = max(1, BATCH_EXAMPLES // (micro * hardware.devices))
    length = run.max_length or min(MAX_LENGTH, shape.max_positions or MAX_LENGTH)
    on_gpu = hardware.kind == "cuda"
    return (
        Choice(name="micro_batch", value=micro, why="by size", source="size key"),
        Choice(
            name="accumulation",
            value=accumulation,
            why=f"{micro * accumulation * hardware.devices} examples an optimizer step",
            source=f"{QLORA}; {WITHOUT_REGRET}",
        ),
        Choice(
            name="max_length",
            value=length,
            why="tokens; longer examples are cut",
            source="max_length=" if run.max_length else "TRL's default",
        ),
        Choice(
            name="activation_checkpointing",
            value=on_gpu and method != "prefix",
            why="it would drop the cache that holds the prefix"
            if method == "prefix"
            else "GPU memory is short"
            if on_gpu
            else "recomputing costs time; turn it on if memory runs out",
            source="peft refuses it" if method == "prefix" else "TRL's default" if on_gpu else "hardware",
        ),
    )


def _band_text(above: int, up_to: int | None) -> str:
    if up_to is None:
        return f"more than {short_count(above)} parameters"
    return f"up to {short_count(up_to)} parameters" + (f", more than {short_count(above)}" if above else "")


def short_count(count: int) -> str:
    """Return a count to three digits with its unit, such as `6.74B`."""
    for unit, size in (("T", 10**12), ("B", 10**9), ("M", 10**6)):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return f"{count:,}"
