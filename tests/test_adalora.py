"""AdaLoraCallback in real trainers: each failure of AdaLoRA without it, and that it is gone with it."""

import json
import re
import shutil
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import PAIRS, write_jsonl
from datasets import Dataset
from peft import AdaLoraConfig, LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

from hf_lora_ext import AdaLoraCallback, AdapterError, ConfigError, ResumeError, preset
from hf_lora_ext.adapters.adalora import add_regulariser_gradient_, allocate_, export_lora, layer_ranks, restore_width_
from hf_lora_ext.adapters.orthogonality import orthogonality_gradients

TARGETS = ["q_proj", "v_proj", "down_proj"]  # six layers
INIT_R, TARGET_R, LAYERS = 4, 2, 6
TOKENS = torch.arange(2, 34).repeat(2, 1)


def adalora_config(**changes: Any) -> AdaLoraConfig:
    settings = {
        "task_type": "CAUSAL_LM", "init_r": INIT_R, "target_r": TARGET_R, "target_modules": TARGETS, "total_step": 1,
        "lora_alpha": 8, "lora_dropout": 0.1,
    }  # fmt: skip
    return AdaLoraConfig(**(settings | changes))


def load(tiny_model: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)


def fresh(tiny_model: Path, **changes: Any) -> Any:
    torch.manual_seed(0)
    return get_peft_model(load(tiny_model), adalora_config(**changes))


def build(kind: str, model: Any, folder: Path, *callbacks: TrainerCallback, **overrides: Any) -> Trainer:
    """Return a trainer of the kind with small, fixed settings; the model already has its adapter."""
    settings: dict[str, Any] = {
        "output_dir": str(folder), "max_steps": 8, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 1,
        "learning_rate": 1e-2, "lr_scheduler_type": "constant", "save_strategy": "no", "report_to": "none",
        "disable_tqdm": True, "use_cpu": True, "seed": 3, "logging_steps": 1,
    }  # fmt: skip
    settings |= overrides
    if kind == "sft":
        from trl import SFTTrainer

        p = preset(model)
        return SFTTrainer(
            model=model, args=p.sft_config(**settings), train_dataset=Dataset.from_list(PAIRS),
            eval_dataset=Dataset.from_list(PAIRS[:4]), processing_class=tokenizer(model), callbacks=list(callbacks),
        )  # fmt: skip
    if kind == "dpo":
        from trl import DPOConfig, DPOTrainer

        rows = [{"prompt": r["prompt"], "chosen": r["completion"], "rejected": " No."} for r in PAIRS]
        base = load(Path(model.get_base_model().name_or_path))
        new, old = "activation_checkpointing", "gradient_checkpointing"  # where it exists, the new name is wanted
        settings[new if new in DPOConfig.__dataclass_fields__ else old] = False
        torch.manual_seed(0)
        return DPOTrainer(
            model=base, args=DPOConfig(bf16=False, **settings),
            train_dataset=Dataset.from_list(rows), processing_class=tokenizer(model),
            peft_config=model.peft_config["default"], callbacks=list(callbacks),
        )  # fmt: skip
    rows = [
        {"input_ids": [2 + i % 7, 5, 9, 4 + i % 3] * 4, "labels": [2 + i % 7, 5, 9, 4 + i % 3] * 4} for i in range(40)
    ]
    dataset = Dataset.from_list(rows)
    return Trainer(
        model=model, args=TrainingArguments(**settings), train_dataset=dataset, eval_dataset=dataset.select(range(4)),
        callbacks=list(callbacks),
    )  # fmt: skip


def tokenizer(model: Any) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model.get_base_model().name_or_path)


# PEFT takes a layer of rank 0 for a torn ZeRO-3 shard when it saves; what our callback saves never makes it say so.
PEFT_ON_RANK_0 = "ignore:Adapter 'default'. .* invalid shape:peft.utils.warning.PeftWarning"


class AsPeftDocuments(TrainerCallback):
    """The allocator called as PEFT's documentation says, and nothing else: AdaLoRA without our callback."""

    def on_train_begin(self, args: Any, state: Any, control: Any, *, model: Any, **kwargs: Any) -> None:
        config = model.peft_config["default"]
        config.total_step, config.tinit, config.tfinal = state.max_steps, 1, 2

    def on_optimizer_step(self, args: Any, state: Any, control: Any, *, model: Any, **kwargs: Any) -> None:
        model.base_model.update_and_allocate(state.global_step + 1)


class Gradients(TrainerCallback):
    """Keep the first step's gradients of A and B as the optimizer got them, and the factors before the step."""

    def on_step_begin(self, args: Any, state: Any, control: Any, *, model: Any, **kwargs: Any) -> None:
        if state.global_step == 0:
            self.factors = {n: p.detach().clone() for n, p in factors(model).items()}

    def on_optimizer_step(self, args: Any, state: Any, control: Any, *, model: Any, **kwargs: Any) -> None:
        if state.global_step == 0:
            self.found = {n: p.grad.clone() for n, p in factors(model).items() if p.grad is not None}


def factors(model: Any) -> dict[str, torch.Tensor]:
    return {n: p for n, p in model.named_parameters() if "lora_A" in n or "lora_B" in n}


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters() if "lora_" in n}


def logits(model: Any) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return model(TOKENS).logits


def ranks(model: Any) -> dict[str, int]:
    return layer_ranks(model.base_model)


def reload(tiny_model: Path, folder: Path, **options: Any) -> Any:
    """Load with PEFT alone."""
    return PeftModel.from_pretrained(load(tiny_model), folder, **options)


# --- allocation -------------------------------------------------------------------------------------------------


def test_without_the_callback_no_rank_ever_changes(tiny_model: Path, tmp_path: Path):
    trainer = build("sft", fresh(tiny_model), tmp_path)
    trainer.train()
    assert set(ranks(trainer.model).values()) == {INIT_R}


@pytest.mark.parametrize("kind", ["sft", "dpo", "plain"])
def test_ranks_differ_and_the_budget_is_met(kind: str, tiny_model: Path, tmp_path: Path):
    trainer = build(kind, fresh(tiny_model), tmp_path, AdaLoraCallback(tinit=0.25, tfinal=0.25))
    trainer.train()
    found = ranks(trainer.model)
    assert sum(found.values()) == TARGET_R * LAYERS
    assert len(set(found.values())) > 1
    told = json.loads((tmp_path / "rank_history.json").read_text())
    assert told["ranks"] == found
    assert told["history"][0]["step"] == 3  # tinit is two of eight steps
    assert told["history"][-1] == {"step": told["history"][-1]["step"], "total_rank": TARGET_R * LAYERS}
    assert told["history"][-1]["step"] <= 6
    totals = [event["total_rank"] for event in told["history"]]
    assert totals == sorted(totals, reverse=True)


def test_the_allocator_runs_once_a_step_with_gradients_alive_and_the_trainers_length(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from peft import AdaLoraModel

    seen = []
    original = AdaLoraModel.update_and_allocate

    def recording(tuner: Any, step: int) -> None:
        grads = [p.grad is not None for p in weights_live(tuner)]
        seen.append((step, all(grads), tuner.peft_config["default"].total_step))
        original(tuner, step)

    monkeypatch.setattr(AdaLoraModel, "update_and_allocate", recording)
    callback = AdaLoraCallback(tinit=1, tfinal=1)
    build("sft", fresh(tiny_model), tmp_path, callback, max_steps=5, gradient_accumulation_steps=4).train()
    assert seen == [(step, True, 5) for step in range(1, 6)]


def weights_live(tuner: Any) -> list[torch.Tensor]:
    return [p for n, p in tuner.named_parameters() if "lora_" in n]


def test_the_budget_is_met_without_a_final_phase_and_with_rare_events(tiny_model: Path, tmp_path: Path):
    trainer = build("sft", fresh(tiny_model, deltaT=5), tmp_path, AdaLoraCallback(), max_steps=7)
    trainer.train()
    assert sum(ranks(trainer.model).values()) == TARGET_R * LAYERS


def test_a_run_that_stops_early_is_cut_to_the_budget_and_says_so(
    tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    class StopAtThree(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop = state.global_step == 3

    trainer = build("sft", fresh(tiny_model), tmp_path, AdaLoraCallback(tinit=2, tfinal=2), StopAtThree())
    trainer.train()
    assert sum(ranks(trainer.model).values()) == TARGET_R * LAYERS
    assert "over the budget of 12" in caplog.text


def test_a_best_checkpoint_over_the_budget_is_cut_to_it(
    tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    trainer = build(
        "sft", fresh(tiny_model), tmp_path, AdaLoraCallback(tinit=2, tfinal=2), eval_strategy="steps", eval_steps=3,
        save_strategy="steps", save_steps=3, load_best_model_at_end=True, metric_for_best_model="eval_loss",
        greater_is_better=True,
    )  # fmt: skip
    trainer.train()
    assert trainer.state.best_global_step == 3  # the highest loss is the first
    assert sum(ranks(trainer.model).values()) == TARGET_R * LAYERS
    assert "its best checkpoint" in caplog.text


# --- the regulariser --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("with_callback", [False, True])
@pytest.mark.parametrize(("kind", "times_today"), [("sft", 0), ("dpo", 0), ("plain", 1)])
def test_the_regulariser_enters_exactly_once_a_step(
    kind: str, times_today: int, with_callback: bool, accumulation: int, tiny_model: Path, tmp_path: Path
):
    """At the first step E is 0, so the task gives A and B no gradient: what is there is the regulariser's."""
    probe = Gradients()
    ours = [AdaLoraCallback(tinit=1)] if with_callback else []
    clip = 1e-3 if with_callback else 0.0  # with ours, even a tight clip on the task's gradient leaves it whole
    model = fresh(tiny_model)
    build(
        kind, model, tmp_path, *ours, probe, max_steps=2, gradient_accumulation_steps=accumulation, max_grad_norm=clip
    ).train()
    expected = 0.5 * joint_norm(expected_gradients(probe.factors))
    times = joint_norm(probe.found) / expected
    assert times == pytest.approx(1 if with_callback else times_today * accumulation, rel=1e-4, abs=1e-6)


def expected_gradients(found: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    flat = [p if "lora_A" in n else p.T for n, p in found.items()]
    return dict(zip(found, orthogonality_gradients(flat), strict=True))


def joint_norm(tensors: dict[str, torch.Tensor]) -> float:
    return float(torch.stack([t.float().norm() for t in tensors.values()]).norm()) if tensors else 0.0


def test_the_added_gradient_is_that_of_pefts_own_term(tiny_model: Path):
    model = fresh(tiny_model, lora_dropout=0.0)
    for parameter in weights_live(model):
        torch.nn.init.normal_(parameter)
    loss = model(TOKENS, labels=TOKENS).loss  # PEFT's forward adds its term
    loss.backward()
    whole = {n: p.grad.clone() for n, p in factors(model).items()}
    model.zero_grad()
    model.base_model.model(TOKENS, labels=TOKENS).loss.backward()
    add_regulariser_gradient_(model.base_model)
    for name, parameter in factors(model).items():
        torch.testing.assert_close(parameter.grad, whole[name], rtol=1e-4, atol=1e-6)


def test_the_evaluation_loss_is_the_tasks_alone(tiny_model: Path, tmp_path: Path):
    with_term = build("plain", fresh(tiny_model), tmp_path / "a").evaluate()["eval_loss"]
    trainer = build("plain", fresh(tiny_model), tmp_path / "b", AdaLoraCallback(), eval_on_start=True)
    trainer.train()
    start = next(row["eval_loss"] for row in trainer.state.log_history if "eval_loss" in row)
    base = build("plain", load(tiny_model), tmp_path / "c").evaluate()["eval_loss"]
    assert start == pytest.approx(base, abs=1e-5)
    assert with_term > base + 0.5


# --- resume -----------------------------------------------------------------------------------------------------

RESUMABLE: dict[str, Any] = {"save_strategy": "steps", "save_steps": 4}


@pytest.mark.filterwarnings(PEFT_ON_RANK_0)
def test_without_the_callback_a_resume_fails_on_sizes(tiny_model: Path, tmp_path: Path):
    build("sft", fresh(tiny_model), tmp_path, AsPeftDocuments(), **RESUMABLE).train()
    again = build("sft", fresh(tiny_model), tmp_path, AsPeftDocuments(), **RESUMABLE)
    with pytest.raises(RuntimeError, match="size mismatch"):
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))


@pytest.mark.parametrize(("kind", "delta_t"), [("sft", 1), ("plain", 3)])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    kind: str, delta_t: int, tiny_model: Path, tmp_path: Path
):
    """Ranks fall from step 2 or 3 to 5 or 6; the checkpoint is at 4; dropout is on, evaluations come between."""
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    settings = RESUMABLE | {"eval_strategy": "steps", "eval_steps": 2}

    def run(folder: Path, checkpoint: str | None) -> Any:
        callback = AdaLoraCallback(tinit=1, tfinal=1)
        trainer = build(kind, fresh(tiny_model, deltaT=delta_t), folder, callback, **settings)
        trainer.train(resume_from_checkpoint=checkpoint)
        return trainer

    one = run(straight, None)
    shutil.copytree(straight / "checkpoint-4", resumed / "checkpoint-4")
    other = run(resumed, str(resumed / "checkpoint-4"))
    assert [n for n, p in weights(one.model).items() if not torch.equal(p, weights(other.model)[n])] == []
    history = json.loads((straight / "rank_history.json").read_text())
    assert json.loads((resumed / "rank_history.json").read_text()) == history
    assert min(event["step"] for event in history["history"]) < 4 < max(event["step"] for event in history["history"])
    losses = [row["loss"] for row in one.state.log_history if "loss" in row]
    assert [row["loss"] for row in other.state.log_history if "loss" in row] == losses


@pytest.fixture(scope="module")
def stopped(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of eight steps whose ranks are fixed from step 3, with its checkpoint at step 4."""
    folder = tmp_path_factory.mktemp("stopped")
    build("sft", fresh(tiny_model), folder, AdaLoraCallback(tinit=1, tfinal=5), **RESUMABLE).train()
    return folder


def test_a_run_made_longer_keeps_the_ranks_it_had_fixed(stopped: Path, tiny_model: Path, tmp_path: Path):
    shutil.copytree(stopped / "checkpoint-8", tmp_path / "checkpoint-8")
    before = json.loads((stopped / "rank_history.json").read_text())
    trainer = build("sft", fresh(tiny_model), tmp_path, AdaLoraCallback(tinit=1, tfinal=5), max_steps=11)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-8"))
    assert trainer.state.global_step == 11
    assert json.loads((tmp_path / "rank_history.json").read_text()) == before


def test_a_run_made_shorter_than_its_schedule_is_refused(tiny_model: Path, tmp_path: Path):
    build("sft", fresh(tiny_model), tmp_path, AdaLoraCallback(tfinal=1), save_strategy="steps", save_steps=2).train()
    again = build("sft", fresh(tiny_model), tmp_path, AdaLoraCallback(tfinal=1), max_steps=5)
    with pytest.raises(ResumeError, match="fix its ranks at step 7 and now ends at 5"):
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_a_checkpoint_without_the_callbacks_file_is_refused(stopped: Path, tiny_model: Path, tmp_path: Path):
    shutil.copytree(stopped / "checkpoint-4", tmp_path / "checkpoint-4")
    (tmp_path / "checkpoint-4" / "adalora_state.safetensors").unlink()
    trainer = build("sft", fresh(tiny_model), tmp_path, AdaLoraCallback())
    with pytest.raises(ResumeError, match=r"checkpoint-4 holds no adalora_state\.safetensors"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))


def test_a_checkpoint_loads_with_peft_alone(stopped: Path, tiny_model: Path):
    saved = json.loads((stopped / "checkpoint-8" / "adapter_config.json").read_text())
    assert (saved["peft_type"], saved["orth_reg_weight"], saved["total_step"]) == ("ADALORA", 0.5, 8)
    from_checkpoint = reload(tiny_model, stopped / "checkpoint-8")
    assert not torch.equal(logits(from_checkpoint), logits(load(tiny_model)))


# --- training again ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved_by_peft(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An AdaLoRA adapter trained and saved by PEFT alone, cut to its ranks."""
    folder = tmp_path_factory.mktemp("saved")
    trainer = build("sft", fresh(tiny_model), folder, AsPeftDocuments())
    trainer.train()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".* invalid shape")
        trainer.model.save_pretrained(folder / "adapter")
    assert "rank_pattern" in (folder / "adapter" / "adapter_config.json").read_text()
    return folder / "adapter"


def reload_cut(tiny_model: Path, folder: Path, **options: Any) -> Any:
    """Load an adapter that PEFT cut; it warns of its own rank_pattern, whose keys name E instead of modules."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The following rank_pattern keys did not match")
        return reload(tiny_model, folder, **options)


def test_without_the_callback_training_a_saved_adapter_again_zeroes_it(
    saved_by_peft: Path, tiny_model: Path, tmp_path: Path
):
    model = reload_cut(tiny_model, saved_by_peft, is_trainable=True)
    assert sum(ranks(model).values()) == TARGET_R * LAYERS
    build("sft", model, tmp_path, AsPeftDocuments()).train()
    assert sum(ranks(model).values()) == 0
    assert torch.equal(logits(model), logits(load(tiny_model)))


def test_a_saved_adapter_trains_again_keeps_its_ranks_and_resumes(
    saved_by_peft: Path, tiny_model: Path, tmp_path: Path
):
    def run(folder: Path, checkpoint: str | None = None) -> Any:
        model = reload_cut(tiny_model, saved_by_peft, is_trainable=True)
        before, untrained = ranks(model), logits(model)
        trainer = build("sft", model, folder, AdaLoraCallback(tinit=1, tfinal=2), **RESUMABLE)
        assert torch.allclose(logits(model), untrained, atol=1e-6)
        trainer.train(resume_from_checkpoint=checkpoint)
        assert ranks(model) == before
        assert not torch.allclose(logits(model), untrained, atol=1e-3)
        return model

    one = run(tmp_path / "one")
    shutil.copytree(tmp_path / "one" / "checkpoint-4", tmp_path / "two" / "checkpoint-4")
    two = run(tmp_path / "two", str(tmp_path / "two" / "checkpoint-4"))
    assert [n for n, p in weights(one).items() if not torch.equal(p, weights(two)[n])] == []


def test_restored_width_leaves_the_function_and_the_parameters_identity(saved_by_peft: Path, tiny_model: Path):
    model = reload_cut(tiny_model, saved_by_peft, is_trainable=True)
    before, objects, narrow = logits(model), [id(p) for p in weights_live(model)], ranks(model)
    restore_width_(model.base_model)
    assert torch.allclose(logits(model), before, atol=1e-6)
    assert [id(p) for p in weights_live(model)] == objects
    assert ranks(model) == narrow
    assert {p.shape[0] for n, p in model.named_parameters() if "lora_A" in n} == {INIT_R}


def test_a_callback_that_came_too_late_for_a_cut_adapter_is_refused(
    saved_by_peft: Path, tiny_model: Path, tmp_path: Path
):
    trainer = build("sft", reload_cut(tiny_model, saved_by_peft, is_trainable=True), tmp_path)
    trainer.add_callback(AdaLoraCallback())
    with pytest.raises(ConfigError, match="give AdaLoraCallback to the trainer's constructor"):
        trainer.train()


def test_a_second_train_call_runs_the_schedule_again(tiny_model: Path, tmp_path: Path):
    trainer = build("sft", fresh(tiny_model), tmp_path, AdaLoraCallback(tinit=1, tfinal=2), **RESUMABLE)
    trainer.train()
    trainer.train()
    assert sum(ranks(trainer.model).values()) == TARGET_R * LAYERS
    steps = [event["step"] for event in json.loads((tmp_path / "rank_history.json").read_text())["history"]]
    assert steps == sorted(steps)
    checkpoint = json.loads((tmp_path / "checkpoint-8" / "adapter_config.json").read_text())
    assert checkpoint["peft_type"] == "ADALORA"  # and so can be resumed


# --- what leaves ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sft", "plain"])
def test_save_model_writes_a_plain_lora_with_the_same_logits(kind: str, tiny_model: Path, tmp_path: Path):
    trainer = build(kind, fresh(tiny_model), tmp_path / "out", AdaLoraCallback(tinit=1, tfinal=2))
    trainer.train()
    trainer.save_model(str(tmp_path / "adapter"))
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"
    assert config["base_model_name_or_path"] == str(tiny_model)
    expected = logits(trainer.model)
    assert (logits(reload(tiny_model, tmp_path / "adapter")) - expected).abs().max() < 1e-5
    assert (logits(load(tiny_model)) - expected).abs().max() > 1e-2


@pytest.mark.parametrize("alpha", [1, 8, 32])
def test_export_folds_any_scale_and_leaves_layers_of_rank_0_out(alpha: int, tiny_model: Path, tmp_path: Path):
    model = fresh(tiny_model, lora_alpha=alpha)
    for parameter in weights_live(model):
        torch.nn.init.normal_(parameter, std=0.3)  # E of both signs
    values = [p for n, p in model.named_parameters() if "lora_E" in n]
    with torch.no_grad():
        for kept, e in enumerate(values[:4]):  # ranks 0, 1, 2, 3, 4, 4
            e[kept:] = 0
    found = ranks(model)
    assert sorted(found.values()) == [0, 1, 2, 3, 4, 4]
    plain = reload(tiny_model, export_lora(model, tmp_path))
    assert (logits(plain) - logits(model)).abs().max() < 1e-5
    layers = {n.removesuffix(".lora_A.default.weight") for n, _ in plain.named_parameters() if "lora_A" in n}
    assert layers == {f"base_model.model.{name}" for name, rank in found.items() if rank}
    config = plain.peft_config["default"]
    assert config.rank_pattern == config.alpha_pattern
    assert len(config.rank_pattern) == LAYERS - 1


def test_export_of_an_untrained_adapter_is_refused(tiny_model: Path, tmp_path: Path):
    with pytest.raises(AdapterError, match="every rank of the adapter is 0"):
        export_lora(fresh(tiny_model), tmp_path)


def test_modules_saved_beside_the_adapter_leave_with_it(tiny_model: Path, tmp_path: Path):
    model = fresh(tiny_model, modules_to_save=["lm_head"])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_E" in name or "modules_to_save" in name:
                parameter.add_(0.1)
    assert (logits(reload(tiny_model, export_lora(model, tmp_path))) - logits(model)).abs().max() < 1e-5


# --- refusals and odd gradients ---------------------------------------------------------------------------------


def begin(model: Any, args: Any = None, **settings: Any) -> None:
    args = args or SimpleNamespace(fsdp=None, deepspeed=None, distributed_state=None, output_dir="out")
    state = SimpleNamespace(global_step=0, max_steps=10)
    AdaLoraCallback(**settings).on_train_begin(args, state, None, model=model)


def test_a_model_without_adalora_is_refused(tiny_model: Path, tmp_path: Path):
    plain = get_peft_model(load(tiny_model), LoraConfig(task_type="CAUSAL_LM", target_modules=TARGETS))
    with pytest.raises(AdapterError, match="carries no AdaLoRA adapter"):
        build("sft", plain, tmp_path, AdaLoraCallback()).train()
    with pytest.raises(AdapterError, match="LlamaForCausalLM carries no AdaLoRA adapter"):
        begin(load(tiny_model))


def test_merged_and_frozen_adapters_are_refused(saved_by_peft: Path, tiny_model: Path):
    model = fresh(tiny_model)
    model.merge_adapter()
    with pytest.raises(AdapterError, match=r"merged into model\.layers.*unmerge_adapter"):
        begin(model)
    with pytest.raises(AdapterError, match="is_trainable=True"):
        begin(reload_cut(tiny_model, saved_by_peft))


def test_ranks_and_phases_that_cannot_work_are_refused_at_train_start(tiny_model: Path):
    with pytest.raises(ConfigError, match="target_r=4 must be"):
        begin(fresh(tiny_model, target_r=INIT_R))
    with pytest.raises(ConfigError, match="none of the run's 10"):
        begin(fresh(tiny_model, tinit=8, tfinal=20, total_step=100))
    with pytest.raises(ConfigError, match="deltaT=0"):
        begin(fresh(tiny_model, deltaT=0))


@pytest.mark.parametrize(
    ("fsdp", "deepspeed", "kind", "named"),
    [
        ("full_shard", None, "NO", "FSDP"),
        (None, None, "FSDP", "FSDP"),
        (None, "zero3.json", "NO", "DeepSpeed"),
        (None, None, "DEEPSPEED", "DeepSpeed"),
    ],
)
def test_sharded_training_is_refused(fsdp: Any, deepspeed: Any, kind: str, named: str, tiny_model: Path):
    distributed = SimpleNamespace(distributed_type=SimpleNamespace(value=kind))
    args = SimpleNamespace(fsdp=fsdp, deepspeed=deepspeed, distributed_state=distributed, output_dir="out")
    with pytest.raises(ConfigError, match=rf"which {named} hides or shards"):
        begin(fresh(tiny_model), args)


def test_gradients_that_overflowed_leave_the_scores_alone_and_absent_ones_count_as_zero(tiny_model: Path):
    model = fresh(tiny_model)
    begin(model)
    parameters = weights_live(model.base_model)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    parameters[0].grad = None
    allocate_(model.base_model, 1, None)
    scores = {n: t.clone() for n, t in model.base_model.rankallocator.exp_avg_ipt.items()}
    assert len(scores) == len(parameters)
    parameters[1].grad.fill_(torch.inf)
    kept = {"as": [True]}
    assert allocate_(model.base_model, 2, kept) is kept
    assert all(torch.equal(t, scores[n]) for n, t in model.base_model.rankallocator.exp_avg_ipt.items())


def test_the_method_cards_example_runs_as_pasted(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import hf_lora_ext.callbacks.adalora as module

    card = Path(module.__file__).with_suffix(".md").read_text(encoding="utf8")
    (code,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    assert "meta-llama/Llama-2-7b-hf" in code
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "examples.jsonl", PAIRS)
    exec(compile(code.replace("meta-llama/Llama-2-7b-hf", str(tiny_model)), "adalora.md", "exec"), {})
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["peft_type"] == "LORA"
