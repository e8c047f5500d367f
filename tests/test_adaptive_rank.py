"""AdaptiveRankCallback in real trainers: ranks move, the budget holds, state survives, the adapter is ordinary."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from adaptive_runs import TARGETS, TOKENS, adapted, build, callback, load, logits, parameters
from conftest import PAIRS
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    GPT2Config,
    GPT2LMHeadModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from hf_lora_ext.errors import ResumeError
from hf_lora_ext.ranks.change import change_ranks_
from hf_lora_ext.ranks.criteria import CRITERIA, find_bases
from hf_lora_ext.ranks.events import short_run_warning
from hf_lora_ext.ranks.lora_layers import lora_layers
from hf_lora_ext.ranks.storage import read_state, write_state


def test_rank_moves_under_the_budget_and_the_adapter_is_ordinary(tiny_model: Path, tmp_path: Path) -> None:
    model = adapted(tiny_model)
    uniform = parameters(model)
    trainer = build(model, tmp_path, callback())
    assert parameters(model) == 8 * uniform
    trainer.train()
    assert parameters(model) <= uniform
    history = json.loads((tmp_path / "rank_history.json").read_text())
    assert len(set(history["ranks"].values())) > 1
    trainer.save_model(str(tmp_path / "adapter"))
    again = PeftModel.from_pretrained(load(tiny_model), tmp_path / "adapter")
    assert torch.equal(logits(again), logits(model))
    config = again.peft_config["default"]
    assert {config.lora_alpha, *config.alpha_pattern.values()} == {8}  # as the adapter was given
    assert len(set(config.rank_pattern.values())) > 1


def test_a_short_run_says_once_what_it_lost_elsewhere(tiny_model: Path, tmp_path: Path, caplog) -> None:
    trainer = build(adapted(tiny_model), tmp_path, callback(), save_strategy="steps", save_steps=11)
    trainer.train()
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-11"))
    said = [line.message for line in caplog.records if "has to be learned again" in line.message]
    assert len(said) == 1
    assert said[0].startswith("adaptive rank in 12 steps: what an event cuts has to be learned again, and 5 steps")


@pytest.mark.parametrize(("steps", "mode"), [(120, "anneal"), (20, "fixed")])
def test_a_long_run_and_one_that_never_is_wide_hear_nothing_of_it(steps: int, mode: Any) -> None:
    assert short_run_warning(steps, 7, mode) is None


@pytest.mark.parametrize("stop", [3, 4, 6, 7, 11])
def test_resumed_run_equals_the_uninterrupted_one_bit_for_bit(tiny_model: Path, tmp_path: Path, stop: int) -> None:
    whole = adapted(tiny_model)
    build(whole, tmp_path / "a", callback(), save_strategy="steps", save_steps=1).train()
    again = adapted(tiny_model)
    trainer = build(again, tmp_path / "b", callback(), save_strategy="steps", save_steps=1)
    (tmp_path / "b").mkdir(exist_ok=True)
    shutil.copytree(tmp_path / "a" / f"checkpoint-{stop}", tmp_path / "b" / f"checkpoint-{stop}")
    trainer.train(resume_from_checkpoint=str(tmp_path / "b" / f"checkpoint-{stop}"))
    one, other = dict(whole.named_parameters()), dict(again.named_parameters())
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert (tmp_path / "a" / "rank_history.json").read_text() == (tmp_path / "b" / "rank_history.json").read_text()


# --- every kind of layer ----------------------------------------------------------------------------------------


def gpt2(**settings: Any) -> Any:
    config = GPT2Config(vocab_size=100, n_embd=32, n_layer=2, n_head=2, n_positions=64, **settings)
    torch.manual_seed(0)
    return GPT2LMHeadModel(config)


KINDS: dict[str, dict[str, Any]] = {
    "linear": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "dropout": {"lora_dropout": 0.1},
    "odd scale": {"lora_alpha": 7, "r": 3},
    "embedding": {"target_modules": ["embed_tokens", "q_proj", "v_proj"]},
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_adapter_reloads_to_the_same_answers(kind: str, tiny_model: Path, tmp_path: Path) -> None:
    model = adapted(tiny_model, **KINDS[kind])
    ours = callback()
    trainer = build(model, tmp_path, ours)
    trainer.train()
    assert len(set(ours.layers_.ranks.values())) > 1
    trainer.save_model(str(tmp_path / "adapter"))
    assert torch.equal(logits(PeftModel.from_pretrained(load(tiny_model), tmp_path / "adapter")), logits(model))


def test_conv1d_layers_change_rank_as_linear_ones_do(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True)
    model = get_peft_model(gpt2(), config)
    trainer = build(model, tmp_path, callback())
    trainer.train()
    trainer.save_model(str(tmp_path / "adapter"))
    assert torch.equal(logits(PeftModel.from_pretrained(gpt2(), tmp_path / "adapter")), logits(model))


def in_bfloat16(model: Any) -> None:
    """Cast the factors as TRL does on a packed base; PEFT reloads them in float32."""
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.to(torch.bfloat16)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_packed_base_in_bfloat16_changes_rank_and_reloads(bits: int, tiny_model: Path, tmp_path: Path) -> None:
    packed = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    quantization = packed if bits == 4 else BitsAndBytesConfig(load_in_8bit=True)
    torch.manual_seed(0)
    base = load(tiny_model, quantization_config=quantization)
    config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=TARGETS)
    model = get_peft_model(base, config)
    in_bfloat16(model)
    trainer = build(model, tmp_path, callback())
    trainer.train()
    assert {p.dtype for name, p in model.named_parameters() if "lora_" in name} == {torch.bfloat16}
    trainer.save_model(str(tmp_path / "adapter"))
    again = PeftModel.from_pretrained(load(tiny_model, quantization_config=quantization), tmp_path / "adapter")
    in_bfloat16(again)
    assert torch.equal(logits(again), logits(model))


def test_a_checkpoint_whose_factors_go_by_another_scale_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    build(adapted(tiny_model), tmp_path, callback(), save_strategy="steps", save_steps=6).train()
    folder = tmp_path / "checkpoint-6"
    state = read_state(folder, lambda _name: torch.device("cpu"))
    del state.settings["keeps"]  # as they were written while the scale was kept
    write_state(folder, state)
    trainer = build(adapted(tiny_model), tmp_path, callback(), save_strategy="steps", save_steps=6)
    with pytest.raises(ResumeError, match="keeps was None and is alpha"):
        trainer.train(resume_from_checkpoint=str(folder))


def test_widening_changes_no_answer_and_keeps_alpha(tiny_model: Path, tmp_path: Path) -> None:
    model = adapted(tiny_model)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.1)  # as an adapter that has been trained before
    before = logits(model)
    ours = callback()
    build(model, tmp_path, ours)
    layers = ours.layers_
    assert set(layers.ranks.values()) == {16}
    assert {factors.scale for factors in layers.live.values()} == {8 / 16}
    assert torch.allclose(logits(model), before, atol=1e-6)


def test_a_wide_start_learns_no_faster_than_the_given_adapter(tiny_model: Path, tmp_path: Path) -> None:
    """Else the learning rate that suits a rank would wreck the run that starts at eight times the rank."""
    given, wide = adapted(tiny_model), adapted(tiny_model)
    build(wide, tmp_path, callback())
    assert parameters(wide) == 8 * parameters(given)
    assert 0.2 < moved_by_a_step(wide) / moved_by_a_step(given) < 1.5


def moved_by_a_step(model: Any) -> float:
    """Return how far a first step of Adam, the learning rate with the gradient's sign, moves the answers."""
    before = logits(model)
    model.train()
    model(TOKENS, labels=TOKENS).loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= 1e-3 * parameter.grad.sign()
    return float((logits(model) - before).norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_change_of_basis_moves_the_answers_no_more_than_rounding(
    dtype: torch.dtype, tiny_model: Path, tmp_path: Path
) -> None:
    """Only what the cut directions did is lost: a cut of worthless directions is the type's rounding."""
    model = adapted(tiny_model, r=8)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.normal_(0, 0.1).to(dtype)
    layers = lora_layers(model, "default")
    bases = find_bases(layers, {}, "svd")
    before = {name: f.scale * (f.b.double() @ f.a.double()) for name, f in layers.items()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    change_ranks_(model, layers, bases, dict.fromkeys(layers, 7), optimizer)
    rounding = torch.finfo(dtype).eps
    for name, factors in layers.items():
        lost = float(bases[name].values[7])
        moved = torch.linalg.matrix_norm(factors.scale * (factors.b.double() @ factors.a.double()) - before[name], 2)
        assert moved <= lost * (1 + 1e-3) + 8 * rounding * before[name].norm()


def test_what_adam_remembers_is_of_the_gradients_that_come_after_a_cut(tiny_model: Path) -> None:
    """The scale rises as the rank falls, and the gradients of B with it."""
    model = adapted(tiny_model, r=8)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.1)[:, 4:] = 0  # four directions do nothing, so that a cut changes no answer
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.0)
    model(TOKENS, labels=TOKENS).loss.backward()
    optimizer.step()
    layers = lora_layers(model, "default")
    change_ranks_(model, layers, find_bases(layers, {}, "svd"), dict.fromkeys(layers, 4), optimizer)
    model.zero_grad()
    model(TOKENS, labels=TOKENS).loss.backward()
    for factors in layers.values():
        assert factors.scale == pytest.approx(2.0)
        for parameter in (factors.a, factors.b):
            remembered = 10 * optimizer.state[parameter]["exp_avg"]  # β₁ = 0.9
            assert torch.allclose(remembered, parameter.grad, rtol=1e-3, atol=1e-3 * float(parameter.grad.abs().max()))


# --- every trainer ----------------------------------------------------------------------------------------------


def trl_trainer(kind: str, tiny_model: Path, folder: Path, callbacks: list[TrainerCallback], **changes: Any) -> Any:
    import trl

    settings: dict[str, Any] = {
        "output_dir": str(folder), "max_steps": 8, "per_device_train_batch_size": 2, "learning_rate": 1e-2,
        "save_strategy": "no", "report_to": "none", "disable_tqdm": True, "use_cpu": True, "bf16": False,
        "gradient_checkpointing": False,
    }  # fmt: skip
    chosen = [{"prompt": f"{n}+1", "chosen": f" is {n + 1}", "rejected": " is 0"} for n in range(20)]
    rows = {
        "SFT": PAIRS,
        "DPO": chosen,
        "Reward": chosen,
        "KTO": [{"prompt": f"{n}+1", "completion": f" is {n % 7}", "label": n % 2 == 0} for n in range(20)],
        "GRPO": [{"prompt": f"{n}+1"} for n in range(20)],
    }[kind]
    extra: dict[str, Any] = {"processing_class": AutoTokenizer.from_pretrained(tiny_model)}
    if kind == "GRPO":
        settings |= {"num_generations": 2, "max_completion_length": 4}
        extra["reward_funcs"] = lambda completions, **_: [float(len(set(text))) for text in completions]
    torch.manual_seed(0)
    if kind == "Reward":
        model = AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=1, dtype=torch.float32)
    else:
        model = load(tiny_model)
    config = LoraConfig(task_type="SEQ_CLS" if kind == "Reward" else "CAUSAL_LM", r=2, target_modules=TARGETS)
    return getattr(trl, f"{kind}Trainer")(
        model=model, args=getattr(trl, f"{kind}Config")(**(settings | changes)), peft_config=config,
        train_dataset=Dataset.from_list(rows), callbacks=callbacks, **extra,
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["SFT", "DPO", "KTO", "Reward", "GRPO"])
def test_ranks_move_in_every_trl_trainer(kind: str, tiny_model: Path, tmp_path: Path) -> None:
    ours = callback(events=2)
    trainer = trl_trainer(kind, tiny_model, tmp_path, [ours])
    trainer.train()
    assert len(ours.state_.history) == 2
    told = [event["probe_loss_after"] is not None for event in ours.state_.history]
    assert all(told) or kind == "Reward"  # whose loss the trainer makes of two answers
    assert ours.layers_.parameters <= ours.budget_
    assert len(set(ours.layers_.ranks.values())) > 1


def test_ranks_move_in_sequence_classification(tiny_model: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=3, dtype=torch.float32)
    model = get_peft_model(base, LoraConfig(task_type="SEQ_CLS", r=2, target_modules=TARGETS))
    rows = [{"input_ids": [2 + (n * i) % 90 for i in range(12)], "labels": n % 3} for n in range(40)]
    arguments = TrainingArguments(str(tmp_path), max_steps=10, learning_rate=1e-2, report_to="none", use_cpu=True,
                                  per_device_train_batch_size=4, save_strategy="no", disable_tqdm=True)  # fmt: skip
    ours = callback(events=2)
    trainer = Trainer(model=model, args=arguments, train_dataset=Dataset.from_list(rows), callbacks=[ours])
    trainer.train()
    assert ours.layers_.parameters <= ours.budget_
    trainer.save_model(str(tmp_path / "adapter"))
    base = AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=3, dtype=torch.float32)
    again = PeftModel.from_pretrained(base, tmp_path / "adapter")  # the trained head comes with the adapter
    assert torch.equal(logits(again), logits(model))


@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_criterion_meets_the_budget_and_resumes_inside_its_probe(
    criterion: str, tiny_model: Path, tmp_path: Path
) -> None:
    whole, ours = adapted(tiny_model), callback(criterion=criterion)
    build(whole, tmp_path, ours, save_strategy="steps", save_steps=1).train()
    assert ours.layers_.parameters <= ours.budget_
    shutil.rmtree(tmp_path / "checkpoint-12")
    again = adapted(tiny_model)
    trainer = build(again, tmp_path, callback(criterion=criterion))
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))  # the probe for step 5 has begun
    one, other = dict(whole.named_parameters()), dict(again.named_parameters())
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_sees_each_token_once(reentrant: bool, tiny_model: Path, tmp_path: Path) -> None:
    plain, checkpointed = callback(), callback()
    build(adapted(tiny_model), tmp_path / "a", plain).train()
    model = adapted(tiny_model)
    model.enable_input_require_grads()
    known = "activation" if "activation_checkpointing" in TrainingArguments.__dataclass_fields__ else "gradient"
    how: dict[str, Any] = {f"{known}_checkpointing": True}
    how[f"{known}_checkpointing_kwargs"] = {"use_reentrant": reentrant}
    build(model, tmp_path / "b", checkpointed, **how).train()
    assert [e["ranks"] for e in plain.state_.history] == [e["ranks"] for e in checkpointed.state_.history]


def test_accumulation_changes_no_decision(tiny_model: Path, tmp_path: Path) -> None:
    whole, parts = callback(), callback()
    build(adapted(tiny_model), tmp_path / "a", whole, per_device_train_batch_size=4).train()
    build(adapted(tiny_model), tmp_path / "b", parts, per_device_train_batch_size=1,
          gradient_accumulation_steps=4).train()  # fmt: skip
    assert [e["ranks"] for e in whole.state_.history] == [e["ranks"] for e in parts.state_.history]
