"""What a run holds all the time, in bytes: weights and scales, what trains and its states, what sharding gathers."""

from dataclasses import dataclass
from typing import Final

from ..models.sizes import ModelShape
from .anatomy import Block, is_target
from .plans import BASE_BYTES, Plan

__all__ = ["States", "packed_parameters", "states_of", "trained_bytes"]

NF4_BLOCK: Final = 64
"""Weights that share a scale in NF4 (QLoRA, arXiv 2305.14314, section 3)."""
NF4_SCALES: Final = 256
"""Scales that share a second scale with double quantisation (same source)."""
GPTQ_GROUP: Final = 128
"""Weights that share a scale and a zero point in the customary GPTQ checkpoint."""
OPTIMIZER_BLOCK: Final = 256
"""Values that share a scale in an 8-bit optimizer state (bitsandbytes)."""
LIVE_PARAMETERS: Final = 1_000_000_000
"""Parameters that ZeRO-3 keeps gathered (DeepSpeed's default of `stage3_max_live_parameters`)."""
REDUCE_BUCKET: Final = 500_000_000
"""Elements of ZeRO's buffer for gradients on their way (DeepSpeed's default of `reduce_bucket_size`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class States:
    """Bytes on all devices together, before they are cut into parts."""

    weights: int
    """Base weights, packed or not."""
    quantisation: int
    """Scales and zero points of packed weights."""
    trained: int
    """Weights that train: of the adapter, or of the whole model."""
    optimizer: int
    """States of the optimizer."""
    gathered: int
    """Whole weights that one device puts together at once."""
    in_flight: int
    """Copies of gradients on their way to other devices, on each device."""
    step_copy: int
    """Copy of the trained weights that torch's foreach AdamW makes in a step."""


def states_of(shape: ModelShape, block: Block, plan: Plan) -> States:
    """Return what a run holds."""
    weights, quantisation = _weights(shape, block, plan)
    count, element = _trained_parameters(shape, block, plan), trained_bytes(plan)
    zero = plan.sharding in ("zero2", "zero3")
    in_flight = REDUCE_BUCKET * element if zero else count * element if plan.sharding == "ddp" else 0
    return States(
        weights=weights,
        quantisation=quantisation,
        trained=count * element,
        optimizer=_optimizer(count, element, plan),
        gathered=_gathered(weights, shape, block, plan),
        in_flight=in_flight,
        step_copy=count * element if plan.optimizer == "adamw_foreach" and not zero else 0,
    )


def trained_bytes(plan: Plan) -> int:
    """Return the bytes of a weight that trains.

    Under mixed precision accelerate holds what FSDP trains in float32; DeepSpeed casts the whole model.
    """
    if plan.has_master_copy:
        return plan.compute_bytes
    if plan.method != "full":
        return plan.adapter_bytes
    return 4 if plan.sharding == "fsdp" and plan.autocast else BASE_BYTES[plan.base]


def packed_parameters(shape: ModelShape, block: Block, plan: Plan) -> int:
    """Return how many parameters are packed."""
    if not plan.is_packed:
        return 0
    head = block.vocabulary * block.hidden if plan.head_packed and not block.tied else 0
    packed = shape.quantisable_parameters
    if packed is None:
        packed = round(0.9 * shape.parameters)  # 84.8 % (Qwen3-8B) to 96 % (Llama 2) are in the blocks' linear layers
    return min(shape.parameters, packed + head + (shape.expert_parameters if plan.experts_quantised else 0))


def _element(plan: Plan) -> int:
    """Bytes of a base weight that is not packed."""
    if plan.method == "full":
        return trained_bytes(plan)
    if plan.is_packed:
        return 4 if plan.kbit_prepared else plan.compute_bytes
    return BASE_BYTES[plan.base]


def _weights(shape: ModelShape, block: Block, plan: Plan) -> tuple[int, int]:
    """Return the bytes of base weights and of their scales."""
    packed = packed_parameters(shape, block, plan)
    halves = {"int8": 2, "nf4": 1, "gptq": 1}.get(plan.base, 0)  # bytes of two packed weights
    weights = (shape.parameters - packed) * _element(plan) + packed * halves // 2
    if plan.base == "nf4":
        scales = packed // NF4_BLOCK
        return weights, scales + scales // NF4_SCALES * 4 if plan.double_quant else scales * 4
    if plan.base == "gptq":
        return weights, packed // GPTQ_GROUP * 5 // 2  # a 16-bit scale and a 4-bit zero point
    if plan.base == "int8":
        return weights, sum(4 * layer.out_features * (layer.count - layer.kept) for layer in shape.linear)
    return weights, 0


def _gathered(weights: int, shape: ModelShape, block: Block, plan: Plan) -> int:
    """Return the bytes of embedding, head and the blocks that are whole at once."""
    if not plan.gathers:
        return 0
    element = _element(plan)
    root = block.vocabulary * block.hidden * (1 if block.tied else 2) * element
    one_block = (weights - min(root, weights)) // block.layers
    if plan.sharding == "zero3":
        blocks = max(2 * one_block, round(LIVE_PARAMETERS * weights / shape.parameters))
    else:
        blocks = (2 if plan.offload else 1) * one_block  # the next one is on its way
    if plan.stays_gathered:
        return weights + root + blocks
    narrow = plan.compute_bytes if plan.sharding == "fsdp" and plan.autocast else element
    return min(weights, root + blocks) * min(narrow, element) // element


def _trained_parameters(shape: ModelShape, block: Block, plan: Plan) -> int:
    if plan.method == "full":
        return shape.parameters
    rank = plan.rank * plan.start_factor
    chosen = [p for p in block.projections if is_target(p, plan.targets)]
    count = sum(rank * (p.in_features + p.out_features) * p.each for p in chosen) * block.layers
    if plan.method == "dora":
        count += sum(p.out_features * p.each for p in chosen) * block.layers
    if plan.method == "adalora":
        count += sum(rank * p.each for p in chosen) * block.layers
    if plan.embeddings_trained:
        count += 2 * block.vocabulary * block.hidden
    return round(count)


def _optimizer(count: int, element: int, plan: Plan) -> int:
    """Return the bytes of two moments a parameter, in its own type or in 8 bits, and of DeepSpeed's master copy."""
    master = 4 * count if plan.has_master_copy else 0
    if plan.optimizer == "sgd":
        return master
    if plan.optimizer.endswith("8bit"):
        return master + count * 2 + count // OPTIMIZER_BLOCK * 8
    return master + count * 2 * (4 if plan.has_master_copy else element)
