"""Closed forms: equal to the models that transformers builds, to what bitsandbytes packs, to what peft trains."""

import warnings
from dataclasses import fields

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hf_lora_ext.errors import ConfigError
from hf_lora_ext.models.families import FAMILIES, expert_targets, linear_targets, shape_from_config
from hf_lora_ext.models.sizes import ModelShape

COMMON = {
    "vocab_size": 131, "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
WIDE = COMMON | {"intermediate_size": 40, "max_position_embeddings": 64}
GROUPED = WIDE | {"num_key_value_heads": 2}
ROUTED = GROUPED | {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 10}
LATENT = GROUPED | {
    "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 10, "n_group": 2, "topk_group": 1,
    "kv_lora_rank": 6, "q_lora_rank": 9, "qk_rope_head_dim": 4, "qk_nope_head_dim": 7, "v_head_dim": 5,
    "first_k_dense_replace": 1,
}  # fmt: skip
HALF_LATENT = {"q_lora_rank": None, "first_k_dense_replace": 0, "n_shared_experts": 2}
ALL_BIASES = {"attention_bias": True, "mlp_bias": True, "head_dim": 8, "tie_word_embeddings": True}
SLIDING = {"use_sliding_window": True, "sliding_window": 16}
DEBERTA_BASE = {
    "relative_attention": True, "pos_att_type": "p2c|c2p", "norm_rel_ebd": "layer_norm", "share_att_key": True,
    "position_buckets": 8, "position_biased_input": False, "max_relative_positions": -1,
}  # fmt: skip
DEBERTA_XL = {
    "relative_attention": True, "pos_att_type": ["c2p", "p2c"], "conv_kernel_size": 3, "embedding_size": 16,
    "type_vocab_size": 2, "max_relative_positions": 9, "norm_rel_ebd": "layer_norm",
}  # fmt: skip

# family → (a small config, changes to it that each make another model)
SMALL: dict[str, tuple[dict, list[dict]]] = {
    "llama": (GROUPED, [{}, {"head_dim": 10}, {"num_key_value_heads": 1, "mlp_bias": True}, ALL_BIASES]),
    "mistral": (GROUPED, [{"sliding_window": None}, {"head_dim": 10, "tie_word_embeddings": True}]),
    "mixtral": (GROUPED | {"num_local_experts": 5}, [{}, {"head_dim": 8, "tie_word_embeddings": True}]),
    "qwen2": (GROUPED, [{}, {"tie_word_embeddings": True}, SLIDING | {"num_key_value_heads": 4}]),
    "qwen2_moe": (
        ROUTED | {"shared_expert_intermediate_size": 14},
        [{}, {"mlp_only_layers": [1]}, {"decoder_sparse_step": 2, "qkv_bias": False}, {"tie_word_embeddings": True}],
    ),
    "qwen3": (GROUPED, [{}, {"head_dim": 6} | SLIDING, {"attention_bias": True, "tie_word_embeddings": True}]),
    "qwen3_moe": (
        ROUTED,
        [{}, {"head_dim": 8, "attention_bias": True}, {"mlp_only_layers": [0]}, {"decoder_sparse_step": 4}],
    ),
    "gemma": (GROUPED, [{}, {"head_dim": 8, "attention_bias": True}, {"tie_word_embeddings": False}]),
    "gemma2": (GROUPED, [{}, {"head_dim": 8, "attention_bias": True}, {"tie_word_embeddings": False}]),
    "gemma3_text": (GROUPED, [{}, {"head_dim": 8, "attention_bias": True}, {"tie_word_embeddings": False}]),
    "phi": (WIDE, [{}, {"num_key_value_heads": 2, "qk_layernorm": True}, {"tie_word_embeddings": True}]),
    "phi3": (GROUPED, [{}, {"num_key_value_heads": 4, "tie_word_embeddings": True}, {"sliding_window": 16}]),
    "gpt2": (COMMON | {"n_positions": 64}, [{}, {"n_inner": 40}, {"tie_word_embeddings": False}]),
    "gpt_neox": (WIDE, [{}, {"attention_bias": False}, {"tie_word_embeddings": True}]),
    "gpt_bigcode": (
        {"vocab_size": 131, "n_embd": 24, "n_layer": 3, "n_head": 4, "n_positions": 64},
        [{}, {"multi_query": False}, {"tie_word_embeddings": False}],
    ),
    "falcon": (
        COMMON,
        [
            {},
            {"bias": True, "multi_query": False, "parallel_attn": False, "alibi": True},
            {"new_decoder_architecture": True, "num_kv_heads": 2, "ffn_hidden_size": 40},
            {"new_decoder_architecture": True, "num_ln_in_parallel_attn": 1, "tie_word_embeddings": False},
        ],
    ),
    "bloom": (COMMON, [{}, {"tie_word_embeddings": False}]),
    "opt": (
        COMMON | {"ffn_dim": 40, "max_position_embeddings": 64},
        [
            {},
            {"word_embed_proj_dim": 16, "do_layer_norm_before": False},
            {"enable_bias": False, "layer_norm_elementwise_affine": False},
            {"tie_word_embeddings": False, "_remove_final_layer_norm": True},
        ],
    ),
    "olmo2": (GROUPED, [{}, {"head_dim": 8, "attention_bias": True}, {"tie_word_embeddings": True}]),
    "smollm3": (GROUPED, [{}, ALL_BIASES, SLIDING | {"tie_word_embeddings": False}]),
    "deepseek_v3": (LATENT, [{}, {"attention_bias": True}, HALF_LATENT, {"first_k_dense_replace": 3}]),
    "gpt_oss": (
        GROUPED | {"num_local_experts": 5, "head_dim": 8},
        [{}, {"attention_bias": False, "num_experts_per_tok": 2}],
    ),
    "bert": (WIDE, [{}, {"type_vocab_size": 3}, {"tie_word_embeddings": False}]),
    "roberta": (WIDE, [{}, {"type_vocab_size": 1}, {"tie_word_embeddings": False}]),
    "deberta-v2": (WIDE, [{}, DEBERTA_BASE, DEBERTA_XL, {"legacy": False}, {"tie_word_embeddings": False}]),
    "t5": (
        {"vocab_size": 131, "d_model": 24, "d_kv": 5, "d_ff": 40, "num_layers": 2, "num_heads": 4},
        [{}, {"num_decoder_layers": 3, "feed_forward_proj": "gated-gelu"}, {"tie_word_embeddings": False}],
    ),
}
CASES = [
    pytest.param(f, c | changes, id=f"{f}-{i}") for f, (c, all_) in SMALL.items() for i, changes in enumerate(all_)
]


def real_config(family: str, config: dict):
    from transformers import AutoConfig

    return AutoConfig.for_model(family, **config)


def real_model(family: str, config: dict, device: str = "meta"):
    import torch
    import transformers

    settings = real_config(family, config)
    with torch.device(device):
        model = getattr(transformers, shape_from_config(settings.to_dict()).counted_as).from_config(settings)
    model.tie_weights()
    return model


def in_block(name: str) -> str:
    """Return a module's name after its block's number."""
    parts = name.split(".")
    numbers = [i for i, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[numbers[-1] + 1 :]) if numbers else name


def linear_layers(model) -> dict[str, tuple[int, int, bool, int]]:
    """Path → (in, out, bias, count) of every linear layer and router but the output head."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    found: dict[str, tuple[int, int, bool, int]] = {}
    for name, module in model.named_modules():
        kinds = isinstance(module, (nn.Linear, Conv1D)) or type(module).__name__.lower().endswith("topkrouter")
        if module is model.get_output_embeddings() or not kinds:
            continue
        shape = tuple(module.weight.shape)
        width_in, width_out = shape if isinstance(module, Conv1D) else shape[::-1]
        count = found.get(in_block(name), (0, 0, False, 0))[3]
        found[in_block(name)] = (width_in, width_out, getattr(module, "bias", None) is not None, count + 1)
    return found


@pytest.mark.parametrize(("family", "config"), CASES)
def test_closed_form_equals_the_model_that_transformers_builds(family: str, config: dict):
    model = real_model(family, config)
    shape = shape_from_config(real_config(family, config).to_dict())

    assert shape.parameters == sum(p.numel() for p in model.parameters())
    found = {x.path: (x.in_features, x.out_features, x.has_bias, x.count) for x in shape.linear}
    assert found == {
        next((p for p in found if f".{name}".endswith(f".{p}")), name): real
        for name, real in linear_layers(model).items()
    }

    experts: dict[tuple, int] = {}
    in_experts = 0
    for name, parameter in model.named_parameters():
        if ".experts." in name:
            in_experts += parameter.numel()
            if parameter.ndim == 3:
                number, *sides = parameter.shape
                key = (in_block(name), number, *sorted(sides))
                experts[key] = experts.get(key, 0) + 1
    assert {
        (x.name, x.experts, *sorted((x.in_features, x.out_features))): x.count for x in shape.expert_weights
    } == experts
    assert shape.expert_parameters == in_experts
    idle = in_experts * (shape.experts - shape.experts_per_token) / shape.experts if in_experts else 0
    assert shape.active_parameters == shape.parameters - idle


@pytest.mark.parametrize(("family", "config"), CASES)
def test_dimensions_are_those_of_the_real_config(family: str, config: dict):
    settings = real_config(family, config)
    shape = shape_from_config(settings.to_dict())
    layers = settings.num_hidden_layers + (getattr(settings, "num_decoder_layers", None) or 0)
    assert (shape.layers, shape.hidden, shape.heads) == (layers, settings.hidden_size, settings.num_attention_heads)
    assert (shape.vocabulary, shape.tied, shape.family) == (131, settings.tie_word_embeddings, family)
    assert shape.key_value_heads == (
        1
        if family == "falcon" and settings.multi_query and not settings.new_decoder_architecture
        else getattr(settings, "num_kv_heads", None)
        or getattr(settings, "num_key_value_heads", settings.num_attention_heads)
    )
    assert (shape.sliding_window or None) == (getattr(settings, "sliding_window", None) or None)
    if family not in {"t5", "bloom"}:  # relative positions: no limit
        assert shape.max_positions == settings.max_position_embeddings
    if family == "deepseek_v3":
        assert shape.head_dim == settings.qk_head_dim
    else:
        split = settings.hidden_size // settings.num_attention_heads
        assert shape.head_dim == (getattr(settings, "head_dim", None) or split)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("family", "config"), CASES)
def test_quantisable_parameters_are_those_that_bitsandbytes_packs(family: str, config: dict, bits: int):
    """The quantizer's own pass over the model, as `from_pretrained` runs it before it loads weights."""
    import bitsandbytes
    from transformers import BitsAndBytesConfig
    from transformers.quantizers import AutoHfQuantizer

    model = real_model(family, config)
    quantizer = AutoHfQuantizer.from_config(BitsAndBytesConfig(load_in_4bit=bits == 4, load_in_8bit=bits == 8))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantizer._process_model_before_weight_loading(model, device_map=None)
    kinds = (bitsandbytes.nn.Linear4bit, bitsandbytes.nn.Linear8bitLt)
    packed = sum(x.in_features * x.out_features for x in model.modules() if isinstance(x, kinds))
    assert shape_from_config(real_config(family, config).to_dict()).quantisable_parameters == packed


def trained(family: str, config: dict, **lora) -> int:
    """Parameters that peft trains in a real small model."""
    from peft import LoraConfig, get_peft_model

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(real_model(family, config), LoraConfig(r=3, lora_dropout=0.0, **lora))
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("family", SMALL)
def test_lora_parameters_are_those_that_peft_trains(family: str):
    base, changes = SMALL[family]
    config = base | changes[1]
    shape = shape_from_config(real_config(family, config).to_dict())
    assert shape.lora_parameters(3) == trained(family, config, target_modules="all-linear")

    targets, experts = linear_targets(shape), expert_targets(shape)
    assert shape.lora_parameters(3, targets) == trained(family, config, target_modules=list(targets))
    some = targets[::2]
    if shape.expert_weights:
        old = [name for weights in shape.expert_weights for name in weights.module_names]
        assert shape.lora_parameters(3, [*some, *old]) == trained(family, config, target_modules=[*some, *old])
    both = trained(family, config, target_modules=list(some), target_parameters=list(experts))
    assert shape.lora_parameters(3, some, experts) == both


@pytest.mark.parametrize(("family", "config"), CASES)
def test_targets_are_the_blocks_linear_layers_and_never_a_head_or_router(family: str, config: dict):
    model = real_model(family, config)
    shape = shape_from_config(real_config(family, config).to_dict())
    targets = linear_targets(shape)
    modules = dict(model.named_modules())
    chosen = {name for name in modules if any(f".{name}".endswith(f".{target}") for target in targets)}
    paths = {in_block(name) for name in chosen}
    assert paths == {x.path for x in shape.linear if x.is_target}
    assert len(chosen) == sum(x.count for x in shape.linear if x.is_target)
    assert targets or not any(x.is_target for x in shape.linear)
    assert all(any(part.isdigit() for part in name.split(".")) for name in chosen)
    assert not any(word in path for path in paths for word in ("lm_head", "router", "shared_expert_gate"))
    parameters = {in_block(name) for name, _ in model.named_parameters()}
    assert set(expert_targets(shape)) <= parameters


@pytest.mark.parametrize("family", FAMILIES)
def test_a_config_json_of_nothing_but_its_family_means_the_config_classs_defaults(family: str):
    settings = real_config(family, {})
    raw, filled = shape_from_config({"model_type": family}), shape_from_config(settings.to_dict())
    for field in fields(ModelShape):
        assert (getattr(raw, field.name) or None) == (getattr(filled, field.name) or None), field.name
    assert len(raw.linear) > 1


@given(data=st.data())
@settings(max_examples=60)
def test_keys_left_out_of_a_config_json_mean_what_transformers_takes_them_for(data):
    family = data.draw(st.sampled_from(sorted(SMALL)))
    base, changes = SMALL[family]
    config = base | data.draw(st.sampled_from(changes))
    kept = {key: config[key] for key in data.draw(st.sets(st.sampled_from(sorted(config))))}
    given_heads = kept.get("num_attention_heads", 4), kept.get("hidden_size", 24)
    assume(given_heads[0] * 6 == given_heads[1] and ("hidden_size" in kept) == ("num_attention_heads" in kept))
    filled = real_config(family, kept).to_dict()
    assert shape_from_config(kept | {"model_type": family}).parameters == shape_from_config(filled).parameters


@pytest.mark.parametrize(
    ("config", "total", "active"),
    [
        ({"model_type": "llama", "vocab_size": 32000}, 6_738_415_616, 6_738_415_616),
        ({"model_type": "mixtral"}, 46_702_792_704, 12_879_925_248),
        ({"model_type": "gpt2"}, 124_439_808, 124_439_808),
        ({"model_type": "bert"}, 109_514_298, 109_514_298),
        ({"model_type": "t5"}, 60_506_624, 60_506_624),
        (
            {"model_type": "qwen3_moe", "num_hidden_layers": 48, "head_dim": 128, "max_position_embeddings": 40960},
            30_532_122_624,
            3_353_032_704,
        ),
    ],
)
def test_published_models_have_their_published_sizes(config: dict, total: int, active: int):
    shape = shape_from_config(config)
    assert (shape.parameters, shape.active_parameters) == (total, active)


@pytest.mark.parametrize("tied", [None, False])
def test_a_multimodal_config_is_sized_by_its_language_part(tied):
    import torch
    from transformers import AutoModelForImageTextToText, Gemma3Config

    vision = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    text = {key: value for key, value in GROUPED.items() if key != "vocab_size"} | {"vocab_size": 300000}
    outer = {} if tied is None else {"tie_word_embeddings": tied}
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(
            Gemma3Config(text_config=dict(text), vision_config=vision, **outer)
        )
    model.tie_weights()
    language = sum(p.numel() for name, p in model.named_parameters() if "language_model" in name or "lm_head" in name)

    raw = {"model_type": "gemma3", "text_config": text, "vision_config": vision, **outer}
    shape = shape_from_config(raw, "config.json")
    assert shape.parameters == language < sum(p.numel() for p in model.parameters())
    assert shape.source == "config.json, language part of a gemma3 model (gemma3_text, exact)"


@pytest.mark.parametrize(
    "config",
    [{}, {"model_type": "mamba", "hidden_size": 8}, {"model_type": None}, {"model_type": ["llama"]},
     {"model_type": "gpt2", "add_cross_attention": True}],
)  # fmt: skip
def test_other_families_have_no_closed_form(config: dict):
    assert shape_from_config(config) is None


@pytest.mark.parametrize("value", [None, 0, -4, "24", 24.0, True])
def test_a_config_with_an_impossible_dimension_is_refused_by_name(value):
    with pytest.raises(ConfigError, match=r"llama config has hidden_size=.*whole number above 0.*config\.json"):
        shape_from_config({"model_type": "llama", **GROUPED, "hidden_size": value})


def test_what_lora_adapts_is_unknown_in_an_unknown_family():
    shape = ModelShape(parameters=7, source="test", family="mamba")
    assert (linear_targets(shape), expert_targets(shape), shape.lora_parameters(8)) == (None, None, None)
    assert (shape.active_parameters, shape.quantisable_parameters) == (None, None)


def test_every_family_is_tested():
    assert set(SMALL) == set(FAMILIES)
