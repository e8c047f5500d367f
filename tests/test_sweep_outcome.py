"""What a sweep tells: best, knee, standard error and what a parameter buys, checked as properties."""

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_lora_ext.sweep.outcome import Run, Trial, best, efficiency, knee, standard_error, table


def trial(name: str, losses: Sequence[float], parameters: int, base: float | None = 4.0, **more) -> Trial:
    runs = tuple(
        Run(seed=seed, loss=loss, base_loss=base, parameters=parameters, seconds=2.0, peak_gib=1.0 + seed)
        for seed, loss in enumerate(losses)
    )
    return Trial(**{"name": name, "point": {"rank": parameters}, "state": "complete", "runs": runs} | more)


LOSSES = st.integers(50, 500).map(lambda hundredths: hundredths / 100)
TRIALS = st.lists(st.tuples(st.tuples(LOSSES, LOSSES), st.integers(1, 1000)), min_size=1, max_size=5).map(
    lambda made: [trial(f"{number:04d}", *each) for number, each in enumerate(made)]
)


@given(TRIALS)
def test_the_knee_is_never_larger_than_the_best_and_within_one_standard_error_of_it(trials: list[Trial]):
    leader, small = best(trials), knee(trials)
    assert small.parameters <= leader.parameters
    assert small.loss <= leader.loss + leader.error
    assert not [t for t in trials if t.parameters < small.parameters and t.loss <= leader.loss + leader.error]


@given(TRIALS)
def test_nothing_finished_is_better_than_the_best(trials: list[Trial]):
    assert all(best(trials).loss <= other.loss for other in trials)


def test_of_equal_losses_the_smaller_adapter_is_the_best():
    assert best([trial("0000", [2.0], 8), trial("0001", [2.0], 4)]).name == "0001"


def test_one_seed_has_a_best_and_no_knee():
    trials = [trial("0000", [2.0], 8), trial("0001", [2.1], 4)]
    assert best(trials).name == "0000"
    assert knee(trials) is None
    assert best([]) is knee([]) is None


def test_pruned_failed_and_unfinished_trials_are_never_the_best():
    good = trial("0000", [3.0, 3.1], 8)
    others = [trial(state, [1.0, 1.1], 4, state=state) for state in ("pruned", "failed", "running", "interrupted")]
    assert best([*others, good]) == knee([*others, good]) == good


def test_the_standard_error_is_the_spread_over_the_root_of_the_seeds():
    assert standard_error([1.0, 2.0, 3.0, 4.0]) == pytest.approx(math.sqrt(5 / 3) / 2)
    assert standard_error([1.0]) is None


@given(LOSSES, st.integers(1, 1000))
def test_a_reference_buys_once_what_it_buys(loss: float, parameters: int):
    reference = trial("full", [loss], parameters, base=6.0)
    assert efficiency(reference, reference).share == pytest.approx(1)
    assert efficiency(reference, reference).per_parameter == pytest.approx(1)


@given(st.floats(0.1, 2), st.integers(2, 500))
def test_the_same_gain_with_a_fraction_of_the_parameters_is_so_many_times_as_efficient(gain: float, times: int):
    reference, small = trial("full", [4 - gain], 10 * times), trial("0000", [4 - gain], 10)
    assert efficiency(small, reference).per_parameter == pytest.approx(times)
    assert efficiency(trial("0001", [4 - gain / 2], 10), reference).share == pytest.approx(0.5)


def test_nothing_is_told_of_efficiency_without_a_base_or_a_gain():
    good, worse = trial("0000", [3.0], 8), trial("full", [4.5], 100)
    assert efficiency(good, worse) is None
    assert efficiency(trial("0001", [3.0], 8, base=None), good) is None
    assert efficiency(trial("0002", [3.0], 8, state="pruned"), good) is None


def test_the_table_has_the_lowest_loss_first_and_compares_with_full_fine_tuning_where_there_is_one():
    full = trial("full-0000", [2.0, 2.0], 1000, is_full=True, point={"training.learning_rate": 1e-4})
    trials = [trial("0000", [3.0, 3.2], 10), trial("0001", [2.4, 2.6], 20), full]
    stopped = Trial(name="0002", point={"rank": 4}, state="failed", reason="out of memory")
    headings, rows = table([stopped, *trials], ["rank"])
    assert [row[0] for row in rows] == ["full-0000", "0001", "0000", "0002"]
    told = dict(zip(headings, rows[1], strict=True))
    assert (told["loss"], told["± SE"], told["parameters"]) == ("2.5000", "0.1000", "20")
    assert (told["gain"], told["per parameter"], told["seconds"], told["peak GiB"]) == ("75.0%", "37.5x", "4", "2.00")
    assert rows[0][1] == "all weights"
    assert rows[-1][-1] == "failed: out of memory"
