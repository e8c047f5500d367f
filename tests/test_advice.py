"""Advice: inside the customary ranges, monotone in the data, and every line with its reason and source."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_lora_ext import preset
from hf_lora_ext.choices.advice import LADDER, RANGES, SMALL_DATA, TASKS, advise
from hf_lora_ext.errors import ConfigError
from hf_lora_ext.models.sizes import LinearLayer, ModelShape, size_band

counts = st.none() | st.integers(1, 10**12)
layers = st.builds(
    LinearLayer,
    name=st.just("q_proj"),
    in_features=st.integers(1, 20_000),
    out_features=st.integers(1, 20_000),
    count=st.integers(1, 500),
)
shapes = st.builds(
    ModelShape,
    parameters=st.integers(1, 10**12),
    source=st.just("test"),
    linear=st.lists(layers, max_size=3).map(tuple),
)
tasks = st.none() | st.sampled_from(TASKS)


@given(shapes, tasks, counts, counts)
def test_every_line_has_a_reason_and_a_source_and_gives_the_value(shape, task, examples, tokens):
    advice = advise(shape, task=task, examples=examples, tokens=tokens)
    by_name = {line.name: line.value for line in advice.lines}
    assert by_name == {name: getattr(advice, name) for name in ("rank", "alpha", "dropout", "targets")}
    assert all(line.why.strip() and line.source.strip() for line in (*advice.lines, *advice.warnings))
    assert advice.alpha in (advice.rank, 2 * advice.rank)
    assert 0 <= advice.dropout <= 0.1


@given(shapes, st.sampled_from(TASKS), counts, counts)
def test_the_rank_stays_in_the_task_s_range_and_on_the_ladder(shape, task, examples, tokens):
    lowest, highest, _ = RANGES[task]
    rank = advise(shape, task=task, examples=examples, tokens=tokens).rank
    assert lowest <= rank <= highest
    assert rank in LADDER


@given(shapes)
def test_with_nothing_known_the_size_key_decides(shape):
    assert advise(shape).rank == size_band(shape.parameters).rank


@given(shapes, tasks, counts, st.integers(1, 10**12), st.integers(1, 10**12))
def test_more_tokens_never_lower_the_rank(shape, task, examples, one, other):
    fewer, more = sorted((one, other))
    given = {"task": task, "examples": examples}
    assert advise(shape, **given, tokens=fewer).rank <= advise(shape, **given, tokens=more).rank


@given(shapes, tasks, st.integers(1, 10**7), st.integers(1, 10**7), counts)
def test_fewer_examples_never_raise_the_rank_or_lower_the_dropout(shape, task, one, other, tokens):
    fewer, more = sorted((one, other))
    small = advise(shape, task=task, examples=fewer, tokens=tokens)
    large = advise(shape, task=task, examples=more, tokens=tokens)
    assert small.rank <= large.rank
    assert small.dropout >= large.dropout


@given(shapes, tasks, st.integers(1, 10**7), counts)
def test_overfitting_is_warned_of_exactly_where_data_is_small(shape, task, examples, tokens):
    names = {line.name for line in advise(shape, task=task, examples=examples, tokens=tokens).warnings}
    assert ("overfitting" in names) == (examples < SMALL_DATA)


@given(shapes, tasks, counts, st.integers(1, 10**12))
def test_capacity_is_warned_of_exactly_where_a_bit_a_token_exceeds_two_a_parameter(shape, task, examples, tokens):
    advice = advise(shape, task=task, examples=examples, tokens=tokens)
    capacity = shape.lora_parameters(advice.rank)
    assert ("capacity" in {line.name for line in advice.warnings}) == (capacity is not None and tokens > 2 * capacity)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"task": "chatt"}, "task 'chatt' is not known; did you mean `chat`"),
        ({"examples": 0}, "examples=0 must be a whole number from 1"),
        ({"tokens": True}, "tokens=True must be a whole number from 1"),
    ],
)
def test_what_cannot_be_is_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        advise(ModelShape(parameters=10**9, source="test"), **given)


def test_an_automatic_rank_takes_the_advice_and_says_so():
    p = preset("7B", rank="auto", task="style", examples=200)
    text = " ".join(p.explain().split())
    assert (p.rank, p.alpha, p.dropout) == (4, 8, 0.1)
    assert p.peft_config.r == 4
    assert "200 examples are few" in text
    assert "overfitting" in text
    assert preset("7B").rank == 8


def test_your_own_values_win_over_advice():
    p = preset("7B", rank="auto", task="code", alpha=5, dropout=0.0)
    assert (p.rank, p.alpha, p.dropout) == (16, 5, 0.0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"task": "style"}, "task is for rank='auto'; add it, or leave task out"),
        ({"rank": "automatic"}, "rank='automatic' must be a whole number"),
        ({"rank": "auto", "task": "poem"}, "task 'poem' is not known"),
        ({"rank": "auto", "method": "prefix"}, "method prefix leaves no rank to choose"),
    ],
)
def test_an_automatic_rank_that_cannot_be_is_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        preset("no/such-model", **given)


def test_a_mixture_is_advised_what_its_preset_adapts():
    from hf_lora_ext.hardware import Hardware
    from hf_lora_ext.models.families import shape_from_config
    from hf_lora_ext.presets.preset import decide

    shape = shape_from_config({"model_type": "mixtral"})
    advice = advise(shape, tokens=10**9)
    assert advice.targets == decide(shape, Hardware(kind="cpu")).targets != "all-linear"
    held = 2.0 * shape.lora_parameters(advice.rank, advice.targets)
    assert next(w.value for w in advice.warnings if w.name == "capacity") == f"{10**9 / held:.1f}x full"
