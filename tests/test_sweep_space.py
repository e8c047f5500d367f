"""The space of a sweep: grids, chance, and points that processes agree on."""

from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_lora_ext.sweep.space import Choices, Range, ends, grid, grid_size, point_key, random_points, spoken

VALUES = st.one_of(st.integers(1, 64), st.sampled_from(["lora", "dora"]), st.none())
CHOICES = st.lists(VALUES, min_size=1, max_size=4, unique=True).map(lambda values: Choices(tuple(values)))


@st.composite
def ranges(draw: st.DrawFn) -> Range:
    numbers = draw(st.sampled_from([st.integers(1, 200), st.floats(1e-6, 1e3)]))
    low, high = sorted(draw(st.tuples(numbers, numbers).filter(lambda pair: pair[0] != pair[1])))
    return Range(low=low, high=high, log=draw(st.booleans()), steps=draw(st.integers(2, 5)))


SPACES = st.dictionaries(st.sampled_from(["rank", "method", "alpha"]), CHOICES | ranges(), min_size=1)


@given(SPACES)
def test_a_grid_has_as_many_distinct_points_as_it_tells(space: dict):
    points = list(grid(space))
    assert len(points) == grid_size(space) == len({point_key(point) for point in points})
    assert all(set(point) == set(space) for point in points)


@given(ranges())
def test_a_grid_of_a_range_has_both_ends_in_order_and_nothing_outside(axis: Range):
    values = axis.on_grid()
    assert (values[0], values[-1]) == (axis.low, axis.high)
    assert list(values) == sorted(values)
    assert 2 <= len(values) <= axis.steps
    assert all(isinstance(value, int) == axis.is_whole for value in values)


def test_equal_steps_of_a_logarithmic_range_are_equal_factors():
    assert Range(low=1e-4, high=1e-2, log=True, steps=3).on_grid() == (1e-4, 1e-3, 1e-2)
    assert Range(low=1, high=64, log=True, steps=4).on_grid() == (1, 4, 16, 64)
    assert Range(low=0, high=10, steps=3).on_grid() == (0, 5, 10)


@given(SPACES, st.integers(1, 12), st.integers(0, 3), st.integers(0, 6))
def test_chance_gives_distinct_points_inside_the_space_and_more_begin_with_the_same(
    space: dict, count: int, seed: int, more: int
):
    points = random_points(space, count, seed)
    longer = random_points(space, count + more, seed)
    assert longer[: len(points)] == points
    assert len({point_key(point) for point in longer}) == len(longer) <= count + more
    for key, axis in space.items():
        for point in longer:
            inside = point[key] in axis.values if isinstance(axis, Choices) else axis.low <= point[key] <= axis.high
            assert inside


def test_chance_ends_where_the_space_does():
    space = {"rank": Range(low=1, high=3), "method": Choices(("lora", "dora"))}
    assert len(random_points(space, 50, 0)) == 6


def test_chance_ends_too_where_a_range_rounds_to_a_few_values():
    space = {"learning_rate": Range(low=1.0, high=1.012)}
    assert [point["learning_rate"] for point in random_points(space, 50, 0)] == [1.01, 1.0]
    assert random_points(space, 1, 0) == random_points(space, 50, 0)[:1]


def test_chance_finds_the_ends_of_whole_numbers_as_often_as_the_rest():
    axis = Range(low=1, high=3)
    drawn = [axis.drawn((share + 0.5) / 300) for share in range(300)]
    assert [drawn.count(value) for value in (1, 2, 3)] == [100, 100, 100]


def test_the_ends_of_a_space_are_every_choice_with_both_ends_of_every_range():
    space = {"method": Choices(("lora", "dora", "adalora")), "rank": Range(low=1, high=9)}
    assert len(list(islice(ends(space), 100))) == 6


@pytest.mark.parametrize("value", [("q_proj", "v_proj"), ["q_proj", "v_proj"]])
def test_a_list_of_modules_is_one_value_however_it_is_held(value):
    assert point_key({"targets": value}) == point_key({"targets": ("q_proj", "v_proj")})
    assert spoken({"targets": value, "init": None}) == "targets q_proj+v_proj, init unset"
