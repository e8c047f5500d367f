"""Model sizes: the shape of a language model and the parameter bands that choose a LoRA rank.

A `ModelShape` comes from a size key (`"7B"`), from a config alone (`families.shape_from_config`), or from a model's
name as a last resort. `base_models.find_shape` tries them in order of trust.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from math import isfinite
from typing import Final, Literal

from ..errors import ConfigError

__all__ = [
    "SIZE_BANDS",
    "ExpertWeights",
    "LinearLayer",
    "ModelShape",
    "Packed",
    "SizeBand",
    "parameters_from_key",
    "parameters_from_name",
    "size_band",
]

Packed = Literal["nf4", "int8", "gptq"]
"""How a checkpoint's weights are quantised: by bitsandbytes in 4 or 8 bits, or in 4 bits with group scales."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearLayer:
    """A kind of linear layer (`nn.Linear`, GPT-2's Conv1D, or a router) that repeats through a model."""

    name: str
    """Last part of the module's name, e.g. `q_proj`."""
    in_features: int
    """Width of its input."""
    out_features: int
    """Width of its output."""
    count: int
    """How many of it the model has."""
    within: str = ""
    """The part of the module's name between its block and `name`, e.g. `self_attn`."""
    has_bias: bool = False
    """Whether it adds a bias."""
    is_target: bool = True
    """Whether a preset adapts it: the blocks' own, but no gate or router, nor what stands beside embedding or head."""
    is_reachable: bool = True
    """Whether peft finds it by name; not a router of its own class, nor an MLP whose names peft gives to experts."""
    kept: int = 0
    """How many of `count` transformers keeps from bitsandbytes, in full precision."""

    @property
    def path(self) -> str:
        """Name from its block on, e.g. `self_attn.q_proj`."""
        return f"{self.within}.{self.name}" if self.within else self.name

    @property
    def parameters(self) -> int:
        """Weights and biases of all of them."""
        return (self.in_features + self.has_bias) * self.out_features * self.count

    @property
    def quantisable(self) -> int:
        """Weights of all of them that bitsandbytes packs; biases are never packed."""
        return self.in_features * self.out_features * (self.count - self.kept)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertWeights:
    """A kind of 3-D parameter that holds the same matrix of every expert; bitsandbytes leaves it alone."""

    name: str
    """Its name from its block on, as `LoraConfig.target_parameters` takes it, e.g. `mlp.experts.down_proj`."""
    experts: int
    """Experts in one layer."""
    in_features: int
    """Width of one expert's input."""
    out_features: int
    """Width of one expert's output."""
    count: int
    """How many layers have it."""
    has_bias: bool = False
    """Whether each expert adds a bias, a parameter of its own."""
    module_names: tuple[str, ...] = ()
    """Names in `target_modules` that peft takes for it, as models of transformers 4 had them; each adds the rank."""

    @property
    def parameters(self) -> int:
        """Weights and biases of all experts in all layers."""
        return (self.in_features + self.has_bias) * self.out_features * self.experts * self.count


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """The size of a language model, and its inner dimensions where they are known."""

    parameters: int
    """Total parameters of the language model, tied weights counted once."""
    source: str
    """Where the figures come from, for `Preset.explain`."""
    family: str | None = None
    """`model_type` of the config, e.g. `llama`."""
    counted_as: str | None = None
    """The transformers auto class whose parameters these are, e.g. `AutoModelForCausalLM`."""
    layers: int | None = None
    """Number of transformer blocks; of encoder and decoder together where there are both."""
    hidden: int | None = None
    """Width of the residual stream."""
    heads: int | None = None
    """Attention heads."""
    key_value_heads: int | None = None
    """Heads whose keys and values are kept while generating; fewer than `heads` when grouped."""
    head_dim: int | None = None
    """Width of one head's query and key."""
    intermediate: int | None = None
    """Width inside a dense MLP; None where every layer has experts."""
    expert_intermediate: int | None = None
    """Width inside one expert."""
    experts: int | None = None
    """Experts in a layer, of which `experts_per_token` work on each token."""
    experts_per_token: int | None = None
    """Experts that each token is routed to."""
    vocabulary: int | None = None
    """Number of token embeddings."""
    tied: bool | None = None
    """Whether the output head shares the embedding's weights."""
    max_positions: int | None = None
    """Longest sequence in tokens that the positions allow."""
    sliding_window: int | None = None
    """Tokens that the layers with windowed attention look back; None where all see everything."""
    packed: Packed | None = None
    """How a checkpoint holds its weights that is quantised already."""
    linear: tuple[LinearLayer, ...] = ()
    """The linear layers and routers, without the output head; empty where only the total is known."""
    expert_weights: tuple[ExpertWeights, ...] = ()
    """The experts' parameters, in a mixture of experts."""

    @property
    def expert_parameters(self) -> int:
        """Parameters in routed experts."""
        return sum(weights.parameters for weights in self.expert_weights)

    @property
    def active_parameters(self) -> int | None:
        """Parameters that one token uses: all but the experts it is not routed to; None where layers are unknown."""
        if not self.linear:
            return None
        if not (self.experts and self.experts_per_token):
            return self.parameters
        return (
            self.parameters - self.expert_parameters + self.expert_parameters * self.experts_per_token // self.experts
        )

    @property
    def quantisable_parameters(self) -> int | None:
        """Parameters that bitsandbytes packs; None where layers are unknown."""
        return sum(layer.quantisable for layer in self.linear) if self.linear else None

    def lora_parameters(
        self, rank: int, targets: str | Iterable[str] = "all-linear", target_parameters: Iterable[str] = ()
    ) -> int | None:
        """Return the parameters of a LoRA of `rank`, or None if the layers are unknown.

        One layer costs rank x (in + out): A is (rank, in_features), B is (out_features, rank). An expert parameter
        costs that for each expert. As in peft, `all-linear` also reaches the experts (and the router) of families
        whose experts were linear layers in transformers 4, with twice the rank on the fused gate and up projection.

        Args:
            rank: Rank of every adapted layer.
            targets: As peft's `target_modules`: ends of module names from their block on, or `all-linear`.
            target_parameters: As peft's `target_parameters`: ends of expert parameters' names.
        """
        if not self.linear:
            return None
        every = targets == "all-linear"
        names = [targets] if isinstance(targets, str) else list(targets)
        parameters = list(target_parameters)
        total = 0
        for layer in self.linear:
            if layer.is_reachable and (every or any(_ends_with(layer.path, name) for name in names)):
                total += (layer.in_features + layer.out_features) * layer.count
        for weights in self.expert_weights:
            named = sum(every or any(_ends_with(name, old) for name in names) for old in weights.module_names)
            ranks = named or any(_ends_with(weights.name, name) for name in parameters)
            total += ranks * (weights.in_features + weights.out_features) * weights.experts * weights.count
        return rank * total


def _ends_with(path: str, end: str) -> bool:
    """Tell whether `path` ends with `end` at a dot, as peft matches the names in a list."""
    return f".{path}".endswith(f".{end}")


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
