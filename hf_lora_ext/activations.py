"""What a forward pass keeps for the backward pass: bytes by cause, from a block and a plan.

Each term is one thing that autograd saves or a library copies, as read off transformers 5.23 and peft 0.21;
`tests/test_memory.py` counts the saved tensors of real models and holds these terms to the byte.
"""

from dataclasses import dataclass, fields
from fractions import Fraction
from math import ceil
from typing import Final

from .anatomy import Block, Projection, is_target
from .plans import Plan

__all__ = ["SavedByLayer", "backward_workspace", "kept_checkpoints", "loss_workspace", "saved_by_layer"]

STATISTIC: Final = 4
"""Bytes of one float32 statistic a token: an inverse deviation, a logsumexp."""
TILE_BYTES: Final = 64 * 2**20
"""The tile of logits that a chunked loss works on; trl's and Liger's are of this order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedByLayer:
    """Bytes that one average block saves in a micro-batch."""

    norms: int
    """Inputs of the norms, in float32 where transformers casts them, with their statistics."""
    attention: int
    """Queries, keys, values, result, and its statistics or weights."""
    adapters: int
    """Inputs of the adapters with their copies and masks, and what DoRA keeps besides."""
    mlp: int
    """Intermediates of the MLP."""
    inputs: int
    """Inputs of the base's own layers; they are kept only where base weights train."""

    @property
    def total(self) -> int:
        """All of it."""
        return sum(getattr(self, field.name) for field in fields(self))


def saved_by_layer(block: Block, plan: Plan) -> SavedByLayer:
    """Return what an average block saves for its backward pass in a micro-batch."""
    per_token: dict[str, int | Fraction] = {
        "norms": _norms(block, plan),
        "attention": _attention(block, plan),
        "adapters": Fraction(0) if plan.method == "full" else _adapters(block, plan),
        "mlp": _mlp(block, plan),
        "inputs": _inputs(block, plan) if plan.method == "full" or plan.keeps_packed_inputs else 0,
    }
    return SavedByLayer(**{name: ceil(value * plan.tokens) for name, value in per_token.items()})


def kept_checkpoints(block: Block, plan: Plan) -> int:
    """Return the bytes of the block inputs that checkpointing keeps: the residual stream once a block."""
    on_device = 2 if plan.checkpoint_offload else block.layers  # one travels while the next is used
    return on_device * block.hidden * plan.stream_bytes * plan.tokens


def backward_workspace(block: Block, plan: Plan) -> int:
    """Return the bytes of gradients alive at once in a block's MLP: of the stream, and of each intermediate."""
    width = _inner_bytes(plan)
    branches = 3 if block.is_gated else 2
    lora_on_hidden = any(p.reads == "mlp_hidden" and is_target(p, plan.targets) for p in block.projections)
    cast = plan.adapter_bytes if lora_on_hidden and plan.method != "full" and not plan.autocast else 0
    mlp = block.mlp // max(1, block.experts_per_token) if plan.experts_looped else block.mlp
    inside = max(branches * width, (branches - 1) * width + cast) * mlp
    return (inside + plan.stream_bytes * block.hidden) * plan.tokens + _unpacked(block, plan)


def loss_workspace(block: Block, plan: Plan) -> int:
    """Return the bytes around the logits at the loss, with those of the last norm.

    Bytes a logit: torch's cross-entropy holds its float32 log-probabilities, their gradient and the logits' (12);
    shifting the logits adds a float32 copy while the 16-bit logits still live (14). A fused one overwrites the
    float32 logits by their gradient and holds one more copy (8; 10 when shifted). A chunked one keeps only the
    hidden states' gradient in float32 and as cast back.
    """
    norm = (4 if block.has_rms_norm and not plan.fused_kernels else plan.stream_bytes) + plan.stream_bytes
    if plan.loss == "chunked":
        return (norm + 4 + plan.compute_bytes) * block.hidden * plan.tokens + TILE_BYTES
    head = 4 if plan.kbit_prepared else plan.compute_bytes  # with float32 logits `.float()` copies nothing
    logit = 12 if plan.loss == "eager" else 8
    if plan.logits_shifted and head < 4:
        logit += 2
    if block.has_softcap:
        logit += head
    return (logit * block.vocabulary + norm * block.hidden) * plan.tokens


def _inner_bytes(plan: Plan) -> int:
    """Bytes of a value between a block's layers: bitsandbytes gives its output back in the type of its input."""
    return plan.stream_bytes


def _unpacked(block: Block, plan: Plan) -> int:
    """Bytes of the largest packed weight while it is unpacked for its product."""
    if not plan.is_packed:
        return 0
    return plan.compute_bytes * max((p.in_features * p.out_features for p in block.projections), default=0)


def _norms(block: Block, plan: Plan) -> int:
    if not block.has_rms_norm:
        each, statistics = plan.stream_bytes * block.hidden, 2 * STATISTIC
    elif plan.fused_kernels:
        each, statistics = plan.stream_bytes * block.hidden, STATISTIC
    else:
        each, statistics = 4 * block.hidden, STATISTIC
    heads = 0
    if block.has_head_norms:
        wide = plan.compute_bytes if plan.fused_kernels else 4
        heads = wide * (block.query + block.key_value)
        heads += STATISTIC * (block.heads + block.heads * block.key_value // block.query)
    trained = plan.compute_bytes * block.hidden if plan.method == "full" and block.has_rms_norm else 0
    return block.norms * (each + statistics + trained) + heads


def _attention(block: Block, plan: Plan) -> int:
    width = plan.compute_bytes
    repeated = plan.attention == "eager" or (plan.attention == "sdpa" and plan.padding_mask)
    key_value = block.query if repeated else block.key_value
    kept = width * (block.query + 2 * key_value)
    if plan.attention != "eager":
        return kept + width * block.query + STATISTIC * block.heads
    weights = 4 + (width if width < 4 else 0)  # the softmax in float32, and its cast
    return kept + weights * block.heads * plan.sequence


def _mlp(block: Block, plan: Plan) -> int:
    width = _inner_bytes(plan)
    if not block.is_gated:
        return width * block.mlp
    routed = width * block.experts_per_token * block.hidden  # each expert's result, which the router's weight scales
    return width * block.mlp * (2 if plan.fused_kernels else 3) + routed


def _inputs(block: Block, plan: Plan) -> int:
    """Inputs of the layers when base weights train; the attention keeps its result already."""
    width = plan.compute_bytes
    attention = block.query if plan.attention == "eager" else 0
    return width * (2 * block.hidden + block.mlp + attention)


def _adapters(block: Block, plan: Plan) -> Fraction:
    chosen = [p for p in block.projections if is_target(p, plan.targets)]
    shared = {p.reads: p for p in chosen}
    if plan.attention != "eager":
        shared.pop("attention_output", None)  # the attention keeps it
    kept = Fraction(0)
    if not _copies_input(plan):
        kept += sum(p.in_features * _inner_bytes(plan) * min(p.each, Fraction(1)) for p in shared.values())
    return kept + sum((_adapter(p, plan) * p.each for p in chosen), Fraction(0))


def _copies_input(plan: Plan) -> bool:
    """Tell whether each adapted module keeps its own copy of its input: after a cast, or after dropout."""
    product = _product_bytes(plan)
    casts = _inner_bytes(plan) != plan.adapter_bytes or product != plan.adapter_bytes
    return plan.dropout or casts


def _product_bytes(plan: Plan) -> int:
    """Bytes of what enters the adapter's products."""
    return plan.compute_bytes if plan.autocast else plan.adapter_bytes


def _adapter(projection: Projection, plan: Plan) -> int:
    """Bytes a token that one adapted module keeps of its own."""
    product = _product_bytes(plan)
    kept = product * plan.rank * plan.start_factor
    if _copies_input(plan):
        kept += product * projection.in_features
    if plan.dropout:
        kept += projection.in_features
    if plan.method == "dora":
        kept += (_inner_bytes(plan) + product) * projection.out_features
    return kept
