"""AdaLoRA's phases: shares become steps, and what cannot be right is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_lora_ext import ConfigError
from hf_lora_ext.adapters.adalora_schedule import check_ranks, plan_schedule


@given(st.integers(1, 10_000), st.floats(0, 0.99), st.floats(0, 0.99))
def test_a_planned_run_keeps_then_drops_then_settles(total: int, tinit: float, tfinal: float):
    try:
        planned = plan_schedule(total, tinit, tfinal)
    except ConfigError:
        assert round(total * tinit) + round(total * tfinal) >= total or total - round(total * tfinal) < 2
        return
    assert 0 <= planned.tinit < planned.freeze_step <= total == planned.total_steps
    assert planned.tinit + (planned.freeze_step - planned.tinit) + planned.tfinal == total
    assert abs(planned.tinit - tinit * total) <= 0.5


@given(st.integers(2, 500), st.data())
def test_steps_and_the_same_shares_plan_the_same_run(total: int, data: st.DataObject):
    tinit = data.draw(st.integers(1, total))
    tfinal = data.draw(st.integers(0, total))
    if tinit + tfinal < total and total - tfinal >= 2:
        assert plan_schedule(total, tinit, tfinal) == plan_schedule(total, tinit / total, tfinal / total)


@pytest.mark.parametrize("wrong", [-1, -0.1, 1.5, True, "half", None])
def test_a_phase_that_is_neither_steps_nor_a_share_is_refused(wrong: object):
    with pytest.raises(ConfigError, match=r"tfinal=.* must be a whole number of steps, or a share"):
        plan_schedule(10, 0, wrong)


def test_phases_that_fill_the_run_are_refused_with_a_remedy():
    with pytest.raises(ConfigError, match=r"tinit=200 and tfinal=500 .* none of the run's 100 .*tinit=0\.1"):
        plan_schedule(100, 200, 500)


@pytest.mark.parametrize(("init_r", "target_r"), [(8, 8), (4, 8), (8, 0)])
def test_ranks_that_leave_nothing_to_drop_are_refused(init_r: int, target_r: int):
    with pytest.raises(ConfigError, match=rf"target_r={target_r} .* init_r={init_r}"):
        check_ranks(init_r, target_r, 1)


def test_an_interval_of_no_steps_is_refused():
    with pytest.raises(ConfigError, match="deltaT=0"):
        check_ranks(12, 8, 0)


@pytest.mark.parametrize("total", [1, 2])
def test_a_run_too_short_to_score_before_it_drops_is_refused(total: int):
    with pytest.raises(ConfigError, match="steps"):
        plan_schedule(total, 0.1, 0.3)
    assert plan_schedule(3, 0.1, 0.3).freeze_step == 2
