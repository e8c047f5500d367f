"""What a preset adapts: linear layers, the experts of a mixture, new tokens. Never the head, a router or a gate.

peft's own names are traps for mixtures: `all-linear` trains the routers, and in families whose experts were linear
layers in transformers 4 it takes `gate_proj`, `up_proj` and `down_proj` for the experts, so that a dense or shared
MLP of these names can be reached as a parameter only.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING, Final

from ..decisions import QLORA, WITHOUT_REGRET, Choice
from ..errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .sizes import LinearLayer, ModelShape

__all__ = [
    "adapter_parameters",
    "check_targets",
    "experts_choices",
    "new_tokens_choice",
    "rank_warnings",
    "targets_choice",
    "token_layers",
]

PEFT_TARGETS: Final = "counted in peft 0.21"

_EMBEDDINGS: Final = {
    "bloom": ("word_embeddings", "lm_head"),
    "falcon": ("word_embeddings", "lm_head"),
    "gpt2": ("wte", "lm_head"),
    "gpt_bigcode": ("wte", "lm_head"),
    "gpt_neox": ("embed_in", "embed_out"),
}
"""Family → names of embedding and head, where they are not `embed_tokens` and `lm_head`."""

_MISSPELT: Final = 0.85
"""How like a layer's name a misspelt one is: `vproj` is `v_proj` (0.91), `in_proj` is not `o_proj` (0.77)."""


def targets_choice(shape: ModelShape) -> Choice:
    """Return the linear layers to adapt: all of the blocks' own."""
    names = _names_beside_routers(shape) if shape.expert_weights else None
    if names is not None:
        return Choice(name="targets", value=names, why="with all-linear peft would train the routers too",
                      source=PEFT_TARGETS)  # fmt: skip
    why = "every linear layer but the head; the MLP matters most"
    return Choice(name="targets", value="all-linear", why=why, source=f"{QLORA}; {WITHOUT_REGRET}")


def _names_beside_routers(shape: ModelShape) -> tuple[str, ...] | None:
    from .families import linear_targets

    return linear_targets(shape)


def check_targets(shape: ModelShape, targets: str | tuple[str, ...] | None) -> None:
    """Raise for a name that is nearly, and not quite, one of the model's layers.

    peft complains only where none of the names is there, so that a misspelt one beside right ones adapts less than was
    asked for. A name that resembles none may be of a layer that is not counted here, and passes.

    Raises:
        ConfigError: With the name that was meant.
    """
    ends = _EMBEDDINGS.get(shape.family or "", ("embed_tokens", "lm_head"))
    known = {layer.name for layer in shape.linear} | set(ends)
    for name in targets if isinstance(targets, tuple) and shape.linear else ():
        last = name.rpartition(".")[2]
        close = [] if last in known else get_close_matches(last, sorted(known), n=1, cutoff=_MISSPELT)
        if close:
            raise ConfigError(f"targets: this model has no layer {last!r}; did you mean `{close[0]}`?")


def rank_warnings(shape: ModelShape, rank: int) -> tuple[Choice, ...]:
    """Return a warning if no linear layer that is adapted by default has so many directions."""
    sides = (min(layer.in_features, layer.out_features) for layer in shape.linear if layer.is_target)
    widest = max(sides, default=rank)
    if rank <= widest:
        return ()
    why = f"no update of this model's layers has more than {widest} directions; lower the rank"
    return (Choice(name="rank too high", value=str(rank), why=why, source="the smaller side of a layer's weight"),)


def experts_choices(shape: ModelShape, wished: bool | None, rank: int, bits: int | None) -> tuple[Choice, Choice]:
    """Return which expert parameters get an adapter, and of which rank.

    They are left out unless asked for: an adapter of an expert is as large as that of a whole MLP, and peft adds it
    to a whole copy of the experts' weights in every forward pass.

    Args:
        shape: The model.
        wished: The user's `experts=`.
        rank: Rank of the linear layers.
        bits: Bits of a weight of the quantised base, or None.

    Raises:
        ConfigError: If they were asked for and the model has none, or its experts' names are not known.
    """
    names = _expert_names(shape)
    if not wished:
        return _without_experts(shape, names, rank, wished)
    if not names or not shape.experts_per_token:
        raise ConfigError(
            f"experts=True, but of this model ({shape.source}) no experts are known; leave it out, or name them in a "
            "LoraConfig of your own (target_parameters=)"
        )
    expert_rank = max(1, rank // shape.experts_per_token)
    hidden = _hidden_by_experts(shape)
    why = "gate and up, and down, of each expert; the router never"
    if bits is not None:
        why += "; bitsandbytes leaves experts unquantised, so QLoRA will not shrink them"
        why += "; and the dense MLPs that peft takes for them stay frozen" if hidden else ""
    elif hidden:
        why += "; and the dense and shared MLPs, which peft reaches only so"
        names = (*names, *(f"{layer.path}.weight" for layer in hidden))
    per_token = f"{rank} / {shape.experts_per_token} experts a token; in force, though peft 0.21 warns it is ignored"
    return (
        Choice(name="experts", value=tuple(sorted(names)), why=why, source="peft's target_parameters"),
        Choice(name="expert_rank", value=expert_rank, why=per_token, source=WITHOUT_REGRET),
    )


def _without_experts(
    shape: ModelShape, names: tuple[str, ...], rank: int, wished: bool | None
) -> tuple[Choice, Choice]:
    if not shape.expert_weights:
        why, source = "the model has none that are known", shape.source
    else:
        expert_rank = max(1, rank // (shape.experts_per_token or 1))
        more = shape.lora_parameters(expert_rank, (), names)
        count = f" with {more:,} parameters more" if names and more else ""
        why = f"they stay frozen; experts=True adapts them{count}, and with copies of their weights in each pass"
        source = "experts=" if wished is False else "peft's target_parameters"
    return (
        Choice(name="experts", value=(), why=why, source=source),
        Choice(name="expert_rank", value=0, why="no expert gets an adapter", source="experts"),
    )


def _expert_names(shape: ModelShape) -> tuple[str, ...]:
    from .families import expert_targets

    return expert_targets(shape) or ()


def _hidden_by_experts(shape: ModelShape) -> list[LinearLayer]:
    """Return the layers whose names peft takes for those of the experts."""
    taken = {name for weights in shape.expert_weights for name in weights.module_names}
    return [layer for layer in shape.linear if layer.name in taken]


def adapter_parameters(
    shape: ModelShape, rank: int, targets: str | Iterable[str], experts: Iterable[str] = (), expert_rank: int = 0
) -> int | None:
    """Return the parameters of an adapter, experts included, or None where the layers are unknown."""
    experts = tuple(experts)
    linear = shape.lora_parameters(rank, targets)
    routed = shape.lora_parameters(expert_rank, (), experts)
    if linear is None or routed is None:
        return None
    as_parameters = (layer for layer in shape.linear if f"{layer.path}.weight" in experts)
    return linear + routed + rank * sum((x.in_features + x.out_features) * x.count for x in as_parameters)


def new_tokens_choice(shape: ModelShape, ids: tuple[int, ...] | None) -> Choice:
    """Return the tokens whose embeddings train.

    Raises:
        ConfigError: If it is not known whether the head shares the embedding's weights.
    """
    if not ids:
        return Choice(name="new_tokens", value=(), why="embedding and head stay as they are", source="peft's default")
    if shape.tied is None:
        raise ConfigError(
            f"new_tokens needs to know whether the head shares the embedding's weights, which {shape.source} does not "
            "tell; give a model's folder, Hub id or config"
        )
    where = "embedding and head, which are one" if shape.tied else "embedding and head"
    why = f"only these rows of {where} train; {len(ids) * (1 if shape.tied else 2)} rows in all"
    return Choice(name="new_tokens", value=ids, why=why, source="peft's trainable_token_indices")


def token_layers(shape: ModelShape, ids: tuple[int, ...]) -> list[int] | dict[str, list[int]] | None:
    """Return new tokens as peft's `trainable_token_indices` takes them.

    A head that shares the embedding's weights follows it in peft; one with weights of its own must be named, or it
    never learns to say the new tokens.
    """
    if not ids:
        return None
    if shape.tied:
        return list(ids)
    return {name: list(ids) for name in _EMBEDDINGS.get(shape.family or "", ("embed_tokens", "lm_head"))}
