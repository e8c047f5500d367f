"""Where a sweep is kept: every trial once, shared by processes, and again what a killed one left behind."""

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from hf_lora_ext import ConfigError, Sweep
from hf_lora_ext.sweep.holds import SILENCE_SECONDS, Hold, is_abandoned
from hf_lora_ext.sweep.outcome import Run
from hf_lora_ext.sweep.settings import parse_sweep
from hf_lora_ext.sweep.store import MOST_ATTEMPTS, Claim, SweepStore

BASE = {"model": "some/model", "data": {"source": "builtin:python-docstrings"}}


def sweep_of(folder: Path, **more) -> Sweep:
    space = more.pop("space", {"rank": [1, 4, 16], "targets": ["all-linear", ["q_proj", "v_proj"]]})
    return parse_sweep({"base": BASE, "output_dir": str(folder / "sweep"), "seeds": 1, "space": space} | more)


def finish(store: SweepStore, claim: Claim, loss: float = 2.0) -> None:
    store.keep(claim, Run(seed=0, loss=loss, parameters=10, seconds=1.0, peak_gib=0.5))
    store.end(claim, "complete")


def killed(claim: Claim) -> None:
    """Leave a trial as a killed process does: its lock is free, and nothing was told."""
    claim.hold.release()


def run_all(store: SweepStore, limit: int = 100) -> list[Claim]:
    done = []
    while (claim := store.claim()) is not None and len(done) < limit:
        finish(store, claim, 2.0 + len(done))
        done.append(claim)
    return done


@pytest.mark.parametrize(
    "more",
    [{}, {"strategy": "random", "trials": 5}, {"strategy": "random", "trials": 99},
     {"strategy": "bayesian", "trials": 5}],
)  # fmt: skip
def test_every_trial_is_taken_once_and_then_none(tmp_path: Path, more: dict):
    store = SweepStore(sweep_of(tmp_path, **more, full_learning_rates=[1e-5, 1e-4]))
    done = run_all(store)
    points = store.sweep.points
    assert [claim.trial.is_full for claim in done] == [False] * points + [True] * 2
    assert len({claim.trial.name for claim in done}) == points + 2
    assert [trial.state for trial in store.trials()] == ["complete"] * (points + 2)
    assert not store.is_open()
    assert SweepStore(store.sweep).claim() is None


def test_two_stores_of_one_folder_share_the_trials(tmp_path: Path):
    one, other = SweepStore(sweep_of(tmp_path)), SweepStore(sweep_of(tmp_path))
    claims = [store.claim() for store in (one, other, one, other, one, other)]
    assert len({claim.trial.name for claim in claims}) == 6
    assert one.claim() is None
    assert other.is_open()
    assert {trial.state for trial in one.trials()} == {"running"}
    for store, claim in zip((one, other) * 3, claims, strict=True):
        finish(store, claim)
    assert not one.is_open()


@pytest.mark.parametrize("strategy", [{}, {"strategy": "bayesian", "trials": 3}])
def test_a_killed_trial_is_the_next_to_be_taken_in_its_own_folder(tmp_path: Path, strategy: dict):
    store = SweepStore(sweep_of(tmp_path, **strategy))
    finish(store, store.claim())
    left, busy = store.claim(), store.claim()
    killed(left)
    again = SweepStore(store.sweep).claim()
    assert (again.folder, again.trial.point) == (left.folder, left.trial.point)
    assert again.folder != busy.folder
    assert len(store.trials()) == 3


def test_what_a_killed_trial_told_of_its_losses_stays_known(tmp_path: Path):
    store = SweepStore(sweep_of(tmp_path))
    left = store.claim()
    store.should_prune(left, 5, 3.0)
    killed(left)
    again = store.claim()
    assert not store.should_prune(again, 5, 3.0)  # told twice, as a resumed run does
    assert store._studies["adapters"].trials[-1].intermediate_values == {5: 3.0}


def test_a_trial_that_takes_its_process_with_it_is_given_up(tmp_path: Path):
    store = SweepStore(sweep_of(tmp_path, space={"rank": [1]}))
    for _ in range(MOST_ATTEMPTS):
        killed(store.claim())
    assert store.claim() is None
    assert [(t.state, t.reason) for t in store.trials()] == [("failed", "was killed each time")]


def test_a_failed_trial_is_tried_again_by_the_next_process_and_not_by_the_same(tmp_path: Path):
    store = SweepStore(sweep_of(tmp_path, space={"rank": [1]}))
    store.end(store.claim(), "failed", "out of memory")
    assert store.claim() is None
    later = SweepStore(store.sweep)
    finish(later, later.claim())
    assert [(t.state, t.reason) for t in later.trials()] == [("complete", None)]


def test_what_is_left_between_queue_and_trial_is_taken(tmp_path: Path):
    store = SweepStore(sweep_of(tmp_path))
    attributes = {"folder": "0000", "attempt": 1, "key": '{"rank": 4, "targets": "all-linear"}'}
    store._studies["adapters"].enqueue_trial({"rank": 4, "targets": "all-linear"}, user_attrs=attributes)
    assert dict(store.claim().trial.point) == {"rank": 4, "targets": "all-linear"}


def test_the_same_trials_before_give_the_same_next_point(tmp_path: Path):
    space = {"rank": {"low": 1, "high": 64, "log": True}, "training.learning_rate": {"low": 1e-5, "high": 1e-2}}
    runs = [run_all(SweepStore(sweep_of(tmp_path / name, space=space, strategy="bayesian", trials=8))) for name in "ab"]
    first, second = ([claim.trial.point for claim in run] for run in runs)
    assert first == second
    assert all(1 <= point["rank"] <= 64 and isinstance(point["rank"], int) for point in first)


def test_a_trial_far_worse_than_the_others_at_a_step_is_to_be_pruned_and_a_better_one_is_not(tmp_path: Path):
    store = SweepStore(sweep_of(tmp_path, prune=True))
    for loss in (2.0, 2.1, 2.2, 2.3):
        claim = store.claim()
        assert not store.should_prune(claim, 5, loss)
        finish(store, claim, loss)
    assert store.should_prune(store.claim(), 5, 9.0)
    assert not store.should_prune(store.claim(), 5, 1.0)


def test_more_trials_references_or_time_go_on_in_the_folder_and_another_sweep_is_refused(tmp_path: Path):
    sweep = sweep_of(tmp_path, strategy="random", trials=2, full_learning_rates=[1e-5])
    run_all(SweepStore(sweep))
    assert len(run_all(SweepStore(replace(sweep, trials=4, time_limit_minutes=5.0)))) == 2
    (added,) = run_all(SweepStore(replace(sweep, full_learning_rates=(1e-5, 3e-5))))
    assert dict(added.trial.point) == {"training.learning_rate": 3e-5}
    with pytest.raises(ConfigError, match="holds another sweep, which differs in seeds"):
        SweepStore(replace(sweep, seeds=2))


def test_a_folder_with_other_things_or_without_a_sweep_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="holds no sweep yet"):
        SweepStore(sweep_of(tmp_path), create=False)
    assert not (tmp_path / "sweep").exists()
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "thesis.tex").touch()
    with pytest.raises(ConfigError, match="holds other things, and no sweep of ours"):
        SweepStore(sweep_of(tmp_path))


def test_a_hold_is_abandoned_when_it_is_released(tmp_path: Path):
    hold = Hold(tmp_path)
    assert not is_abandoned(tmp_path)
    hold.release()
    assert is_abandoned(tmp_path)


def test_another_machine_s_hold_is_judged_by_its_heartbeat_alone(tmp_path: Path):
    Hold(tmp_path).release()
    pulse = tmp_path / ".pulse"
    pulse.write_text("another machine", encoding="ascii")
    assert not is_abandoned(tmp_path)
    silent = time.time() - SILENCE_SECONDS - 5
    os.utime(pulse, (silent, silent))
    assert is_abandoned(tmp_path)


def test_a_hold_beats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("hf_lora_ext.sweep.holds.BEAT_SECONDS", 0.01)
    hold = Hold(tmp_path)
    os.utime(tmp_path / ".pulse", (0, 0))
    deadline = time.monotonic() + 30
    while not (tmp_path / ".pulse").stat().st_mtime and time.monotonic() < deadline:
        time.sleep(0.01)
    hold.release()
    assert (tmp_path / ".pulse").stat().st_mtime > 0
