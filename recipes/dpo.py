"""Prefer the real docstring of a function to another's: DPO with trl's own DPOTrainer and a preset's values.

Hardware: a CPU with two cores and 4 GiB of free memory.
Command:  python recipes/dpo.py out/dpo
"""

import sys

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOTrainer

from hf_lora_ext import FactsCallback, preset, write_card
from hf_lora_ext.data.stdlib_docstrings import docstring_examples
from hf_lora_ext.models.base_models import find_base_model


def preferences() -> Dataset:
    """Return prompts with the function's own docstring as chosen, and that of a function far from it as rejected."""
    rows = [row for row in docstring_examples() if len(row["prompt"]) + len(row["completion"]) < 240]
    far = [*rows[len(rows) // 2 :], *rows[: len(rows) // 2]]
    return Dataset.from_list(
        [
            {"prompt": row["prompt"], "chosen": row["completion"], "rejected": other["completion"]}
            for row, other in zip(rows, far, strict=True)
            if row["completion"] != other["completion"]
        ]
    )


def main(folder: str, model_name: str = "HuggingFaceTB/SmolLM2-135M-Instruct", steps: int = 30) -> None:
    """Train an adapter into a folder; the reference model is the base with the adapter switched off."""
    base = find_base_model(model_name)
    p = preset(base.path)
    model = AutoModelForCausalLM.from_pretrained(base.path, revision=base.revision, **p.model_kwargs)
    model.config._name_or_path = base.recorded_name
    trainer = DPOTrainer(
        model=model,
        args=p.training_config(
            "dpo", folder, max_steps=steps, learning_rate=5e-5, per_device_train_batch_size=2, max_length=96,
            gradient_accumulation_steps=1, logging_steps=5, save_strategy="no", report_to="none", seed=0,
        ),
        train_dataset=preferences(),
        processing_class=AutoTokenizer.from_pretrained(base.path),
        peft_config=p.peft_config,
        callbacks=[*p.callbacks(), FactsCallback(base_model=base.facts)],
    )  # fmt: skip
    trainer.train()
    trainer.save_model(folder)
    write_card(folder)


if __name__ == "__main__":
    main(*sys.argv[1:3])
