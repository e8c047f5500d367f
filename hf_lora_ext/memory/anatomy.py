"""A model's transformer block as the memory estimate sees it: widths, and which input each linear layer reads."""

from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Final, Literal

from ..models.sizes import ModelShape
from .habits import Habits, habits_of

__all__ = ["Block", "Projection", "block_of", "is_target"]

Reads = Literal["attention_input", "attention_output", "mlp_input", "mlp_hidden"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Projection:
    """A linear layer of one block."""

    name: str
    """Last part of the module's name."""
    reads: Reads
    """Which tensor it reads; layers that read the same one share its storage."""
    in_features: int
    """Width of its input."""
    out_features: int
    """Width of its output."""
    each: Fraction
    """How many of it an average block has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """What one block, and the head after the last one, are made of."""

    layers: int
    """Number of blocks."""
    hidden: int
    """Width of the residual stream."""
    vocabulary: int
    """Tokens, so the width of the logits."""
    tied: bool
    """Whether the head shares the embedding's weights."""
    query: int
    """Width of all queries together."""
    key_value: int
    """Width of all keys together; the values' is the same."""
    heads: int
    """Attention heads."""
    mlp: int
    """Width inside the MLP that one token passes: all of its experts together."""
    is_gated: bool
    """Whether the MLP multiplies two branches."""
    experts_per_token: int
    """Routed experts a token passes; 0 in a dense model."""
    experts: int
    """Routed experts of a block; 0 in a dense model."""
    habits: Habits
    """How the family's code is written."""
    projections: tuple[Projection, ...]
    """The linear layers; gates and layers beside a head or embedding are left out."""


_ATTENTION_IN: Final = {
    *("q_proj", "k_proj", "v_proj", "qkv_proj", "query_key_value", "c_attn", "W_pack", "Wqkv", "query", "key"),
    *("value", "q", "k", "v", "qkv", "q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "in_proj"),
}
_ATTENTION_OUT: Final = {"o_proj", "dense", "out_proj", "o"}
_MLP_IN: Final = {
    *("gate_proj", "up_proj", "gate_up_proj", "c_fc", "fc1", "dense_h_to_4h", "w1", "w3", "wi", "wi_0", "wi_1"),
    *("fc_in", "Wi", "input_linear"),
}
_MLP_OUT: Final = {"down_proj", "fc2", "dense_4h_to_h", "w2", "wo", "fc_out", "output_linear"}
_GATED: Final = {"gate_proj", "gate_up_proj", "w3", "wi_1", "Wi", "input_linear"}

_TYPICAL: Final = (
    (0.4e9, 24, 1024), (0.9e9, 24, 1536), (2e9, 24, 2048), (5e9, 30, 3072), (10e9, 32, 4096), (20e9, 40, 5120),
    (50e9, 64, 6144), (100e9, 80, 8192),
)  # fmt: skip
"""Up to so many parameters → layers and width that are customary (SmolLM2, Llama 3, Qwen 2.5), for a bare size."""


@lru_cache(maxsize=64)
def block_of(shape: ModelShape) -> Block:
    """Return the block of a model; where only its total is known, one customary for that size.

    Widths that a shape does not state are read off its linear layers.
    """
    if not (shape.linear and shape.layers and shape.hidden):
        return _typical_block(shape)
    layers, hidden = shape.layers, shape.hidden
    every = [
        Projection(
            name=layer.name,
            reads=_reads(layer.name, layer.within, layer.in_features, layer.out_features, hidden),
            in_features=layer.in_features,
            out_features=layer.out_features,
            each=Fraction(layer.count, layers),
        )
        for layer in shape.linear
    ]
    projections = [p for p, layer in zip(every, shape.linear, strict=True) if layer.is_target]
    query, key_value = _attention_widths(projections, shape)
    experts = shape.experts_per_token or 0
    return Block(
        layers=layers,
        hidden=hidden,
        vocabulary=shape.vocabulary or 32_000,
        tied=bool(shape.tied),
        query=query,
        key_value=key_value,
        heads=shape.heads or max(1, query // 128),
        mlp=_mlp_width(every, shape),
        is_gated=bool(experts) or any(p.name in _GATED for p in projections),
        experts_per_token=experts,
        experts=shape.experts or 0 if experts else 0,
        habits=habits_of(shape.family),
        projections=tuple(projections),
    )


def is_target(projection: Projection, targets: str | tuple[str, ...]) -> bool:
    """Tell whether a LoRA on `targets` adapts the projection."""
    return targets == "all-linear" or projection.name in ((targets,) if isinstance(targets, str) else targets)


def _reads(name: str, within: str, width_in: int, width_out: int, hidden: int) -> Reads:
    in_mlp = any(part in within for part in ("mlp", "ffn", "feed_forward", "experts"))
    if name in _ATTENTION_IN and not in_mlp:
        return "attention_input"
    if name == "dense" and width_in != width_out:  # BERT calls three layers so
        return "mlp_input" if width_in == hidden else "mlp_hidden"
    if (name in _ATTENTION_OUT or (name == "c_proj" and "att" in within)) and not in_mlp:
        return "attention_output"
    if name in _MLP_IN:
        return "mlp_input"
    if name in _MLP_OUT or name == "c_proj":
        return "mlp_hidden"
    if width_in == width_out:
        return "attention_output"
    return "mlp_input" if width_in == hidden else "mlp_hidden"


def _attention_widths(projections: list[Projection], shape: ModelShape) -> tuple[int, int]:
    """Return the widths of queries and of keys: as the shape states them, or as the layers' own widths say."""
    heads, of_keys, head_dim = shape.heads, shape.key_value_heads, shape.head_dim
    if heads and head_dim:
        return heads * head_dim, (of_keys or heads) * head_dim
    out = {p.name: p.out_features for p in projections if p.reads == "attention_input"}
    back = [p.in_features for p in projections if p.reads == "attention_output"]
    query = out.get("q_proj") or out.get("query") or out.get("q") or (back[0] if back else shape.hidden or 0)
    key = out.get("k_proj") or out.get("key") or out.get("k") or max(0, (sum(out.values()) - query) // 2)
    return query, key or query


def _mlp_width(projections: list[Projection], shape: ModelShape) -> int:
    dense = sum(p.in_features * p.each for p in projections if p.reads == "mlp_hidden")
    routed = sum(
        Fraction(w.in_features * w.count, shape.layers or 1)
        for w in shape.expert_weights
        if w.out_features == shape.hidden and w.in_features != shape.hidden
    )
    return round(dense + routed * (shape.experts_per_token or 0))


def _typical_block(shape: ModelShape) -> Block:
    layers, hidden = next(((n, h) for up_to, n, h in _TYPICAL if shape.parameters <= up_to), (96, 12_288))
    vocabulary = shape.vocabulary or 128_256
    layers, hidden = shape.layers or layers, shape.hidden or hidden
    key_value = hidden // 4
    in_blocks = max(shape.parameters - 2 * vocabulary * hidden, shape.parameters // 2)
    mlp = max(1, (in_blocks // layers - 2 * hidden * (hidden + key_value)) // (3 * hidden))
    widths: tuple[tuple[str, Reads, int, int], ...] = (
        ("q_proj", "attention_input", hidden, hidden),
        ("k_proj", "attention_input", hidden, key_value),
        ("v_proj", "attention_input", hidden, key_value),
        ("o_proj", "attention_output", hidden, hidden),
        ("gate_proj", "mlp_input", hidden, mlp),
        ("up_proj", "mlp_input", hidden, mlp),
        ("down_proj", "mlp_hidden", mlp, hidden),
    )
    return Block(
        layers=layers,
        hidden=hidden,
        vocabulary=vocabulary,
        tied=bool(shape.tied),
        query=hidden,
        key_value=key_value,
        heads=max(1, hidden // 128),
        mlp=mlp,
        is_gated=True,
        experts_per_token=0,
        experts=0,
        habits=habits_of(shape.family),
        projections=tuple(
            Projection(name=name, reads=reads, in_features=i, out_features=o, each=Fraction(1))
            for name, reads, i, o in widths
        ),
    )
