"""The text tasks of the rank benchmark, on any local model folder: write a completion, or name a text's class."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from rank_tasks import Prepared, Sizes, in_order
from rank_text_data import Row, Split, read_split
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, set_seed

IGNORED = -100
"""Label of a token that is not supervised."""


@dataclass(frozen=True, kw_only=True)
class TextTask:
    """A task on a model in a folder and rows of text."""

    model: Path
    data: Path | None = None
    held_out: Path | None = None
    length: int = 256
    """Tokens of a row at most."""
    held_out_rows: int = 256
    targets: str = "all-linear"
    device: str = "cpu"
    dtype: str = "float32"

    columns = ("prompt", "completion")
    sources = ("rank_text.py", "rank_text_data.py", "rank_tasks.py")

    @cached_property
    def split(self) -> Split:
        """The rows of text."""
        return read_split(self.columns, self.data, self.held_out, self.held_out_rows)

    @cached_property
    def tokenizer(self) -> Any:
        """The model's."""
        return AutoTokenizer.from_pretrained(self.model)

    def settings(self) -> dict[str, Any]:
        """Return all that determines the task."""
        return {"task": type(self).__name__, "model": model_fingerprint(self.model), "data": self.split.fingerprint,
                "length": self.length, "targets": self.targets, "device": self.device, "dtype": self.dtype}  # fmt: skip

    def padded(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Return encoded rows as a batch, padded on the right."""
        width = max(len(row["input_ids"]) for row in rows)
        pad = self.tokenizer.pad_token_id or 0
        ids = torch.tensor([row["input_ids"] + [pad] * (width - len(row["input_ids"])) for row in rows])
        mask = torch.tensor([[i < len(row["input_ids"]) for i in range(width)] for row in rows]).long()
        return {"input_ids": ids, "attention_mask": mask, "labels": self.padded_labels(rows, width)}

    def padded_labels(self, rows: list[dict[str, Any]], width: int) -> Tensor:
        """Return the batch's labels."""
        raise NotImplementedError

    def batches(self, rows: list[dict[str, Any]], model: Any, size: int = 16) -> Iterator[dict[str, Tensor]]:
        """Yield the rows in batches of similar length, on the model's device."""
        device = next(model.parameters()).device
        ordered = sorted(rows, key=lambda row: len(row["input_ids"]))
        for start in range(0, len(ordered), size):
            batch = self.padded(ordered[start : start + size])
            yield {key: value.to(device) for key, value in batch.items()}


@dataclass(frozen=True, kw_only=True)
class CausalTask(TextTask):
    """Write the completion, whose tokens alone are supervised; or the whole text, prompt and completion in one."""

    whole_text: bool = False

    name = "causal"
    measure = "held-out NLL (nats per token)"

    @cached_property
    def encoded(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Rows to train on and held-out rows, those over the length left out."""
        sides = [[row for row in map(self.encode, side) if len(row["input_ids"]) <= self.length]
                 for side in (self.split.train, self.split.held_out)]  # fmt: skip
        if not all(sides):
            raise SystemExit(f"no row has at most --length {self.length} tokens; raise it")
        return sides[0], sides[1]

    def settings(self) -> dict[str, Any]:
        """Return all that determines the task."""
        return super().settings() | {"whole_text": self.whole_text}

    def encode(self, row: Row) -> dict[str, Any]:
        """Return a row's tokens and labels, through the chat template where there is one and a question is asked."""
        prompt = row["prompt"]
        if self.whole_text:
            ids = [*self.tokenizer(prompt + row["completion"]).input_ids, self.tokenizer.eos_token_id]
            return {"input_ids": ids, "labels": ids}
        if self.tokenizer.chat_template:
            asked = [{"role": "user", "content": prompt}]
            prompt = self.tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
        before = self.tokenizer(prompt, add_special_tokens=not self.tokenizer.chat_template).input_ids
        after = [*self.tokenizer(row["completion"], add_special_tokens=False).input_ids, self.tokenizer.eos_token_id]
        return {"input_ids": before + after, "labels": [IGNORED] * len(before) + after}

    def prepare(self, seed: int, sizes: Sizes) -> Prepared:
        """Return the model and the seed's data."""
        train, held_out = self.encoded
        order = in_order(len(train), sizes.steps * sizes.batch, seed)
        return Prepared(
            base=AutoModelForCausalLM.from_pretrained(self.model, dtype=getattr(torch, self.dtype)),
            rows=[train[index] for index in order],
            collate=self.padded,
            measure=lambda model: self.loss_on(model, held_out),
            supervised_tokens=sum(supervised(train[index]) for index in set(order)),
            task_type="CAUSAL_LM",
        )

    def padded_labels(self, rows: list[dict[str, Any]], width: int) -> Tensor:
        """Return labels `(batch, width)`."""
        return torch.tensor([row["labels"] + [IGNORED] * (width - len(row["labels"])) for row in rows])

    def loss_on(self, model: Any, rows: list[dict[str, Any]]) -> dict[str, float]:
        """Return the mean over all supervised tokens, not over batches."""
        total, count = 0.0, 0
        with evaluating(model):
            for batch in self.batches(rows, model):
                labels = batch.pop("labels")[:, 1:]
                logits = model(**batch).logits[:, :-1].float()
                total += nn.functional.cross_entropy(
                    logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum"
                ).item()
                count += int((labels != IGNORED).sum())
        return {"value": total / count}


class ClassificationTask(TextTask):
    """Name the class of a text; the head is trained whole beside the adapter, from the same start for all methods."""

    name = "classification"
    measure = "held-out NLL (nats per example)"
    columns = ("text", "label")

    @cached_property
    def labels(self) -> list[str]:
        """The classes, in order; a held-out row of another class is an error."""
        known = sorted({row["label"] for row in self.split.train})
        foreign = {row["label"] for row in self.split.held_out} - set(known)
        if foreign:
            raise SystemExit(f"held-out rows have labels that no training row has: {', '.join(sorted(foreign))}")
        return known

    def encode(self, row: Row) -> dict[str, Any]:
        """Return a row's tokens, cut at the length, and the number of its class."""
        ids = self.tokenizer(row["text"], truncation=True, max_length=self.length).input_ids
        return {"input_ids": ids, "labels": self.labels.index(row["label"])}

    def prepare(self, seed: int, sizes: Sizes) -> Prepared:
        """Return the model with a head drawn by the seed, and the seed's data."""
        train, held_out = ([self.encode(row) for row in side] for side in (self.split.train, self.split.held_out))
        order = in_order(len(train), sizes.steps * sizes.batch, seed)
        set_seed(seed)
        base = AutoModelForSequenceClassification.from_pretrained(
            self.model, num_labels=len(self.labels), dtype=getattr(torch, self.dtype)
        )
        base.config.pad_token_id = self.tokenizer.pad_token_id
        return Prepared(
            base=base,
            rows=[train[index] for index in order],
            collate=self.padded,
            measure=lambda model: self.loss_on(model, held_out),
            supervised_tokens=len(set(order)),
            task_type="SEQ_CLS",
        )

    def padded_labels(self, rows: list[dict[str, Any]], width: int) -> Tensor:
        """Return labels `(batch,)`."""
        return torch.tensor([row["labels"] for row in rows])

    def loss_on(self, model: Any, rows: list[dict[str, Any]]) -> dict[str, float]:
        """Return the mean loss and the accuracy over rows."""
        total, right = 0.0, 0
        with evaluating(model):
            for batch in self.batches(rows, model):
                labels = batch.pop("labels")
                logits = model(**batch).logits.float()
                total += nn.functional.cross_entropy(logits, labels, reduction="sum").item()
                right += int((logits.argmax(-1) == labels).sum())
        return {"value": total / len(rows), "accuracy": right / len(rows)}


def supervised(row: dict[str, Any]) -> int:
    """Return how many of a row's tokens are targets."""
    return sum(label != IGNORED for label in row["labels"])


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Put the model into evaluation mode, and record nothing for gradients."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def model_fingerprint(folder: Path) -> str:
    """Return a hash of a model's configuration and of the start and size of each of its weight files."""
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for file in sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin"), *folder.glob("*.gguf")]):
        with file.open("rb") as stored:
            digest.update(f"{file.name} {file.stat().st_size}".encode() + stored.read(2**20))
    return digest.hexdigest()[:16]
