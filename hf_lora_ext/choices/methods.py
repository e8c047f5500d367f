"""The methods and initialisations a preset knows, and what does not work together: three tables, and their check.

A run is a set of features, such as `{"dora", "4-bit", "checkpointing"}`; a `Conflict` names two that exclude each
other. Every refusal of a combination is a row of `CONFLICTS`, so that it comes before anything loads.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from ..decisions import QLORA
from ..errors import ConfigError, nearest

__all__ = [
    "CONFLICTS",
    "INITS",
    "METHODS",
    "METHOD_FACTS",
    "Conflict",
    "Init",
    "Method",
    "MethodFacts",
    "check_features",
    "check_method",
    "config_features",
    "init_facts",
    "stored_init",
]

Method = Literal["lora", "rslora", "dora", "qlora", "qlora8", "qdora", "adalora", "prefix"]
METHODS: Final[tuple[Method, ...]] = get_args(Method)

LORA_PAPER = "LoRA, arXiv 2106.09685"
DORA = "DoRA, arXiv 2402.09353"
RSLORA = "rsLoRA, arXiv 2312.03732"
ADALORA = "AdaLoRA, arXiv 2303.10512"
PREFIX = "Prefix-Tuning, arXiv 2101.00190"
PISSA = "PiSSA, arXiv 2404.02948"


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodFacts:
    """What a method is, independent of any model."""

    adapter: Literal["lora", "adalora", "prefix"]
    """Kind of adapter that peft builds."""
    bits: Literal[4, 8] | None = None
    """Bits of a weight of the base while it trains; None for the base's own precision."""
    features: frozenset[str] = frozenset()
    """What it brings into the table of conflicts."""
    why: str
    """What it does, in a few words."""
    source: str
    """Paper or documentation."""


METHOD_FACTS: Final[Mapping[Method, MethodFacts]] = {
    "lora": MethodFacts(
        adapter="lora", features=frozenset({"lora"}), why="base in its own precision", source=LORA_PAPER
    ),
    "rslora": MethodFacts(
        adapter="lora",
        features=frozenset({"rslora"}),
        why="update scaled by alpha / sqrt(rank): high ranks keep learning",
        source=RSLORA,
    ),
    "dora": MethodFacts(
        adapter="lora",
        features=frozenset({"dora"}),
        why="direction and magnitude learned apart; better at low rank, 17 to 46 % slower",
        source=DORA,
    ),
    "qlora": MethodFacts(
        adapter="lora",
        bits=4,
        features=frozenset({"4-bit"}),
        why="base in 4-bit NF4, double quantisation",
        source=QLORA,
    ),
    "qlora8": MethodFacts(
        adapter="lora",
        bits=8,
        features=frozenset({"8-bit"}),
        why="base in 8-bit integers, outliers in 16-bit",
        source="LLM.int8(), arXiv 2208.07339",
    ),
    "qdora": MethodFacts(
        adapter="lora",
        bits=4,
        features=frozenset({"4-bit", "dora"}),
        why="DoRA on a base in 4-bit NF4, double quantisation",
        source=f"{DORA}; {QLORA}",
    ),
    "adalora": MethodFacts(
        adapter="adalora",
        features=frozenset({"adalora"}),
        why="starts wide, moves rank to the layers that use it",
        source=ADALORA,
    ),
    "prefix": MethodFacts(
        adapter="prefix",
        features=frozenset({"prefix"}),
        why="learned keys and values before each layer; no weight changes",
        source=PREFIX,
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Init:
    """How the adapter's factors start."""

    changes_base: bool = False
    """Whether it takes its part out of the base, so that the adapter belongs to the changed base, and another one must
    be made of it for the unchanged one."""
    changes_base_on_load: bool = False
    """Whether peft 0.21 changes the base's weights also when it loads an adapter whose config names this start
    (peft/tuners/lora/layer.py, update_layer)."""
    by_callback: bool = False
    """Whether `Preset.callbacks` gives it when training begins; for peft the adapter starts by default."""
    refusal: str = ""
    """Why a configuration alone cannot do it, and how to do it by hand; empty where it can."""
    why: str
    """What it does, in a few words."""
    source: str
    """Paper or documentation."""


_WRAP_FIRST: Final = "wrap the loaded model yourself and give the trainer the PeftModel, without peft_config"
_CONVERT: Final = (
    "then get_peft_model(model, config); it changes the base, so give the trainer "
    "callbacks=[hf_lora_ext.callbacks.PlainAdapterCallback()], which leaves plain_adapter for the unchanged one"
)

INITS: Final[Mapping[str, Init]] = {
    "default": Init(why="A uniform, B zero: starts as the base", source=f"{LORA_PAPER}; peft's default"),
    "gaussian": Init(why="A normal, B zero: starts as the base", source=f"{LORA_PAPER}; diffusers"),
    "orthogonal": Init(
        why="A and B small, in orthogonal rank spaces: B A = 0", source="datta0.github.io, Rethink LoRA init"
    ),
    "pissa": Init(
        changes_base=True,
        changes_base_on_load=True,
        why="the base's leading singular directions train",
        source=PISSA,
    ),
    "olora": Init(
        changes_base=True,
        changes_base_on_load=True,
        why="orthonormal factors by QR of the base",
        source="OLoRA, arXiv 2406.01775",
    ),
    "mica": Init(why="B frozen on the base's least singular directions", source="MiCA, arXiv 2604.01694"),
    "loftq": Init(
        by_callback=True,
        changes_base_on_load=True,  # where peft itself did it: it rounds the base; ours is none of its starts
        why="makes up for the quantisation of the base, which stays as it is",
        source="LoftQ, arXiv 2310.08659",
    ),
    "eva": Init(
        by_callback=True,
        why="A along the leading directions of the layer's inputs, on your data; ranks stay equal",
        source="EVA, arXiv 2410.07170",
    ),
    "corda": Init(
        changes_base=True,
        changes_base_on_load=True,  # and only where the base was prepared as for the training
        why="directions weighted by the inputs' covariance",
        source="CorDA, arXiv 2406.05223",
        refusal=f"needs data before wrapping; {_WRAP_FIRST}: config = LoraConfig(init_lora_weights='corda', "
        "corda_config=CordaConfig(corda_method='kpm'), ...) with peft.tuners.lora.config.CordaConfig, "
        "peft.tuners.lora.corda.preprocess_corda(model, config, run_model=...), one example at a time and with attrs "
        f"installed, {_CONVERT}; such a run cannot be resumed",
    ),
    "lora_ga": Init(
        changes_base=True,  # not on load: without gradients peft starts it as plain LoRA
        why="the gradient's leading directions",
        source="LoRA-GA, arXiv 2407.05000",
        refusal=f"needs gradients, without which peft silently starts it as plain LoRA; {_WRAP_FIRST}: "
        "config = LoraConfig(init_lora_weights='lora_ga', lora_ga_config=peft.LoraGAConfig(), ...), "
        f"peft.tuners.lora.preprocess_loraga(model, config, train_step), {_CONVERT}; such a run cannot be resumed",
    ),
}
"""Names as in peft's `init_lora_weights`, and `default`."""


@dataclass(frozen=True, slots=True)
class Conflict:
    """Two features that do not work together."""

    one: str
    other: str
    why: str
    """What goes wrong."""
    instead: str
    """What works."""


def _each(ones: Iterable[str], other: str, why: str, instead: str) -> tuple[Conflict, ...]:
    return tuple(Conflict(one, other, why, instead) for one in ones)


_SPECTRAL: Final = ("init pissa", "init olora", "init mica", "init orthogonal")
_WITH_REFERENCE: Final = tuple(f"trainer {name}" for name in ("dpo", "kto", "grpo", "rloo"))
"""Trainers whose reference model is the base with the adapter off."""
_SAMPLING: Final = ("trainer grpo", "trainer rloo")
_NOT_SFT: Final = (*_WITH_REFERENCE, "trainer reward", "trainer classification", "trainer seq2seq")
_ALL_INITS: Final = tuple(f"init {name}" for name in INITS if name != "default")

CONFLICTS: Final[tuple[Conflict, ...]] = (
    Conflict("8-bit", "dora", "bitsandbytes' 8-bit layers fail in DoRA's backward pass", "method qdora (4-bit)"),
    Conflict("prefix", "checkpointing", "checkpointing drops the cache that holds the prefix", "leave it off"),
    Conflict("prefix", "packing", "one prefix cannot serve several packed examples", "packing=False"),
    Conflict("dora", "target_parameters", "peft has no DoRA for expert parameters", "method lora"),
    Conflict("dropout", "target_parameters", "peft has no dropout for expert parameters", "dropout=0"),
    Conflict("adalora", "target_parameters", "AdaLoRA has layers for linear modules only", "method lora"),
    *_each((f"init {name}" for name in INITS if name not in ("default", "gaussian")), "target_parameters",
           "peft starts experts so only by default", "init gaussian, or leave init out"),
    *_each(("fsdp", "zero3"), "target_parameters", "nobody has run it", "sharding ddp"),
    *_each(("fsdp", "zero3"), "new_tokens", "nobody has run it", "sharding ddp"),
    Conflict("adalora", "new_tokens", "its export as plain LoRA carries no token rows", "method lora"),
    *_each(_SPECTRAL, "4-bit", "peft cannot take it from packed weights (or rounds them again)", "init gaussian"),
    *_each(_SPECTRAL, "8-bit", "peft cannot take it from packed weights (or rounds them again)", "init gaussian"),
    *_each(_SPECTRAL, "dora", "DoRA's magnitude is lost where the adapter is converted for the plain base, or "
           "peft refuses the pair", "init default"),
    *_each(_ALL_INITS, "prefix", "a prefix has no factors to initialise", "leave init out"),
    *_each(_ALL_INITS, "adalora", "AdaLoRA has its own start, P Λ Q with Λ = 0", "leave init out"),
    Conflict("init loftq", "lora", "nothing is quantised that it could make up for", "method qlora"),
    Conflict("init loftq", "rslora", "nothing is quantised that it could make up for", "method qlora"),
    Conflict("init loftq", "dora", "DoRA measures its magnitudes before it starts", "method qlora"),
    Conflict("init mica", "loraplus", "MiCA freezes B, whose rate LoRA+ raises", "the adamw optimizer"),
    Conflict("prefix", "loraplus", "a prefix has no factors A and B", "the adamw optimizer"),
    Conflict("adalora", "loraplus", "LoRA+ sets its ratio for B A, AdaLoRA trains P Λ Q", "the adamw optimizer"),
    *_each(("fsdp", "zero3"), "loraplus", "sharding flattens the parameters that it groups by name", "sharding ddp"),
    Conflict("fsdp", "paged", "paged 8-bit state cannot be saved under FSDP", "optimizer adamw"),
    Conflict("fsdp", "8-bit", "bitsandbytes' 8-bit weights cannot be sharded", "method qlora (4-bit) or sharding ddp"),
    Conflict("zero3", "paged", "DeepSpeed shards the optimizer's state itself", "optimizer adamw"),
    *_each(("fsdp", "zero3"), "adalora", "AdaLoRA ranks whole gradients, which sharding splits", "sharding ddp"),
    *_each(("fsdp", "zero3"), "prefix", "nobody has run it", "sharding ddp"),
    *(row for name in ("init pissa", "init olora", "init mica", "init loftq")
      for row in _each(("fsdp", "zero3"), name, "its SVD needs whole weights on each rank", "sharding ddp")),
    *_each(("fsdp", "zero3"), "init eva", "it writes whole factors on each rank", "sharding ddp"),
    Conflict("adaptive rank", "adalora", "each has an allocation of its own", "one of them"),
    Conflict("adaptive rank", "prefix", "a prefix has no rank", "method lora"),
    Conflict("adaptive rank", "target_parameters", "experts' parameters cannot change their rank", "one of them"),
    *_each(("fsdp", "zero3"), "adaptive rank", "sharded parameters cannot change their shape", "sharding ddp"),
    Conflict("adaptive rank", "paged", "8-bit state cannot be cut", "optimizer adamw"),
    *_each(("init pissa", "init olora", "init mica", "init loftq"), "adaptive rank",
           "what it leaves belongs to the ranks it started with", "init default, orthogonal or eva"),
    *_each(_SAMPLING, "adaptive rank", "gradients of rewards rank layers badly: uniform rank did 4.5 points better "
           "under GRPO (arXiv 2605.07366)", "one rank for all layers"),
    *_each(_SAMPLING, "adalora", "gradients of rewards rank layers badly: uniform rank did 4.5 points better under "
           "GRPO (arXiv 2605.07366)", "method lora"),
    *(row for name in ("init pissa", "init olora") for row in _each(_WITH_REFERENCE, name, "it changes the base, which "
      "with the adapter off is the reference", "init default, gaussian or orthogonal")),
    *_each(_WITH_REFERENCE, "init loftq", "the policy would not start as its reference, the quantised base",
           "init default"),
    *_each(_NOT_SFT, "init eva", "it reads batches that have a label at each token", "init default, gaussian or "
           "orthogonal"),
    *_each(_NOT_SFT, "prefix", "nobody has run it", "method lora"),
    Conflict("zero3", "dora", "the norm of a sharded weight is not the weight's", "sharding ddp or fsdp"),
)  # fmt: skip


def check_features(features: Iterable[str]) -> None:
    """Raise for the first two features that do not work together.

    Raises:
        ConfigError: With what goes wrong and what works instead.
    """
    present = set(features)
    for conflict in CONFLICTS:
        if {conflict.one, conflict.other} <= present:
            raise ConfigError(
                f"{conflict.one} does not work with {conflict.other}: {conflict.why}; use {conflict.instead}"
            )


def check_method(method: str, init: str) -> None:
    """Raise for a method or an initialisation that is not known or cannot be had from a configuration alone.

    Raises:
        ConfigError: With the nearest name, or with how to do it by hand.
    """
    if method not in METHODS:
        raise ConfigError(f"method {method!r} is not known; {nearest(str(method), METHODS)}")
    facts = init_facts(init)
    if facts.refusal:
        raise ConfigError(f"init {init} {facts.refusal}")


def init_facts(init: str) -> Init:
    """Return the facts of an initialisation by its name.

    Raises:
        ConfigError: If the name is not known.
    """
    if isinstance(init, str) and re.fullmatch(r"pissa_niter_\d+", init):
        raise ConfigError(
            f"init {init} draws its SVD at random, so that a reloaded adapter meets another base; use init pissa"
        )
    if init not in INITS:
        raise ConfigError(f"init {init!r} is not known; {nearest(str(init), INITS)}")
    return INITS[init]


def stored_init(init: Any) -> Init | None:
    """Return the facts of `init_lora_weights` in a peft configuration; None of what names no start.

    Like peft, which takes `pissa_niter_16` for a PiSSA, by how the name begins.

    >>> stored_init("pissa_niter_16") is INITS["pissa"], stored_init(True)
    (True, None)
    """
    name = init.lower() if isinstance(init, str) else ""
    return next((facts for known, facts in INITS.items() if name.startswith(known)), None)


def config_features(config: Any) -> frozenset[str]:
    """Return the features of a user's own peft configuration.

    Args:
        config: A `LoraConfig` or another `PeftConfig`; only plain attributes are read.
    """
    kind = str(getattr(config, "peft_type", "")).rpartition(".")[2].lower()
    init = getattr(config, "init_lora_weights", None)
    found = {
        "dora": getattr(config, "use_dora", False),
        "rslora": getattr(config, "use_rslora", False),
        "target_parameters": getattr(config, "target_parameters", None),
        "new_tokens": getattr(config, "trainable_token_indices", None),
        "dropout": getattr(config, "lora_dropout", 0),
        "adalora": kind == "adalora",
        "prefix": kind == "prefix_tuning",
        f"init {init}": isinstance(init, str),
    }
    return frozenset(name for name, present in found.items() if present)
