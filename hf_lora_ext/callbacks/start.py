"""A start from data or weights, written into the fresh adapter when training begins."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any, Final

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..adapters.starts import is_untrained, start_eva_, start_loftq_
from ..errors import ConfigError
from ..models.stored_weights import StoredWeights

__all__ = ["EvaCallback", "LoftqCallback"]

logger = logging.getLogger(__name__)

BATCHES: Final = 256
"""Batches that EVA looks at, at most; it stops as soon as no direction turns any more."""


class EvaCallback(TrainerCallback):
    """Start each A as the leading directions of its layer's inputs, on the trainer's own data (EVA, equal ranks).

    The examples are drawn by the trainer's seed, apart from its own order and random state. A resumed run, and an
    adapter that is trained already, stay as they are.
    """

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        model: Any,
        train_dataloader: Any,
        **kwargs: Any,
    ) -> None:
        """Run the data through the model, before the first step."""
        if is_fresh(state, model):
            used = start_eva_(model, example_batches(train_dataloader, args))
            logger.info("EVA: the adapter's A starts from %d batches", used)


class LoftqCallback(TrainerCallback):
    """Start the adapter as what quantisation took from the weights (LoftQ, one step, the base unchanged).

    Args:
        model_id: Local folder or Hub id that the base was loaded from, with unquantised safetensors.
    """

    def __init__(self, model_id: str) -> None:
        self.weights = StoredWeights(model_id)

    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, model: Any, **kwargs: Any
    ) -> None:
        """Find the weights at once, so that their absence is not found out later."""
        base = model.get_base_model()
        self.weights.find(base.base_model_prefix, getattr(base.config, "_commit_hash", None))

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, model: Any, **kwargs: Any
    ) -> None:
        """Read the weights, one layer after another, before the first step."""
        if is_fresh(state, model):
            before, after = start_loftq_(model, self.weights.of_layer)
            logger.info("LoftQ: the weights' relative error falls from %.4f to %.4f", before, after)


def is_fresh(state: TrainerState, model: Any) -> bool:
    """Return whether a start may still be given: nothing was resumed and nothing trained."""
    return state.global_step == 0 and is_untrained(model)


def example_batches(train_dataloader: Any, args: TrainingArguments) -> Iterator[dict[str, Any]]:
    """Yield batches of the training examples, the same on every process, without touching the trainer's own order."""
    dataset, collate = train_dataloader.dataset, train_dataloader.collate_fn
    size = args.per_device_train_batch_size
    if not hasattr(dataset, "__len__"):
        raise ConfigError("init eva draws examples by number, which a streamed dataset does not allow; load it whole")
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(args.seed)).tolist()
    for first in range(0, min(len(order), BATCHES * size), size):
        yield collate([dataset[i] for i in order[first : first + size]])
