"""What a run of adaptive rank leaves, whatever ends it, and what is refused before it begins."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from adaptive_runs import TARGETS, adapted, build, callback, load, logits, parameters
from conftest import PAIRS, write_jsonl
from peft import LoraConfig, PeftModel, PrefixTuningConfig, get_peft_model
from transformers import (
    TrainerCallback,
)

import hf_lora_ext
from hf_lora_ext import AdapterError, AdaptiveRankCallback, BudgetError, ConfigError, ResumeError


def test_the_best_checkpoint_never_comes_back_over_the_budget(
    tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, ours = adapted(tiny_model), callback()
    trainer = build(
        model, tmp_path, ours, Worsening(), save_strategy="steps", save_steps=2, eval_strategy="steps", eval_steps=2,
        load_best_model_at_end=True, metric_for_best_model="eval_loss",
    )  # fmt: skip
    trainer.train()
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-2")  # before the first event
    assert "over the budget" in caplog.text
    assert parameters(model) == ours.layers_.parameters <= ours.budget_
    trainer.save_model(str(tmp_path / "adapter"))
    assert torch.equal(logits(PeftModel.from_pretrained(load(tiny_model), tmp_path / "adapter")), logits(model))


def test_a_best_checkpoint_comes_back_when_the_run_ends_inside_a_probe(tiny_model: Path, tmp_path: Path) -> None:
    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop = state.global_step == 6

    model, ours = adapted(tiny_model), callback()
    build(
        model, tmp_path, ours, Worsening(), Stop(), save_strategy="steps", save_steps=2, eval_strategy="steps",
        eval_steps=2, load_best_model_at_end=True, metric_for_best_model="eval_loss",
    ).train()  # fmt: skip
    assert parameters(model) == ours.layers_.parameters <= ours.budget_


def test_a_second_trainer_on_the_same_model_starts_anew(tiny_model: Path, tmp_path: Path) -> None:
    model = adapted(tiny_model)
    build(model, tmp_path / "a", callback()).train()
    second = callback()
    trainer = build(model, tmp_path / "b", second, save_strategy="steps", save_steps=6)
    trainer.train()
    assert len(second.state_.history) == 3
    assert parameters(model) == second.layers_.parameters <= second.budget_
    trainer.save_model(str(tmp_path / "adapter"))
    assert torch.equal(logits(PeftModel.from_pretrained(load(tiny_model), tmp_path / "adapter")), logits(model))


class Worsening(TrainerCallback):
    """Makes every evaluation worse than the one before, so that the first checkpoint is the best."""

    def on_evaluate(self, args: Any, state: Any, control: Any, *, metrics: dict[str, float], **kwargs: Any) -> None:
        metrics["eval_loss"] = float(state.global_step)


@pytest.mark.parametrize("stop", [1, 2, 4])
def test_a_run_that_stops_early_meets_the_budget_and_says_so(
    stop: int, tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop = state.global_step == stop

    model, ours = adapted(tiny_model), callback()
    build(model, tmp_path, ours, Stop()).train()
    assert parameters(model) <= ours.budget_
    assert "was not trained after that" in caplog.text


def test_only_the_trained_adapter_changes_and_a_shared_configuration_stays(tiny_model: Path, tmp_path: Path) -> None:
    model = adapted(tiny_model)
    model.add_adapter("other", LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=TARGETS))
    model.peft_config["ref"] = model.peft_config["default"]  # as DPO's reference adapter shares it
    before = {name: p.clone() for name, p in model.named_parameters() if ".other." in name}
    build(model, tmp_path, callback()).train()
    assert model.peft_config["ref"].rank_pattern == {}
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters() if name in before)


@pytest.mark.parametrize(
    "optim", ["adamw_torch_fused", "adamw_torch", "adafactor", "sgd", "adagrad", "rmsprop", "lion_32bit"]
)
def test_optimizers_of_the_trainer_go_on_after_a_change(optim: str, tiny_model: Path, tmp_path: Path) -> None:
    ours = callback()
    trainer = build(adapted(tiny_model), tmp_path, ours, optim=optim)
    trainer.train()
    assert ours.layers_.parameters <= ours.budget_
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert all(loss < 8 for loss in losses)
    held = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in trainer.model.parameters() if p.requires_grad}


def test_every_tracker_gets_each_event_and_the_history_says_what_it_did(tiny_model: Path, tmp_path: Path) -> None:
    class Tracker(TrainerCallback):
        def __init__(self) -> None:
            self.seen: list[dict] = []

        def on_log(self, args: Any, state: Any, control: Any, *, logs: dict, **kwargs: Any) -> None:
            self.seen.append(dict(logs))

    tracker, ours = Tracker(), callback()
    trainer = build(adapted(tiny_model), tmp_path, tracker, ours)
    trainer.train()
    told = [logs for logs in tracker.seen if "adaptive_rank/parameters" in logs]
    history = json.loads((tmp_path / "rank_history.json").read_text())
    assert [logs["adaptive_rank/parameters"] for logs in told] == [e["parameters"] for e in history["events"]]
    assert [e["step"] for e in trainer.state.log_history if "adaptive_rank/seconds" in e] == [3, 5, 7]
    jumps = [event["probe_loss_after"] - event["probe_loss_before"] for event in history["events"]]
    assert all(0 < abs(jump) < 0.05 for jump in jumps)


# --- refusals ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"target_rank": None}, "give the budget once"),
        ({"budget_parameters": 10}, "give the budget once"),
        ({"target_rank": 0}, "whole number from 1"),
        ({"criterion": "whitend"}, "did you mean `whitened`"),
        ({"start_factor": 1}, "must be above 1"),
        ({"first": 0.7}, "first < last"),
        ({"events": 0}, "events=0"),
    ],
)
def test_settings_that_cannot_be_right_are_refused_at_once(settings: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        callback(**settings)


def test_what_cannot_change_rank_is_refused_before_the_first_step(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="carries no adapter"):
        build(load(tiny_model), tmp_path, callback())
    merged = adapted(tiny_model)
    merged.merge_adapter()
    with pytest.raises(AdapterError, match="merged"):
        build(merged, tmp_path, callback())
    prefix = get_peft_model(load(tiny_model), PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(AdapterError, match="PREFIX_TUNING"):
        build(prefix, tmp_path, callback())
    for too_small in (5, 60):  # below every direction, and between the smallest and the largest
        with pytest.raises(BudgetError, match="holds no direction of the largest layer, which has 96"):
            build(adapted(tiny_model), tmp_path, AdaptiveRankCallback(budget_parameters=too_small))
    with pytest.raises(ConfigError, match="8 bits"):
        build(adapted(tiny_model), tmp_path, callback(), optim="adamw_8bit").train()
    with pytest.raises(ConfigError, match="none between"):
        build(adapted(tiny_model), tmp_path, callback(), max_steps=1).train()
    other = build(adapted(tiny_model), tmp_path, callback())
    other.model = other.model_wrapped = adapted(tiny_model)
    with pytest.raises(ConfigError, match="another model"):
        other.train()
    late = build(adapted(tiny_model), tmp_path)
    late.add_callback(callback())
    with pytest.raises(ConfigError, match="constructor"):
        late.train()


def test_a_checkpoint_of_another_plan_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    build(adapted(tiny_model), tmp_path, callback(), save_strategy="steps", save_steps=4).train()
    with pytest.raises(ResumeError, match="events was 3 and is 2"):
        build(adapted(tiny_model), tmp_path, callback(events=2)).train(resume_from_checkpoint=True)
    build(adapted(tiny_model), tmp_path / "plain", save_strategy="steps", save_steps=4).train()
    with pytest.raises(ResumeError, match="one rank for all layers"):
        build(adapted(tiny_model), tmp_path / "plain", callback()).train(resume_from_checkpoint=True)


def test_the_method_card_runs_as_pasted(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = (Path(hf_lora_ext.__file__).parent / "callbacks" / "adaptive_rank.md").read_text(encoding="utf8")
    (code,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "examples.jsonl", PAIRS)
    exec(compile(code.replace("meta-llama/Llama-2-7b-hf", str(tiny_model)), "adaptive_rank.md", "exec"), {})
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
