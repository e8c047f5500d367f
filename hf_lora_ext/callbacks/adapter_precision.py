"""A resumed QLoRA run in the precision that it began in."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..adapters.peft_seam import load_in_own_precision_

__all__ = ["AdapterPrecisionCallback"]


class AdapterPrecisionCallback(TrainerCallback):
    """Keeps a resumed adapter, and the best checkpoint's, in bfloat16 where it trained in bfloat16."""

    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, model: Any, **kwargs: Any
    ) -> None:
        """Take the cast out of loading, before a checkpoint is loaded."""
        load_in_own_precision_(model)
