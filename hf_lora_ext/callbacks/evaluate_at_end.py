"""EvaluateAtEnd: the last step is always measured, whatever `eval_steps` is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments

__all__ = ["EvaluateAtEnd"]


class EvaluateAtEnd(TrainerCallback):
    """Ask for an evaluation at the last step, before the last checkpoint is written. Needs an eval dataset."""

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Switch the evaluation on when the planned steps are done."""
        if state.global_step >= state.max_steps:
            control.should_evaluate = True
