"""When a run pushes, decided from plain values."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_lora_ext import ConfigError
from hf_lora_ext.push.schedule import PushSchedule, schedule_of_strategy


@given(every=st.integers(1, 20), saves=st.integers(0, 200))
def test_each_nth_save_goes_and_no_other(every: int, saves: int):
    schedule = PushSchedule(every_saves=every)
    gone = [save for save in range(1, saves + 1) if schedule.reason(save, is_best=False)]
    assert gone == list(range(every, saves + 1, every))


@given(st.integers(1, 1000))
def test_a_best_save_goes_whatever_its_number_and_only_where_the_best_is_asked_for(save: int):
    assert PushSchedule(best=True).reason(save, is_best=True) == "best so far"
    assert PushSchedule(best=True).reason(save, is_best=False) is None
    assert PushSchedule().reason(save, is_best=True) is None


@pytest.mark.parametrize("every", [0, -1, 1.5, True, "2"])
def test_a_number_of_saves_that_is_none_is_refused(every: object):
    with pytest.raises(ConfigError, match="a whole number from 1"):
        PushSchedule(every_saves=every)


def test_every_strategy_of_the_trainer_has_its_schedule():
    from transformers.trainer_utils import HubStrategy

    schedules = {strategy.value: schedule_of_strategy(strategy.value) for strategy in HubStrategy}
    assert {name: schedule.every_saves for name, schedule in schedules.items()} == {
        "end": None, "every_save": 1, "checkpoint": 1, "all_checkpoints": 1,
    }  # fmt: skip
    assert all(schedule.at_end for schedule in schedules.values())
