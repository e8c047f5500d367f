"""HeldOutLoss: hands each held-out loss on while a run trains."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments

__all__ = ["HeldOutLoss"]


class HeldOutLoss(TrainerCallback):
    """Tell step, planned steps and held-out loss at each evaluation after the first step.

    Args:
        tell: Takes the three; what it raises ends the run.
    """

    def __init__(self, tell: Callable[[int, int, float], None]) -> None:
        self.tell = tell

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Hand the loss on."""
        loss = (kwargs.get("metrics") or {}).get("eval_loss")
        if loss is not None and state.global_step > 0:
            self.tell(state.global_step, state.max_steps, float(loss))
