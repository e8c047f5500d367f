"""Where a smaller adapter is as good as the whole: errors, smoothing and the knee, by hand-made numbers."""

import itertools
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_lora_ext.analysis.budgets import as_parameters, parse_budget
from hf_lora_ext.analysis.knee import Estimate, falling, find_knee, geometric_budgets, loss_a_token
from hf_lora_ext.errors import BudgetError, ConfigError

values = st.lists(st.floats(-10, 10, allow_nan=False), min_size=1, max_size=12)


def test_the_knee_is_the_smallest_budget_within_one_standard_error_of_the_whole():
    assert find_knee([0.9, 0.2, 0.08, 0.01, 0], 0.1) == 2
    assert find_knee([0.9, 0.2, 0.08, 0.01, 0], 0.05) == 3


def test_the_whole_is_the_knee_where_everything_else_is_worse():
    assert find_knee([0.9, 0.5, 0], 0.1) == 2
    assert find_knee([0], 0.1) == 0


def test_a_lucky_small_budget_is_not_the_knee_when_larger_ones_are_worse():
    assert find_knee([0.0, 0.9, 0.8, 0.05, 0], 0.1) == 3


def test_an_unlucky_large_budget_does_not_push_the_knee_up():
    assert find_knee([0.9, 0.02, 0.12, 0.01, 0], 0.1) == 1


def test_a_smaller_adapter_that_is_better_is_within_the_error():
    assert find_knee([0.9, -0.05, -0.02, 0], 0.0) == 1


@given(values)
def test_smoothed_values_never_rise_and_keep_their_sum(given_values: list[float]):
    smooth = falling(given_values)
    assert all(later <= earlier + 1e-12 for earlier, later in itertools.pairwise(smooth))
    assert math.isclose(sum(smooth), sum(given_values), abs_tol=1e-9)
    assert falling(sorted(given_values, reverse=True)) == sorted(given_values, reverse=True)


@given(values, values)
def test_no_other_falling_values_are_nearer(given_values: list[float], other: list[float]):
    rival = sorted((other * len(given_values))[: len(given_values)], reverse=True)
    nearest, far = (
        sum((a - b) ** 2 for a, b in zip(given_values, fitted, strict=True))
        for fitted in (falling(given_values), rival)
    )
    assert nearest <= far + 1e-9


def test_the_standard_error_is_that_of_repeated_samples():
    draw = random.Random(0)

    def sample() -> Estimate:
        tokens = [draw.randint(3, 30) for _ in range(200)]
        return loss_a_token([t * (2 + draw.gauss(0, 0.5)) for t in tokens], tokens)

    found = [sample() for _ in range(400)]
    mean = sum(e.mean for e in found) / len(found)
    spread = math.sqrt(sum((e.mean - mean) ** 2 for e in found) / (len(found) - 1))
    assert mean == pytest.approx(2, abs=0.01)
    assert sum(e.error for e in found) / len(found) == pytest.approx(spread, rel=0.1)


def test_a_single_example_has_no_error():
    assert math.isnan(loss_a_token([2.0], [2]).error)


@given(st.integers(1, 10**4), st.integers(1, 10**7), st.integers(2, 30))
def test_budgets_ascend_from_the_least_to_the_whole(least: int, whole: int, count: int):
    budgets = geometric_budgets(least, whole, count)
    assert budgets == sorted(set(budgets))
    assert budgets[-1] == whole
    assert len(budgets) <= count
    assert min(budgets) >= min(least, whole)


@pytest.mark.parametrize(("asked", "found"), [(200, 200), (1000, 1000), (0.25, 250), (1.0, 1000)])
def test_a_budget_is_parameters_or_a_share(asked: float, found: int):
    assert as_parameters(asked, 1000) == found


@pytest.mark.parametrize("asked", [0, -5, 0.0, float("nan"), 1.5, 1001])
def test_a_budget_of_nothing_or_above_the_whole_is_refused(asked: float):
    with pytest.raises(BudgetError, match="give"):
        as_parameters(asked, 1000)


@pytest.mark.parametrize("asked", ["half", True, None])
def test_a_budget_that_is_no_number_is_refused(asked: object):
    with pytest.raises(ConfigError, match="no number"):
        as_parameters(asked, 1000)


def test_budgets_are_read_as_people_write_them():
    assert [parse_budget(text) for text in ("50%", ".5", "200_000", " Knee ")] == [0.5, 0.5, 200000, "knee"]
    with pytest.raises(ConfigError, match="50%"):
        parse_budget("half")
