"""The paired bootstrap: no difference where there is none, the right one where it is known, and honest intervals."""

import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_lora_ext.evaluation.bootstrap import Score, compare, paired_bootstrap, resampled
from hf_lora_ext.evaluation.scores import f1_statistic, mean_statistic, perplexity_statistic, ratio_statistic
from hf_lora_ext.metrics.definitions import f1_score

VALUES = st.lists(st.floats(-8, 8).map(lambda value: round(value, 3)), min_size=2, max_size=25)


def mean_difference(one: Sequence[float], other: Sequence[float], **settings):
    pairs = {"mean": (mean_statistic(one), mean_statistic(other))}
    return paired_bootstrap(pairs, len(one), **({"resamples": 200} | settings))["mean"]


@settings(deadline=None, max_examples=40)
@given(VALUES)
def test_a_model_does_not_differ_from_itself(values: list[float]):
    found = mean_difference(values, list(values))
    assert (found.value, found.low, found.high, found.is_seen) == (0, 0, 0, False)


@settings(deadline=None, max_examples=40)
@given(VALUES, st.integers(1, 9))
def test_the_same_shift_of_every_example_has_an_interval_without_width(values: list[float], shift: int):
    found = mean_difference(values, [value + shift for value in values])
    assert (found.value, found.low, found.high) == pytest.approx((shift, shift, shift))
    assert found.is_seen


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=2, max_size=25))
def test_the_other_way_round_is_the_same_interval_mirrored(pairs: list[tuple[int, int]]):
    one, other = ([float(value) for value in side] for side in zip(*pairs, strict=True))
    there, back = mean_difference(one, other), mean_difference(other, one)
    assert (back.value, back.low, back.high) == pytest.approx((-there.value, -there.high, -there.low))


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=2, max_size=25), st.integers(0, 99))
def test_an_interval_is_in_order_within_the_extremes_and_the_same_for_a_seed(pairs: list[tuple[int, int]], seed: int):
    one, other = ([float(value) for value in side] for side in zip(*pairs, strict=True))
    found = mean_difference(one, other, seed=seed)
    differences = [after - before for before, after in pairs]
    assert min(differences) - 1e-9 <= found.low <= found.high <= max(differences) + 1e-9
    assert found == mean_difference(one, other, seed=seed)


def test_a_wider_level_gives_a_wider_interval():
    drawn = random.Random(1)
    one, other = ([drawn.gauss(0, 1) for _ in range(40)] for _ in range(2))
    narrow, wide = (mean_difference(one, other, level=level, resamples=1000) for level in (0.5, 0.99))
    assert wide.low < narrow.low < narrow.high < wide.high


def test_pairing_sees_a_small_shift_that_the_spread_of_examples_would_hide():
    drawn = random.Random(2)
    one = [drawn.gauss(0, 10) for _ in range(60)]
    other = [value - 0.2 + drawn.gauss(0, 0.1) for value in one]
    assert mean_difference(one, other).high < 0
    drawn.shuffle(other)
    assert not mean_difference(one, other).is_seen


def test_the_interval_holds_the_true_difference_about_as_often_as_it_says():
    """A hundred examples, differences of spread 1 around 0.3; 300 such experiments of 300 resamples."""
    drawn = random.Random(3)
    held = 0
    for seed in range(300):
        differences = [0.3 + drawn.gauss(0, 1) for _ in range(100)]
        found = mean_difference([0.0] * 100, differences, resamples=300, seed=seed)
        held += found.low <= 0.3 <= found.high
    assert 0.90 <= held / 300 <= 0.98


def test_examples_of_few_tokens_weigh_little_in_a_loss():
    nats, tokens = [10.0, 1.0], [1, 100]
    assert ratio_statistic(nats, tokens)(range(2)) == pytest.approx(11 / 101)
    assert ratio_statistic(nats, tokens)([0, 0]) == 10
    assert perplexity_statistic([2.0, 2.0], [1, 1])(range(2)) == pytest.approx(7.389056)
    assert perplexity_statistic([1e9], [1])([0]) < float("inf")


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30), st.integers(0, 99))
def test_f1_of_a_draw_is_the_f1_of_the_drawn_rows(pairs: list[tuple[int, int]], seed: int):
    references, predictions = ([*side] for side in zip(*pairs, strict=True))
    (drawn,) = resampled(len(pairs), 1, seed)
    for average in ("macro", "micro"):
        expected = f1_score([references[i] for i in drawn], [predictions[i] for i in drawn], average)
        assert f1_statistic(references, predictions, average)(drawn) == pytest.approx(expected)


@pytest.mark.parametrize(("examples", "resamples"), [(1, 1000), (5, 10)])
def test_too_little_for_an_interval_is_refused(examples: int, resamples: int):
    with pytest.raises(ValueError, match="give no interval"):
        mean_difference([0.0] * examples, [1.0] * examples, resamples=resamples)


def test_metrics_of_different_examples_are_compared_each_on_its_own():
    base = {"loss": Score(mean_statistic([3.0, 4.0, 5.0]), 3), "exact_match": Score(mean_statistic([0.0, 0.0]), 2)}
    adapter = {"exact_match": Score(mean_statistic([1.0, 1.0]), 2), "loss": Score(mean_statistic([2.0, 3.0, 4.0]), 3)}
    full = {"loss": Score(mean_statistic([2.5, 2.5, 4.0]), 3), "exact_match": Score(mean_statistic([1.0, 1.0]), 2)}
    loss, exact = compare(base, adapter, full)
    assert (loss.metric, loss.examples, loss.base, loss.adapter, loss.full) == ("loss", 3, 4.0, 3.0, 3.0)
    assert (loss.verdict, loss.verdict_beside_full) == ("better", "no difference")
    assert (exact.examples, exact.change.value, exact.verdict) == (2, 1.0, "better")
    assert compare(adapter, base)[0].verdict == "worse"
