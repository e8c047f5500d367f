"""How much memory a training run needs: bytes by component, while loading and at the peak of training.

`estimate_memory(shape, plan)` adds up causes, in integers: what is held all the time, what a forward pass keeps
(`activations`), and what is alive for a moment. `tests/benchmarks/memory_accuracy.py` holds it against measured peaks.
"""

from dataclasses import dataclass
from typing import Final, Literal

from ..models.sizes import ModelShape
from .activations import backward_workspace, cast_weights, kept_checkpoints, loss_workspace, saved_by_layer
from .anatomy import Block, block_of
from .plans import Plan
from .states import States, packed_parameters, states_of, trained_bytes

__all__ = ["MARGIN", "MemoryEstimate", "Plan", "estimate_memory"]

GIB: Final = 2**30
MARGIN: Final = 0.1
"""Share of the device-visible estimate that is kept free: more than twice its mean error on measured runs."""
WIDE_MARGIN: Final = 0.25
"""The same where errors reach a fifth, or where no fully specified measurement was at hand (`_margin`)."""
CONTEXT_BYTES: Final = 3 * GIB // 4
"""CUDA context, kernels and cuBLAS workspaces on one device, which no allocator sees (fitted to nvidia-smi)."""
COLLECTIVE_BYTES: Final = 3 * GIB // 2
"""Buffers of NCCL on top of it, with several devices (fitted)."""
CACHED_LOGIT_BYTES: Final = 4.0
"""Freed bytes a logit that the allocator keeps: pieces as large as the logits suit nothing else (fitted)."""
CACHED_SHARE: Final = 0.4
"""Freed bytes that the allocator keeps, as a share of the kept block inputs (fitted)."""
CACHED_SHARE_SHARDED: Final = 0.4
"""The same under FSDP, whose peak is in a block, so that the loss leaves nothing more behind (fitted)."""
FSDP_STREAMS: Final = 2.0
"""Streams that FSDP 1 holds in the backward pass of an adapter: the kept inputs, and as much again (fitted)."""


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

    >>> from hf_lora_ext.models.sizes import ModelShape
    >>> estimate = estimate_memory(ModelShape(parameters=7_000_000_000, source="key"), Plan(base="nf4"))
    >>> round(estimate.weights / 2**30)
    4

    Reference: what is kept follows "Reducing Activation Recomputation in Large Transformer Models" (arXiv
    2205.05198), counted anew for frozen weights, adapters and the present libraries.
    """
    block = block_of(shape)
    states = states_of(shape, block, plan)
    offload = plan.offload and plan.gathers
    gradients = _part(states.trained, plan.state_shards, False)
    moments = _moments(block, plan, states, gradients)
    peak = max(moments, key=lambda name: sum(moments[name].values()))
    loss, in_block = (sum(moments[name].values()) for name in ("loss", "block"))
    at_peak = {"gathered": 0, "checkpoints": 0, "saved": 0, "workspace": 0, "logits": 0} | moments[peak]
    return MemoryEstimate(
        weights=_part(states.weights, plan.shards, offload),
        quantisation=_part(states.quantisation, plan.shards, offload),
        adapters=0 if plan.method == "full" else _part(states.trained, plan.shards, offload),
        optimizer=_part(states.optimizer, plan.state_shards, offload),
        **at_peak,
        peak=peak,
        loading=_loading(states, plan) + _unpacked_while_loading(block, plan),
        cached=_cached(shape, block, plan, states.gathered, max(0, loss - in_block)),
        context=CONTEXT_BYTES + (COLLECTIVE_BYTES if plan.devices > 1 else 0),
        host=_host(shape, plan, states.weights + states.quantisation),
        margin=_margin(block, plan),
    )


def _moments(
    block: Block, plan: Plan, states: States, gradients: int
) -> dict[Literal["loss", "block", "step"], dict[str, int]]:
    """Return what is alive beside the held bytes at the loss, in the last block's backward pass and at the end."""
    saved_each = saved_by_layer(block, plan)
    layer = saved_each.total + cast_weights(block, plan)
    kept = gradients if plan.accumulation > 1 else 0  # this pass's own grow only as its activations go
    loss, backward = loss_workspace(block, plan), backward_workspace(block, plan)
    # When the backward pass is at the first block, all gradients are there and one block's activations still.
    first = layer + backward + states.gathered if plan.method == "full" else 0
    copied = _part(states.step_copy, plan.state_shards, plan.offload and plan.gathers)
    gathered = {"gathered": states.gathered + states.in_flight}
    step = {"gradients": gradients, "gathered": states.in_flight, "workspace": max(first, copied)}
    head = max(kept, min(gradients, _head_gradient(block, plan)))
    if not plan.checkpointing:
        saved = block.layers * layer
        # The last batch's graph goes when the next loss is there; half of what that needs comes later.
        outlived = max(0, block.layers * saved_each.inputs - loss // 2) if plan.graph_outlives else 0
        return {
            "loss": {"gradients": kept, "logits": loss, "saved": saved + outlived, **gathered},
            "block": {"gradients": head, "workspace": backward, "saved": saved, **gathered},
            "step": step,
        }
    checkpoints = kept_checkpoints(block, plan)
    streams = FSDP_STREAMS if plan.sharding == "fsdp" and plan.method != "full" else 1
    return {
        "loss": {"gradients": kept, "logits": loss, "checkpoints": checkpoints, **gathered},
        "block": {
            "gradients": head, "workspace": layer + backward, "checkpoints": round(streams * checkpoints), **gathered
        },
        "step": step,
    }  # fmt: skip


def _margin(block: Block, plan: Plan) -> float:
    """Return the wide margin for mixtures whose weights are gathered, and for unmeasured ways of sharding."""
    unmeasured = plan.sharding in ("zero2", "zero3") or (plan.gathers and plan.method == "full")
    return WIDE_MARGIN if unmeasured or (plan.gathers and block.experts) else MARGIN


def _head_gradient(block: Block, plan: Plan) -> int:
    """Bytes of the head's gradient, which is there before any block's."""
    if plan.method != "full" and not plan.embeddings_trained:
        return 0
    return _part(block.vocabulary * block.hidden * trained_bytes(plan), plan.state_shards, False)


def _cached(shape: ModelShape, block: Block, plan: Plan, gathered: int, beyond: int) -> int:
    """Return the freed bytes that the allocator keeps at the peak; the loss needs `beyond` more than a block."""
    kept = kept_checkpoints(block, plan) if plan.checkpointing else 0
    logits = 0 if plan.loss == "chunked" else round(CACHED_LOGIT_BYTES * block.vocabulary * plan.tokens)
    if not plan.gathers:
        return logits + round(CACHED_SHARE * kept)
    # As much again as is gathered, since two gathers are in flight; packed blocks leave unpacked weights behind.
    # A block's peak leaves room that the logits then use.
    left = gathered + _unpacked_block(shape, block, plan)
    return left + round(CACHED_SHARE_SHARDED * kept) + min(logits, beyond)


def _unpacked_block(shape: ModelShape, block: Block, plan: Plan) -> int:
    return plan.compute_bytes * (packed_parameters(shape, block, plan) // block.layers)


def _part(whole: int, parts: int, is_offloaded: bool) -> int:
    return 0 if is_offloaded else -(-whole // parts)


def _loading(states: States, plan: Plan) -> int:
    """Return what the weights take while loading: the whole and the part cut from it, or the part and one block."""
    whole = states.weights + states.quantisation
    if not plan.gathers:
        return whole
    part = _part(whole, plan.shards, plan.offload)
    return whole + part if plan.loads_whole else part + states.gathered


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
