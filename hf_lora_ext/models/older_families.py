"""Closed forms of the families before Llama: GPT-2 and its relatives, OPT, Phi, the encoders, and T5.

Each is a function of a config's dimensions; LayerNorm has a weight and a bias, and most linear layers have one.
Defaults are those of the family's config class in transformers.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from .blocks import Dimensions, Parts, beside_blocks, layer, separate_attention
from .sizes import LinearLayer

__all__ = ["OLDER_FAMILIES", "OlderFamily"]


@dataclass(frozen=True, slots=True, kw_only=True)
class OlderFamily:
    """A family with a form of its own."""

    parts: Callable[[Dimensions], Parts]
    """Its closed form."""
    defaults: Mapping[str, Any]
    """The config class's own defaults of the keys that are read."""
    counted_as: str = "AutoModelForCausalLM"
    """The auto class whose parameters it counts."""


def _embeddings(config: Dimensions) -> int:
    """Count the token embedding, and the head unless it is tied."""
    return config.embedding * (1 if config.is_on("tie_word_embeddings") else 2)


def _mlp(config: Dimensions, names: tuple[str, str], width: int, *, bias: bool = True) -> list[LinearLayer]:
    """Return the two layers of an MLP without a gate."""
    up, down = names
    return [
        layer(up, config.hidden, width, config.layers, bias=bias),
        layer(down, width, config.hidden, config.layers, bias=bias),
    ]


def _gpt2(config: Dimensions) -> Parts:
    hidden, count = config.hidden, config.layers
    width = config.size("intermediate_size", otherwise=4 * hidden)
    linear = [
        layer("attn.c_attn", hidden, 3 * hidden, count, bias=True),
        layer("attn.c_proj", hidden, hidden, count, bias=True),
        *_mlp(config, ("mlp.c_fc", "mlp.c_proj"), width),
    ]
    positions = config.size("max_position_embeddings") * hidden
    other = _embeddings(config) + positions + (4 * count + 2) * hidden
    return Parts(linear=linear, other=other, differs={"intermediate": width})


def _gpt_bigcode(config: Dimensions) -> Parts:
    """Return GPT-2's form with one key and value head for all queries (`multi_query`)."""
    parts = _gpt2(config)
    shared = config.is_on("multi_query")
    width = config.hidden + 2 * (config.head_dim if shared else config.hidden)
    linear = [replace(x, out_features=width) if x.name == "c_attn" else x for x in parts.linear]
    heads = {"key_value_heads": 1 if shared else config.heads}
    return replace(parts, linear=linear, differs={**parts.differs, **heads})


def _fused_blocks(config: Dimensions, attention: str, together: int, width: int, biases: tuple[bool, bool]) -> Parts:
    """Return the blocks that GPT-NeoX, Bloom and Falcon share: fused q, k, v, and the MLP's `4h`."""
    hidden, count = config.hidden, config.layers
    linear = [
        layer(f"{attention}.query_key_value", hidden, together, count, bias=biases[0]),
        layer(f"{attention}.dense", hidden, hidden, count, bias=biases[0]),
        *_mlp(config, ("mlp.dense_h_to_4h", "mlp.dense_4h_to_h"), width, bias=biases[1]),
    ]
    return Parts(linear=linear, other=_embeddings(config) + 2 * hidden, differs={"intermediate": width})


def _gpt_neox(config: Dimensions) -> Parts:
    biases = (config.is_on("attention_bias"), True)
    parts = _fused_blocks(config, "attention", 3 * config.hidden, config.size("intermediate_size"), biases)
    return replace(parts, other=parts.other + 4 * config.hidden * config.layers)


def _bloom(config: Dimensions) -> Parts:
    parts = _fused_blocks(config, "self_attention", 3 * config.hidden, 4 * config.hidden, (True, True))
    return replace(parts, other=parts.other + (4 * config.layers + 2) * config.hidden)


def _falcon(config: Dimensions) -> Parts:
    """Return Falcon's form; its FalconLinear is a subclass of nn.Linear, which bitsandbytes' replacement skips."""
    new = config.is_on("new_decoder_architecture")
    shared = config.is_on("multi_query") and not new
    key_value_heads = 1 if shared else config.size("num_kv_heads", otherwise=config.heads)
    in_layer = key_value_heads if new or shared else config.heads
    together = config.hidden // config.heads * (config.heads + 2 * in_layer)
    width = config.size("intermediate_size", otherwise=4 * config.hidden)
    bias = config.is_on("bias")
    parts = _fused_blocks(config, "self_attention", together, width, (bias, bias))
    norms = config.size("num_ln_in_parallel_attn", otherwise=2 if new else 1) == 2 or not config.is_on("parallel_attn")
    return replace(
        parts,
        linear=[replace(x, kept=x.count) for x in parts.linear],
        other=parts.other + (4 if norms else 2) * config.hidden * config.layers,
        differs={**parts.differs, "key_value_heads": key_value_heads},
    )


def _opt(config: Dimensions) -> Parts:
    hidden, count = config.hidden, config.layers
    narrow = config.size("word_embed_proj_dim", otherwise=hidden)
    bias, affine = config.is_on("enable_bias"), config.is_on("layer_norm_elementwise_affine")
    tied = config.is_on("tie_word_embeddings")
    width = config.size("intermediate_size")
    up, down = _mlp(config, ("fc1", "fc2"), width, bias=bias)
    # transformers keeps the last parameter of a model from bitsandbytes: in Galactica that is the last fc2.
    down = replace(down, kept=int(tied and not (bias or affine)))
    names = "self_attn.{q_proj,k_proj,v_proj,out_proj}"
    linear = [*separate_attention(config, names, inputs=bias, output=bias), up, down]
    if narrow != hidden:
        project_in = beside_blocks("decoder.project_in", narrow, hidden)
        linear += [project_in, beside_blocks("decoder.project_out", hidden, narrow)]
    last_norm = config.is_on("do_layer_norm_before") and not config.is_on("_remove_final_layer_norm")
    norms = (4 * count + 2 * last_norm) * hidden if affine else 0
    embeddings = config.size("vocab_size") * narrow * (1 if tied else 2)
    positions = (config.size("max_position_embeddings") + 2) * hidden  # the first two are never used
    return Parts(linear=linear, other=embeddings + positions + norms)


def _phi(config: Dimensions) -> Parts:
    linear = separate_attention(config, "self_attn.{q_proj,k_proj,v_proj,dense}", inputs=True, output=True)
    linear += _mlp(config, ("mlp.fc1", "mlp.fc2"), config.size("intermediate_size"))
    norms = (2 * config.layers + 2) * config.hidden
    if config.is_on("qk_layernorm"):
        norms += 4 * (config.hidden // config.heads) * config.layers
    return Parts(linear=linear, other=_embeddings(config) + config.size("vocab_size") + norms)


def _encoder(config: Dimensions, attention: str, embedding: int, positions: int, head: LinearLayer) -> Parts:
    """Return what BERT, RoBERTa and DeBERTa share: blocks with norms after, and a head for masked tokens.

    Args:
        config: The model's dimensions.
        attention: Names of its four projections, with braces around the last parts.
        embedding: Width of the embeddings.
        positions: Rows of the position embedding.
        head: The dense layer before the output.
    """
    hidden, vocabulary = config.hidden, config.size("vocab_size")
    linear = separate_attention(config, attention, inputs=True, output=True)
    linear += [*_mlp(config, ("intermediate.dense", "output.dense"), config.size("intermediate_size")), head]
    rows = vocabulary + positions + config.size("type_vocab_size", least=0)
    head_norm_and_bias = 2 * head.out_features + vocabulary
    untied = 0 if config.is_on("tie_word_embeddings") else vocabulary * (embedding + 1)  # a second bias then
    norms = (4 * config.layers + 2) * hidden
    return Parts(linear=linear, other=rows * embedding + norms + head_norm_and_bias + untied)


def _bert(config: Dimensions) -> Parts:
    return _bert_with_head(config, "cls.predictions.transform.dense")


def _roberta(config: Dimensions) -> Parts:
    return _bert_with_head(config, "lm_head.dense")


def _bert_with_head(config: Dimensions, head: str) -> Parts:
    dense = beside_blocks(head, config.hidden, config.hidden, bias=True)
    names = "attention.{self.query,self.key,self.value,output.dense}"
    return _encoder(config, names, config.hidden, config.size("max_position_embeddings"), dense)


def _deberta(config: Dimensions) -> Parts:
    hidden, legacy = config.hidden, config.is_on("legacy")
    narrow = config.size("embedding_size", otherwise=hidden)
    positions = config.size("max_position_embeddings") if config.is_on("position_biased_input") else 0
    path = "cls.predictions.transform.dense" if legacy else "lm_predictions.lm_head.dense"
    head = beside_blocks(path, hidden, narrow if legacy else hidden, bias=True)
    names = "attention.{self.query_proj,self.key_proj,self.value_proj,output.dense}"
    parts = _encoder(config, names, narrow, positions, head)
    extra = [
        layer(f"attention.self.{name}", hidden, hidden, config.layers, bias=True)
        for name in _relative_projections(config)
    ]
    if narrow != hidden:
        extra.append(beside_blocks("embeddings.embed_proj", narrow, hidden))
    other = parts.other + _deberta_others(config)
    if legacy:
        return replace(parts, linear=[*parts.linear, *extra], other=other)
    # The newer head multiplies by the embedding itself, and transformers takes its dense layer for the output head.
    untied = 0 if config.is_on("tie_word_embeddings") else config.size("vocab_size") * (narrow + 1)
    kept = [x for x in parts.linear if x is not head]
    return replace(parts, linear=[*kept, *extra], other=other + head.parameters - untied)


def _relative_projections(config: Dimensions) -> list[str]:
    kinds = config["pos_att_type"] or ""
    if not config.is_on("relative_attention") or config.is_on("share_att_key"):
        return []
    return [name for kind, name in (("c2p", "pos_key_proj"), ("p2c", "pos_query_proj")) if kind in kinds]


def _deberta_others(config: Dimensions) -> int:
    """Count relative positions, their norm, and the convolution beside the first block."""
    hidden, count = config.hidden, 0
    if config.is_on("relative_attention"):
        rows = config["position_buckets"] or -1
        if rows < 1:
            rows = config["max_relative_positions"] or -1
        count += 2 * (rows if rows > 0 else config.size("max_position_embeddings")) * hidden
    if "layer_norm" in (config["norm_rel_ebd"] or "").lower():
        count += 2 * hidden
    if kernel := config.size("conv_kernel_size", otherwise=0, least=0):
        groups = config.size("conv_groups", otherwise=1)
        count += hidden * (hidden // groups) * kernel + 3 * hidden
    return count


def _t5(config: Dimensions) -> Parts:
    """Return T5's form. transformers ties its head whatever the config says, and keeps `wo` in float32."""
    hidden, heads = config.hidden, config.heads
    inner, width = heads * config.size("head_dim"), config.size("intermediate_size")
    encoder = config.layers
    decoder = config.size("num_decoder_layers", otherwise=encoder)
    both = encoder + decoder
    linear = [
        layer(f"{within}.{name}", inner if name == "o" else hidden, hidden if name == "o" else inner, count)
        for within, count in (("SelfAttention", both), ("EncDecAttention", decoder))
        for name in "qkvo"
    ]
    gated = str(config["feed_forward_proj"]).startswith("gated")
    linear += [layer(f"DenseReluDense.{n}", hidden, width, both) for n in (("wi_0", "wi_1") if gated else ("wi",))]
    linear.append(replace(layer("DenseReluDense.wo", width, hidden, both), kept=both))
    norms = (2 * encoder + 3 * decoder + 2) * hidden
    positions = 2 * config.size("relative_attention_num_buckets") * heads
    known = {"layers": both, "tied": True, "max_positions": None}
    return Parts(linear=linear, other=config.embedding + norms + positions, differs=known)


_TIED: Final = {"tie_word_embeddings": True}
_GPT2: Final = {
    "vocab_size": 50257, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
    "max_position_embeddings": 1024, **_TIED,
}  # fmt: skip
_BERT: Final = {
    "vocab_size": 30522, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
    "num_attention_heads": 12, "max_position_embeddings": 512, "type_vocab_size": 2, **_TIED,
}  # fmt: skip
_MASKED: Final = "AutoModelForMaskedLM"

OLDER_FAMILIES: Final[dict[str, OlderFamily]] = {
    "gpt2": OlderFamily(parts=_gpt2, defaults=_GPT2),
    "gpt_bigcode": OlderFamily(parts=_gpt_bigcode, defaults={**_GPT2, "multi_query": True}),
    "gpt_neox": OlderFamily(
        parts=_gpt_neox,
        defaults={
            "vocab_size": 50432, "hidden_size": 6144, "intermediate_size": 24576, "num_hidden_layers": 44,
            "num_attention_heads": 64, "max_position_embeddings": 2048, "attention_bias": True,
        },
    ),
    "bloom": OlderFamily(
        parts=_bloom,
        defaults={
            "vocab_size": 250880, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 8, **_TIED,
        },
    ),
    "falcon": OlderFamily(
        parts=_falcon,
        defaults={
            "vocab_size": 65024, "hidden_size": 4544, "num_hidden_layers": 32, "num_attention_heads": 71,
            "max_position_embeddings": 2048, "multi_query": True, "parallel_attn": True, **_TIED,
        },
    ),
    "opt": OlderFamily(
        parts=_opt,
        defaults={
            "vocab_size": 50272, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
            "num_attention_heads": 12, "max_position_embeddings": 2048, "enable_bias": True,
            "layer_norm_elementwise_affine": True, "do_layer_norm_before": True, **_TIED,
        },
    ),
    "phi": OlderFamily(
        parts=_phi,
        defaults={
            "vocab_size": 51200, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 24,
            "num_attention_heads": 32, "max_position_embeddings": 2048,
        },
    ),
    "bert": OlderFamily(parts=_bert, defaults=_BERT, counted_as=_MASKED),
    "roberta": OlderFamily(parts=_roberta, defaults={**_BERT, "vocab_size": 50265}, counted_as=_MASKED),
    "deberta-v2": OlderFamily(
        parts=_deberta,
        defaults={
            "vocab_size": 128100, "hidden_size": 1536, "intermediate_size": 6144, "num_hidden_layers": 24,
            "num_attention_heads": 24, "max_position_embeddings": 512, "type_vocab_size": 0,
            "position_biased_input": True, "legacy": True, **_TIED,
        },
        counted_as=_MASKED,
    ),
    "t5": OlderFamily(
        parts=_t5,
        defaults={
            "vocab_size": 32128, "hidden_size": 512, "head_dim": 64, "intermediate_size": 2048,
            "num_hidden_layers": 6, "num_attention_heads": 8, "relative_attention_num_buckets": 32,
            "feed_forward_proj": "relu",
        },
        counted_as="AutoModelForSeq2SeqLM",
    ),
}  # fmt: skip
"""`model_type` → its closed form. A new family is one function above, one row here, and a row in the tests."""
