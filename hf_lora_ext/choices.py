"""The choices behind a preset: each value of the adapter and its training, with the reason and the source.

All functions are pure: a shape, the hardware and the user's wishes in, frozen `Choice` values out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from .decisions import QLORA, WITHOUT_REGRET, Choice
from .errors import ConfigError, nearest
from .hardware import Hardware
from .methods import METHOD_FACTS, METHODS, RSLORA, Method
from .run_choices import RunWishes, learning_rate_choice, run_choices
from .sizes import ModelShape, size_band

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

_BASES: Final = ("lora", "qlora", "qlora8")
"""Methods that say only how the base is held, and so go with a LoraConfig of the user's own."""

MAX_LENGTH: Final = 1024
"""Tokens of an example at most (TRL's default)."""
BATCH_EXAMPLES: Final = 16
"""Examples per optimizer step (QLoRA, appendix B; larger batches cost LoRA more than full fine-tuning)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraWishes:
    """What the user fixed of the adapter; None leaves it to the preset."""

    rank: int | None = None
    """Rank of every adapted layer."""
    alpha: int | None = None
    """LoRA's alpha; the update is scaled by alpha / rank."""
    dropout: float | None = None
    """Dropout on the adapter's input."""
    targets: str | tuple[str, ...] | None = None
    """Module names to adapt, or `all-linear`."""


def check_wishes(method: str, wishes: LoraWishes, lora_config: LoraConfig | None = None) -> None:
    """Raise for the first wish that cannot be right.

    Raises:
        ConfigError: With what was found, what is needed, and how to fix it.
    """
    if method not in METHODS:
        raise ConfigError(f"method {method!r} is not known; {nearest(str(method), METHODS)}")
    if lora_config is not None and method not in _BASES:
        raise ConfigError(
            f"lora_config and method {method} were both given; make it part of the LoraConfig (use_dora, use_rslora), "
            f"and choose how the base is held: {', '.join(_BASES)}"
        )
    if lora_config is not None and wishes != LoraWishes():
        given = [name for name in LoraWishes.__slots__ if getattr(wishes, name) is not None]
        raise ConfigError(
            f"lora_config and {', '.join(given)} were both given; set {given[0]} inside the LoraConfig instead"
        )
    if method == "prefix" and wishes != LoraWishes():
        given = [name for name in LoraWishes.__slots__ if getattr(wishes, name) is not None]
        raise ConfigError(f"method prefix has no {' and no '.join(given)}; leave it out, or use method lora")
    for name in ("rank", "alpha"):
        value = getattr(wishes, name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ConfigError(f"{name}={value!r} must be a whole number from 1; leave it out for the preset's own")
    if wishes.dropout is not None and not (isinstance(wishes.dropout, (int, float)) and 0 <= wishes.dropout < 1):
        raise ConfigError(f"dropout={wishes.dropout!r} must be from 0 up to, not including, 1; 0.05 is customary")
    if wishes.targets is not None and not (
        wishes.targets and all(isinstance(name, str) and name for name in wishes.targets)
    ):
        raise ConfigError("targets is empty, so nothing would train; name modules such as q_proj, or all-linear")


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
        *run_choices(shape, hardware, method, run, rank=adapter[0].value),
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
        _given("dropout", wishes)
        or advised.get("dropout")
        or Choice(name="dropout", value=0.05, why="light regularisation", source=f"{QLORA}; TRL's default"),
        _given("targets", wishes) or _targets(shape),
    )


def _targets(shape: ModelShape) -> Choice:
    names = _names_beside_routers(shape) if shape.expert_weights else None
    if names is not None:
        why = "with all-linear peft would train the routers; the experts' own weights stay frozen"
        return Choice(name="targets", value=names, why=why, source="counted in peft 0.21")
    why = "every linear layer but the head; the MLP matters most"
    return Choice(name="targets", value="all-linear", why=why, source=f"{QLORA}; {WITHOUT_REGRET}")


def _names_beside_routers(shape: ModelShape) -> tuple[str, ...] | None:
    from .families import linear_targets

    return linear_targets(shape)


def _given(name: str, wishes: LoraWishes) -> Choice | None:
    value = getattr(wishes, name)
    return None if value is None else Choice(name=name, value=value, why="given by you", source=f"{name}=")


def _band_rank(shape: ModelShape) -> Choice:
    band = size_band(shape.parameters)
    why = _band_text(band.above, band.up_to)
    return Choice(name="rank", value=band.rank, why=why, source=f"size key, anchor {band.anchor}")


def _alpha(method: Method, rank: int) -> Choice:
    if method == "rslora":
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
    nothing = {"rank": 0, "alpha": 0, "dropout": 0.0, "targets": "none"}
    source = METHOD_FACTS["prefix"].source
    return tuple(Choice(name=n, value=v, why="a prefix has no factors", source=source) for n, v in nothing.items())


def _own_adapter(config: LoraConfig) -> tuple[Choice, ...]:
    targets = config.target_modules
    values = {
        "rank": config.r,
        "alpha": config.lora_alpha,
        "dropout": config.lora_dropout,
        "targets": targets if isinstance(targets, str) else tuple(sorted(targets)) if targets else "peft's default",
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
