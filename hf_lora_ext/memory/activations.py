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

__all__ = [
    "SavedByLayer",
    "backward_workspace",
    "cast_weights",
    "kept_checkpoints",
    "loss_workspace",
    "saved_by_layer",
    "stream_bytes",
]

STATISTIC: Final = 4
"""Bytes of one float32 statistic a token: an inverse deviation, a logsumexp."""
INDEX: Final = 8
"""Bytes of one index of a token or an expert."""
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
    """Intermediates of the MLP, and what routes tokens to experts."""
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
        "inputs": _inputs(block, plan) if _keeps_inputs(plan) else 0,
    }
    kept = {name: ceil(value * plan.tokens) for name, value in per_token.items()}
    kept["norms"] += _norm_weights(block)
    kept["adapters"] += 0 if plan.method == "full" else _adapter_weights(block, plan)
    return SavedByLayer(**kept)


def stream_bytes(block: Block, plan: Plan) -> int:
    """Return the bytes of a value in the residual stream.

    4 where norms and embeddings are float32, and where LayerNorm under autocast gives float32 to packed layers, which
    give back what they get. Plain layers under autocast give back the narrow type, so the stream stays narrow.
    """
    widened = plan.autocast and plan.is_packed and block.habits.norm == "layer"
    wide = plan.base == "float32" and not _narrows_weights(plan)
    return 4 if plan.kbit_prepared or wide or widened else plan.compute_bytes


def _narrows_weights(plan: Plan) -> bool:
    """Tell whether FSDP or DeepSpeed hands float32 weights out in the narrow type, so that no cast is left to do."""
    return plan.has_master_copy or (plan.sharding == "fsdp" and plan.autocast)


def kept_checkpoints(block: Block, plan: Plan) -> int:
    """Return the bytes of the block inputs that checkpointing keeps: the residual stream once a block."""
    on_device = 2 if plan.checkpoint_offload else block.layers  # one travels while the next is used
    return on_device * block.hidden * stream_bytes(block, plan) * plan.tokens


def cast_weights(block: Block, plan: Plan) -> int:
    """Return the bytes of one block's weights as autocast narrows them, which its graph keeps."""
    if plan.base != "float32" or plan.compute == "float32" or not plan.autocast or _narrows_weights(plan):
        return 0
    return plan.compute_bytes * round(sum(p.in_features * p.out_features * p.each for p in block.projections))


def backward_workspace(block: Block, plan: Plan) -> int:
    """Return the bytes of gradients alive at once in a block's MLP: of the stream, and of each intermediate."""
    width = _inner_bytes(block, plan)
    branches = 3 if block.is_gated else 2
    if plan.method == "full":
        branches -= 1  # the last layer's input, which is kept then, is free by the time the others' gradients are there
    lora_on_hidden = any(p.reads == "mlp_hidden" and is_target(p, plan.targets) for p in block.projections)
    cast = plan.adapter_bytes if lora_on_hidden and plan.method != "full" and not plan.autocast else 0
    mlp = block.mlp // max(1, block.experts) if plan.experts_looped else block.mlp  # tokens spread over all experts
    inside = max(branches * width, (branches - 1) * width + cast) * mlp
    return (inside + stream_bytes(block, plan) * block.hidden) * plan.tokens + _unpacked(block, plan)


def loss_workspace(block: Block, plan: Plan) -> int:
    """Return the bytes around the logits at the loss, with those of the last norm.

    Torch's cross-entropy holds its log-probabilities, their gradient and the logits'; a fused one the logits, which it
    overwrites by their gradient, and one more copy. All are float32 where the logits are cast or autocast is on; the
    model's own logits add to it where something still refers to them. A chunked loss keeps only the hidden states'
    gradient in float32 and as cast back.
    """
    stream = stream_bytes(block, plan)
    norm = plan.compute_bytes + (4 if block.habits.norm != "layer" and not plan.fused_norms else stream)
    if block.habits.norm == "layer" and plan.autocast:
        norm += 4  # the norm's own result, before it is cast for the head
    if plan.loss == "chunked":
        return (norm + 4 + plan.compute_bytes) * block.hidden * plan.tokens + TILE_BYTES
    narrow = plan.compute_bytes
    if not plan.logits_upcast and stream > narrow and block.habits.norm == "layer":
        narrow = stream  # as measured on gpt_bigcode in transformers 4.48; read off no source
    wide = 4 if plan.logits_upcast or plan.autocast else narrow
    logit = (3 if plan.loss == "eager" else 2) * wide
    logit += narrow * (plan.logits_held + block.habits.has_logit_softcap)
    head = block.vocabulary * block.hidden * plan.compute_bytes  # what the head multiplies by, if not as it is held
    copied = plan.head_packed or (plan.base == "float32" and plan.autocast and plan.compute_bytes < 4)
    return (logit * block.vocabulary + norm * block.hidden) * plan.tokens + head * copied


def _inner_bytes(block: Block, plan: Plan) -> int:
    """Bytes of a value between a block's layers: bitsandbytes gives its output back in the type of its input."""
    return stream_bytes(block, plan) if plan.is_packed else plan.compute_bytes


def _unpacked(block: Block, plan: Plan) -> int:
    """Bytes of the largest packed weight while it is unpacked; for DoRA the product of its factors and their sum."""
    largest = max((p.in_features * p.out_features for p in block.projections), default=0)
    copies = plan.is_packed + (2 if plan.method == "dora" else 0)
    return copies * plan.compute_bytes * largest


def _norms(block: Block, plan: Plan) -> int:
    habits = block.habits
    width, statistics = 4, STATISTIC
    if habits.norm == "layer":
        width, statistics = 4 if plan.autocast else stream_bytes(block, plan), 2 * STATISTIC
    elif plan.fused_norms:
        width = stream_bytes(block, plan)
    trains = plan.method == "full"
    scaled = {"rms": stream_bytes(block, plan), "rms_wide": 4, "layer": 0}[habits.norm] * trains
    kept = (habits.norm_inputs * width + habits.norms * scaled) * block.hidden + habits.norms * statistics
    if habits.head_norms == "none":
        return kept
    width = plan.compute_bytes if plan.fused_norms else 4
    scaled = {"rms": plan.compute_bytes, "rms_wide": 4, "layer": 0}[habits.norm] * trains
    groups = 2 if habits.head_norms == "width" else block.heads + block.heads * block.key_value // block.query
    return kept + (width + scaled) * (block.query + block.key_value) + STATISTIC * groups


def _norm_weights(block: Block) -> int:
    """Bytes of the norms' weights as copied in float32, once a block and not a token."""
    if not block.habits.adds_one:
        return 0
    heads = 2 * block.query // block.heads if block.habits.head_norms == "head" else 0
    return 4 * (block.habits.norms * block.hidden + heads)


def _attention(block: Block, plan: Plan) -> int:
    width = plan.compute_bytes
    repeated = plan.attention == "eager" or (plan.attention == "sdpa" and plan.padding_mask)
    key_value = block.query if repeated else block.key_value
    kept = width * (block.query + 2 * key_value)
    if plan.attention == "eager":
        wide = 4 * block.habits.has_wide_softmax  # the softmax in float32, and its cast
        weights = max(wide + (width if width < 4 else 0), width) + width * block.habits.has_attention_softcap
        return kept + weights * block.heads * plan.sequence
    if block.habits.has_fused_values or plan.fused_adapter:
        kept += 0 if repeated and key_value > block.key_value else width * (block.query + block.key_value)
    return kept + width * block.query + STATISTIC * block.heads


def _mlp(block: Block, plan: Plan) -> int:
    width = stream_bytes(block, plan) if block.experts_per_token else _inner_bytes(block, plan)
    if block.is_gated:
        return width * block.mlp * (2 if plan.fused_mlp else 3) + _routing(block, width)
    return width * block.mlp * (4 if block.habits.activation == "composed" else 1)


def _routing(block: Block, width: int) -> int:
    """Bytes a token of the router's probabilities, its choice, the order of experts, and each expert's result."""
    chosen = block.experts_per_token
    if not chosen:
        return 0
    return STATISTIC * (block.experts + 1 + 2 * chosen) + 4 * INDEX * chosen + width * chosen * block.hidden


def _keeps_inputs(plan: Plan) -> bool:
    """Tell whether the base's own layers keep their inputs: where they train, and in 8 bits (`MatMul8bitLt`)."""
    return plan.method == "full" or plan.keeps_packed_inputs or plan.base == "int8"


def _inputs(block: Block, plan: Plan) -> Fraction:
    """Inputs of the base's own layers; the attention keeps its result already, ReLU its own.

    Layers that read the same tensor share it, unless autocast narrows it for each of them.
    """
    width = _inner_bytes(block, plan) if plan.base == "int8" else plan.compute_bytes
    experts = stream_bytes(block, plan) if block.experts_per_token else width  # autocast does not narrow experts
    shared = [p for p in block.projections if p.reads in ("attention_input", "mlp_input")]
    read = Fraction(min(2 - bool(block.experts_per_token), block.habits.norms))
    if plan.method == "full" and plan.autocast and stream_bytes(block, plan) > width:
        read = sum((p.each for p in shared), Fraction(0))
    attention = block.query if _copies_result(block, plan) else 0
    hidden = 0 if block.habits.activation == "relu" else block.mlp
    routed = (
        block.hidden * (block.experts_per_token + 1) if block.experts_per_token else 0
    )  # gathered, and the router's
    return width * (read * block.hidden + attention) + experts * (hidden + routed)


def _copies_result(block: Block, plan: Plan) -> bool:
    """Tell whether the output layer reads another tensor than the attention keeps."""
    return plan.attention == "eager" or (plan.attention == "sdpa" and block.habits.copies_result)


def _adapters(block: Block, plan: Plan) -> Fraction:
    chosen = [p for p in block.projections if is_target(p, plan.targets)]
    kept = Fraction(0)
    if not _copies_input(block, plan) and not _keeps_inputs(plan):
        shared = {p.reads: p for p in chosen}
        if not _copies_result(block, plan):
            shared.pop("attention_output", None)  # the attention keeps it
        if block.habits.activation == "relu":
            shared.pop("mlp_hidden", None)
        if block.habits.norm_inputs == block.habits.norms == 1 and "attention_input" in shared:
            shared.pop("mlp_input", None)  # a parallel block with one norm gives its result to both
        kept += sum(p.in_features * _inner_bytes(block, plan) * min(p.each, Fraction(1)) for p in shared.values())
    if plan.fused_adapter:
        fused = [p for p in chosen if p.reads == "attention_input"]
        chosen = [p for p in chosen if p.reads != "attention_input"]
        kept += _fused_adapter(block, plan, fused)
    return kept + sum((_adapter(p, block, plan) * p.each for p in chosen), Fraction(0))


def _copies_input(block: Block, plan: Plan) -> bool:
    """Tell whether each adapted module keeps its own copy of its input: after a cast, or after dropout."""
    product = _product_bytes(plan)
    casts = _inner_bytes(block, plan) != plan.adapter_bytes or product != plan.adapter_bytes
    return plan.dropout or casts


def _product_bytes(plan: Plan) -> int:
    """Bytes of what enters the adapter's products."""
    return plan.compute_bytes if plan.autocast else plan.adapter_bytes


def _adapter(projection: Projection, block: Block, plan: Plan) -> int:
    """Bytes a token that one adapted module keeps of its own."""
    product = _product_bytes(plan)
    kept = product * plan.rank * plan.start_factor
    if _copies_input(block, plan):
        kept += product * projection.in_features
    if plan.dropout:
        kept += projection.in_features
    if plan.method == "dora":
        kept += (_inner_bytes(block, plan) + product) * projection.out_features
    return kept


def _adapter_weights(block: Block, plan: Plan) -> int:
    """Bytes that adapters keep once a block, not a token: copies that autocast narrows, and what DoRA's norm needs.

    peft multiplies an identity of the input's width through both factors for DoRA, and autograd keeps it.
    """
    rank, product = plan.rank * plan.start_factor, _product_bytes(plan)
    kept = Fraction(0)
    for p in block.projections:
        if not is_target(p, plan.targets):
            continue
        if product < plan.adapter_bytes:
            kept += p.each * product * rank * (p.in_features + p.out_features)
        if plan.method == "dora":
            kept += p.each * (
                product * p.in_features * (p.in_features + rank) + 3 * plan.adapter_bytes * p.out_features
            )
    return round(kept)


def _fused_adapter(block: Block, plan: Plan, fused: list[Projection]) -> int:
    """Bytes a token of one adapter over queries, keys and values: one input, and its product before it is padded."""
    if not fused:
        return 0
    product = _product_bytes(plan)
    whole = block.query + 2 * block.key_value
    parts = 2 if any(p.out_features == whole for p in fused) else len(fused)  # a fused layer stands for q and v
    out = block.query + block.key_value if parts == 2 else sum(p.out_features for p in fused)
    kept = product * (parts * plan.rank * plan.start_factor + (out if out < whole else 0))
    return kept + (product + 1 if plan.dropout else 0) * block.hidden
