"""An adapter for the unchanged base, from an initialisation that changes the base (PiSSA, OLoRA)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..adapters.peft_seam import save_adapter, save_initial_adapter

__all__ = ["PlainAdapterCallback"]


class PlainAdapterCallback(TrainerCallback):
    """Writes `plain_adapter` beside the checkpoints: an ordinary LoRA of twice the rank, for the unchanged base.

    The checkpoints keep the adapter as it trains, which belongs to the base less its first part; `initial_adapter`
    holds that first part. It is the same at every start, since the base determines it, so a run resumes.
    """

    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, model: Any, **kwargs: Any
    ) -> None:
        """Save the adapter before anything trains or resumes."""
        if state.is_world_process_zero:
            save_initial_adapter(model, Path(args.output_dir) / "initial_adapter")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, model: Any, **kwargs: Any
    ) -> None:
        """Save the difference to it as an adapter of its own."""
        if state.is_world_process_zero:
            folder = Path(args.output_dir)
            save_adapter(model, folder / "plain_adapter", folder / "initial_adapter")
