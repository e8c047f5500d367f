"""Model sizes: the shape of a language model and the parameter bands that choose a LoRA rank.

A `ModelShape` comes from a size key (`"7B"`), from a config alone (`shape_from_config`), or from a model's
name as a last resort. `base_models.find_shape` tries them in order of trust.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any, Final

from .errors import ConfigError

__all__ = [
    "SIZE_BANDS",
    "LinearLayer",
    "ModelShape",
    "SizeBand",
    "parameters_from_key",
    "parameters_from_name",
    "shape_from_config",
    "size_band",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearLayer:
    """A kind of linear layer that repeats through a model."""

    name: str
    """Last part of the module's name, e.g. `q_proj`."""
    in_features: int
    """Width of its input."""
    out_features: int
    """Width of its output."""
    count: int
    """How many of it the model has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """The size of a language model, and its inner dimensions where they are known."""

    parameters: int
    """Total parameters of the language model, tied weights counted once."""
    source: str
    """Where the figures come from, for `Preset.explain`."""
    family: str | None = None
    """`model_type` of the config, e.g. `llama`."""
    layers: int | None = None
    """Number of transformer blocks."""
    hidden: int | None = None
    """Width of the residual stream."""
    vocabulary: int | None = None
    """Number of token embeddings."""
    tied: bool | None = None
    """Whether the output head shares the embedding's weights."""
    max_positions: int | None = None
    """Longest sequence in tokens that the positions allow."""
    linear: tuple[LinearLayer, ...] = ()
    """The blocks' linear layers; empty where only the total is known."""

    def lora_parameters(self, rank: int) -> int | None:
        """Return the parameters of a LoRA of `rank` on every block linear layer, or None if those are unknown.

        One layer costs rank x (in + out): A is (rank, in_features), B is (out_features, rank).
        """
        if not self.linear:
            return None
        return sum(rank * (layer.in_features + layer.out_features) * layer.count for layer in self.linear)


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeBand:
    """A range of total parameter counts that shares one default rank."""

    above: int
    """Counts strictly above this belong to the band."""
    up_to: int | None
    """Counts up to and including this belong to the band; None for no upper end."""
    rank: int
    """Default LoRA rank of the band."""
    anchor: str
    """The customary size that stands for the band."""


SIZE_BANDS: Final = (
    SizeBand(above=0, up_to=10_000_000_000, rank=8, anchor="7B"),
    SizeBand(above=10_000_000_000, up_to=30_000_000_000, rank=16, anchor="13B"),
    SizeBand(above=30_000_000_000, up_to=None, rank=32, anchor="70B"),
)
"""Total parameters → default rank, anchored at 7B → 8, 13B → 16 and 70B → 32; every count is in one band."""


def size_band(parameters: int) -> SizeBand:
    """Return the one band that holds a model of `parameters` in total.

    >>> size_band(6_738_415_616).rank
    8

    Raises:
        ConfigError: If `parameters` is not positive.
    """
    for band in SIZE_BANDS:
        if band.above < parameters and (band.up_to is None or parameters <= band.up_to):
            return band
    raise ConfigError(f"a model of {parameters} parameters has no size; give a count above 0")


_UNITS: Final = {"K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
_SIZE: Final = r"(?:(\d+)x)?(\d+(?:\.\d+)?)([KMBT])"
_SIZE_IN_NAME: Final = r"(?:(\d+)x)?(\d+(?:[._]\d+)?)([MBT])"  # `4k` in a name is a context length


def parameters_from_key(key: str) -> int | None:
    """Return the parameters that a size key names, or None if `key` is not one.

    A mixture such as `8x7B` counts as the product, the upper bound of what its experts can hold.

    >>> parameters_from_key("1.3b")
    1300000000
    """
    match = re.fullmatch(_SIZE, key.strip(), flags=re.IGNORECASE)
    return _parameters(match) if match else None


def parameters_from_name(name: str) -> int | None:
    """Return the parameters that a model's name states, or None; the first size in the last path part counts.

    Active sizes of mixtures (`A3B`) are not totals and are passed over.

    >>> parameters_from_name("meta-llama/Llama-2-7b-hf")
    7000000000
    """
    last = name.rstrip("/\\").replace("\\", "/").rpartition("/")[2]
    match = re.search(rf"(?<![A-Za-z0-9.]){_SIZE_IN_NAME}(?![A-Za-z0-9])", last, flags=re.IGNORECASE)
    return _parameters(match) if match else None


def _parameters(match: re.Match[str]) -> int | None:
    experts, number, unit = match.groups()
    total = float(number.replace("_", ".")) * _UNITS[unit.upper()] * float(experts or 1)
    return round(total) or None if isfinite(total) else None


_GATED_DECODERS: Final = {"llama", "mistral", "qwen2", "qwen3", "smollm3"}
"""Families of one shape: RMSNorm, grouped-query attention, gated MLP. Others are counted on the meta device."""


def shape_from_config(config: Mapping[str, Any], source: str = "config") -> ModelShape | None:
    """Return a decoder's shape from its config alone, or None where no closed form is known.

    Exact for the families in `_GATED_DECODERS`; a test holds each against the installed transformers.

    Args:
        config: A config as in `config.json` (`PretrainedConfig.to_dict()`).
        source: Where the config came from, for `ModelShape.source`.

    Raises:
        ConfigError: If a known family's config lacks a dimension.
    """
    family = config.get("model_type")
    if family not in _GATED_DECODERS:
        return None
    hidden = _dimension(config, "hidden_size", family)
    layers = _dimension(config, "num_hidden_layers", family)
    vocabulary = _dimension(config, "vocab_size", family)
    heads = _dimension(config, "num_attention_heads", family)
    head_dim = config.get("head_dim") or (128 if family == "qwen3" else hidden // heads)
    key_value_heads = config.get("num_key_value_heads") or heads
    mlp = _dimension(config, "intermediate_size", family)

    query, key_value = heads * head_dim, key_value_heads * head_dim
    linear = tuple(
        LinearLayer(name=name, in_features=width_in, out_features=width_out, count=layers)
        for name, width_in, width_out in (
            ("q_proj", hidden, query),
            ("k_proj", hidden, key_value),
            ("v_proj", hidden, key_value),
            ("o_proj", query, hidden),
            ("gate_proj", hidden, mlp),
            ("up_proj", hidden, mlp),
            ("down_proj", mlp, hidden),
        )
    )
    tied = bool(config.get("tie_word_embeddings", family == "smollm3"))
    weights = sum(layer.in_features * layer.out_features * layer.count for layer in linear)
    norms = 2 * hidden * layers + hidden + (2 * head_dim * layers if family == "qwen3" else 0)
    embeddings = vocabulary * hidden * (1 if tied else 2)
    return ModelShape(
        parameters=weights + _biases(config, linear) + norms + embeddings,
        source=f"{source} ({family}, exact)",
        family=family,
        layers=layers,
        hidden=hidden,
        vocabulary=vocabulary,
        tied=tied,
        max_positions=config.get("max_position_embeddings"),
        linear=linear,
    )


def _dimension(config: Mapping[str, Any], name: str, family: str) -> int:
    value = config.get(name)
    if not isinstance(value, int) or value < 1:
        raise ConfigError(
            f"the {family} config has {name}={value!r}, a whole number above 0 is needed; check its config.json"
        )
    return value


def _biases(config: Mapping[str, Any], linear: tuple[LinearLayer, ...]) -> int:
    """Count bias parameters: Qwen2 always has them on q, k and v; the others by `attention_bias`, `mlp_bias`."""
    with_bias: set[str] = set()
    if config["model_type"] == "qwen2":
        with_bias |= {"q_proj", "k_proj", "v_proj"}
    elif config.get("attention_bias") and config["model_type"] != "mistral":
        with_bias |= {"q_proj", "k_proj", "v_proj", "o_proj"}
    if config.get("mlp_bias") and config["model_type"] in {"llama", "smollm3"}:
        with_bias |= {"gate_proj", "up_proj", "down_proj"}
    return sum(layer.out_features * layer.count for layer in linear if layer.name in with_bias)
