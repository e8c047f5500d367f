"""Closed forms of the gated decoders (Llama and its relatives) and of mixtures of experts.

Each row of `DECODERS` says in what a family departs from the common block: grouped-query attention, RMSNorm
before attention and MLP, gated MLP, no biases. Defaults are those of the family's config class in transformers,
because a `config.json` leaves out what equals them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from .blocks import Dimensions, Parts, gated_mlp, layer, routed_experts, separate_attention
from .sizes import LinearLayer

__all__ = ["DECODERS", "GatedDecoder"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Experts:
    """Where a family has routed experts, and how wide they are."""

    width: str = "moe_intermediate_size"
    """Config key of one expert's inner width."""
    dense: Literal["none", "listed", "first"] = "none"
    """Layers with a dense MLP: none; those in `mlp_only_layers` or off `decoder_sparse_step`; the first few."""
    shared: Literal["none", "gated", "plain"] = "none"
    """Expert that every token passes: none, behind a gate of its own, or without one."""
    bias: bool = False
    """Whether experts and router have biases."""
    router: str = "gate"
    """Name of the router in the MLP."""
    old_names: tuple[str, ...] = ()
    """Names of gate, up and down projection that peft 0.21 takes for the experts, because they were linear layers in
    transformers 4. It then cannot tell dense and shared MLPs from experts, and cannot adapt them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GatedDecoder:
    """A family of gated decoders. A bias is a truth, or the config key that switches it."""

    defaults: Mapping[str, Any]
    """The config class's own defaults of the keys that are read."""
    input_bias: bool | str = False
    """Bias on query, key and value."""
    output_bias: bool | str = False
    """Bias on the attention's output."""
    mlp_bias: bool | str = False
    """Bias in the dense MLP."""
    norms: int = 2
    """Norms of a block that are as wide as the residual stream."""
    query_key_norm: Literal["none", "head", "width"] = "none"
    """Norm on query and key: none, over one head, or over all heads at once."""
    attention: Literal["separate", "fused", "latent"] = "separate"
    """q, k and v apart; as one (and so gate and up); or through DeepSeek's latent vectors (MLA)."""
    sinks: bool = False
    """Whether each head has a learned attention sink."""
    experts: Experts | None = None
    """Routed experts in place of the dense MLP."""
    counted_as: str = "AutoModelForCausalLM"
    """The auto class whose parameters it counts."""
    window_switch: str | None = None
    """Config key that must be on for `sliding_window` to hold."""

    def parts(self, config: Dimensions) -> Parts:
        """Return the layers of a model of this family."""
        sparse = sum(_is_sparse(self.experts, config, i) for i in range(config.layers)) if self.experts else 0
        attention = _ATTENTION[self.attention](self, config)
        mlp = _mixture(self.experts, config, sparse) if self.experts else Parts(linear=[], other=0)
        dense = config.layers - sparse
        width = config.size("intermediate_size") if dense else 0
        tied = config.is_on("tie_word_embeddings")
        differs: dict[str, Any] = {"intermediate": width or None}
        if self.window_switch and not config.is_on(self.window_switch):
            differs["sliding_window"] = None
        return Parts(
            linear=[*attention.linear, *self._dense_mlp(config, width, dense), *mlp.linear],
            experts=mlp.experts,
            other=attention.other
            + mlp.other
            + (self.norms * config.layers + 1) * config.hidden
            + config.embedding * (1 if tied else 2),
            differs={**differs, **attention.differs, **mlp.differs},
        )

    def _dense_mlp(self, config: Dimensions, width: int, count: int) -> list[LinearLayer]:
        if self.attention == "fused":
            gate_up = layer("mlp.gate_up_proj", config.hidden, 2 * width, count)
            return [gate_up, layer("mlp.down_proj", width, config.hidden, count)]
        linear = gated_mlp("mlp", config.hidden, width, count, bias=config.is_on(self.mlp_bias))
        return _hidden_by_experts(linear) if self.experts and self.experts.old_names else linear


def _separate(family: GatedDecoder, config: Dimensions) -> Parts:
    linear = separate_attention(config, inputs=config.is_on(family.input_bias), output=config.is_on(family.output_bias))
    norm_widths = {
        "none": 0,
        "head": 2 * config.head_dim,
        "width": (config.heads + config.key_value_heads) * config.head_dim,
    }
    in_a_layer = norm_widths[family.query_key_norm] + (config.heads if family.sinks else 0)
    return Parts(linear=linear, other=in_a_layer * config.layers)


def _fused(family: GatedDecoder, config: Dimensions) -> Parts:
    width = config.heads * config.head_dim
    together = width + 2 * config.key_value_heads * config.head_dim
    linear = [
        layer("self_attn.qkv_proj", config.hidden, together, config.layers),
        layer("self_attn.o_proj", width, config.hidden, config.layers),
    ]
    return Parts(linear=linear, other=0)


def _latent(family: GatedDecoder, config: Dimensions) -> Parts:
    """Return multi-head latent attention (DeepSeek-V2, arXiv 2405.04434): q and kv pass narrow normed vectors."""
    hidden, count, heads = config.hidden, config.layers, config.heads
    bias = config.is_on(family.input_bias)
    plain, rotary, value = (config.size(n) for n in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"))
    latent = config.size("kv_lora_rank")
    query = heads * (plain + rotary)
    rank = config.size("q_lora_rank", otherwise=0)  # null: the query is not compressed
    if rank:
        queries = [
            layer("self_attn.q_a_proj", hidden, rank, count, bias=bias),
            layer("self_attn.q_b_proj", rank, query, count),
        ]
    else:
        queries = [layer("self_attn.q_proj", hidden, query, count)]
    linear = [
        *queries,
        layer("self_attn.kv_a_proj_with_mqa", hidden, latent + rotary, count, bias=bias),
        layer("self_attn.kv_b_proj", latent, heads * (plain + value), count),
        layer("self_attn.o_proj", heads * value, hidden, count, bias=bias),
    ]
    return Parts(linear=linear, other=(rank + latent) * count, differs={"head_dim": plain + rotary})


_ATTENTION: Final = {"separate": _separate, "fused": _fused, "latent": _latent}


def _is_sparse(experts: Experts, config: Dimensions, index: int) -> bool:
    if experts.dense == "first":
        return index >= config.size("first_k_dense_replace", otherwise=0, least=0)
    if experts.dense == "listed":
        step = config.size("decoder_sparse_step")
        listed = config["mlp_only_layers"] or []
        return index not in listed and config.size("num_experts", least=0) > 0 and (index + 1) % step == 0
    return True


def _hidden_by_experts(linear: list[LinearLayer]) -> list[LinearLayer]:
    return [replace(x, is_target=False, is_reachable=False) for x in linear]


def _mixture(experts: Experts, config: Dimensions, count: int) -> Parts:
    """Return router, routed experts and shared expert of `count` sparse layers."""
    if not count:
        return Parts(linear=[], other=0)
    hidden, number, width = config.hidden, config.size("num_experts"), config.size(experts.width)
    shared: list[LinearLayer] = []
    if experts.shared == "plain":
        shared = gated_mlp("mlp.shared_experts", hidden, width * config.size("n_shared_experts", least=0), count)
    elif experts.shared == "gated":
        gate = replace(layer("mlp.shared_expert_gate", hidden, 1, count), is_target=False)
        inner = config.size("shared_expert_intermediate_size", least=0)
        shared = [*gated_mlp("mlp.shared_expert", hidden, inner, count), gate]
    if experts.old_names:
        shared = _hidden_by_experts(shared)
    router = replace(
        layer(f"mlp.{experts.router}", hidden, number, count, bias=experts.bias),
        is_target=False,
        is_reachable=bool(experts.old_names),
        kept=count,
    )
    return Parts(
        linear=[*shared, router],
        experts=routed_experts(hidden, width, number, count, bias=experts.bias, old_names=experts.old_names),
        other=0,
        differs={
            "experts": number,
            "experts_per_token": config.size("num_experts_per_tok"),
            "expert_intermediate": width,
        },
    )


def _defaults(
    vocabulary: int,
    hidden: int,
    mlp: int,
    layers: int,
    heads: int,
    key_value_heads: int | None,
    positions: int,
    **others: Any,
) -> dict[str, Any]:
    return {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_value_heads,
        "max_position_embeddings": positions,
        **others,
    }


_TIED: Final = {"tie_word_embeddings": True}
_WINDOW: Final = {"sliding_window": 4096}
_GATED_NAMES: Final = ("gate_proj", "up_proj", "down_proj")
_LISTED: Final = {"decoder_sparse_step": 1, "mlp_only_layers": None}
_BIAS_BY_CONFIG: Final[dict[str, Any]] = {"input_bias": "attention_bias", "output_bias": "attention_bias"}

DECODERS: Final[dict[str, GatedDecoder]] = {
    "llama": GatedDecoder(
        defaults=_defaults(32000, 4096, 11008, 32, 32, None, 2048), **_BIAS_BY_CONFIG, mlp_bias="mlp_bias"
    ),
    "mistral": GatedDecoder(defaults=_defaults(32000, 4096, 14336, 32, 32, 8, 131072, **_WINDOW)),
    "qwen2": GatedDecoder(
        defaults=_defaults(151936, 4096, 22016, 32, 32, 32, 32768, **_WINDOW),
        input_bias=True,
        window_switch="use_sliding_window",
    ),
    "qwen3": GatedDecoder(
        defaults=_defaults(151936, 4096, 22016, 32, 32, 32, 32768, head_dim=128, **_WINDOW),
        **_BIAS_BY_CONFIG,
        query_key_norm="head",
        window_switch="use_sliding_window",
    ),
    "smollm3": GatedDecoder(
        defaults=_defaults(128256, 2048, 11008, 36, 16, 4, 32768, **_TIED),
        **_BIAS_BY_CONFIG,
        mlp_bias="mlp_bias",
        window_switch="use_sliding_window",
    ),
    "olmo2": GatedDecoder(
        defaults=_defaults(50304, 4096, 11008, 32, 32, None, 2048), **_BIAS_BY_CONFIG, query_key_norm="width"
    ),
    "gemma": GatedDecoder(
        defaults=_defaults(256000, 3072, 24576, 28, 16, 16, 8192, head_dim=256, **_TIED), **_BIAS_BY_CONFIG
    ),
    "gemma2": GatedDecoder(
        defaults=_defaults(256000, 2304, 9216, 26, 8, 4, 8192, head_dim=256, **_TIED, **_WINDOW),
        **_BIAS_BY_CONFIG,
        norms=4,
    ),
    "gemma3_text": GatedDecoder(
        defaults=_defaults(262208, 2304, 9216, 26, 8, 4, 131072, head_dim=256, **_TIED, **_WINDOW),
        **_BIAS_BY_CONFIG,
        norms=4,
        query_key_norm="head",
    ),
    "phi3": GatedDecoder(defaults=_defaults(32064, 3072, 8192, 32, 32, None, 4096), attention="fused"),
    "mixtral": GatedDecoder(
        defaults=_defaults(32000, 4096, 14336, 32, 32, 8, 131072, num_experts=8, num_experts_per_tok=2),
        experts=Experts(width="intermediate_size", old_names=("w1", "w3", "w2")),
    ),
    "qwen2_moe": GatedDecoder(
        defaults=_defaults(
            151936, 2048, 5632, 24, 16, 16, 32768, num_experts=60, num_experts_per_tok=4, moe_intermediate_size=1408,
            shared_expert_intermediate_size=5632, qkv_bias=True, **_WINDOW, **_LISTED,
        ),
        input_bias="qkv_bias",
        experts=Experts(dense="listed", shared="gated"),
        window_switch="use_sliding_window",
    ),
    "qwen3_moe": GatedDecoder(
        defaults=_defaults(
            151936, 2048, 6144, 24, 32, 4, 32768, num_experts=128, num_experts_per_tok=8, moe_intermediate_size=768,
            **_WINDOW, **_LISTED,
        ),
        **_BIAS_BY_CONFIG,
        query_key_norm="head",
        experts=Experts(dense="listed", old_names=_GATED_NAMES),
        window_switch="use_sliding_window",
    ),
    "gpt_oss": GatedDecoder(
        defaults=_defaults(
            201088, 2880, 2880, 36, 64, 8, 131072, head_dim=64, num_experts=128, num_experts_per_tok=4,
            attention_bias=True, sliding_window=128,
        ),
        **_BIAS_BY_CONFIG,
        sinks=True,
        experts=Experts(width="intermediate_size", bias=True, router="router"),
    ),
    "deepseek_v3": GatedDecoder(
        defaults=_defaults(
            129280, 7168, 18432, 61, 128, 128, 4096, num_experts=256, n_shared_experts=1, num_experts_per_tok=8,
            moe_intermediate_size=2048, first_k_dense_replace=3, kv_lora_rank=512, q_lora_rank=1536,
            qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128,
        ),
        input_bias="attention_bias",
        attention="latent",
        experts=Experts(dense="first", shared="plain", old_names=_GATED_NAMES),
    ),
}  # fmt: skip
"""`model_type` → what is special about it. A new gated decoder is one row here and a row in the tests."""
