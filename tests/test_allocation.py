"""Ranks under a budget: never over it, never better otherwise, and the same every time."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_lora_ext.errors import BudgetError
from hf_lora_ext.ranks.allocation import Gain, allocate_moves, allocate_ranks, parameters_of

WORTH = st.floats(0, 1e6, allow_nan=False)
MODULES = st.dictionaries(
    st.text("abc", min_size=1, max_size=2),
    st.tuples(st.lists(WORTH, min_size=1, max_size=4).map(lambda v: sorted(v, reverse=True)), st.integers(1, 50)),
    min_size=1,
    max_size=4,
)


def split(modules: dict) -> tuple[dict, dict]:
    return {name: scores for name, (scores, _) in modules.items()}, {name: cost for name, (_, cost) in modules.items()}


def kept(scores: dict, ranks: dict) -> float:
    return sum(sum(scores[name][:rank]) for name, rank in ranks.items())


@given(MODULES, st.integers(0, 400))
def test_allocation_never_exceeds_the_budget_and_leaves_no_direction_that_fits(modules: dict, budget: int):
    scores, costs = split(modules)
    ranks = allocate_ranks(scores, costs, budget)
    spent = parameters_of(ranks, costs)
    assert spent <= budget
    assert all(spent + costs[name] > budget for name in ranks if ranks[name] < len(scores[name]))


@given(MODULES, st.integers(0, 400))
def test_no_choice_within_the_budget_beats_it_by_more_than_one_direction(modules: dict, budget: int):
    scores, costs = split(modules)
    names = sorted(scores)
    choices = (dict(zip(names, ranks, strict=True)) for ranks in product(*(range(len(scores[n]) + 1) for n in names)))
    best = max(kept(scores, choice) for choice in choices if parameters_of(choice, costs) <= budget)
    one = max(max(values) for values in scores.values())
    assert kept(scores, allocate_ranks(scores, costs, budget)) >= best - one * (1 + 1e-9)


@given(MODULES, st.integers(0, 400), st.integers(0, 400))
def test_nested_choices_are_part_of_one_another_and_within_a_direction_of_the_budget(modules: dict, one: int, two: int):
    scores, costs = split(modules)
    smaller, larger = (allocate_ranks(scores, costs, budget, nested=True) for budget in sorted((one, two)))
    assert all(smaller[name] <= larger[name] for name in scores)
    spent = parameters_of(smaller, costs)
    assert spent <= min(one, two)
    full = all(smaller[name] == len(scores[name]) for name in scores)
    assert full or spent + max(costs.values()) > min(one, two)


@given(MODULES, st.integers(0, 400))
def test_at_one_cost_the_choice_is_the_best_there_is(modules: dict, budget: int):
    scores, _ = split(modules)
    costs = dict.fromkeys(scores, 7)
    best = sum(sorted((value for values in scores.values() for value in values), reverse=True)[: budget // 7])
    assert kept(scores, allocate_ranks(scores, costs, budget)) == pytest.approx(best)


@given(MODULES, st.integers(0, 400), st.integers(0, 100))
def test_more_budget_never_keeps_less_worth_at_one_cost(modules: dict, budget: int, more: int):
    scores, _ = split(modules)
    costs = dict.fromkeys(scores, 3)
    less_kept, more_kept = (kept(scores, allocate_ranks(scores, costs, b)) for b in (budget, budget + more))
    assert more_kept >= less_kept


@given(MODULES, st.integers(0, 400), st.integers(0, 2), st.integers(1, 3))
def test_bounds_are_kept(modules: dict, budget: int, least: int, most: int):
    scores, costs = split(modules)
    floor = dict.fromkeys(scores, least)
    needed = parameters_of({name: min(least, len(values)) for name, values in scores.items()}, costs)
    if needed > budget:
        with pytest.raises(BudgetError, match="least ranks"):
            allocate_ranks(scores, costs, budget, least=floor)
        return
    ranks = allocate_ranks(scores, costs, budget, least=floor, most=dict.fromkeys(scores, max(least, most)))
    assert all(min(least, len(scores[name])) <= rank <= max(least, most) for name, rank in ranks.items())


def test_the_order_of_the_modules_changes_nothing_and_ties_go_to_the_first_name():
    scores = {"b": [1.0, 1.0], "a": [1.0, 1.0]}
    assert allocate_ranks(scores, {"a": 2, "b": 2}, 6) == {"b": 1, "a": 2}
    assert allocate_ranks(dict(reversed(scores.items())), {"b": 2, "a": 2}, 6) == {"a": 2, "b": 1}


def test_where_nothing_is_worth_more_the_ranks_are_uniform():
    scores = dict.fromkeys("abcd", [0.0] * 4)
    assert allocate_ranks(scores, dict.fromkeys("abcd", 10), 80) == dict.fromkeys("abcd", 2)


def test_scores_that_ascend_or_lack_a_cost_are_mistakes_of_the_caller():
    with pytest.raises(ValueError, match="descend"):
        allocate_ranks({"a": [1.0, 2.0]}, {"a": 1}, 5)
    with pytest.raises(ValueError, match="different modules"):
        allocate_ranks({"a": [1.0]}, {"b": 1}, 5)


# --- exchanges under a fixed budget -----------------------------------------------------------------------------

GAINS = st.lists(st.builds(Gain, st.floats(-10, 1e3), st.floats(0, 1e3)), max_size=4)
MOVING = st.dictionaries(
    st.text("ab", min_size=1, max_size=2),
    st.tuples(st.lists(st.floats(0, 1e3), max_size=4).map(lambda v: sorted(v, reverse=True)), GAINS, st.integers(1, 9)),
    min_size=1,
    max_size=4,
)


def parts(modules: dict) -> tuple[dict, dict, dict]:
    scores, gains, costs = ({name: module[part] for name, module in modules.items()} for part in range(3))
    return scores, gains, costs


def predicted(scores: dict, gains: dict, kept_: dict, grown: dict) -> float:
    return kept(scores, kept_) + sum(gains[name][index].sure for name, picked in grown.items() for index in picked)


@given(MOVING, st.integers(0, 30))
def test_moves_hold_the_budget_and_only_grow_what_is_sure_to_win(modules: dict, slack: int):
    scores, gains, costs = parts(modules)
    budget = parameters_of({name: len(values) for name, values in scores.items()}, costs) + slack
    kept_, grown = allocate_moves(scores, gains, costs, budget)
    total = {name: kept_[name] + len(grown.get(name, ())) for name in scores}
    assert parameters_of(total, costs) <= budget
    assert all(gains[name][index].sure > 0 for name, picked in grown.items() for index in picked)
    assert all(len(set(picked)) == len(picked) for picked in grown.values())


@given(MOVING, st.integers(0, 30))
def test_moves_are_never_expected_to_lose(modules: dict, slack: int):
    scores, gains, costs = parts(modules)
    now = {name: len(values) for name, values in scores.items()}
    kept_, grown = allocate_moves(scores, gains, costs, parameters_of(now, costs) + slack)
    assert predicted(scores, gains, kept_, grown) >= kept(scores, now) * (1 - 1e-12)
    if not grown:
        assert kept_ == now


@given(MOVING)
def test_at_one_cost_moves_are_the_best_there_are(modules: dict):
    scores, gains, _ = parts(modules)
    costs, slots = dict.fromkeys(scores, 7), sum(map(len, scores.values()))
    sure = [gain.sure for found in gains.values() for gain in found if gain.sure > 0]
    best = sum(sorted([value for values in scores.values() for value in values] + sure, reverse=True)[:slots])
    assert predicted(scores, gains, *allocate_moves(scores, gains, costs, 7 * slots)) == pytest.approx(best)


def test_a_direction_leaves_only_for_one_that_beats_it_by_a_standard_error():
    scores, costs = {"a": [2.0, 1.0], "b": []}, {"a": 5, "b": 5}
    assert allocate_moves(scores, {"b": [Gain(1.5, 0.6)]}, costs, 10) == ({"a": 2, "b": 0}, {})
    assert allocate_moves(scores, {"b": [Gain(-1, 0), Gain(1.5, 0.4)]}, costs, 10) == ({"a": 1, "b": 0}, {"b": (1,)})


def test_a_large_direction_does_not_leave_for_a_small_one_that_wins_less():
    scores, costs = {"large": [2.0], "small": []}, {"large": 100, "small": 10}
    assert allocate_moves(scores, {"small": [Gain(1.0, 0.0)]}, costs, 100) == ({"large": 1, "small": 0}, {})


def test_an_adapter_over_the_budget_is_a_mistake():
    with pytest.raises(BudgetError, match="20 parameters are there already"):
        allocate_moves({"a": [1.0, 1.0]}, {}, {"a": 10}, 19)
