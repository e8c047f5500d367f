"""ResourceCallback: what a run used reaches trackers, facts and card, and is held against the memory plan."""

import json
import math
import shutil
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from adaptive_runs import adapted, build
from conftest import PAIRS
from transformers import TrainerCallback

from hf_lora_ext import FactsCallback, ResourceCallback, load_recipe, machine, preset, render_card, run_recipe
from hf_lora_ext.callbacks import resource_use
from hf_lora_ext.callbacks.pace import Pace
from hf_lora_ext.memory.measured import departures, peaks_against_plan

GIB = 2**30
SEEN = {"include_num_input_tokens_seen": "all"}
PLANNED = preset("7B", gpu_memory_gib=24, method="qlora").found


class Tracker(TrainerCallback):
    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []

    def on_log(self, args: Any, state: Any, control: Any, *, logs: dict[str, Any], **kwargs: Any) -> None:
        self.seen.append(dict(logs))


def test_every_tracker_gets_the_numbers_and_the_last_log_those_of_the_run(tiny_model: Path, tmp_path: Path):
    tracker = Tracker()
    build(adapted(tiny_model), tmp_path, tracker, ResourceCallback(), max_steps=4, **SEEN).train()
    training = [logs for logs in tracker.seen if "loss" in logs]
    assert len(training) == 4
    assert [logs["resources/tokens"] for logs in training] == [48, 96, 144, 192]
    assert all(logs["resources/tokens_per_second"] > 0 for logs in training)
    last = tracker.seen[-1]
    assert last["resources/tokens"] == 192
    assert last["resources/peak_process_gib"] > 0.1
    assert last["resources/tokens_per_second"] == pytest.approx(
        48 / last["resources/step_seconds"], rel=0.9
    )  # one is a mean and the other a median


class Slow(TrainerCallback):
    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        time.sleep(0.3)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        time.sleep(0.3)


def test_evaluating_and_saving_do_not_count_as_training(tiny_model: Path, tmp_path: Path):
    ours = ResourceCallback()
    build(adapted(tiny_model), tmp_path, ours, Slow(), max_steps=4, eval_strategy="steps", eval_steps=1,
          save_strategy="steps", save_steps=1).train()  # fmt: skip
    assert 0 < ours.pace_.seconds < 4 * 0.3
    assert ours.pace_.step_seconds < 0.3


def test_a_resumed_run_goes_on_counting(tiny_model: Path, tmp_path: Path):
    settings = {"max_steps": 6, "save_strategy": "steps", "save_steps": 4} | SEEN
    build(adapted(tiny_model), tmp_path / "a", ResourceCallback(), **settings).train()
    shutil.copytree(tmp_path / "a" / "checkpoint-4", tmp_path / "b" / "checkpoint-4")
    kept = tmp_path / "b" / "checkpoint-4" / "resources_progress.json"
    saved = json.loads(kept.read_text())
    saved["peaks"]["process_gib"] = 1000.0
    kept.write_text(json.dumps(saved))
    ours = ResourceCallback()
    trainer = build(adapted(tiny_model), tmp_path / "b", ours, **settings)
    trainer.train(resume_from_checkpoint=str(kept.parent))
    last = trainer.state.log_history[-1]
    assert last["resources/tokens"] == 288
    assert last["resources/peak_process_gib"] == 1000
    assert ours.pace_.seconds > saved["pace"]["seconds"]


def sft(tiny_model: Path, folder: Path, ours: Any, **settings: Any) -> Any:
    from datasets import Dataset
    from trl import SFTTrainer

    p = preset(str(tiny_model))
    rows = Dataset.from_list(PAIRS)
    args = p.sft_config(str(folder), **{"max_steps": 2, "save_steps": 1, "logging_steps": 1, "report_to": "none",
                                        "disable_tqdm": True, "per_device_train_batch_size": 2} | settings)  # fmt: skip
    return SFTTrainer(model=p.model_id, args=args, train_dataset=rows, peft_config=p.peft_config,
                      callbacks=[ours, FactsCallback(rows)])  # fmt: skip


def test_trl_s_counter_which_begins_again_in_each_process_counts_once(tiny_model: Path, tmp_path: Path):
    trainer = sft(tiny_model, tmp_path / "a", ResourceCallback())
    trainer.train()
    whole = json.loads((tmp_path / "a" / "facts.json").read_text())["run"]
    trainer.train()  # of the same trainer, whose counter goes on
    assert json.loads((tmp_path / "a" / "facts.json").read_text())["run"]["tokens"] == whole["tokens"]
    resumed = sft(tiny_model, tmp_path / "a", ResourceCallback())
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-1"))
    assert json.loads((tmp_path / "a" / "facts.json").read_text())["run"]["tokens"] == whole["tokens"]


def test_facts_and_card_tell_speed_and_peaks(tiny_model: Path, tmp_path: Path):
    sft(tiny_model, tmp_path, ResourceCallback()).train()
    facts = json.loads((tmp_path / "facts.json").read_text())
    assert {"median_step_seconds", "tokens_per_second", "peak_memory"} <= set(facts["run"])
    card = render_card(facts)
    assert "| median step | " in card
    assert "| tokens per second | " in card


# --- beside the plan --------------------------------------------------------------------------------------------


def test_peaks_are_told_beside_the_plan_s_with_their_ratio():
    allocated = max(PLANNED.estimate.allocated, PLANNED.estimate.loading) / GIB
    told = peaks_against_plan(PLANNED, {"gpu_allocated_gib": 2 * allocated, "process_gib": 1.0})
    assert told["allocated_measured_to_planned"] == 2
    assert told["allocated_planned_gib"] == pytest.approx(allocated, abs=0.01)
    assert not [name for name in told if name.startswith("reserved")]
    assert peaks_against_plan(PLANNED, {"process_gib": 1.0}) == {}


def as_planned(**changes: Any) -> dict[str, Any]:
    plan = PLANNED.plan
    same = {name: getattr(plan, name) for name in ("micro_batch", "sequence", "checkpointing", "devices")}
    return same | changes


def test_a_run_that_departs_from_its_plan_says_in_what():
    assert departures(PLANNED, **as_planned()) == []
    assert departures(PLANNED, **as_planned(sequence=77)) == [f"sequence 77 instead of {PLANNED.plan.sequence}"]
    assert len(departures(PLANNED, **as_planned(sequence=None, devices=5))) == 2


@pytest.mark.parametrize(("length", "compared"), [(PLANNED.plan.sequence, True), (77, False)])
def test_a_run_on_a_gpu_is_compared_where_it_is_as_planned(
    length: int, compared: bool, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """There is no GPU here: the peaks are made up, the path from the trainer to the card is real."""
    monkeypatch.setattr(resource_use, "peak_memory", lambda: {"process_gib": 1.0, "gpu_allocated_gib": 9.0})
    plan = PLANNED.plan
    ours = ResourceCallback(plan=PLANNED)
    sft(tiny_model, tmp_path, ours, max_steps=1, max_length=length, per_device_train_batch_size=plan.micro_batch,
        gradient_accumulation_steps=1, activation_checkpointing=plan.checkpointing).train()  # fmt: skip
    run = json.loads((tmp_path / "facts.json").read_text())
    assert ("peak_against_plan" in run["run"]) == compared
    assert ("peak against plan allocated measured to planned" in render_card(run)) == compared


def test_a_preset_with_a_plan_measures_it_and_one_without_does_not():
    with_plan = preset("7B", gpu_memory_gib=24)
    assert [c.plan for c in with_plan.callbacks()] == [with_plan.found]
    assert preset("7B").found is not None or preset("7B").callbacks() == []


# --- energy -----------------------------------------------------------------------------------------------------


def cards(monkeypatch: pytest.MonkeyPatch, millijoules: list[int], error: type[Exception] | None = None) -> None:
    """Stand in for NVML with cards that have used so much."""

    class NVMLError(Exception):
        pass

    def used(card: int) -> int:
        if error:
            raise NVMLError
        return millijoules[card]

    fake = SimpleNamespace(
        NVMLError=NVMLError, nvmlInit=lambda: None, nvmlShutdown=lambda: None, nvmlDeviceGetCount=lambda: 2,
        nvmlDeviceGetHandleByIndex=lambda i: i, nvmlDeviceGetTotalEnergyConsumption=used,
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.setattr(machine, "NVIDIA_DEVICES", (sys.executable,))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_energy_is_that_of_the_visible_gpus_since_the_training_began(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    used = [1_000, 5_000]
    cards(monkeypatch, used)
    assert machine.gpu_energy_joules() == 6
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert machine.gpu_energy_joules() == 5
    ours = ResourceCallback()
    trainer = build(adapted(tiny_model), tmp_path, ours, max_steps=1)
    ours.on_train_begin(trainer.args, trainer.state, trainer.control)
    used[1] += round(3.6e9)
    assert ours._numbers(None)["resources/gpu_energy_kwh"] == 1.0


def test_without_a_counter_no_energy_is_told(monkeypatch: pytest.MonkeyPatch):
    cards(monkeypatch, [0, 0], error=RuntimeError)
    assert machine.gpu_energy_joules() is None
    monkeypatch.setattr(machine, "NVIDIA_DEVICES", ())
    if sys.platform == "linux":
        assert machine.gpu_energy_joules() is None


def test_a_median_needs_a_step_and_a_speed_needs_tokens():
    pace = Pace()
    assert (pace.step_seconds, pace.tokens_per_second, pace.lap()) == (None, None, None)
    pace.begin_step()
    pace.end_step()
    pace.pause()
    assert math.isclose(pace.step_seconds, pace.seconds)


# --- the run's own log ------------------------------------------------------------------------------------------


def rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf8").splitlines()]


TIMED = ("runtime", "per_second", "resources/")


def timeless(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if not any(word in key for word in TIMED)}


@pytest.mark.parametrize("step", [3, 5])
def test_the_log_of_a_killed_and_resumed_run_has_each_row_once(tiny_recipe: Path, tmp_path: Path, step: int):
    class Killed(Exception):
        pass

    def say(line: str) -> None:
        if f"step     {step}/6  loss" in line:
            raise Killed

    recipe = load_recipe(tiny_recipe)
    with pytest.raises(Killed):
        run_recipe(recipe, say)
    torn = rows(tmp_path / "run" / "train.log")
    assert torn[-1]["step"] == step
    run_recipe(recipe, lambda line: None)
    whole = run_recipe(load_recipe(tiny_recipe, [f"output_dir={tmp_path / 'whole'}"]), lambda line: None).folder
    resumed, uninterrupted = ([timeless(row) for row in rows(folder / "train.log")]
                              for folder in (tmp_path / "run", whole))  # fmt: skip
    keys = [(row["step"], "loss" in row, "eval_loss" in row) for row in resumed]
    assert keys == [(row["step"], "loss" in row, "eval_loss" in row) for row in uninterrupted]
    assert [row.get("loss") for row in resumed] == [row.get("loss") for row in uninterrupted]
