"""Tell from one line of documentation which package a function is in: a text classifier, with transformers' Trainer.

Hardware: a CPU with two cores and 4 GiB of free memory.
Command:  python recipes/classify_text.py out/classify_text

It shows the library without our runner: peft's own LoraConfig, transformers' own Trainer, and `FactsCallback`, so that
the adapter leaves with facts, loss curve and card. `recipes/classification.yaml` is a recipe for the same.
"""

import sys

from peft import LoraConfig, TaskType, get_peft_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments, set_seed

from hf_lora_ext import FactsCallback, write_card
from hf_lora_ext.data.examples import load_examples
from hf_lora_ext.models.base_models import find_base_model
from hf_lora_ext.runs.recipe import DataChoice


def accuracy(prediction) -> dict[str, float]:
    """Return the share of lines whose package was told."""
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def main(folder: str, model_name: str = "HuggingFaceTB/SmolLM2-135M-Instruct", steps: int = 60) -> None:
    """Train the classifier into a folder."""
    data = load_examples(DataChoice(source="builtin:python-packages", eval_fraction=0.2), ["labelled text"])
    base = find_base_model(model_name)
    tokenizer = AutoTokenizer.from_pretrained(base.path, revision=base.revision)
    set_seed(0)  # for the new head, and the adapter's first factors
    model = AutoModelForSequenceClassification.from_pretrained(
        base.path, revision=base.revision, id2label=dict(enumerate(data.labels)), pad_token_id=tokenizer.pad_token_id
    )
    model.config._name_or_path = base.recorded_name
    adapter = LoraConfig(task_type=TaskType.SEQ_CLS, r=8, lora_alpha=16, target_modules="all-linear")
    tokens = [rows.map(lambda row: tokenizer(row["text"])) for rows in (data.train, data.held_out)]
    args = TrainingArguments(
        output_dir=folder, max_steps=steps, per_device_train_batch_size=16, per_device_eval_batch_size=32, seed=0,
        learning_rate=1e-3, warmup_steps=5, eval_strategy="steps", eval_steps=30, eval_on_start=True,
        logging_steps=10, save_strategy="no", report_to="none", use_cpu=True,
    )  # fmt: skip
    trainer = Trainer(
        get_peft_model(model, adapter), args, train_dataset=tokens[0], eval_dataset=tokens[1],
        processing_class=tokenizer, compute_metrics=accuracy,
        callbacks=[FactsCallback(data=data.facts, base_model=base.facts, method="classification")],
    )  # fmt: skip
    trainer.train()
    trainer.save_model(folder)
    use = "To show a classifier's card. It tells which of four packages of Python a line is about."
    limits = "It knows these four packages alone, and answers with one of them whatever it reads."
    write_card(folder, language="en", intended_use=use, limitations=limits)


if __name__ == "__main__":
    main(*sys.argv[1:3])
