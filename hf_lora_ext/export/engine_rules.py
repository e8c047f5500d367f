"""What each inference engine asks of an adapter that it loads, read in the engine's own source.

A rule takes what an adapter holds, as plain values, and yields problems: what was found, and what the engine does
with it. A rule only knows the adapter: whether an engine supports the base model at all is not looked at.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from math import sqrt
from typing import Any, Final

from ..cards.layer_ranks import place_of

__all__ = ["ENGINES", "Engine", "Holdings", "Module", "kind_of", "max_lora_rank_for", "serving_rank"]


@dataclass(frozen=True, slots=True)
class Module:
    """One adapted module."""

    name: str
    """Name in the base model."""
    rank: int
    """Rows of A."""
    scale: float
    """What PEFT multiplies B A by."""
    kind: str = "linear"
    """`linear`, `embedding`, `conv` or `parameter` (the stacked experts of a mixture)."""

    @property
    def leaf(self) -> str:
        """The last part of the name."""
        return self.name.rpartition(".")[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Holdings:
    """What an adapter folder holds, without its numbers."""

    config: Mapping[str, Any]
    """`adapter_config.json`."""
    modules: tuple[Module, ...]
    """The adapted modules."""
    keys: tuple[str, ...]
    """Names of all stored tensors."""
    base_layers: int | None = None
    """Layers of the base model; None where its config is not at hand, and then those that the adapter names count."""
    files: frozenset[str] = field(default_factory=frozenset)
    """Names of the folder's files."""

    @property
    def rank(self) -> int:
        """The rank that the config states for all modules."""
        return int(self.config.get("r") or 0)

    @property
    def largest_rank(self) -> int:
        """The largest rank stored."""
        return max((module.rank for module in self.modules), default=0)

    @property
    def config_scale(self) -> float:
        """What an engine multiplies by that reads alpha and r alone."""
        return float(self.config.get("lora_alpha") or 0) / max(self.rank, 1)

    def other_keys(self, *suffixes: str) -> list[str]:
        """Return the tensors whose name ends in none of these."""
        return [key for key in self.keys if not key.endswith(suffixes)]


Rule = Callable[[Holdings], Iterator[str]]

LINEAR_KEYS: Final = (".lora_A.weight", ".lora_B.weight")
EMBEDDING_KEYS: Final = (".lora_embedding_A", ".lora_embedding_B")
SGMV_BLOCK: Final = 16
"""LoRAX and TGI pad every rank to 8, or to a multiple of this."""
VLLM_RANKS: Final = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Values that vLLM 0.33.0 takes for `--max-lora-rank` (vllm/config/lora.py)."""
FUSED_WITH: Final[Mapping[str, frozenset[str]]] = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj"), frozenset({"q_proj", "v_proj"})),
    "up_proj": frozenset({"gate_proj"}),
}
"""Projection → what SGLang 0.5.23 needs beside it in a layer to fuse them (sglang/srt/lora/lora.py,
normalize_qkv_proj and normalize_gate_up_proj; a k_proj or up_proj that is missing counts as zero)."""
VLLM_INITS: Final = {"gaussian", "eva", "orthogonal", "mica", "lora_ga"}


def kind_of(name: str) -> tuple[str, int | None]:
    """Return a module's name with its layer's number left out, and that number.

    >>> kind_of("model.layers.3.self_attn.q_proj")
    ('model.layers.*.self_attn.q_proj', 3)
    """
    stack, layer, module = place_of(name)
    return (name, None) if layer is None else (f"{stack}.*.{module}", layer)


def serving_rank(rank: int) -> int:
    """Return the smallest rank from this one that LoRAX and TGI do not pad: 8, or a multiple of 16.

    >>> [serving_rank(rank) for rank in (1, 8, 9, 16, 40)]
    [8, 8, 16, 16, 48]
    """
    return 8 if rank <= 8 else -(-rank // SGMV_BLOCK) * SGMV_BLOCK


def max_lora_rank_for(rank: int) -> int | None:
    """Return the smallest `--max-lora-rank` of vLLM that holds this rank; None where none does."""
    return next((allowed for allowed in VLLM_RANKS if rank <= allowed), None)


def _some(names: list[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


# --- shared ------------------------------------------------------------------------------------------------------


def _is_lora(held: Holdings) -> Iterator[str]:
    if held.config.get("peft_type") != "LORA":
        yield f"peft_type is {held.config.get('peft_type')}; only LORA is read"


def _no_dora(held: Holdings) -> Iterator[str]:
    if held.config.get("use_dora"):
        yield "use_dora: the magnitudes of DoRA are refused or left out"


def _one_scale(held: Holdings) -> Iterator[str]:
    """The engine scales by alpha / r of the config: no rsLoRA, no patterns."""
    off = [m for m in held.modules if abs(m.scale - held.config_scale) > 1e-6 * max(abs(m.scale), 1e-12)]
    if off:
        yield (
            f"{off[0].name} is trained at the scale {off[0].scale:g}, and lora_alpha / r = {held.config_scale:g} is "
            f"used for all modules (rank_pattern, alpha_pattern and use_rslora are not read): {len(off)} of "
            f"{len(held.modules)} modules would answer wrongly"
        )


def _no_stacked_experts(held: Holdings) -> Iterator[str]:
    stacked = [module.name for module in held.modules if module.kind == "parameter"]
    if stacked:
        yield f"{_some(stacked)}: experts adapted as one stacked parameter (target_parameters) are not read"


# --- vLLM 0.33.0: vllm/lora/peft_helper.py, lora_model.py, utils.py, worker_manager.py, vllm/config/lora.py --------


def _vllm_features(held: Holdings) -> Iterator[str]:
    config = held.config
    unsupported = ("use_dora", "lora_bias", "alora_invocation_tokens", "layer_replication", "use_bdlora", "use_qalora")
    for name in unsupported:
        if config.get(name):
            yield f"{name} is refused"
    if config.get("bias", "none") != "none":
        yield f"bias={config['bias']!r} is refused"
    if foreign := sorted(set(config.get("modules_to_save") or ()) - {"classifier", "score"}):
        yield f"modules_to_save {foreign} is refused; only classifier and score are read"
    init = config.get("init_lora_weights", True)
    if isinstance(init, str) and init.lower() not in VLLM_INITS:
        yield f"init_lora_weights={init!r} is refused, since it means another base"


def _vllm_ranks(held: Holdings) -> Iterator[str]:
    if max_lora_rank_for(held.largest_rank) is None:
        yield f"rank {held.largest_rank} is above {VLLM_RANKS[-1]}, the largest --max-lora-rank"


def _vllm_keys(held: Holdings) -> Iterator[str]:
    heads = tuple(f".{head}.{part}" for head in ("score", "classifier") for part in ("weight", "bias"))
    embeddings = (".embed_tokens.base_layer.weight", ".lm_head.base_layer.weight")
    foreign = held.other_keys(*LINEAR_KEYS, *EMBEDDING_KEYS, *heads, *embeddings)
    if foreign:
        yield f"tensors {_some(foreign)} are no LoRA weights of its form, and the adapter is refused"


# --- SGLang 0.5.23: python/sglang/srt/lora/lora.py, lora_config.py, lora_manager.py, mem_pool.py, utils.py ----------


def _sglang_config(held: Holdings) -> Iterator[str]:
    targets = held.config.get("target_modules")
    if isinstance(targets, str) and targets not in ("all", "all-linear"):
        yield f"target_modules={targets!r} is an expression; a list of names is needed"
    elif not isinstance(targets, (str, list)):
        yield "target_modules is not a list of names"
    if "added_tokens.json" in held.files:
        yield "added_tokens.json: adapters that add tokens to the vocabulary are refused"


def _sglang_ranks(held: Holdings) -> Iterator[str]:
    off = [f"{module.name} ({module.rank})" for module in held.modules if module.rank != held.rank]
    if off:
        yield f"the config's r is {held.rank}, and other ranks fail at load: {_some(off)}"


def _sglang_fused(held: Holdings) -> Iterator[str]:
    """Projections that the engine fuses must come together."""
    together: dict[str, set[str]] = defaultdict(set)
    for module in held.modules:
        if module.kind == "linear":
            together[module.name.rpartition(".")[0]].add(module.leaf)
    for block, leaves in sorted(together.items()):
        for leaf in sorted(leaves & FUSED_WITH.keys()):
            if missing := FUSED_WITH[leaf] - leaves:
                yield f"{block} has {leaf} without {' and '.join(sorted(missing))}, which it fuses"
                return


def _sglang_keys(held: Holdings) -> Iterator[str]:
    foreign = [key for key in held.other_keys(*LINEAR_KEYS, *EMBEDDING_KEYS) if ".base_layer." not in key]
    if foreign:
        yield f"tensors {_some(foreign)} are no factors; they are left out or fail"


# --- LoRAX a7394ba and TGI v3.3.7: (lorax_server|text_generation_server)/adapters/lora.py --------------------------


def _stacked_kinds(held: Holdings) -> Iterator[str]:
    """All layers of a kind are stacked into one tensor; a kind with a gap is dropped without a word."""
    kinds: dict[str, dict[int, int]] = defaultdict(dict)
    for module in held.modules:
        kind, layer = kind_of(module.name)
        if layer is not None:
            kinds[kind][layer] = module.rank
    layers = held.base_layers or 1 + max((max(found) for found in kinds.values()), default=-1)
    gaps = [f"{kind} (layer {min(set(range(layers)) - set(f))})" for kind, f in kinds.items() if len(f) < layers]
    if gaps:
        yield f"kinds of layers with a gap are dropped in every layer, silently: {_some(sorted(gaps))}"
    mixed = sorted(kind for kind, found in kinds.items() if len(set(found.values())) > 1)
    if mixed:
        yield f"the layers of a kind are stacked and must be of one rank: {_some(mixed)}"


def _padded_rank(held: Holdings) -> Iterator[str]:
    """The padded rank overwrites the config's r, so every kind of layer after the first is scaled by it."""
    if held.rank != serving_rank(held.rank):
        yield (
            f"r={held.rank} is padded to {serving_rank(held.rank)}, by which all kinds of layers but the first are "
            "then scaled; r must be 8 or a multiple of 16"
        )


def _config_scale_with_rslora(held: Holdings) -> Iterator[str]:
    if held.config.get("use_rslora"):
        stated = float(held.config.get("lora_alpha") or 0) / sqrt(max(held.rank, 1))
        off = [m for m in held.modules if abs(m.scale - stated) > 1e-6 * max(abs(m.scale), 1e-12)]
        if off:
            yield f"{off[0].name} is trained at scale {off[0].scale:g}; patterns are not read, so {stated:g} is used"
        return
    yield from _one_scale(held)


def _only_layers(*leaves: str) -> Rule:
    def rule(held: Holdings) -> Iterator[str]:
        foreign = held.other_keys(*LINEAR_KEYS)
        if foreign:
            yield f"tensors {_some(foreign)} are left out silently"
        others = sorted({m.name for m in held.modules if m.kind == "linear" and m.leaf not in leaves})
        if others:
            yield f"{_some(others)} are left out silently; it adapts {', '.join(leaves)}"
        if any(not key.startswith("base_model.model.") for key in held.keys):
            yield "names of tensors must start with base_model.model."

    return rule


_PROJECTIONS: Final = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


# --- llama.cpp of llama-cpp-python 0.3.36: convert_lora_to_gguf.py, src/llama-adapter.cpp, src/llama-adapter.h ------


def _gguf_scale(held: Holdings) -> Iterator[str]:
    """The scale is alpha over the tensor's own rank; alpha 0 means 1; rsLoRA and patterns are not converted."""
    alpha = float(held.config.get("lora_alpha") or 0)
    for module in held.modules:
        used = alpha / module.rank if alpha else 1.0
        if abs(module.scale - used) > 1e-6 * max(abs(module.scale), 1e-12):
            yield (
                f"{module.name} is trained at the scale {module.scale:g}, and lora_alpha / its own rank = {used:g} is "
                "used (rank_pattern, alpha_pattern and use_rslora are not converted)"
            )
            return


def _gguf_keys(held: Holdings) -> Iterator[str]:
    foreign = held.other_keys(*LINEAR_KEYS, *EMBEDDING_KEYS, ".base_layer.weight")
    if foreign:
        yield f"tensors {_some(foreign)} end the conversion"


@dataclass(frozen=True, slots=True)
class Engine:
    """An inference engine, as far as its source says what it loads."""

    name: str
    """What it is called."""
    version: str
    """The version or commit that was read."""
    source: str
    """Where its rules stand."""
    command: str
    """How to serve an adapter, with `{base}`, `{name}`, `{folder}` and `{rank}` to fill in."""
    rules: tuple[Rule, ...]
    """What it asks."""
    form: str = "portable"
    """The smallest form that it loads."""

    def problems(self, held: Holdings) -> tuple[str, ...]:
        """Return why it would refuse this adapter, or answer wrongly with it."""
        return tuple(problem for rule in self.rules for problem in rule(held))


ENGINES: Final[Mapping[str, Engine]] = {
    "vllm": Engine(
        "vLLM", "0.33.0", "vllm/lora/peft_helper.py, lora_model.py, utils.py; vllm/config/lora.py",
        "vllm serve {base} --enable-lora --max-lora-rank {rank} --lora-modules {name}={folder}",
        (_is_lora, _vllm_features, _vllm_ranks, _vllm_keys), "compact",
    ),
    "sglang": Engine(
        "SGLang", "0.5.23", "sglang/srt/lora/lora.py, lora_config.py, lora_manager.py, mem_pool.py, utils.py",
        "python -m sglang.launch_server --model-path {base} --enable-lora --lora-paths {name}={folder}",
        (_is_lora, _no_dora, _sglang_config, _one_scale, _sglang_ranks, _sglang_fused, _no_stacked_experts,
         _sglang_keys),
    ),
    "lorax": Engine(
        "LoRAX", "commit a7394ba", "lorax_server/adapters/lora.py, models/flash_llama.py, utils/punica.py",
        'lorax-launcher --model-id {base}  # and in requests: "adapter_id": "{folder}", "adapter_source": "local"',
        (_is_lora, _no_dora, _config_scale_with_rslora, _stacked_kinds, _padded_rank, _no_stacked_experts,
         _only_layers(*_PROJECTIONS, "lm_head")),
    ),
    "tgi": Engine(
        "TGI", "3.3.7", "text_generation_server/adapters/lora.py, models/__init__.py, utils/adapter.py",
        "text-generation-launcher --model-id {base} --lora-adapters {name}={folder}",
        (_is_lora, _no_dora, _config_scale_with_rslora, _stacked_kinds, _padded_rank, _no_stacked_experts,
         _only_layers(*_PROJECTIONS, "qkv_proj", "c_proj", "c_fc")),
    ),
    "llama.cpp": Engine(
        "llama.cpp", "of llama-cpp-python 0.3.36", "convert_lora_to_gguf.py; src/llama-adapter.cpp, llama-adapter.h",
        "python convert_lora_to_gguf.py {folder} --base {base} --outfile {name}.gguf && "
        "llama-server -m BASE.gguf --lora {name}.gguf",
        (_is_lora, _no_dora, _gguf_scale, _no_stacked_experts, _gguf_keys),
    ),
}  # fmt: skip
"""Engines by the name that `--for` takes."""
