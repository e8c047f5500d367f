"""What the user fixed of the adapter, and what of it cannot be right."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ..errors import ConfigError, nearest
from .methods import METHOD_FACTS, METHODS, Method, check_features

if TYPE_CHECKING:
    from peft import LoraConfig

    from ..models.sizes import ModelShape

__all__ = ["LoraWishes", "check_stored", "check_wishes", "stored_method", "wish_features"]

_BASES: Final = ("lora", "qlora", "qlora8")
"""Methods that say only how the base is held, and so go with a LoraConfig of the user's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraWishes:
    """What the user fixed of the adapter; None leaves it to the preset."""

    rank: int | None = None
    """Rank of every adapted layer."""
    alpha: int | None = None
    """LoRA's alpha; the update is scaled by alpha / rank."""
    dropout: float | None = None
    """Dropout on the adapter's input."""
    targets: str | tuple[str, ...] | None = None
    """Module names to adapt, or `all-linear`."""
    experts: bool | None = None
    """Whether the experts of a mixture get an adapter each."""
    new_tokens: tuple[int, ...] | None = None
    """Ids of tokens that the user added, whose embeddings train."""
    adaptive_rank: bool | None = None
    """Whether the rank is a mean that layers share as they need it."""


_STORED: Final[dict[str, Method]] = {"nf4": "qlora", "int8": "qlora8", "gptq": "lora"}
"""Packing of a checkpoint → the method that trains on it as it is."""


def stored_method(shape: ModelShape) -> Method:
    """Return the method for a shape where the user names none: the one that takes the checkpoint as it is."""
    return _STORED[shape.packed] if shape.packed is not None else "lora"


def check_stored(method: Method, shape: ModelShape) -> None:
    """Raise for a method that would quantise a checkpoint again that is quantised already.

    Raises:
        ConfigError: With the method to use.
    """
    bits = METHOD_FACTS[method].bits
    if shape.packed is None or bits is None or {4: "nf4", 8: "int8"}[bits] == shape.packed:
        return
    raise ConfigError(
        f"the checkpoint's weights are packed already, as {shape.packed}, and method {method} would pack them in "
        f"{bits} bits; use method {stored_method(shape)}, or the unquantised model"
    )


_IN_LORA_CONFIG: Final = {"rank": "r", "alpha": "lora_alpha", "dropout": "lora_dropout", "targets": "target_modules",
                          "experts": "target_parameters", "new_tokens": "trainable_token_indices",
                          "adaptive_rank": "r"}  # fmt: skip


def wish_features(wishes: LoraWishes) -> frozenset[str]:
    """Return what the wishes bring into the table of conflicts, for `methods.check_features`."""
    found = {
        "target_parameters": wishes.experts,
        "dropout": wishes.dropout,
        "new_tokens": wishes.new_tokens,
        "adaptive rank": wishes.adaptive_rank,
    }
    return frozenset(name for name, present in found.items() if present)


def check_wishes(method: str, wishes: LoraWishes, lora_config: LoraConfig | None = None) -> None:
    """Raise for the first wish that cannot be right.

    Raises:
        ConfigError: With what was found, what is needed, and how to fix it.
    """
    if method not in METHODS:
        raise ConfigError(f"method {method!r} is not known; {nearest(str(method), METHODS)}")
    if lora_config is not None and method not in _BASES:
        raise ConfigError(
            f"lora_config and method {method} were both given; make it part of the LoraConfig (use_dora, use_rslora), "
            f"and choose how the base is held: {', '.join(_BASES)}"
        )
    if lora_config is not None and wishes != LoraWishes():
        given = [name for name in LoraWishes.__slots__ if getattr(wishes, name) is not None]
        raise ConfigError(
            f"lora_config and {', '.join(given)} were both given; set {_IN_LORA_CONFIG[given[0]]} inside it instead"
        )
    if method == "prefix" and wishes != LoraWishes():
        given = [name for name in LoraWishes.__slots__ if getattr(wishes, name) is not None]
        raise ConfigError(f"method prefix has no {' and no '.join(given)}; leave it out, or use method lora")
    for name in ("rank", "alpha"):
        value = getattr(wishes, name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ConfigError(f"{name}={value!r} must be a whole number from 1; leave it out for the preset's own")
    if wishes.dropout is not None and not (isinstance(wishes.dropout, (int, float)) and 0 <= wishes.dropout < 1):
        raise ConfigError(f"dropout={wishes.dropout!r} must be from 0 up to, not including, 1; 0.05 is customary")
    if wishes.targets is not None and not (
        wishes.targets and all(isinstance(name, str) and name for name in wishes.targets)
    ):
        raise ConfigError("targets is empty, so nothing would train; name modules such as q_proj, or all-linear")
    if wishes.experts is not None and not isinstance(wishes.experts, bool):
        raise ConfigError(f"experts={wishes.experts!r} must be True or False; name single parameters in a LoraConfig")
    if wishes.adaptive_rank is not None and not isinstance(wishes.adaptive_rank, bool):
        raise ConfigError(f"adaptive_rank={wishes.adaptive_rank!r} must be True or False; rank= is its mean rank")
    if wishes.new_tokens is not None:
        _check_tokens(wishes.new_tokens)
    check_features(METHOD_FACTS[method].features | wish_features(wishes))


def _check_tokens(ids: tuple[int, ...]) -> None:
    if not ids or not all(isinstance(x, int) and not isinstance(x, bool) and x >= 0 for x in ids):
        raise ConfigError(
            f"new_tokens={list(ids)!r} must be token ids; give tokenizer.convert_tokens_to_ids([...]) after adding the "
            "tokens and resizing the embedding"
        )
    if len(set(ids)) < len(ids):
        raise ConfigError(f"new_tokens={list(ids)!r} names a token twice; name each once")
