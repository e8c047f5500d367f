"""Small bases and random adapters of every kind to export, and the answers of what comes out."""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

IDS = torch.tensor([[5, 9, 17, 33, 2, 71], [3, 3, 60, 1, 90, 8]])


def random_adapter(
    folder: Path, base: Path, *, auto=AutoModelForCausalLM, dtype=torch.float32, spread: float = 0.1, **config
) -> Path:
    """Save a random adapter of a base; what it trains beside its factors is random too."""
    torch.manual_seed(0)
    settings = {"r": 4, "lora_alpha": 8, "task_type": "CAUSAL_LM", "target_modules": ["q_proj", "v_proj"]} | config
    model = get_peft_model(auto.from_pretrained(base, dtype=torch.float32), LoraConfig(**settings))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.requires_grad:
                factor = 1 + 0.2 * torch.randn_like(weight) if "magnitude" in name else None
                weight.copy_(weight * factor if factor is not None else weight + spread * torch.randn_like(weight))
    model.to(dtype).save_pretrained(folder)
    return folder


def mixed_adapter(folder: Path, base: Path, *, scale: float = 2.0, **config) -> Path:
    """Save an adapter with a rank for each layer, 0 to 7, and patterns as adaptive rank writes them."""
    model = AutoModelForCausalLM.from_pretrained(base)
    linear = [n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and "lm_head" not in n]
    ranks = {name: (3 * i) % 8 for i, name in enumerate(linear)}
    kept = {name: rank for name, rank in ranks.items() if rank}
    assert len(kept) < len(linear)
    settings = {
        "r": max(kept.values()), "lora_alpha": scale * max(kept.values()), "target_modules": sorted(kept),
        "rank_pattern": {"^" + re.escape(name): rank for name, rank in kept.items()},
        "alpha_pattern": {"^" + re.escape(name): scale * rank for name, rank in kept.items()},
    }  # fmt: skip
    return random_adapter(folder, base, **settings | config)


def answers(base: Path, adapter: Path | None = None, *, auto=AutoModelForCausalLM, **loading) -> torch.Tensor:
    """Return a model's answers in float32, with an adapter on it if one is given."""
    model = auto.from_pretrained(base, dtype=torch.float32, **loading)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    with torch.no_grad():
        return model.eval()(IDS).logits


def config_of(folder: Path) -> dict:
    return json.loads((folder / "adapter_config.json").read_text())


def classifier(base: Path, **kwargs):
    return AutoModelForSequenceClassification.from_pretrained(base, num_labels=3, pad_token_id=0, **kwargs)
