"""How transformers writes each family's block, where it changes what autograd keeps: norms, activation, attention.

Read off transformers 5.23; `tests/test_memory.py` counts the saved tensors of real models against it. A family that
is not listed counts as written like Llama.
"""

from dataclasses import dataclass
from typing import Final, Literal

__all__ = ["Habits", "habits_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Habits:
    """What a family's code keeps or copies that its widths do not tell."""

    norm: Literal["rms", "rms_wide", "layer"] = "rms"
    """RMSNorm on a float32 copy, the same with its weight multiplied in float32, or torch's LayerNorm."""
    norms: int = 2
    """Norms over the residual stream in one block."""
    norm_inputs: int = 2
    """Different tensors that they read; a parallel block's norms read the same one."""
    adds_one: bool = False
    """Whether a norm's weight counts from one, for which it is copied in float32."""
    head_norms: Literal["none", "head", "width"] = "none"
    """Whether queries and keys are normalised too: each head, or all heads together."""
    activation: Literal["kernel", "composed", "relu"] = "kernel"
    """One kernel, GPT-2's GELU as a formula of several, or ReLU, which keeps its result alone."""
    has_fused_values: bool = False
    """Whether values are a slice of the product of queries, keys and values, and so keep all of it alive."""
    copies_result: bool = False
    """Whether sdpa's result is copied for the output layer: rotary parts were put together in another layout."""
    has_wide_softmax: bool = True
    """Whether eager attention's softmax is in float32."""
    has_attention_softcap: bool = False
    """Whether eager attention's scores pass a tanh."""
    has_logit_softcap: bool = False
    """Whether the logits pass a tanh."""


_LAYER: Final = Habits(norm="layer")
_BERT: Final = Habits(norm="layer", has_wide_softmax=False)
_GEMMA: Final = Habits(norm="rms_wide", adds_one=True)
_HEADS: Final = Habits(head_norms="head")
_HABITS: Final[dict[str, Habits]] = {
    "qwen3": _HEADS,
    "qwen3_moe": _HEADS,
    "olmo2": Habits(norm="rms_wide", head_norms="width"),
    "olmo3": Habits(norm="rms_wide", head_norms="width"),
    "gemma": _GEMMA,
    "gemma2": Habits(
        norm="rms_wide", adds_one=True, norms=4, norm_inputs=4, has_attention_softcap=True, has_logit_softcap=True
    ),
    "gemma3_text": Habits(norm="rms_wide", adds_one=True, norms=4, norm_inputs=4, head_norms="head"),
    "glm4": Habits(norms=4, norm_inputs=4),
    "phi3": Habits(has_fused_values=True, copies_result=True),
    "phi": Habits(norm="layer", norms=1, norm_inputs=1, activation="composed", copies_result=True),
    "gpt_neox": Habits(norm="layer", norm_inputs=1, has_fused_values=True, copies_result=True),
    "gpt2": Habits(norm="layer", activation="composed", has_wide_softmax=False),
    "gpt_neo": Habits(norm="layer", activation="composed"),
    "gptj": Habits(norm="layer", norms=1, norm_inputs=1, activation="composed"),
    "codegen": Habits(norm="layer", norms=1, norm_inputs=1, activation="composed"),
    "falcon": Habits(norm="layer", norms=1, norm_inputs=1),
    "cohere": Habits(norm="layer", norms=1, norm_inputs=1),
    "opt": Habits(norm="layer", activation="relu"),
    **dict.fromkeys(("gpt_bigcode", "bloom", "mpt", "starcoder2", "stablelm"), _LAYER),
    **dict.fromkeys(("bert", "roberta", "distilbert", "xlm-roberta", "modernbert", "deberta-v2"), _BERT),
}


def habits_of(family: str | None) -> Habits:
    """Return how a family's block is written; like Llama's where the family is not known.

    >>> habits_of("gpt2").norm
    'layer'
    """
    return _HABITS.get(family or "", Habits())
