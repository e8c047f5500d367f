"""The runner: from a recipe to a folder that explains itself; killed anywhere, it ends in the same bytes."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from adaptive_runs import adapted, build
from conftest import PAIRS, write_jsonl, write_tiny_recipe
from peft import get_peft_model_state_dict
from safetensors.torch import load_file
from transformers import TrainerCallback

from hf_lora_ext import ConfigError, Recipe, ResumeError, load_recipe, render_card, run_recipe
from hf_lora_ext.cards.facts import read_facts
from hf_lora_ext.runs.resuming import train


class Stopped(Exception):
    """Stands for whatever ends a process in the middle."""


def weights(folder: Path) -> bytes:
    return (folder / "adapter_model.safetensors").read_bytes()


def stopping_at(step: int):
    """Return a `say` that raises at the first line of a step."""

    def say(line: str) -> None:
        if re.search(rf"step +{step}/\d+  (loss|reward) ", line):
            raise Stopped

    return say


@pytest.fixture
def recipe(tiny_recipe: Path) -> Recipe:
    return load_recipe(tiny_recipe)


@pytest.fixture(scope="module")
def whole_run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, uninterrupted, in another folder, which nobody changes."""
    file = write_tiny_recipe(tmp_path_factory.mktemp("whole"), tiny_model)
    return run_recipe(load_recipe(file), say=lambda line: None).folder


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, {"kind": "LORA", "rank": 4}),
        ({"init": "pissa"}, {"kind": "LORA", "rank": 8, "alpha": 16, "trained_rank": 4}),
        ({"method": "adalora"}, {"kind": "LORA", "rank": 4, "trained_as": "ADALORA"}),
    ],
    ids=["lora", "pissa", "adalora"],
)
def test_the_facts_are_those_of_the_adapter_that_is_saved(recipe: Recipe, changes: dict, told: dict):
    result = run_recipe(replace(recipe, rank=4, **changes), say=lambda line: None)
    adapter = result.facts.adapter
    config = json.loads((result.folder / "adapter_config.json").read_text())
    assert {key: adapter[key] for key in told} == told
    assert adapter["config"]["r"] == config["r"]
    assert adapter["bytes"] == (result.folder / "adapter_model.safetensors").stat().st_size
    assert ("trained_rank" in adapter, "trained_as" in adapter) == ("trained_rank" in told, "trained_as" in told)
    ranks = adapter.get("ranks")
    said = f"with ranks of {ranks} from layer to layer" if ranks else f"rank-{told['rank']} LoRA adapter"
    assert said in (result.folder / "README.md").read_text()


def test_facts_and_card_tell_the_rank_of_every_layer_where_it_moved(recipe: Recipe):
    training = {**recipe.training, "max_steps": 12}
    result = run_recipe(replace(recipe, rank=4, adaptive_rank=True, training=training), say=lambda line: None)
    history = json.loads((result.folder / "rank_history.json").read_text())
    kept = {name: rank for name, rank in history["ranks"].items() if rank}
    assert result.facts.adapter["layer_ranks"] == kept
    assert result.facts.pictures == ("loss_curve.png", "rank_history.png")
    card = (result.folder / "README.md").read_text()
    assert "](rank_history.png)" in card
    assert f"{sum(kept.values()) / len(kept):.1f} on average" in card


@pytest.mark.parametrize("changes", [{"init": "eva"}, {"init": "loftq", "method": "qlora"}], ids=["eva", "loftq"])
@pytest.mark.filterwarnings("ignore:.*quantization.*:UserWarning")
def test_a_start_from_data_or_weights_runs_from_a_recipe_and_resumes_to_the_same_bytes(
    recipe: Recipe, changes: dict, tmp_path: Path
):
    recipe = replace(recipe, rank=4, **changes)
    whole = run_recipe(replace(recipe, output_dir=str(tmp_path / "whole")), say=lambda line: None)
    with pytest.raises(Stopped):
        run_recipe(recipe, stopping_at(5))
    resumed = run_recipe(recipe, say=lambda line: None)
    assert resumed.status == "resumed"
    assert weights(resumed.folder) == weights(whole.folder)
    assert set(whole.facts.evaluation) == ({"adapter"} if recipe.init == "loftq" else {"base", "adapter"})


def test_a_run_leaves_adapter_facts_card_and_plot(recipe: Recipe):
    lines: list[str] = []
    result = run_recipe(recipe, lines.append)
    folder = result.folder
    left = {p.name for p in folder.iterdir()}
    assert {
        "adapter_config.json",
        "adapter_model.safetensors",
        "facts.json",
        "README.md",
        "loss_curve.png",
        "recipe.yaml",
    } <= left
    assert "training_args.bin" not in left
    assert result.facts.run["finished"] is True
    assert result.facts.evaluation["adapter"]["loss"] < result.facts.evaluation["base"]["loss"]
    assert len(result.facts.samples) == 3
    assert (folder / "README.md").read_text() == render_card(json.loads((folder / "facts.json").read_text()))
    assert (folder / "loss_curve.png").read_bytes().startswith(b"\x89PNG")
    assert any("held-out loss" in line for line in lines)


def test_what_the_preset_warns_of_is_said_before_the_model_is_loaded(recipe: Recipe, monkeypatch):
    def fail(*arguments, **named):
        raise Stopped

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", fail)
    lines: list[str] = []
    with pytest.raises(Stopped):
        run_recipe(replace(recipe, rank=33), lines.append)
    told = "look out rank too high (33): no update of this model's layers has more than 32 directions; lower the rank"
    assert lines.count(told) == 1


def test_nothing_in_facts_or_card_names_the_machine(recipe: Recipe, tiny_model: Path):
    folder = run_recipe(recipe, lambda line: None).folder
    text = (folder / "facts.json").read_text() + (folder / "README.md").read_text()
    for private in (str(folder.parent), str(tiny_model.parent), str(Path.home())):
        assert private not in text
    assert "More Information Needed" not in text


def test_a_finished_run_is_reported_and_not_repeated(recipe: Recipe):
    first = run_recipe(recipe, lambda line: None)
    before = {p: p.stat().st_mtime_ns for p in first.folder.rglob("*") if p.is_file() and p.name != ".lock"}
    again = run_recipe(recipe, lambda line: None)
    assert again.status == "already finished"
    assert again.facts == first.facts
    assert {p: p.stat().st_mtime_ns for p in before} == before


@pytest.mark.parametrize("step", [1, 3, 4, 6])
def test_a_stopped_run_goes_on_to_the_same_bytes(recipe: Recipe, whole_run: Path, step: int):
    with pytest.raises(Stopped):
        run_recipe(recipe, stopping_at(step))
    result = run_recipe(recipe, lambda line: None)
    assert result.status == ("trained" if step < 3 else "resumed")
    assert weights(result.folder) == weights(whole_run)
    uninterrupted = read_facts(whole_run / "facts.json")
    assert result.facts.loss_history == uninterrupted.loss_history
    assert result.facts.evaluation == uninterrupted.evaluation


def test_a_torn_checkpoint_is_passed_over(recipe: Recipe, whole_run: Path):
    with pytest.raises(Stopped):
        run_recipe(recipe, stopping_at(5))
    newest = Path(recipe.output_dir) / "checkpoints" / "checkpoint-4"
    (newest / "trainer_state.json").write_text('{"epoch": 0.2')
    (newest / "adapter_model.safetensors").write_bytes(b"torn")
    lines: list[str] = []
    result = run_recipe(recipe, lines.append)
    assert "resuming from checkpoint-2" in lines
    assert weights(result.folder) == weights(whole_run)


class Planted:
    """A pickle that leaves a folder where it is loaded."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("name", ["optimizer.pt", "rng_state.pth"])
def test_a_pickle_planted_in_a_checkpoint_is_refused_and_never_runs(recipe: Recipe, tmp_path: Path, name: str):
    with pytest.raises(Stopped):
        run_recipe(recipe, stopping_at(3))
    checkpoint = Path(recipe.output_dir) / "checkpoints" / "checkpoint-2"
    torch.save(Planted(tmp_path / "ran"), checkpoint / name)
    with pytest.raises(ResumeError, match=r"checkpoint-2 holds a pickle that is no trainer's own.*remove that folder"):
        run_recipe(recipe, say=lambda line: None)
    assert not (tmp_path / "ran").exists()


@pytest.mark.timeout(300)
def test_a_run_killed_with_signal_9_goes_on_to_the_same_bytes(tiny_recipe: Path, whole_run: Path, tmp_path: Path):
    folder = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-m", "hf_lora_ext.cli", "train", str(tiny_recipe)], stderr=subprocess.PIPE
    )
    while not (folder / "checkpoints" / "checkpoint-2").exists():
        assert process.poll() is None, "the run ended before its first checkpoint"
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (folder / "README.md").exists()
    run_recipe(load_recipe(tiny_recipe), say=lambda line: None)
    assert weights(folder) == weights(whole_run)


def test_a_run_killed_after_its_last_step_takes_no_step_more(recipe: Recipe, whole_run: Path):
    def stop_when_saving(line: str) -> None:
        if line == "saving":
            raise Stopped

    with pytest.raises(Stopped):
        run_recipe(recipe, stop_when_saving)
    lines: list[str] = []
    result = run_recipe(recipe, lines.append)
    assert "resuming from checkpoint-6" in lines
    assert weights(result.folder) == weights(whole_run)
    whole = read_facts(whole_run / "facts.json")
    assert (result.facts.run["steps"], result.facts.evaluation) == (6, whole.evaluation)


def test_a_run_that_a_callback_has_ended_takes_no_step_when_it_is_resumed(tiny_model: Path, tmp_path: Path):
    class Ended(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop = state.global_step == 4

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            ends.append(state.global_step)

    ends: list[int] = []
    settings = {"max_steps": 8, "save_strategy": "steps", "save_steps": 4}
    train(build(adapted(tiny_model), tmp_path, **settings), None)
    again = build(adapted(tiny_model), tmp_path, Ended(), **settings)
    train(again, tmp_path / "checkpoint-4")
    assert again.state.global_step == 4
    assert ends == [4]
    saved = load_file(tmp_path / "checkpoint-4" / "adapter_model.safetensors")
    own = get_peft_model_state_dict(again.model)
    assert own.keys() == saved.keys()
    assert all((own[name] == saved[name]).all() for name in own)


def test_changed_data_is_not_mixed_into_a_stopped_run(recipe: Recipe):
    with pytest.raises(Stopped):
        run_recipe(recipe, stopping_at(4))
    write_jsonl(Path(recipe.data.source), [{"prompt": f"{row['prompt']}!", "completion": "other"} for row in PAIRS])
    with pytest.raises(ResumeError, match="training data changed since checkpoint-"):
        run_recipe(recipe, lambda line: None)


def test_a_folder_with_another_run_is_left_alone(recipe: Recipe):
    folder = run_recipe(recipe, lambda line: None).folder
    before = weights(folder)
    with pytest.raises(ConfigError, match=r"already holds another run.*rank \(None there, 2 here\)"):
        run_recipe(replace(recipe, rank=2), lambda line: None)
    assert weights(folder) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "no/such/folder"}, "no such folder"),
        ({"targets": ("dense_4h",)}, "match no module"),
        ({"rank": 2, "training": {"max_steps": 2, "optim": "adamm"}}, "adamm"),
        ({"training": {"max_steps": 2, "lr_scheduler_type": "liner"}}, "liner"),
    ],
)
def test_what_only_the_libraries_know_is_still_one_clear_error(recipe: Recipe, change: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        run_recipe(replace(recipe, **change), lambda line: None)


def chat(n: int) -> tuple[dict, dict]:
    return {"role": "user", "content": f"{n}+1?"}, {"role": "assistant", "content": f"{n + 1}"}


@pytest.mark.parametrize(
    ("row", "form"),
    [
        (lambda n: {"text": f"{n} and one make {n + 1}."}, "text"),
        (lambda n: {"messages": [*chat(n)]}, "messages"),
        (lambda n: {"prompt": [chat(n)[0]], "completion": [chat(n)[1]]}, "prompt-completion"),
    ],
)
def test_every_form_of_data_trains(recipe: Recipe, tmp_path: Path, row, form: str):
    file = write_jsonl(tmp_path / "rows.jsonl", [row(n) for n in range(20)])
    result = run_recipe(replace(recipe, data=replace(recipe.data, source=str(file))), lambda line: None)
    assert result.facts.data.form == form
    assert bool(result.facts.samples) == (form != "text")
