"""New tokens under TRL, whose loss reads the head's bias, which peft's wrapper of the head hides."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..adapters.peft_seam import show_head_bias_

__all__ = ["NewTokensCallback"]


class NewTokensCallback(TrainerCallback):
    """Lets a model with `trainable_token_indices` on its head train under TRL 1.16 with peft 0.21."""

    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, model: Any, **kwargs: Any
    ) -> None:
        """Mend the head before the first loss."""
        show_head_bias_(model)
