"""Presets: the LoRA and training configuration for a model, with the reason and the source of every value.

`decide` is pure: a shape, the hardware and the user's wishes in, a frozen `Preset` out. `preset` gathers those
and calls it. Whatever needs peft, trl or torch is built on demand by `training`.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from .errors import ConfigError, nearest
from .hardware import Hardware, declared_hardware
from .sizes import ModelShape, size_band

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import BitsAndBytesConfig
    from trl import SFTConfig

__all__ = ["Choice", "LoraWishes", "Preset", "decide", "preset"]

Method = Literal["lora", "qlora"]
METHODS: Final[tuple[Method, ...]] = get_args(Method)

QLORA = "QLoRA, arXiv 2305.14314"
WITHOUT_REGRET = "LoRA Without Regret, Thinking Machines 2025"
BATCH_EXAMPLES: Final = 16
"""Examples per optimizer step (QLoRA, appendix B; larger batches cost LoRA more than full fine-tuning)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One decided value, and why."""

    name: str
    """The setting."""
    value: Any
    """What it was set to."""
    why: str
    """The reason, in a few words."""
    source: str
    """Paper, documentation or measurement behind it."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """A complete LoRA configuration for one model on one kind of hardware.

    Frozen. The objects that peft, transformers and trl take are built anew at each access, so that a library
    which edits its configuration in place cannot change the preset.
    """

    model_id: str | None
    """Hub id or local folder of the base model; None for a bare size key."""
    shape: ModelShape
    """Size and dimensions of the base model."""
    hardware: Hardware
    """What it was made for."""
    method: Method
    """How the base is held while training: `lora` in its own precision, `qlora` in 4 bits."""
    rank: int
    """LoRA rank of every adapted layer."""
    alpha: int
    """LoRA alpha; the update is scaled by alpha / rank."""
    dropout: float
    """Dropout on the adapter's input."""
    targets: str | tuple[str, ...]
    """Module names that get an adapter, or `all-linear`."""
    dtype: Literal["float32", "float16", "bfloat16"]
    """Precision of the base weights and of the matrix products."""
    learning_rate: float
    """Peak learning rate of AdamW."""
    scheduler: str
    """Learning-rate schedule, by its transformers name."""
    warmup_fraction: float
    """Share of the steps that warm up."""
    epochs: float
    """Passes over the training data."""
    micro_batch: int
    """Examples per device in one forward pass."""
    accumulation: int
    """Forward passes per optimizer step."""
    max_length: int
    """Longest sequence in tokens; longer ones are cut."""
    activation_checkpointing: bool
    """Whether activations are recomputed in the backward pass to save memory."""
    choices: tuple[Choice, ...]
    """Every value above with its reason and source."""
    own_lora_config: LoraConfig | None = None
    """The user's own LoraConfig, which then replaces the adapter's part."""
    model_is_loaded: bool = False
    """Whether it was made for a model in memory, so that a trainer has nothing to load."""

    @property
    def peft_config(self) -> LoraConfig:
        """A new peft `LoraConfig` with this preset's adapter (or a copy of the user's own)."""
        from .training import lora_config

        return lora_config(self)

    @property
    def quantization_config(self) -> BitsAndBytesConfig | None:
        """A new transformers `BitsAndBytesConfig` for `qlora`, None for `lora`."""
        from .training import quantization_config

        return quantization_config(self)

    @property
    def model_kwargs(self) -> dict[str, Any]:
        """Keyword arguments for `AutoModelForCausalLM.from_pretrained`."""
        from .training import model_kwargs

        return model_kwargs(self)

    def sft_config(self, output_dir: str, **overrides: Any) -> SFTConfig:
        """Return a trl `SFTConfig` that trains this preset on the hardware at hand.

        Args:
            output_dir: Folder for checkpoints.
            **overrides: Any `SFTConfig` field; it replaces the preset's value.

        Raises:
            ConfigError: If an override is not a field of `SFTConfig`.
        """
        from .training import sft_config

        return sft_config(self, output_dir, **overrides)

    def explain(self) -> str:
        """Return a table of every value, why it was chosen, and its source."""
        about = self.model_id or "a model of this size"
        head = f"preset for {about}: {_short_count(self.shape.parameters)} parameters, from {self.shape.source}"
        rows = [("setting", "value", "why", "source")]
        rows += [(c.name, _shown(c.value), c.why, c.source) for c in self.choices]
        return f"{head}\nhardware: {self.hardware}\n\n{_table(rows, widths=(24, 20, 46, 44))}"

    def to_dict(self) -> dict[str, Any]:
        """Return the preset as plain values that JSON takes; a user's own LoraConfig as its own dictionary."""
        plain = {name: getattr(self, name) for name in self.__slots__ if name not in _NESTED}
        return plain | {
            "targets": self.targets if isinstance(self.targets, str) else list(self.targets),
            "shape": asdict(self.shape),
            "hardware": asdict(self.hardware),
            "choices": [asdict(choice) for choice in self.choices],
        }


_NESTED: Final = {"shape", "hardware", "choices", "targets", "own_lora_config"}


def preset(
    model: Any,
    *,
    method: Method = "lora",
    rank: int | None = None,
    alpha: int | None = None,
    dropout: float | None = None,
    targets: str | Sequence[str] | None = None,
    lora_config: LoraConfig | None = None,
    gpu_memory_gib: float | None = None,
    gpus: int | None = None,
) -> Preset:
    """Return the LoRA and training configuration for a model, with its reasons.

    >>> preset("7B").rank
    8

    Args:
        model: A size key (`"7B"`, `"1.3b"`), a Hub id, a local folder, a config (object or mapping), or a loaded
            model.
        method: `"lora"`, or `"qlora"` for a base held in 4-bit NF4 with double quantisation.
        rank: Overrides the rank of the size band.
        alpha: Overrides alpha = 2 x rank.
        dropout: Overrides the adapter's dropout, from 0 up to 1.
        targets: Overrides the adapted modules: `"all-linear"` or module names.
        lora_config: Your own `peft.LoraConfig`; excludes the four above.
        gpu_memory_gib: Memory of one GPU in GiB, to plan for a machine that is not this one.
        gpus: Number of GPUs, likewise.

    Raises:
        ConfigError: If the model's size cannot be told, or a value cannot be right.
    """
    from .base_models import find_shape, is_loaded_model
    from .machine import find_hardware

    wishes = LoraWishes(rank=rank, alpha=alpha, dropout=dropout, targets=_as_targets(targets))
    check_wishes(method, wishes, lora_config)
    hardware = declared_hardware(find_hardware(), gpu_memory_gib, gpus)
    shape, model_id = find_shape(model)
    decided = decide(shape, hardware, method=method, wishes=wishes, lora_config=lora_config, model_id=model_id)
    return replace(decided, model_is_loaded=is_loaded_model(model))


def check_wishes(method: str, wishes: LoraWishes, lora_config: LoraConfig | None = None) -> None:
    """Raise for the first wish that cannot be right.

    Raises:
        ConfigError: With what was found, what is needed, and how to fix it.
    """
    if method not in METHODS:
        raise ConfigError(f"method {method!r} is not known; {nearest(str(method), METHODS)}")
    if lora_config is not None and wishes != LoraWishes():
        given = [name for name in LoraWishes.__slots__ if getattr(wishes, name) is not None]
        raise ConfigError(
            f"lora_config and {', '.join(given)} were both given; set {given[0]} inside the LoraConfig instead"
        )
    for name in ("rank", "alpha"):
        value = getattr(wishes, name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ConfigError(f"{name}={value!r} must be a whole number from 1; leave it out for the preset's own")
    if wishes.dropout is not None and not 0 <= wishes.dropout < 1:
        raise ConfigError(f"dropout={wishes.dropout!r} must be from 0 up to, not including, 1; 0.05 is customary")
    if wishes.targets is not None and not (wishes.targets and all(wishes.targets)):
        raise ConfigError("targets is empty, so nothing would train; name modules such as q_proj, or all-linear")


def _as_targets(targets: str | Sequence[str] | None) -> str | tuple[str, ...] | None:
    return targets if targets is None or isinstance(targets, str) else tuple(targets)


def decide(
    shape: ModelShape,
    hardware: Hardware,
    *,
    method: Method = "lora",
    wishes: LoraWishes | None = None,
    lora_config: LoraConfig | None = None,
    model_id: str | None = None,
) -> Preset:
    """Return the preset for a shape on given hardware; the pure part of `preset`."""
    adapter = _own_adapter(lora_config) if lora_config is not None else _adapter(shape, wishes or LoraWishes())
    choices = (*adapter, *_precision(method, hardware), *_optimisation(shape), *_batch(shape, hardware))
    value = {choice.name: choice.value for choice in choices}
    return Preset(
        model_id=model_id,
        shape=shape,
        hardware=hardware,
        choices=choices,
        own_lora_config=lora_config,
        **value,
    )


def _adapter(shape: ModelShape, wishes: LoraWishes) -> tuple[Choice, ...]:
    band = size_band(shape.parameters)
    rank = wishes.rank or band.rank
    yours = "given by you"
    return (
        Choice(name="rank", value=rank, why=yours, source="rank=")
        if wishes.rank
        else Choice(
            name="rank",
            value=rank,
            why=_band_text(band.above, band.up_to),
            source=f"size key, anchor {band.anchor}",
        ),
        Choice(name="alpha", value=wishes.alpha, why=yours, source="alpha=")
        if wishes.alpha
        else Choice(
            name="alpha",
            value=2 * rank,
            why="2 x rank: the update is scaled by 2",
            source="TRL's LoRA defaults (16, 32)",
        ),
        Choice(name="dropout", value=wishes.dropout, why=yours, source="dropout=")
        if wishes.dropout is not None
        else Choice(name="dropout", value=0.05, why="light regularisation", source=f"{QLORA}; TRL's default"),
        Choice(name="targets", value=wishes.targets, why=yours, source="targets=")
        if wishes.targets
        else Choice(
            name="targets",
            value="all-linear",
            why="every linear layer but the head; the MLP matters most",
            source=f"{QLORA}; {WITHOUT_REGRET}",
        ),
    )


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
    if method == "qlora":
        held = Choice(name="method", value="qlora", why="base in 4-bit NF4, double quantisation", source=QLORA)
    else:
        held = Choice(name="method", value="lora", why="base in its own precision", source="LoRA, arXiv 2106.09685")
    dtype, why = (
        ("bfloat16", f"{hardware.name} multiplies bfloat16 in hardware")
        if hardware.has_bfloat16
        else ("float16", f"{hardware.name} has no bfloat16")
        if hardware.kind == "cuda"
        else ("float32", "this device is fastest and exact in float32")
    )
    return (held, Choice(name="dtype", value=dtype, why=why, source="hardware"))


def _optimisation(shape: ModelShape) -> tuple[Choice, ...]:
    large = shape.parameters > 30_000_000_000
    return (
        Choice(
            name="learning_rate",
            value=1e-4 if large else 2e-4,
            why="about ten times that of full fine-tuning" + (", halved above 30B" if large else ""),
            source=f"{QLORA}; {WITHOUT_REGRET}",
        ),
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


def _batch(shape: ModelShape, hardware: Hardware) -> tuple[Choice, ...]:
    widest = {8: 4, 16: 2, 32: 1}[size_band(shape.parameters).rank]
    micro = widest if hardware.kind == "cuda" else 4
    accumulation = max(1, BATCH_EXAMPLES // (micro * hardware.devices))
    length = min(1024, shape.max_positions or 1024)
    on_gpu = hardware.kind == "cuda"
    return (
        Choice(name="micro_batch", value=micro, why="by size; memory is not predicted yet", source="size key"),
        Choice(
            name="accumulation",
            value=accumulation,
            why=f"{micro * accumulation * hardware.devices} examples an optimizer step",
            source=f"{QLORA}; {WITHOUT_REGRET}",
        ),
        Choice(name="max_length", value=length, why="tokens; longer examples are cut", source="TRL's default"),
        Choice(
            name="activation_checkpointing",
            value=on_gpu,
            why="GPU memory is short" if on_gpu else "memory is ample here, recomputing costs time",
            source="TRL's default" if on_gpu else "hardware",
        ),
    )


def _band_text(above: int, up_to: int | None) -> str:
    if up_to is None:
        return f"more than {_short_count(above)} parameters"
    return f"up to {_short_count(up_to)} parameters" + (f", more than {_short_count(above)}" if above else "")


def _short_count(count: int) -> str:
    for unit, size in (("T", 10**12), ("B", 10**9), ("M", 10**6)):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return f"{count:,}"


def _shown(value: Any) -> str:
    return ", ".join(value) if isinstance(value, tuple) else f"{value:g}" if isinstance(value, float) else str(value)


def _table(rows: Sequence[tuple[str, ...]], widths: tuple[int, ...]) -> str:
    """Lay rows out in columns of at most `widths` characters, wrapping cells."""
    fitted = [min(width, max(len(row[i]) for row in rows)) for i, width in enumerate(widths)]
    lines: list[str] = []
    for row in rows:
        cells = [textwrap.wrap(cell, width) or [""] for cell, width in zip(row, fitted, strict=True)]
        for i in range(max(map(len, cells))):
            parts = (cell[i] if i < len(cell) else "" for cell in cells)
            lines.append("  ".join(part.ljust(width) for part, width in zip(parts, fitted, strict=True)).rstrip())
    return "\n".join(lines)
