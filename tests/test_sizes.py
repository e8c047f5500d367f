"""Sizes: every count falls in one band, names and keys are read rightly, closed forms are exact."""

from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hf_lora_ext.errors import ConfigError
from hf_lora_ext.sizes import (
    _GATED_DECODERS,
    SIZE_BANDS,
    ModelShape,
    parameters_from_key,
    parameters_from_name,
    shape_from_config,
    size_band,
)

EDGES = [band.up_to for band in SIZE_BANDS if band.up_to] + [1]
SMALL = {
    "vocab_size": 131,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
VARIANTS = {
    "plain": {"head_dim": 6},
    "tied": {"tie_word_embeddings": True},
    "untied": {"tie_word_embeddings": False},
    "wide heads": {"head_dim": 10},
    "one key head": {"num_key_value_heads": 1},
    "no grouping": {"num_key_value_heads": 4},
    "attention biases": {"attention_bias": True},
    "mlp biases": {"mlp_bias": True},
    "all biases, wide heads, tied": {
        "attention_bias": True,
        "mlp_bias": True,
        "head_dim": 8,
        "tie_word_embeddings": True,
    },
}


def small_config(family, **changes):
    from transformers import AutoConfig

    return AutoConfig.for_model(family, **(SMALL | changes))


@given(st.integers(min_value=1, max_value=10**15) | st.sampled_from([e + d for e in EDGES for d in (0, 1)]))
def test_every_positive_count_is_in_exactly_one_band(parameters):
    holding = [b for b in SIZE_BANDS if b.above < parameters and (b.up_to is None or parameters <= b.up_to)]
    assert holding == [size_band(parameters)]


def test_bands_join_without_gap_and_ranks_rise():
    assert SIZE_BANDS[0].above == 0
    assert SIZE_BANDS[-1].up_to is None
    for smaller, larger in pairwise(SIZE_BANDS):
        assert smaller.up_to == larger.above
        assert smaller.rank < larger.rank


@pytest.mark.parametrize(
    ("parameters", "rank"),
    [(1, 8), (10 * 10**9, 8), (10 * 10**9 + 1, 16), (30 * 10**9, 16), (30 * 10**9 + 1, 32)],
)
def test_band_edges_belong_to_the_smaller_band(parameters, rank):
    assert size_band(parameters).rank == rank


@pytest.mark.parametrize(("key", "rank"), [("7B", 8), ("13B", 16), ("70B", 32)])
def test_anchors_get_their_rank_and_name_their_band(key, rank):
    band = size_band(parameters_from_key(key))
    assert (band.rank, band.anchor) == (rank, key)


@pytest.mark.parametrize("parameters", [0, -1])
def test_a_model_without_parameters_has_no_band(parameters):
    with pytest.raises(ConfigError, match="above 0"):
        size_band(parameters)


@pytest.mark.parametrize(
    ("key", "parameters"),
    [
        ("7B", 7_000_000_000),
        (" 1.3b ", 1_300_000_000),
        ("135M", 135_000_000),
        ("8x7B", 56_000_000_000),
        ("1T", 10**12),
        ("0B", None),
        ("7", None),
        ("7BB", None),
        ("B", None),
        ("-7B", None),
        ("", None),
        ("llama-7B", None),
    ],
)
def test_size_keys_are_read_whole_or_not_at_all(key, parameters):
    assert parameters_from_key(key) == parameters


@given(st.text(max_size=20) | st.from_regex(r"(\d+x)?\d+(\.\d+)?[KMBTkmbt]", fullmatch=True))
@example("9" * 400 + "B")
def test_any_text_is_a_positive_size_or_none(text):
    for parameters in (parameters_from_key(text), parameters_from_name(text)):
        assert parameters is None or parameters > 0


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("meta-llama/Llama-2-7b-hf", 7_000_000_000),
        ("Qwen/Qwen3-30B-A3B", 30_000_000_000),
        ("mistralai/Mixtral-8x7B-v0.1", 56_000_000_000),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", 135_000_000),
        ("Qwen/Qwen2.5-0.5B-Instruct", 500_000_000),
        ("google/gemma-1.1-2b-it", 2_000_000_000),
        ("tiiuae/falcon-7b_4k", 7_000_000_000),
        ("/models/70B-collection/Llama-3.2-1B/", 1_000_000_000),
        (r"C:\models\pythia-160m", 160_000_000),
        ("gpt2", None),
        ("mistralai/Mistral-v0.1", None),
        ("microsoft/Phi-3-mini-4k-instruct", None),  # 4k is its context
        ("stabilityai/stablelm-2-1_6b", 1_600_000_000),
        ("7B/model", None),
    ],
)
def test_a_name_gives_the_total_that_it_states(name, parameters):
    assert parameters_from_name(name) == parameters


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("family", sorted(_GATED_DECODERS))
def test_closed_form_equals_the_meta_device(family, variant):
    import torch
    from transformers import AutoModelForCausalLM

    config = small_config(family, **VARIANTS[variant])
    shape = shape_from_config(config.to_dict())
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    model.tie_weights()

    assert shape.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert shape.tied == (model.lm_head.weight is model.model.embed_tokens.weight)
    assert (shape.layers, shape.hidden, shape.vocabulary) == (3, 24, 131)
    assert shape.max_positions == 64
    found: dict[tuple, int] = {}
    for name, module in model.model.layers.named_modules():
        if isinstance(module, torch.nn.Linear):
            key = (name.rpartition(".")[2], module.in_features, module.out_features)
            found[key] = found.get(key, 0) + 1
    assert {(x.name, x.in_features, x.out_features): x.count for x in shape.linear} == found


@pytest.mark.parametrize(
    ("family", "absent"), [("qwen3", "head_dim"), ("llama", "num_key_value_heads"), ("smollm3", "tie_word_embeddings")]
)
def test_a_key_absent_from_config_json_means_what_transformers_takes_it_for(family, absent):
    from transformers import AutoConfig

    given = {key: value for key, value in SMALL.items() if key != absent}
    filled = AutoConfig.for_model(family, **given).to_dict()
    raw = given | {"model_type": family}
    assert shape_from_config(raw).parameters == shape_from_config(filled).parameters


def test_lora_parameters_equal_what_peft_trains():
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    config = small_config("llama", head_dim=10, attention_bias=True)
    model = get_peft_model(
        AutoModelForCausalLM.from_config(config),
        LoraConfig(r=5, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert shape_from_config(config.to_dict()).lora_parameters(5) == trainable


def test_lora_parameters_are_unknown_without_linear_layers():
    assert ModelShape(parameters=7, source="test").lora_parameters(8) is None


@pytest.mark.parametrize("config", [{}, {"model_type": "mamba", "hidden_size": 8}, {"model_type": None}])
def test_other_families_have_no_closed_form(config):
    assert shape_from_config(config) is None


@pytest.mark.parametrize("value", [None, 0, -4, "24", 24.0])
def test_a_config_without_a_dimension_is_refused_by_name(value):
    with pytest.raises(ConfigError, match=r"llama config has hidden_size=.*whole number above 0.*config\.json"):
        shape_from_config({"model_type": "llama", **SMALL, "hidden_size": value})
