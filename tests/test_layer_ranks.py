"""Ranks by layer in a few lines: every rank is told once, in its place."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from hf_lora_ext.cards.layer_ranks import module_and_layer, place_of, ranks_by_module

names = st.builds("model.layers.{}.{}".format, st.integers(0, 12), st.sampled_from(["attn.q", "attn.k", "mlp.up"]))


@given(st.dictionaries(names, st.integers(1, 4), min_size=1))
def test_the_ranges_say_every_layer_s_rank(ranks):
    told = {
        (row.module, layer): rank
        for row in ranks_by_module(ranks)
        for first, last, rank in row.ranges
        for layer in range(first, last + 1)
        if rank
    }
    assert told == {module_and_layer(name): rank for name, rank in ranks.items()}


@given(st.dictionaries(names, st.integers(1, 4), min_size=1))
def test_neighbouring_ranges_differ(ranks):
    for row in ranks_by_module(ranks):
        told = [rank for _, _, rank in row.ranges]
        assert all(a != b for a, b in pairwise(told))


def test_a_layer_that_left_the_adapter_has_none():
    ranks = {f"layers.{i}.q": 8 for i in range(4)} | {"layers.0.k": 2, "layers.3.k": 2}
    assert [row.words for row in ranks_by_module(ranks)] == ["2 in layers 0, none in 1–2, 2 in 3", "8 in layers 0–3"]


@given(st.dictionaries(names, st.integers(1, 4), min_size=1))
def test_the_mean_over_all_modules_is_the_mean_rank(ranks):
    rows = ranks_by_module(ranks)
    layers = [last for _, last, _ in rows[0].ranges][-1] - rows[0].ranges[0][0] + 1
    assert abs(sum(row.mean * layers for row in rows) - sum(ranks.values())) < 1e-9
    assert all(row.lowest <= row.mean <= row.highest for row in rows)


@given(st.lists(st.sampled_from(["model", "layers", "0", "17", "q_proj", "w1", "3x"]), min_size=1).map(".".join))
def test_the_place_of_a_module_is_its_name_cut_at_the_first_number_that_holds_something(name: str):
    stack, layer, module = place_of(name)
    parts = name.split(".")
    at = next((index for index, part in enumerate(parts[:-1]) if part.isdecimal()), None)
    assert layer == (None if at is None else int(parts[at]))
    assert name == (module if at is None else ".".join([*parts[:at], str(layer), module]))
    assert stack == ("" if at is None else ".".join(parts[:at]))
