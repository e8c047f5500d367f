"""Which attention kernel a run takes, and whether several examples may share a row.

TRL's packing flattens a micro-batch into one row without a padding mask and starts the positions anew with each
example. Flash attention computes each example alone; transformers' other kernels mask what belongs to another example
where the model builds its mask from the positions, and compute the whole row to do so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ..decisions import Choice
from ..errors import ConfigError

if TYPE_CHECKING:
    from ..choices.methods import Method
    from .sizes import ModelShape

__all__ = [
    "ATTENTIONS",
    "EAGER_ONLY",
    "KEPT_APART",
    "SEEN_TO_LEAK",
    "attention_choices",
    "check_packing",
    "default_attention",
]

ATTENTIONS: Final = ("sdpa", "flash_attention_2", "flash_attention_3", "eager")
EAGER_ONLY: Final = frozenset({"bloom", "gemma2", "gpt_oss"})
"""Families without scaled-dot-product attention in transformers 5.23."""
KEPT_APART: Final = frozenset(
    "deepseek_v3 gemma gemma2 gemma3_text gpt2 gpt_bigcode gpt_neox llama mistral mixtral olmo2 phi phi3 qwen2 "
    "qwen2_moe qwen3 qwen3_moe smollm3".split()
)
"""Families whose attention masks follow the positions, so that packed examples do not see each other in any kernel."""
SEEN_TO_LEAK: Final = frozenset({"bloom", "falcon", "gpt_oss", "opt"})
"""Families whose masks do not."""


def attention_choices(
    shape: ModelShape, method: Method, wished: str | None, packed: bool | None
) -> tuple[Choice, Choice]:
    """Return the attention kernel, and whether examples are packed.

    Raises:
        ConfigError: If they are to be packed where they would see each other.
    """
    attention = wished or default_attention(shape)
    if packed:
        check_packing(shape, attention)
    varies = attention.startswith("flash")
    packing = (varies and method != "prefix") if packed is None else packed
    why = "rows filled with several examples, kept apart" if packing else "one example a row"
    if packing and not varies:
        why += f"; {attention} computes the whole row to do so, flash attention would not"
    return (
        Choice(name="attention", value=attention, why="given by you", source="attention=")
        if wished
        else Choice(
            name="attention",
            value=attention,
            why="needs no further package" if attention == "sdpa" else f"transformers has no sdpa for {shape.family}",
            source="transformers' default",
        ),
        Choice(
            name="packing",
            value=packing,
            why=why,
            source="packing=" if packed is not None else "trl's packing guide (bfd)",
        ),
    )


def default_attention(shape: ModelShape) -> str:
    """Return the kernel that transformers takes for a model where none is asked for."""
    return "eager" if shape.family in EAGER_ONLY else "sdpa"


def check_packing(shape: ModelShape, attention: str) -> None:
    """Raise where packed examples would see each other.

    Raises:
        ConfigError: With an attention that keeps them apart.
    """
    if attention.startswith("flash") or shape.family in KEPT_APART:
        return
    sight = f"of {shape.family} see" if shape.family in SEEN_TO_LEAK else "of a family not tried here may see"
    raise ConfigError(
        f"packing: with {attention} the examples in a row {sight} each other; set attention=flash_attention_2 (a "
        "package of its own), or leave packing out"
    )
