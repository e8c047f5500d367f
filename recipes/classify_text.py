"""Tell from one line of documentation which package a function is in: a text classifier, with transformers' Trainer.

Hardware: a CPU with two cores and 4 GiB of free memory.
Command:  python recipes/classify_text.py out/classify_text

It shows the library without our runner: peft's own LoraConfig, transformers' own Trainer, and `FactsCallback`, so that
the adapter leaves with facts, loss curve and card. The lines are those of `builtin:python-packages`;
`recipes/classification.yaml` is a recipe for the same.
"""

import sys
from hashlib import sha256

from datasets import Dataset
from peft import LoraConfig, TaskType, get_peft_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments, set_seed

from hf_lora_ext import FactsCallback, write_card
from hf_lora_ext.data.stdlib_docstrings import PACKAGES, package_examples
from hf_lora_ext.models.base_models import find_base_model

DATA = "builtin:python-packages"
LABELS = list(PACKAGES)


def labelled_lines() -> tuple[list[dict], list[dict]]:
    """Return the lines to learn from and those held out, about one in five, by a hash of the line."""
    rows = [{"text": line["text"], "label": LABELS.index(line["label"])} for line in package_examples()]
    train, held_out = [], []
    for row in rows:
        is_held_out = int(sha256(row["text"].encode()).hexdigest(), 16) % 5 == 0
        (held_out if is_held_out else train).append(row)
    return train, held_out


def accuracy(prediction) -> dict[str, float]:
    """Return the share of lines whose package was told."""
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def main(folder: str, model_name: str = "HuggingFaceTB/SmolLM2-135M-Instruct", steps: int = 60) -> None:
    """Train the classifier into a folder."""
    base = find_base_model(model_name)
    tokenizer = AutoTokenizer.from_pretrained(base.path, revision=base.revision)
    set_seed(0)  # for the new head, and the adapter's first factors
    model = AutoModelForSequenceClassification.from_pretrained(
        base.path, revision=base.revision, id2label=dict(enumerate(LABELS)), pad_token_id=tokenizer.pad_token_id
    )
    model.config._name_or_path = base.recorded_name
    adapter = LoraConfig(task_type=TaskType.SEQ_CLS, r=8, lora_alpha=16, target_modules="all-linear")
    train, held_out = map(Dataset.from_list, labelled_lines())

    def tokenised(rows: Dataset) -> Dataset:
        return rows.map(lambda row: tokenizer(row["text"], truncation=True, max_length=64))

    trainer = Trainer(
        model=get_peft_model(model, adapter),
        args=TrainingArguments(
            output_dir=folder, max_steps=steps, per_device_train_batch_size=16, per_device_eval_batch_size=32,
            learning_rate=1e-3, warmup_steps=5, eval_strategy="steps", eval_steps=30, eval_on_start=True,
            logging_steps=10, save_strategy="no", report_to="none", use_cpu=True, seed=0,
        ),
        train_dataset=tokenised(train),
        eval_dataset=tokenised(held_out),
        processing_class=tokenizer,
        compute_metrics=accuracy,
        callbacks=[FactsCallback(train, held_out, name=DATA, base_model=base.facts, method="classification")],
    )  # fmt: skip
    trainer.train()
    trainer.save_model(folder)
    write_card(
        folder,
        language="en",
        intended_use="To show a classifier's card. It tells which of four packages of Python a line is about.",
        limitations="It knows these four packages alone, and answers with one of them whatever it reads.",
    )


if __name__ == "__main__":
    main(*sys.argv[1:3])
