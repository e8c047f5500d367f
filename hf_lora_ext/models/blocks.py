"""Building blocks of the families' closed forms: a config's dimensions, and the layers that a block is made of."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from ..errors import ConfigError
from .sizes import ExpertWeights, LinearLayer

__all__ = ["Dimensions", "Parts", "beside_blocks", "gated_mlp", "layer", "routed_experts", "separate_attention"]


_OTHER_NAMES: Final = {
    "n_embd": "hidden_size", "n_embed": "hidden_size", "d_model": "hidden_size",
    "n_layer": "num_hidden_layers", "num_layers": "num_hidden_layers",
    "n_head": "num_attention_heads", "num_heads": "num_attention_heads",
    "n_inner": "intermediate_size", "d_ff": "intermediate_size", "ffn_dim": "intermediate_size",
    "ffn_hidden_size": "intermediate_size",
    "d_kv": "head_dim", "n_positions": "max_position_embeddings",
    "num_local_experts": "num_experts", "n_routed_experts": "num_experts",
}  # fmt: skip
"""What some families' configs call a dimension → its customary name."""


class Dimensions:
    """A config's values under their customary names, its class's defaults behind them, checked as they are read."""

    def __init__(self, config: Mapping[str, Any], defaults: Mapping[str, Any], family: str):
        renamed = {_OTHER_NAMES[name]: value for name, value in config.items() if name in _OTHER_NAMES}
        self._values = {**defaults, **config, **renamed}
        self.family = family

    def __getitem__(self, name: str) -> Any:
        return self._values.get(name)

    def size(self, name: str, otherwise: int | None = None, least: int = 1) -> int:
        """Return a whole number from `least`; `otherwise` stands in where the config has none, or null.

        Raises:
            ConfigError: If it is anything else.
        """
        value = self._values.get(name)
        if value is None and otherwise is not None:
            return otherwise
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            needed = f"a whole number {f'above {least - 1}' if least else 'from 0'}"
            raise ConfigError(
                f"the {self.family} config has {name}={value!r}, {needed} is needed; check its config.json"
            )
        return value

    def is_on(self, setting: bool | str) -> bool:
        """Return a setting: the truth itself, or that of the config's value of this name."""
        return setting if isinstance(setting, bool) else bool(self._values.get(setting))

    @property
    def hidden(self) -> int:
        """Width of the residual stream."""
        return self.size("hidden_size")

    @property
    def layers(self) -> int:
        """Number of transformer blocks."""
        return self.size("num_hidden_layers")

    @property
    def heads(self) -> int:
        """Attention heads."""
        return self.size("num_attention_heads")

    @property
    def key_value_heads(self) -> int:
        """Heads of keys and values; as many as `heads` unless the config groups them."""
        return self.size("num_key_value_heads", otherwise=self.heads)

    @property
    def head_dim(self) -> int:
        """Width of one head, its share of the residual stream unless the config says otherwise."""
        return self.size("head_dim", otherwise=self.hidden // self.heads)

    @property
    def embedding(self) -> int:
        """Parameters of the token embedding, or of an untied head of the same shape."""
        return self.size("vocab_size") * self.hidden


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What a family's closed form finds in a model."""

    linear: list[LinearLayer]
    """The linear layers but for the output head."""
    other: int
    """Parameters in everything else but experts: embeddings, an untied head, norms, routers."""
    experts: list[ExpertWeights] = field(default_factory=list)
    """The experts' 3-D parameters."""
    differs: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `ModelShape` that the config's common keys do not tell in this family."""

    @property
    def parameters(self) -> int:
        """All parameters."""
        return self.other + sum(x.parameters for x in self.linear) + sum(x.parameters for x in self.experts)


def layer(path: str, in_features: int, out_features: int, count: int, *, bias: bool = False) -> LinearLayer:
    """Return a linear layer from its name in the block, such as `self_attn.q_proj`."""
    within, _, name = path.rpartition(".")
    return LinearLayer(
        name=name, within=within, in_features=in_features, out_features=out_features, count=count, has_bias=bias
    )


def beside_blocks(path: str, in_features: int, out_features: int, *, bias: bool = False) -> LinearLayer:
    """Return a linear layer that stands once, next to the embedding or the head: no target of a preset."""
    return replace(layer(path, in_features, out_features, 1, bias=bias), is_target=False)


def separate_attention(
    config: Dimensions, names: str = "self_attn.{q_proj,k_proj,v_proj,o_proj}", *, inputs: bool, output: bool
) -> list[LinearLayer]:
    """Return the four projections of grouped-query attention.

    Args:
        config: The model's dimensions.
        names: Their names, with braces around the four last parts.
        inputs: Whether query, key and value have biases.
        output: Whether the output projection has one.
    """
    query, key_value = config.heads * config.head_dim, config.key_value_heads * config.head_dim
    within, _, last = names.rstrip("}").partition("{")
    q, k, v, o = (within + name for name in last.split(","))
    return [
        layer(q, config.hidden, query, config.layers, bias=inputs),
        layer(k, config.hidden, key_value, config.layers, bias=inputs),
        layer(v, config.hidden, key_value, config.layers, bias=inputs),
        layer(o, query, config.hidden, config.layers, bias=output),
    ]


def gated_mlp(within: str, hidden: int, width: int, count: int, *, bias: bool = False) -> list[LinearLayer]:
    """Return the three projections of a gated MLP; none where no layer has it or its width is 0."""
    if not (count and width):
        return []
    return [
        layer(f"{within}.gate_proj", hidden, width, count, bias=bias),
        layer(f"{within}.up_proj", hidden, width, count, bias=bias),
        layer(f"{within}.down_proj", width, hidden, count, bias=bias),
    ]


def routed_experts(
    hidden: int, width: int, experts: int, count: int, *, bias: bool, old_names: tuple[str, ...]
) -> list[ExpertWeights]:
    """Return the two 3-D parameters of gated experts, as transformers 5 holds them."""
    gate_up = ExpertWeights(
        name="mlp.experts.gate_up_proj",
        experts=experts,
        in_features=hidden,
        out_features=2 * width,
        count=count,
        has_bias=bias,
        module_names=old_names[:2],
    )
    down = replace(
        gate_up,
        name="mlp.experts.down_proj",
        in_features=width,
        out_features=hidden,
        module_names=old_names[2:],
    )
    return [gate_up, down]
