"""A sweep end to end: every trial a run, killed and shared processes, and what it says in the end."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import outcome

from hf_lora_ext import ConfigError, Sweep, load_recipe, load_sweep, run_recipe, run_sweep
from hf_lora_ext.cards.facts import read_facts
from hf_lora_ext.hardware import Hardware
from hf_lora_ext.sweep.forecast import check_fits, forecast
from hf_lora_ext.sweep.report import SweepResult
from hf_lora_ext.sweep.settings import recipe_at
from hf_lora_ext.sweep.store import SweepStore
from hf_lora_ext.sweep.sweeper import report_sweep


def quiet(line: str) -> None:
    """Say nothing."""


@pytest.fixture
def sweep_file(tiny_recipe: Path, tmp_path: Path) -> Path:
    """Two ranks with two seeds of a run of six steps, and one full fine-tuning."""
    file = tmp_path / "sweep.yaml"
    file.write_text(
        f"""
base: {tiny_recipe.name}
fixed: {{samples: 0}}
output_dir: {tmp_path / "sweep"}
space: {{rank: [1, 8]}}
seeds: 2
full_learning_rates: [1e-3]
""",
        encoding="utf8",
    )
    return file


def started(file: Path, *overrides: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "hf_lora_ext.cli", "sweep", str(file), *overrides],
        env=os.environ, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def wait_for(found: Path, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 300
    while not found.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_sweep_runs_every_seed_and_says_best_knee_and_what_parameters_buy(sweep_file: Path, tmp_path: Path, capsys):
    sweep, lines = load_sweep(sweep_file), []
    result = run_sweep(sweep, lines.append)
    assert (result.status, [len(trial.runs) for trial in result.trials]) == ("finished", [2, 2, 2])
    one, eight, full = result.trials
    assert (one.parameters, eight.parameters, full.is_full) == (1024, 8192, True)
    assert full.parameters > eight.parameters
    assert result.best == min((one, eight), key=lambda trial: trial.loss)
    for trial in result.trials:
        for run in trial.runs:
            facts = read_facts(result.folder / "trials" / trial.name / f"seed-{run.seed}" / "facts.json")
            assert (run.loss, run.base_loss) == (facts.evaluation["adapter"]["loss"], facts.evaluation["base"]["loss"])
            assert facts.environment["hardware"]["device_kind"] == "cpu"
    assert one.runs[0].base_loss == eight.runs[0].base_loss == full.runs[0].base_loss
    assert not list((result.folder / "trials").rglob("checkpoint-*"))
    assert not list((result.folder / "trials" / full.name).rglob("*.safetensors"))
    assert {"results.json", "best.yaml", "knee.yaml", "loss_against_rank.png"} <= set(result.files)
    assert all((result.folder / name).is_file() for name in result.files)
    assert any("trial    2/3" in line and "best " in line and "left about" in line for line in lines)
    best_runs_as_it_is(result)
    finished_is_reported_and_not_repeated(sweep, sweep_file, result, capsys)


def best_runs_as_it_is(result: SweepResult) -> None:
    recipe = load_recipe(result.folder / "best.yaml")
    assert recipe.rank == result.best.point["rank"]
    trained = run_recipe(recipe, quiet)
    assert trained.facts.evaluation["adapter"]["loss"] == result.best.runs[0].loss


def finished_is_reported_and_not_repeated(sweep: Sweep, file: Path, result: SweepResult, capsys) -> None:
    before = {path: path.stat().st_mtime_ns for path in (result.folder / "trials").rglob("facts.json")}
    lines: list[str] = []
    assert run_sweep(sweep, lines.append).trials == report_sweep(sweep).trials == result.trials
    assert not [line for line in lines if line.startswith("trial")]
    assert before == {path: path.stat().st_mtime_ns for path in (result.folder / "trials").rglob("facts.json")}
    capsys.readouterr()
    code, out, _ = outcome(capsys, "sweep", file, "--report", "--json")
    assert (code, json.loads(out)) == (0, json.loads((result.folder / "results.json").read_text()))
    code, out, _ = outcome(capsys, "sweep", file, "--report")
    assert code == 0
    assert "per parameter" in out
    assert f"{result.best.loss:.4f}" in out
    assert "knee: trial" in out


@pytest.mark.slow
def test_a_sweep_killed_with_signal_9_goes_on_in_its_last_run_and_repeats_nothing(sweep_file: Path, tmp_path: Path):
    longer = "fixed.training.max_steps=60"
    sweep = load_sweep(sweep_file, [longer])
    trials = tmp_path / "sweep" / "trials"
    process = started(sweep_file, longer)
    wait_for(trials / "0001" / "seed-0" / "checkpoints" / "checkpoint-10" / "trainer_state.json", process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    first = {path: path.read_bytes() for path in (trials / "0000").rglob("facts.json")}
    assert [trial.state for trial in SweepStore(sweep).trials()] == ["complete", "interrupted"]
    lines: list[str] = []
    result = run_sweep(sweep, lines.append)
    assert (result.status, [len(trial.runs) for trial in result.trials]) == ("finished", [2, 2, 2])
    assert [line for line in lines if "  0000:" in line] == []
    assert any(line.strip().startswith("seed 0  resuming from checkpoint-") for line in lines)
    assert len(first) == 2
    assert all(path.read_bytes() == content for path, content in first.items())
    whole = run_recipe(recipe_at(sweep, {"rank": 8}, 0, tmp_path / "whole"), quiet)
    name = "adapter_model.safetensors"
    assert (whole.folder / name).read_bytes() == (trials / "0001" / "seed-0" / name).read_bytes()


@pytest.mark.slow
def test_two_processes_share_a_sweep(sweep_file: Path):
    given = ["space.rank=[1,2,4,8]", "seeds=1", "full_learning_rates=null", "fixed.training.max_steps=40"]
    both = [started(sweep_file, *given) for _ in range(2)]
    errors = [process.communicate(timeout=500)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], errors
    begun = [{line.split()[2] for line in text.splitlines() if line.startswith("trial")} for text in errors]
    assert begun[0] | begun[1] == {"0000:", "0001:", "0002:", "0003:"}
    assert not begun[0] & begun[1]
    assert [trial.state for trial in report_sweep(load_sweep(sweep_file, given)).trials] == ["complete"] * 4


def test_a_pruned_trial_ends_on_the_way_and_has_no_loss(sweep_file: Path, monkeypatch: pytest.MonkeyPatch):
    sweep = load_sweep(sweep_file, ["seeds=1", "full_learning_rates=null", "prune=true"])
    monkeypatch.setattr(SweepStore, "should_prune", lambda self, claim, step, loss: claim.trial.point["rank"] == 8)
    lines: list[str] = []
    one, eight = run_sweep(sweep, lines.append).trials
    assert (one.state, eight.state, eight.reason) == ("complete", "pruned", "worse than the median at step 3")
    assert not [line for line in lines if "step 6/6" in line][1:]
    assert eight.loss is None


def test_a_trial_that_diverges_ends_there(sweep_file: Path):
    short = ["full_learning_rates=null", "seeds=1", "space={rank: [8]}"]
    extreme = ["fixed.training.learning_rate=1e30", "fixed.training.max_grad_norm=1e30"]
    result = run_sweep(load_sweep(sweep_file, short + extreme), quiet)
    assert [(trial.state, trial.reason) for trial in result.trials] == [
        ("pruned", "the held-out loss is nan at step 3")
    ]
    assert result.best is None


def test_a_failing_trial_is_told_and_the_sweep_goes_on_but_not_if_the_next_fails_alike(
    sweep_file: Path, monkeypatch: pytest.MonkeyPatch
):
    sweep = load_sweep(sweep_file, ["space.rank=[1,2,8]", "seeds=1", "full_learning_rates=null"])

    def failing(recipe, *rest):
        raise ConfigError(f"no rank {recipe.rank} today" if recipe.rank < 8 else "no rank 2 today")

    monkeypatch.setattr("hf_lora_ext.sweep.sweeper.run_recipe", failing)
    with pytest.raises(Exception, match="two trials in a row failed alike: no rank 2 today"):
        run_sweep(sweep, quiet)
    states = {trial.name: (trial.state, trial.reason) for trial in report_sweep(sweep).trials}
    assert states["0000"] == ("failed", "no rank 1 today")


def test_time_that_is_up_leaves_the_rest_for_the_same_command(sweep_file: Path):
    sweep = load_sweep(sweep_file, ["seeds=1", "time_limit_minutes=1e-6"])
    result = run_sweep(sweep, quiet)
    assert (result.status, len(result.trials)) == ("time is up", 1)
    assert "no knee is told" in " ".join(result.notes())


def test_a_dry_run_prints_every_trial_with_its_parameters_and_writes_nothing(
    sweep_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    code, out, _ = outcome(capsys, "sweep", sweep_file, "--dry-run")
    assert code == 0
    assert "3 trials of 2 seeds: 6 runs" in out
    assert "8,192" in out
    assert "all weights" in out
    assert not (tmp_path / "sweep").exists()
    code, out, _ = outcome(capsys, "sweep", sweep_file, "--dry-run", "--json")
    assert [made["parameters"] for made in json.loads(out)] == [1024, 8192, 35104]


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_trials_that_do_not_fit_are_refused_before_anything_is_begun(
    sweep_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
):
    small = {"cpu": Hardware(kind="cpu", host_memory_gib=1e-4), "cuda": Hardware(kind="cuda", memory_gib=0.01)}[kind]
    monkeypatch.setattr("hf_lora_ext.machine.find_hardware", lambda: small)
    sweep = load_sweep(sweep_file)
    with pytest.raises(ConfigError, match="3 of 3 trials do not fit; take them out of the space"):
        run_sweep(sweep, quiet)
    assert not (tmp_path / "sweep").exists()


def test_on_a_gpu_a_trial_s_own_batch_is_planned(sweep_file: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        "hf_lora_ext.machine.find_hardware", lambda: Hardware(kind="cuda", memory_gib=24, has_bfloat16=True)
    )
    small = forecast(load_sweep(sweep_file))
    large = forecast(load_sweep(sweep_file, ["fixed.training.per_device_train_batch_size=4096"]))
    assert large[0].needed_gib > 2 * small[0].needed_gib
    with pytest.raises(ConfigError, match="set a smaller per_device_train_batch_size"):
        check_fits(forecast(load_sweep(sweep_file, ["fixed.training.per_device_train_batch_size=1000000"])))


def test_a_bayesian_sweep_runs_its_trials_inside_the_space(sweep_file: Path):
    space = "space={rank: {low: 1, high: 16, log: true}, training.learning_rate: {low: 1e-4, high: 1e-1, log: true}}"
    short = ["full_learning_rates=null", "seeds=1", "fixed.training.max_steps=2"]
    result = run_sweep(load_sweep(sweep_file, [space, "strategy=bayesian", "trials=3", *short]), quiet)
    assert [trial.state for trial in result.trials] == ["complete"] * 3
    assert len({trial.point["training.learning_rate"] for trial in result.trials}) == 3
    assert all(1 <= trial.point["rank"] <= 16 for trial in result.trials)


def test_several_processes_of_one_launcher_are_refused(sweep_file: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="once for each device"):
        run_sweep(load_sweep(sweep_file), quiet)


def test_without_optuna_the_sweep_says_what_to_install(sweep_file: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigError, match=r"pip install 'hf_lora_ext\[sweep\]'"):
        run_sweep(load_sweep(sweep_file), quiet)
