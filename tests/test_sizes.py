"""Sizes: every count falls in one band, names and keys are read rightly."""

from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hf_lora_ext.errors import ConfigError
from hf_lora_ext.models.sizes import (
    SIZE_BANDS,
    parameters_from_key,
    parameters_from_name,
    size_band,
)

EDGES = [band.up_to for band in SIZE_BANDS if band.up_to] + [1]


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
