"""Small adapters that look trained: random factors whose directions differ in size, on random models."""

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

ROWS = [{"input_ids": [2 + (7 * n + i * (n + 1)) % 90 for i in range(9 + n)]} for n in range(12)]
TRAINING = [{"input_ids": [2 + (5 * n + i * (n + 2)) % 90 for i in range(11 + n % 3)]} for n in range(16)]

KINDS: dict[str, dict[str, Any]] = {
    "lora": {"target_modules": ["q_proj", "v_proj", "down_proj"]},
    "rslora": {"target_modules": ["q_proj", "down_proj"], "use_rslora": True},
    "dora": {"target_modules": ["q_proj", "down_proj"], "use_dora": True},
    "embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "mixed": {
        "target_modules": ["q_proj", "v_proj"],
        "rank_pattern": {r"^model\.layers\.0\.self_attn\.q_proj": 3},
        "alpha_pattern": {r"^model\.layers\.1\.self_attn\.v_proj": 20},
    },
    "saved whole": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "new tokens": {"target_modules": ["q_proj"], "trainable_token_indices": [5, 9]},
    "conv1d": {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True},
}
"""What an adapter may be, as changes to its config."""


def base_model(kind: str, tiny_model: Path) -> Any:
    if kind != "conv1d":
        return AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=258, n_positions=64, n_embd=32, n_layer=2, n_head=2))


def trained(kind: str, tiny_model: Path, seed: int = 0, rank: int = 6) -> PeftModel:
    """Return a base with an adapter whose every factor moves the answers."""
    config = LoraConfig(**({"task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 10} | KINDS[kind]))
    model = get_peft_model(base_model(kind, tiny_model), config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name and "magnitude" not in name:
                drawn = torch.randn(parameter.shape, generator=generator)
                axis = 0 if "_A" in name else 1
                sizes = torch.logspace(0, -2, parameter.shape[axis])
                parameter.copy_(drawn * (sizes[:, None] if axis == 0 else sizes) * 0.5)
            elif parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model.eval()
