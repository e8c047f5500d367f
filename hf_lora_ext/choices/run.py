"""The choices of a run beside its adapter: start, precision, learning rate, optimizer, attention, sharding.

Pure, as `choices` is; the two together make a preset.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from ..decisions import QLORA, WITHOUT_REGRET, Choice
from ..errors import ConfigError, nearest
from ..models.attention import ATTENTIONS, attention_choices
from .methods import (
    ADALORA,
    DORA,
    METHOD_FACTS,
    PREFIX,
    Method,
    check_features,
    check_method,
    config_features,
    init_facts,
)

if TYPE_CHECKING:
    from ..hardware import Hardware
    from ..models.sizes import ModelShape

__all__ = [
    "ATTENTIONS",
    "OPTIMIZERS",
    "SHARDINGS",
    "RunWishes",
    "Sharding",
    "check_run",
    "learning_rate_choice",
    "run_choices",
    "run_features",
]

Sharding = Literal["none", "ddp", "fsdp", "zero3"]
SHARDINGS: Final[tuple[Sharding, ...]] = get_args(Sharding)
OPTIMIZERS: Final = ("adamw", "paged_adamw_8bit", "loraplus")

LORAPLUS = "LoRA+, arXiv 2402.12354"
LORAPLUS_RATIO: Final = 16.0
"""Learning rate of B over that of A (LoRA+, section 5: about 2**4)."""
PEFT_BENCHMARK = "peft's MetaMathQA benchmark, Llama-3.2-3B"
VIRTUAL_TOKENS: Final = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class RunWishes:
    """What the user fixed of the run; None leaves it to the preset."""

    init: str | None = None
    """How the adapter's factors start, a name in `methods.INITS`."""
    optimizer: str | None = None
    """A name in `OPTIMIZERS`."""
    attention: str | None = None
    """Attention kernel, by its transformers name."""
    packing: bool | None = None
    """Whether several examples share a row."""
    sharding: Sharding | None = None
    """How several devices share the work."""
    max_length: int | None = None
    """Longest example in tokens."""


def run_features(
    method: Method, run: RunWishes, hardware: Hardware | None = None, lora_config: Any = None
) -> frozenset[str]:
    """Return everything about a run that may exclude something else, for `methods.check_features`."""
    found = set(METHOD_FACTS[method].features)
    if run.init not in (None, "default"):
        found.add(f"init {run.init}")
    if run.optimizer is not None:
        found.add("paged" if run.optimizer.startswith("paged") else run.optimizer)
    if run.packing:
        found.add("packing")
    if (sharding := run.sharding or (_default_sharding(hardware) if hardware else None)) is not None:
        found.add(sharding)
    return frozenset(found) | (config_features(lora_config) if lora_config is not None else frozenset())


def check_run(
    method: str,
    run: RunWishes,
    hardware: Hardware | None = None,
    lora_config: Any = None,
    also: frozenset[str] = frozenset(),
) -> None:
    """Raise for the first wish about the run that cannot be right, alone or with the others.

    Args:
        method: The method.
        run: The wishes.
        hardware: The devices, which may imply sharding.
        lora_config: The user's own LoraConfig.
        also: Further features of the adapter, from `choices.wish_features`.

    Raises:
        ConfigError: With what was found, what is needed, and how to fix it.
    """
    if lora_config is not None and run.init is not None:
        raise ConfigError("init and lora_config were both given; set init_lora_weights inside the LoraConfig instead")
    check_method(method, _init_name(run, lora_config))
    for name, known in (("optimizer", OPTIMIZERS), ("attention", ATTENTIONS), ("sharding", SHARDINGS)):
        value = getattr(run, name)
        if value is not None and value not in known:
            raise ConfigError(f"{name} {value!r} is not known; {nearest(str(value), known)}")
    if run.max_length is not None and (
        isinstance(run.max_length, bool) or not isinstance(run.max_length, int) or run.max_length < 1
    ):
        raise ConfigError(f"max_length={run.max_length!r} must be a whole number from 1; leave it out for 1024")
    check_features(also | run_features(method, run, hardware, lora_config))  # type: ignore[arg-type]  # checked above


def _init_name(run: RunWishes, lora_config: Any = None) -> str:
    """Return the initialisation's name, which a LoraConfig of the user's own settles; peft's True is `default`."""
    own = getattr(lora_config, "init_lora_weights", None)
    return own if isinstance(own, str) else run.init or "default"


def run_choices(
    shape: ModelShape, hardware: Hardware, method: Method, run: RunWishes, rank: int, lora_config: Any = None
) -> tuple[Choice, ...]:
    """Return the choices that this module makes."""
    return (
        _init(method, _init_name(run, lora_config)),
        _virtual_tokens(method),
        _adapter_dtype(method, hardware, run),
        _optimizer(shape, hardware, method, run, rank),
        *attention_choices(shape, method, run.attention, run.packing),
        *_sharding(hardware, method, run),
    )


def _init(method: Method, init: str) -> Choice:
    if METHOD_FACTS[method].adapter != "lora":
        return Choice(name="init", value="default", why="the method's own start", source=METHOD_FACTS[method].source)
    facts = init_facts(init)
    more = "; saved also as plain LoRA of twice the rank" if facts.changes_base else ""
    more = "; needs the preset's callbacks" if facts.by_callback else more
    return Choice(name="init", value=init, why=facts.why + more, source=facts.source)


def _virtual_tokens(method: Method) -> Choice:
    if method != "prefix":
        return Choice(name="virtual_tokens", value=0, why="no prefix with this method", source=f"method {method}")
    why = "positions of learned keys and values in each layer"
    return Choice(
        name="virtual_tokens", value=VIRTUAL_TOKENS, why=why, source=f"{PEFT_BENCHMARK}; {PREFIX} (10 to 200)"
    )


def _adapter_dtype(method: Method, hardware: Hardware, run: RunWishes) -> Choice:
    name = "adapter_dtype"
    if METHOD_FACTS[method].bits is not None:
        why = "as the matrix products; only DoRA's magnitudes stay float32"
        return Choice(name=name, value="bfloat16", why=why, source=f"{QLORA}, section 3; trl casts it so")
    if run.sharding == "zero3" and hardware.has_bfloat16:
        why = "ZeRO-3 gathers parameters of one dtype only"
        return Choice(name=name, value="bfloat16", why=why, source="trl issue 6089")
    why = "master weights; small steps would round away in 16 bits, and they are few"
    return Choice(name=name, value="float32", why=why, source="peft's autocast_adapter_dtype")


_RATES: Final[dict[str, tuple[float, str, str]]] = {
    "lora": (2e-4, "about ten times that of full fine-tuning", f"{QLORA}; {WITHOUT_REGRET}"),
    "rslora": (1e-4, "its scale is larger than alpha / rank", f"{PEFT_BENCHMARK}: rsLoRA r64"),
    "dora": (1e-4, "magnitudes ask for a lower rate than LoRA's", f"{DORA}, its Llama-3-8B script"),
    "adalora": (5e-4, "the lowest of the paper's range", f"{ADALORA}, appendix"),
    "prefix": (1e-3, "higher than LoRA's: the prefix itself is the weight", PEFT_BENCHMARK),
}
_RATES["qlora"] = _RATES["qlora8"] = _RATES["lora"]
_RATES["qdora"] = _RATES["dora"]
LORA_RATE: Final = _RATES["lora"][0]
"""Peak learning rate of a plain LoRA up to 30B parameters, under SFT."""


def learning_rate_choice(shape: ModelShape, method: Method, run: RunWishes) -> Choice:
    """Return the peak learning rate: the method's own up to 30B parameters, half of it above, half for LoRA+'s A."""
    rate, why, source = _RATES[method]
    if shape.parameters > 30_000_000_000:
        rate, why, source = rate / 2, f"{why}, halved above 30B", f"{source}; {QLORA}, table 9"
    if run.optimizer == "loraplus":
        rate, why, source = rate / 2, f"{why}, halved for A", f"{source}; {LORAPLUS}"
    return Choice(name="learning_rate", value=rate, why=why, source=source)


_WORTH_PAGING: Final = 200_000_000
"""Adapter parameters from which 8-bit moments save more than 1 GiB (6 of Adam's 8 bytes each)."""


def _optimizer(shape: ModelShape, hardware: Hardware, method: Method, run: RunWishes, rank: int) -> Choice:
    if run.optimizer == "loraplus":
        why = f"B learns {LORAPLUS_RATIO:g} times as fast as A"
        return Choice(name="optimizer", value="loraplus", why=why, source=LORAPLUS)
    if run.optimizer is not None:
        return Choice(name="optimizer", value=run.optimizer, why="given by you", source="optimizer=")
    trainable = (shape.lora_parameters(rank) or 0) if METHOD_FACTS[method].adapter == "lora" else 0
    may_page = hardware.kind == "cuda" and (run.sharding or "none") not in ("fsdp", "zero3")
    if METHOD_FACTS[method].bits is not None and may_page and trainable >= _WORTH_PAGING:
        why = f"saves {6 * trainable / 2**30:.1f} GiB, and gives way when memory peaks"
        return Choice(name="optimizer", value="paged_adamw_8bit", why=why, source=f"{QLORA}, section 3")
    why = "an adapter's moments are small, 8 bits would save little"
    return Choice(name="optimizer", value="adamw", why=why, source="transformers' default, fused")


def _default_sharding(hardware: Hardware) -> Sharding:
    return "ddp" if hardware.devices > 1 else "none"


def _sharding(hardware: Hardware, method: Method, run: RunWishes) -> tuple[Choice, ...]:
    sharding = run.sharding or _default_sharding(hardware)
    quantised = METHOD_FACTS[method].bits is not None
    why = {
        "none": "one device",
        "ddp": "each device holds a replica",
        "fsdp": "the base is split; FSDP 1, the one that shards 4-bit weights",
        "zero3": "the base is split" + ("; each rank first loads all of it" if quantised else ""),
    }[sharding]
    reentrant = sharding == "zero3" or (sharding == "fsdp" and quantised)
    return (
        Choice(name="sharding", value=sharding, why=why, source="sharding=" if run.sharding else "devices"),
        Choice(
            name="offload",
            value=sharding == "fsdp" and quantised,
            why="as for 70B in 4 bits on two cards" if sharding == "fsdp" and quantised else "weights stay there",
            source="peft's sft example",
        ),
        Choice(
            name="reentrant",
            value=reentrant,
            why="parameters are gathered anew for the second forward pass"
            if reentrant
            else "the reentrant kind marks LoRA's parameters ready twice under DDP",
            source="transformers issue 47254; peft's sft example" if reentrant else "peft issue 313; trl issue 921",
        ),
    )
