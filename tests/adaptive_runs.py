"""A tiny adapted model, a trainer for it, and its answers: what the tests of adaptive rank share."""

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from hf_lora_ext import AdaptiveRankCallback

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
    return AdaptiveRankCallback(**({"target_rank": 2, "events": 3, "last": 0.6, "probe_steps": 2} | changes))


def logits(model: Any) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return model(TOKENS).logits


def parameters(model: Any) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
