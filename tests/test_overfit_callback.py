"""OverfitCallback in real trainers: it warns, stops or gives the best back, and a resumed run does the same."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from adaptive_runs import adapted, build, callback, load, logits
from transformers import TrainerCallback

from hf_lora_ext import ConfigError, OverfitCallback, load_recipe, preset, run_recipe
from hf_lora_ext.callbacks import FactsCallback
from hf_lora_ext.presets.arguments import overfit_arguments
from hf_lora_ext.runs.training import all_callbacks

EVALUATED = {"eval_strategy": "steps", "eval_steps": 1}
SAVED = {"save_strategy": "steps", "save_steps": 2}


class Scripted(TrainerCallback):
    """Puts losses of our own where the trainer logged its, before any other callback reads them."""

    def __init__(self, held_out: list[float]) -> None:
        self.held_out = held_out

    def on_evaluate(self, args: Any, state: Any, control: Any, *, metrics: dict[str, float], **kwargs: Any) -> None:
        metrics["eval_loss"] = state.log_history[-1]["eval_loss"] = self.held_out[state.global_step - 1]

    def on_log(self, args: Any, state: Any, control: Any, *, logs: dict[str, float], **kwargs: Any) -> None:
        if "loss" in logs:
            logs["loss"] = state.log_history[-1]["loss"] = 5 - state.global_step / 10


def run(tiny_model: Path, folder: Path, ours: Any, held_out: list[float], *more: Any, resume: str | None = None,
        **settings: Any) -> Any:  # fmt: skip
    chosen = EVALUATED | {"max_steps": len(held_out)} | settings
    trainer = build(adapted(tiny_model), folder, ours, *more, **chosen)
    script(trainer, ours, held_out)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def script(trainer: Any, ours: Any, held_out: list[float]) -> None:
    """Let evaluations find these losses, and ours read them."""
    trainer.callback_handler.callbacks.insert(1, script := Scripted(held_out))
    ours_begins = ours.on_train_begin

    def begin(*args: Any, **kwargs: Any) -> None:  # ours has moved to the front, and reads what the script changes
        ours_begins(*args, **kwargs)
        trainer.callback_handler.callbacks.remove(script)
        trainer.callback_handler.callbacks.insert(0, script)

    ours.on_train_begin = begin


TURNING = [3.0, 2.0, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5]
FALLING = [3.0 - n / 10 for n in range(10)]


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if "lora_" in name}


def same(one: Any, other: Any) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_warn_says_so_once_and_the_run_goes_on(tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    trainer = run(tiny_model, tmp_path, OverfitCallback(patience=2), TURNING)
    assert trainer.state.global_step == 10
    assert caplog.text.count("the run overfits: held-out loss rose from 1.500 to 1.750") == 1
    assert "the lowest held-out loss was at step 3" in caplog.text


@pytest.mark.parametrize("action", ["warn", "stop", "best"])
def test_a_falling_held_out_loss_changes_nothing(
    action: str, tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    trainer = run(tiny_model, tmp_path / "a", OverfitCallback(action=action, patience=2), FALLING)
    plain = build(adapted(tiny_model), tmp_path / "b", max_steps=10, **EVALUATED)
    plain.train()
    assert same(weights(trainer.model), weights(plain.model))
    assert "overfits" not in caplog.text


def test_stop_ends_the_run_where_it_is_seen(tiny_model: Path, tmp_path: Path):
    trainer = run(tiny_model, tmp_path, OverfitCallback(action="stop", patience=2), TURNING)
    assert trainer.state.global_step == 5


def test_best_gives_the_best_adapter_back_and_leaves_nothing_else(tiny_model: Path, tmp_path: Path):
    trainer = run(tiny_model, tmp_path / "a", OverfitCallback(action="best"), TURNING)
    assert trainer.state.global_step == 10
    until = run(tiny_model, tmp_path / "b", OverfitCallback(), TURNING, StopAt(3))
    assert same(weights(trainer.model), weights(until.model))
    assert not (tmp_path / "a" / "best_adapter").exists()
    assert all(p.requires_grad for name, p in trainer.model.named_parameters() if "lora_" in name)


def test_an_adapter_comes_back_under_its_name_in_its_precision(tiny_model: Path, tmp_path: Path):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(load(tiny_model), LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]), "mine")
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.bfloat16)
    trainer = build(model, tmp_path, ours := OverfitCallback(action="best"), max_steps=3, **EVALUATED)
    script(trainer, ours, [1.0, 2.0, 3.0])
    trainer.train()
    assert trainer.state.log_history[-1]["overfit/kept_step"] == 1
    assert {p.dtype for name, p in model.named_parameters() if ".mine." in name} == {torch.bfloat16}


class StopAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop |= state.global_step == self.step


@pytest.mark.parametrize("action", ["stop", "best"])
@pytest.mark.parametrize("step", [2, 4, 5])  # before the best one, after it, and where `stop` had ended the run
def test_a_resumed_run_ends_in_the_same_adapter(action: str, step: int, tiny_model: Path, tmp_path: Path):
    settings = SAVED | {"save_steps": 1}
    whole = run(tiny_model, tmp_path / "a", OverfitCallback(action=action, patience=2), TURNING, **settings)
    shutil.copytree(tmp_path / "a" / f"checkpoint-{step}", tmp_path / "b" / f"checkpoint-{step}")
    again = run(tiny_model, tmp_path / "b", OverfitCallback(action=action, patience=2), TURNING,
                resume=str(tmp_path / "b" / f"checkpoint-{step}"), **settings)  # fmt: skip
    assert same(weights(whole.model), weights(again.model))


def test_a_checkpoint_shares_the_bytes_of_the_best_adapter_and_outlives_a_better_one(tiny_model: Path, tmp_path: Path):
    run(tiny_model, tmp_path, OverfitCallback(action="best"), [3.0, 2.0, 1.0, 0.5], **SAVED)
    kept = [tmp_path / f"checkpoint-{step}" / "kept" / "best_adapter" for step in (2, 4)]
    files = [(folder / "adapter_model.safetensors").read_bytes() for folder in kept]
    assert files[0] != files[1]
    assert files[0] == (tmp_path / "checkpoint-2" / "adapter_model.safetensors").read_bytes()
    assert json.loads((tmp_path / "checkpoint-4" / "overfit_progress.json").read_text())["step"] == 4
    assert not [file for file in tmp_path.rglob("kept/**/*") if file.suffix in {".bin", ".pt", ".pkl"}]


def test_a_second_training_of_one_trainer_begins_anew(tiny_model: Path, tmp_path: Path):
    ours = OverfitCallback(action="best")
    trainer = run(tiny_model, tmp_path, ours, TURNING)
    trainer.train()
    kept = [row["overfit/kept_step"] for row in trainer.state.log_history if "overfit/kept_step" in row]
    assert kept == [3]


def test_an_evaluation_outside_of_training_is_not_looked_at(tiny_model: Path, tmp_path: Path):
    ours = OverfitCallback(action="best")
    trainer = build(adapted(tiny_model), tmp_path, ours, **EVALUATED)
    trainer.evaluate()
    assert not (tmp_path / "best_adapter").exists()


def test_facts_tell_of_the_adapter_that_was_given_back(tiny_model: Path, tmp_path: Path):
    run(tiny_model, tmp_path, OverfitCallback(action="best"), TURNING, FactsCallback())
    facts = json.loads((tmp_path / "facts.json").read_text())
    assert facts["run"]["adapter_of_step"] == 3
    assert facts["evaluation"]["adapter"]["loss"] == 1.0


def test_facts_tell_of_the_best_adapter_that_the_trainer_loads_itself(tiny_model: Path, tmp_path: Path):
    run(tiny_model, tmp_path, OverfitCallback(action="best"), TURNING, FactsCallback(), save_strategy="steps",
        save_steps=1, load_best_model_at_end=True, metric_for_best_model="eval_loss")  # fmt: skip
    facts = json.loads((tmp_path / "facts.json").read_text())
    assert facts["run"]["adapter_of_step"] == 3
    assert facts["evaluation"]["adapter"]["loss"] == 1.0
    assert not list(tmp_path.rglob("best_adapter"))


@pytest.mark.parametrize("mode", ["anneal", "fixed"])
def test_what_is_kept_of_an_adaptive_run_is_within_the_budget_and_loads_as_any_adapter(
    mode: str, tiny_model: Path, tmp_path: Path
):
    from peft import PeftModel

    settings = {"mode": mode, "events": 2, "probe_steps": 8} if mode == "fixed" else {}
    ranks, falling_first = callback(**settings), [1.0, 2.0, 3.0, 3.0, 3.0, 3.0, 3.0, 1.5, *[4.0] * 22]
    trainer = run(tiny_model, tmp_path, OverfitCallback(action="best"), falling_first[: 12 if mode == "anneal" else 30],
                  ranks, **SAVED)  # fmt: skip
    (kept,) = [row["overfit/kept_step"] for row in trainer.state.log_history if "overfit/kept_step" in row]
    assert kept == (8 if mode == "anneal" else 1)  # before it, an annealing adapter is too wide
    assert ranks.layers_.parameters <= ranks.budget_
    trainer.save_model(str(tmp_path / "adapter"))
    assert torch.equal(logits(PeftModel.from_pretrained(load(tiny_model), tmp_path / "adapter")), logits(trainer.model))


@pytest.mark.parametrize("settings", [{"action": "halt"}, {"patience": 0}, {"patience": True}])
def test_settings_that_cannot_be_right_are_refused(settings: dict[str, Any]):
    with pytest.raises(ConfigError):
        OverfitCallback(**settings)


def test_what_cannot_be_kept_is_refused_before_the_first_step(tiny_model: Path, tmp_path: Path):
    from peft import PrefixTuningConfig, get_peft_model

    prefix = get_peft_model(load(tiny_model), PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    for model, words in ((prefix, "PREFIX_TUNING"), (load(tiny_model), "carries no adapter")):
        trainer = build(model, tmp_path, OverfitCallback(action="best"), **EVALUATED)
        with pytest.raises(ConfigError, match=words):
            trainer.train()


def test_a_run_that_evaluates_nothing_is_told(tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.WARNING)
    build(adapted(tiny_model), tmp_path, OverfitCallback(), max_steps=1).train()
    assert "nothing is evaluated, so overfitting cannot be seen" in caplog.text


def test_a_preset_watches_where_the_advice_sees_the_risk():
    few = preset("7B", rank="auto", examples=300)
    assert [(type(c).__name__, c.action) for c in few.callbacks()] == [("OverfitCallback", "best")]
    assert [c.action for c in preset("7B", method="adalora", rank="auto", examples=300).callbacks()[:1]] == ["warn"]
    assert all_callbacks(preset("7B", rank="auto", examples=30_000)) == []


@pytest.mark.parametrize(
    ("method", "sharding", "action"),
    [("lora", "ddp", "best"), ("adalora", "none", "warn"), ("prefix", "none", "warn"), ("lora", "fsdp", "warn")],
)
def test_by_default_the_best_is_kept_where_it_can_be(method: str, sharding: str, action: str):
    assert overfit_arguments(method, sharding) == ("OverfitCallback", {"action": action})
    assert overfit_arguments(method, sharding, "stop")[1] == {"action": "stop"}


def test_a_recipe_that_asks_for_what_its_method_cannot_give_is_refused(tiny_recipe: Path):
    with pytest.raises(ConfigError, match="overfitting: best does not work with method adalora; use warn or ignore"):
        load_recipe(tiny_recipe, ["overfitting=best", "method=adalora"])


@pytest.mark.parametrize(("overfitting", "kept"), [(None, True), ("ignore", False)])
def test_a_recipe_on_few_examples_keeps_the_best_unless_it_says_otherwise(
    overfitting: str | None, kept: bool, tiny_recipe: Path
):
    given = [] if overfitting is None else [f"overfitting={overfitting}"]
    result = run_recipe(load_recipe(tiny_recipe, given), lambda line: None)
    progress = list(result.folder.rglob("overfit_progress.json"))
    assert bool(progress) == kept
    held_out = {row["step"]: row["eval_loss"] for row in result.facts.loss_history if "eval_loss" in row}
    assert result.facts.evaluation["adapter"]["loss"] == held_out[result.facts.run.get("adapter_of_step", 6)]
