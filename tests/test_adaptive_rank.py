"""AdaptiveRankCallback in real trainers: ranks move, the budget holds, state survives, the adapter is ordinary."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

from hf_lora_ext.callbacks import AdaptiveRankCallback

TARGETS = ["q_proj", "v_proj", "down_proj"]
TOKENS = torch.arange(2, 34).repeat(2, 1)


def load(tiny_model: Path, **changes: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32, **changes)


def adapted(tiny_model: Path, **changes: Any) -> PeftModel:
    torch.manual_seed(0)
    settings: dict[str, Any] = {"task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 8, "target_modules": TARGETS}
    return get_peft_model(load(tiny_model), LoraConfig(**(settings | changes)))


def build(model: Any, folder: Path, *callbacks: TrainerCallback, **overrides: Any) -> Trainer:
    settings: dict[str, Any] = {
        "output_dir": str(folder), "max_steps": 12, "per_device_train_batch_size": 2, "learning_rate": 1e-2,
        "save_strategy": "no", "report_to": "none", "disable_tqdm": True, "use_cpu": True, "seed": 3,
        "logging_steps": 1,
    }  # fmt: skip
    rows = [{"input_ids": [2 + (n + i) % 90 for i in range(24)]} for n in range(40)]
    rows = [row | {"labels": row["input_ids"]} for row in rows]
    return Trainer(model=model, args=TrainingArguments(**(settings | overrides)), train_dataset=Dataset.from_list(rows),
                   eval_dataset=Dataset.from_list(rows[:4]), callbacks=list(callbacks))  # fmt: skip


def callback(**changes: Any) -> AdaptiveRankCallback:
    return AdaptiveRankCallback(**({"target_rank": 2, "events": 3, "probe_steps": 2} | changes))


def logits(model: Any) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return model(TOKENS).logits


def parameters(model: Any) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_rank_moves_under_the_budget_and_the_adapter_is_ordinary(tiny_model: Path, tmp_path: Path) -> None:
    model = adapted(tiny_model)
    uniform = parameters(model)
    trainer = build(model, tmp_path, callback())
    assert parameters(model) == 4 * uniform
    trainer.train()
    assert parameters(model) <= uniform
    history = json.loads((tmp_path / "rank_history.json").read_text())
    assert len(set(history["ranks"].values())) > 1
    trainer.save_model(str(tmp_path / "adapter"))
    again = PeftModel.from_pretrained(load(tiny_model), tmp_path / "adapter")
    assert torch.equal(logits(again), logits(model))


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
