"""A run on eight examples under SFTTrainer, and the answers of what it leaves."""

from pathlib import Path

from conftest import PAIRS

EIGHT = PAIRS[:8]


def trainer_for(p, folder: Path, steps: int, rows=EIGHT, **overrides):
    from datasets import Dataset
    from trl import SFTTrainer

    settings = {"save_strategy": "no", "logging_steps": 1} | overrides
    args = p.sft_config(
        str(folder), max_steps=steps, report_to="none", disable_tqdm=True, per_device_train_batch_size=8,
        gradient_accumulation_steps=1, warmup_steps=3, **settings,
    )  # fmt: skip
    return SFTTrainer(
        model=p.model_id, args=args, train_dataset=Dataset.from_list(rows), peft_config=p.peft_config,
        quantization_config=p.quantization_config, optimizer_cls_and_kwargs=p.optimizer_cls_and_kwargs(args),
        callbacks=p.callbacks(),
    )  # fmt: skip


def logits(model, tokens=(5, 9, 17, 33)):
    import torch

    with torch.no_grad():
        return model.eval()(torch.tensor([tokens])).logits


def reloaded(p, adapter: Path):
    """The saved adapter on a freshly loaded base, by peft alone, its weights in the precision that they trained in."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(p.model_id, **p.model_kwargs), adapter)
    if p.adapter_dtype == "bfloat16":  # peft reloads an adapter in float32
        for name, weight in model.named_parameters():
            if "lora_A" in name or "lora_B" in name or "trainable_tokens" in name:
                weight.data = weight.data.to(torch.bfloat16)
    return model


def losses(trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
