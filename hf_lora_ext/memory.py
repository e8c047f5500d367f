"""How much memory a training run needs: bytes by component, while loading and at the peak of training.

`estimate_memory(shape, plan)` adds up causes, in integers: what is held all the time, what a forward pass keeps
(`activations`), and what is alive for a moment. `tests/benchmarks/memory_accuracy.py` holds it against measured peaks.
"""

from dataclasses import dataclass
from typing import Final, Literal

from .activations import backward_workspace, cast_weights, kept_checkpoints, loss_workspace, saved_by_layer
from .anatomy import Block, block_of, is_target
from .plans import BASE_BYTES, Plan
from .sizes import ModelShape

__all__ = ["MARGIN", "MemoryEstimate", "Plan", "estimate_memory"]

GIB: Final = 2**30
MARGIN: Final = 0.12
"""Share of the device-visible estimate that is kept free: about three times its mean error on measured runs."""
RAGGED_MARGIN: Final = 0.22
"""The same for a mixture of experts whose weights are gathered: pieces of all sizes, errors twice as wide."""
CONTEXT_BYTES: Final = GIB
"""CUDA context, kernels and cuBLAS workspaces on one device, which no allocator sees (fitted to nvidia-smi)."""
COLLECTIVE_BYTES: Final = 2 * GIB
"""Buffers of NCCL on top of it, with several devices (fitted)."""
CACHED_LOGIT_BYTES: Final = 4.5
"""Freed bytes a logit that the allocator keeps: pieces as large as the logits suit nothing else (fitted)."""
CACHED_SHARE: Final = 0.3
"""Freed bytes that the allocator keeps, as a share of the kept block inputs (fitted)."""
CACHED_SHARE_SHARDED: Final = 0.5
"""The same under FSDP, whose peak is in a block, so that the loss leaves nothing more behind (fitted)."""
FSDP_STREAMS: Final = 2.0
"""Streams that FSDP 1 holds in its backward pass: the kept inputs, and as much again (Mistral and Mixtral rows)."""
LIVE_PARAMETERS: Final = 1_000_000_000
"""Parameters that ZeRO-3 keeps gathered (DeepSpeed's default of `stage3_max_live_parameters`)."""
REDUCE_BUCKET: Final = 500_000_000
"""Elements of ZeRO's buffer for gradients on their way (DeepSpeed's default of `reduce_bucket_size`)."""
NF4_BLOCK: Final = 64
"""Weights that share a scale in NF4 (QLoRA, arXiv 2305.14314, section 3)."""
NF4_SCALES: Final = 256
"""Scales that share a second scale with double quantisation (same source)."""
GPTQ_GROUP: Final = 128
"""Weights that share a scale and a zero point in the customary GPTQ checkpoint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryEstimate:
    """Bytes on one device, by component; the activations are those of the moment that needs most."""

    weights: int
    """Base weights, packed or not, after sharding."""
    quantisation: int
    """Scales and zero points of packed weights."""
    adapters: int
    """Weights of the adapter; 0 in full fine-tuning."""
    gradients: int
    """Gradients that are alive at the peak."""
    optimizer: int
    """States of the optimizer."""
    gathered: int
    """Weights that sharding gathers, and copies of gradients on their way to other devices."""
    checkpoints: int
    """Inputs of the blocks that checkpointing keeps."""
    saved: int
    """Activations that all blocks keep without checkpointing."""
    workspace: int
    """One block's activations and gradients, when the peak is in a block."""
    logits: int
    """Logits and loss, when the peak is there."""
    peak: Literal["loss", "block", "step"]
    """The moment that needs most."""
    loading: int
    """Peak while loading, before there is any optimizer or activation."""
    cached: int
    """Freed bytes that the allocator keeps at the peak: blocks of one moment that do not suit the other."""
    context: int
    """What the driver and the libraries hold outside torch."""
    host: int
    """Memory of the host for loading and for what is offloaded."""
    margin: float
    """Share of `device` that `needed` adds, by how far such runs strayed from their estimates."""

    @property
    def allocated(self) -> int:
        """Peak of training, as `torch.cuda.max_memory_allocated` counts."""
        return sum(getattr(self, name) for name in COMPONENTS)

    @property
    def reserved(self) -> int:
        """Peak of training, as `torch.cuda.max_memory_reserved` counts."""
        return self.allocated + self.cached

    @property
    def device(self) -> int:
        """Peak over loading and training, as `nvidia-smi` shows it."""
        return max(self.reserved, self.loading) + self.context

    @property
    def needed(self) -> int:
        """Memory that a device should have: `device` with the margin."""
        return round(self.device * (1 + self.margin))


COMPONENTS: Final = (
    *("weights", "quantisation", "adapters", "gradients", "optimizer", "gathered"),
    *("checkpoints", "saved", "workspace", "logits"),
)
"""The fields of `MemoryEstimate` that add up to `allocated`."""


def estimate_memory(shape: ModelShape, plan: Plan) -> MemoryEstimate:
    """Return the bytes that a run needs on each device, by component.

    >>> from hf_lora_ext.sizes import ModelShape
    >>> estimate = estimate_memory(ModelShape(parameters=7_000_000_000, source="key"), Plan(base="nf4"))
    >>> round(estimate.weights / 2**30)
    5

    Reference: what is kept follows "Reducing Activation Recomputation in Large Transformer Models" (arXiv
    2205.05198), counted anew for frozen weights, adapters and the present libraries.
    """
    block = block_of(shape)
    weights, quantisation, unsharded = _held(shape, block, plan)
    trainable, element = _trainable(shape, block, plan)
    offload = plan.offload and plan.gathers
    held = {
        "weights": _part(weights, plan.shards, offload),
        "quantisation": _part(quantisation, plan.shards, offload),
        "adapters": 0 if plan.method == "full" else _part(trainable * element, plan.shards, offload),
        "optimizer": _part(_optimizer(trainable, element, plan), plan.state_shards, offload),
        "gathered": unsharded + _on_their_way(trainable * element, element, plan),
    }
    gradients = _part(trainable * element, plan.state_shards, False)
    moments = _moments(block, plan, gradients, _step_copy(trainable * element, plan))
    peak = max(moments, key=lambda name: sum(moments[name].values()))
    at_peak = {"checkpoints": 0, "saved": 0, "workspace": 0, "logits": 0} | moments[peak]
    return MemoryEstimate(
        **held,
        **at_peak,
        peak=peak,
        loading=_loading(weights + quantisation, unsharded, plan) + _unpacked_while_loading(block, plan),
        cached=_cached(shape, block, plan, unsharded),
        context=CONTEXT_BYTES + (COLLECTIVE_BYTES if plan.devices > 1 else 0),
        host=_host(shape, plan, weights + quantisation),
        margin=RAGGED_MARGIN if plan.gathers and block.experts else MARGIN,
    )


def _moments(
    block: Block, plan: Plan, gradients: int, step_copy: int
) -> dict[Literal["loss", "block", "step"], dict[str, int]]:
    """Return what is alive beside the held bytes at the loss, in the last block's backward pass and at the end."""
    layer = saved_by_layer(block, plan).total + cast_weights(block, plan)
    kept = gradients if plan.accumulation > 1 else 0  # this pass's own grow only as its activations go
    loss, backward = loss_workspace(block, plan), backward_workspace(block, plan)
    # When the backward pass is at the first block, all gradients are there and one block's activations still.
    first = layer + backward if plan.method == "full" else 0
    step = {"gradients": gradients, "workspace": max(first, step_copy)}
    head = max(kept, min(gradients, _head_gradient(block, plan)))
    if not plan.checkpointing:
        saved = {"saved": block.layers * layer}
        return {
            "loss": {"gradients": kept, "logits": loss, **saved},
            "block": {"gradients": head, "workspace": backward, **saved},
            "step": step,
        }
    checkpoints = {"checkpoints": kept_checkpoints(block, plan)}
    streams = FSDP_STREAMS if plan.sharding == "fsdp" else 1
    in_block = round(streams * checkpoints["checkpoints"])
    return {
        "loss": {"gradients": kept, "logits": loss, **checkpoints},
        "block": {"gradients": head, "workspace": layer + backward, "checkpoints": in_block},
        "step": step,
    }


def _head_gradient(block: Block, plan: Plan) -> int:
    """Bytes of the head's gradient, which is there before any block's."""
    if plan.method != "full" and not plan.embeddings_trained:
        return 0
    element = BASE_BYTES[plan.base] if plan.method == "full" else plan.adapter_bytes
    return _part(block.vocabulary * block.hidden * element, plan.state_shards, False)


def _step_copy(trained: int, plan: Plan) -> int:
    """Bytes of the copy of all trained weights that torch's foreach AdamW divides by."""
    return _part(trained, plan.state_shards, plan.offload) if plan.optimizer == "adamw_foreach" else 0


def _held(shape: ModelShape, block: Block, plan: Plan) -> tuple[int, int, int]:
    """Return the bytes of base weights, of their scales, and of the weights that sharding gathers at once."""
    packed = min(_packed_parameters(shape, block, plan), shape.parameters)
    plain = shape.parameters - packed
    element = 4 if plan.kbit_prepared else BASE_BYTES[plan.compute]
    if not plan.is_packed:
        element = BASE_BYTES[plan.base]
    per_weight = {"int8": 2, "nf4": 1, "gptq": 1}.get(plan.base, 0)  # in half bytes
    weights = plain * element + packed * per_weight // 2
    if plan.base == "nf4":
        scales = packed // NF4_BLOCK
        quantisation = scales + scales // NF4_SCALES * 4 if plan.double_quant else scales * 4
    elif plan.base == "gptq":
        quantisation = packed // GPTQ_GROUP * 5 // 2  # a 16-bit scale and a 4-bit zero point
    elif plan.base == "int8":
        quantisation = sum(4 * layer.out_features * (layer.count - layer.kept) for layer in shape.linear)
    else:
        quantisation = 0
    if not plan.gathers:
        return weights, quantisation, 0
    root = block.vocabulary * block.hidden * (1 if block.tied else 2)
    one_block = (weights - min(root * element, weights)) // block.layers
    if plan.sharding == "zero3":
        live = max(2 * one_block, round(LIVE_PARAMETERS * weights / shape.parameters))
        return weights, quantisation, min(weights, root * element + live)
    gathered = root * element + (2 if plan.offload else 1) * one_block  # the next one is on its way
    return weights, quantisation, weights + gathered if plan.stays_gathered else min(weights, gathered)


def _packed_parameters(shape: ModelShape, block: Block, plan: Plan) -> int:
    if not plan.is_packed:
        return 0
    head = block.vocabulary * block.hidden if plan.head_packed and not block.tied else 0
    packed = shape.quantisable_parameters
    if packed is None:
        packed = round(0.9 * shape.parameters)  # 84.8 % (Qwen3-8B) to 96 % (Llama 2) are in the blocks' linear layers
    return packed + head + (shape.expert_parameters if plan.experts_quantised else 0)


def _trainable(shape: ModelShape, block: Block, plan: Plan) -> tuple[int, int]:
    """Return how many parameters train, and the bytes of one."""
    if plan.method == "full":
        return shape.parameters, BASE_BYTES[plan.base]
    rank = plan.rank * plan.start_factor
    chosen = [p for p in block.projections if is_target(p, plan.targets)]
    count = sum(rank * (p.in_features + p.out_features) * p.each for p in chosen) * block.layers
    if plan.method == "dora":
        count += sum(p.out_features * p.each for p in chosen) * block.layers
    if plan.method == "adalora":
        count += sum(rank * p.each for p in chosen) * block.layers
    if plan.embeddings_trained:
        count += 2 * block.vocabulary * block.hidden
    return round(count), plan.adapter_bytes


def _on_their_way(gradients: int, element: int, plan: Plan) -> int:
    """Return the bytes of gradients as copied for other devices."""
    if plan.sharding in ("zero2", "zero3"):
        return REDUCE_BUCKET * element
    return gradients if plan.sharding == "ddp" else 0


def _optimizer(trainable: int, element: int, plan: Plan) -> int:
    """Return the bytes of the optimizer's states: two moments a parameter in its own type, or in 8 bits."""
    if plan.optimizer == "sgd":
        return 0
    if plan.optimizer.endswith("8bit"):
        return trainable * 2 + trainable // 256 * 8  # a float32 scale for each 256 of each moment
    return trainable * 2 * element


def _cached(shape: ModelShape, block: Block, plan: Plan, gathered: int) -> int:
    """Return the freed bytes that the allocator keeps at the peak."""
    kept = kept_checkpoints(block, plan) if plan.checkpointing else 0
    if plan.gathers:
        # As much again, since two gathers are in flight; packed blocks leave their unpacked weights behind as well.
        return round(CACHED_SHARE_SHARDED * kept) + gathered + _unpacked_block(shape, block, plan)
    logits = 0 if plan.loss == "chunked" else block.vocabulary * plan.tokens
    return round(CACHED_LOGIT_BYTES * logits + CACHED_SHARE * kept)


def _unpacked_block(shape: ModelShape, block: Block, plan: Plan) -> int:
    return plan.compute_bytes * (_packed_parameters(shape, block, plan) // block.layers)


def _part(whole: int, parts: int, is_offloaded: bool) -> int:
    return 0 if is_offloaded else -(-whole // parts)


def _loading(whole: int, gathered: int, plan: Plan) -> int:
    """Return what the weights take while loading: the whole and the part cut from it, or the part and one block."""
    if not plan.gathers:
        return whole
    part = _part(whole, plan.shards, plan.offload)
    return whole + part if plan.loads_whole else part + gathered


def _unpacked_while_loading(block: Block, plan: Plan) -> int:
    """Bytes of the largest weight as it arrives, before it is packed."""
    if not plan.is_packed or plan.base == "gptq":
        return 0
    return 2 * plan.compute_bytes * max(p.in_features * p.out_features for p in block.projections)


def _host(shape: ModelShape, plan: Plan, held: int) -> int:
    """Return host bytes: the checkpoint passes through it once; what is offloaded stays there."""
    whole = shape.parameters * plan.compute_bytes
    if plan.sharding == "zero3":
        return whole * plan.devices  # every process loads all of it (peft 1844, 1972)
    if plan.sharding == "fsdp":
        return whole + (held if plan.offload else 0)  # the first process loads it, then sends the parts
    return whole // 4  # one file of the checkpoint at a time
