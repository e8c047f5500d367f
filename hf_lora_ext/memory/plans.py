"""A training run as the memory estimate sees it: one frozen value that holds all that changes a byte."""

from dataclasses import dataclass
from typing import Final, Literal, get_args

from ..errors import ConfigError, nearest

__all__ = ["ADAPTER_BYTES", "BASE_BYTES", "Plan"]

Method = Literal["lora", "dora", "adalora", "full"]
BaseDtype = Literal["float32", "bfloat16", "float16", "int8", "nf4", "gptq"]
Optimizer = Literal["adamw", "adamw_foreach", "adamw_8bit", "paged_adamw", "paged_adamw_8bit", "sgd"]
Attention = Literal["flash", "sdpa", "eager"]
Loss = Literal["eager", "fused", "chunked"]
Sharding = Literal["none", "ddp", "zero2", "zero3", "fsdp"]

BASE_BYTES: Final[dict[str, int]] = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of a base weight that is not packed."""
ADAPTER_BYTES: Final[dict[str, int]] = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of an adapter weight."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All that a run's memory depends on, next to the model's shape."""

    method: Method = "lora"
    """What trains: an adapter, or every weight (`full`, the reference)."""
    base: BaseDtype = "bfloat16"
    """How the blocks' linear weights are held."""
    compute: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """Type of what is not packed and of the matrix products."""
    double_quant: bool = True
    """Whether nf4's scales are themselves held in 8 bits."""
    head_packed: bool = False
    """Whether the output head is packed too (litgpt); transformers leaves it alone."""
    experts_quantised: bool = False
    """Whether a mixture's experts are packed; transformers 5 has them in 3-D parameters that bitsandbytes skips."""
    experts_looped: bool = False
    """Whether experts run one after another (modules of transformers 4), so that few of their gradients coexist."""
    keeps_packed_inputs: bool = False
    """Whether 4-bit layers keep their inputs, needlessly (bitsandbytes up to 0.42); 8-bit ones always do."""
    graph_outlives: bool = False
    """Whether a batch's graph is referred to until the next loss is there, with the inputs that packed layers keep
    (litgpt's loop, with batches of one length)."""
    loads_whole: bool = False
    """Whether each process holds the whole model on its device before it is cut (ZeRO-3 when packed; litgpt)."""
    stays_gathered: bool = False
    """Whether sharded weights, once gathered, stay until the backward pass ends (litgpt's FSDP 1, torch 2.1)."""
    kbit_prepared: bool = False
    """Whether `prepare_model_for_kbit_training` ran: norms, embeddings and so the residual stream in float32."""
    rank: int = 16
    """Rank of every adapted layer."""
    start_factor: int = 1
    """How many times wider the adapter starts (8 where adaptive rank anneals); the start is the peak."""
    targets: str | tuple[str, ...] = "all-linear"
    """Last parts of the adapted modules' names, or `all-linear` for the blocks' own."""
    embeddings_trained: bool = False
    """Whether embedding and head train too, as copies in the adapter's type (`modules_to_save`)."""
    adapter: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of the adapter: peft holds it in float32 by default; trl casts it to bfloat16 on a packed base."""
    fused_adapter: bool = False
    """Whether one adapter serves queries, keys and values together and pads its product (litgpt)."""
    dropout: bool = True
    """Whether the adapter's input goes through dropout, which keeps a mask and a copy for each module."""
    autocast: bool = True
    """Whether torch.autocast is on (`bf16=True` in transformers' Trainer)."""
    optimizer: Optimizer = "adamw"
    """Optimizer; paged states count, for they live on the device when there is room. `adamw` is fused, as transformers
    5 has it; `adamw_foreach`, torch's own default, works on a copy of all trained weights."""
    micro_batch: int = 1
    """Examples on one device in one forward pass."""
    sequence: int = 1024
    """Tokens of an example, padding included."""
    accumulation: int = 1
    """Micro-batches an optimizer step; above 1 the gradients stay during the next forward pass."""
    packing: bool = False
    """Whether examples are packed without padding; costs no bytes of itself, but sets `padding_mask` apart."""
    padding_mask: bool = False
    """Whether a padding mask reaches the attention, for which sdpa repeats grouped keys and values."""
    checkpointing: bool = True
    """Whether each block keeps only its input and is computed again in the backward pass."""
    checkpoint_offload: bool = False
    """Whether the kept block inputs wait in host memory (Unsloth)."""
    attention: Attention = "sdpa"
    """Kernel of the attention; `eager` keeps its weights for every pair of tokens."""
    fused_norms: bool = False
    """Whether norms run in fused kernels (Liger, Unsloth, foundation-model-stack) that keep no float32 copy."""
    fused_mlp: bool = False
    """Whether gated MLPs run in fused kernels (Liger, Unsloth) that keep two intermediates of three."""
    loss: Loss = "eager"
    """Path of the cross-entropy: torch's, one fused over the logits, or one that never holds all logits."""
    logits_upcast: bool = True
    """Whether the loss works on float32 logits (transformers 5; not litgpt, nor GPT-2's relatives before 4.50)."""
    logits_held: bool = False
    """Whether the model's own logits outlive the loss (transformers 4.46 to 4.49; litgpt's training loop)."""
    sharding: Sharding = "none"
    """How several devices share the work."""
    devices: int = 1
    """Devices together."""
    offload: bool = False
    """Whether sharded weights and optimizer states wait in host memory."""

    def __post_init__(self) -> None:
        for name, words in _WORDS.items():
            if getattr(self, name) not in words:
                raise ConfigError(f"{name}={getattr(self, name)!r} is not known; {nearest(getattr(self, name), words)}")
        for name in ("rank", "start_factor", "micro_batch", "sequence", "accumulation", "devices"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)!r} must be a whole number from 1")
        alone = self.sharding == "zero3" and self.offload  # DeepSpeed offloads on one device too
        if self.sharding != "none" and self.devices < 2 and not alone:
            raise ConfigError(f"sharding={self.sharding!r} needs 2 devices or more, {self.devices} is given")
        if self.method == "full" and self.is_packed:
            raise ConfigError(f"base={self.base!r} cannot train in full; packed weights take no gradient")

    @property
    def tokens(self) -> int:
        """Tokens on one device in one forward pass."""
        return self.micro_batch * self.sequence

    @property
    def is_packed(self) -> bool:
        """Whether the base weights are in 8 or 4 bits."""
        return self.base not in BASE_BYTES

    @property
    def compute_bytes(self) -> int:
        """Bytes of an activation."""
        return BASE_BYTES[self.compute]

    @property
    def adapter_bytes(self) -> int:
        """Bytes of an adapter's weight."""
        return ADAPTER_BYTES[self.adapter]

    @property
    def gathers(self) -> bool:
        """Whether weights are put together from their parts, a few at a time, as they are needed."""
        return self.sharding in ("zero3", "fsdp")

    @property
    def has_master_copy(self) -> bool:
        """Whether the optimizer works on a float32 copy of what trains, as DeepSpeed does in 16 bits."""
        return self.sharding in ("zero2", "zero3") and self.compute_bytes < 4

    @property
    def shards(self) -> int:
        """Parts into which the frozen weights are cut."""
        return self.devices if self.gathers else 1

    @property
    def state_shards(self) -> int:
        """Parts into which gradients and optimizer states are cut."""
        return self.devices if self.sharding in ("zero2", "zero3", "fsdp") else 1


_WORDS: Final[dict[str, tuple[str, ...]]] = {
    "method": get_args(Method),
    "base": get_args(BaseDtype),
    "optimizer": get_args(Optimizer),
    "attention": get_args(Attention),
    "loss": get_args(Loss),
    "sharding": get_args(Sharding),
}
