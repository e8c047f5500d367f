"""ProgressLines: one line per logged step, readable on a terminal and in a log file alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments

__all__ = ["ProgressLines"]


class ProgressLines(TrainerCallback):
    """Say step, loss, speed and time left at each log, and what was measured at each evaluation.

    Args:
        say: Takes one line of text.
        measured: Names of what an evaluation is told by, as the trainer logs them; where the loss is not one of them,
            the first stands in its place at each log too.
    """

    def __init__(self, say: Callable[[str], None], measured: Sequence[str] = ("loss",)) -> None:
        self.say = say
        self.measured = measured
        self.followed = "loss" if "loss" in measured else measured[0]

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clock."""
        self.clock_ = time.monotonic()
        self.first_step_ = state.global_step
        self.evaluating_seconds_ = 0.0
        self.evaluation_clock_: float | None = None

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Keep the time of evaluations out of the speed."""
        if self.evaluation_clock_ is None:
            self.evaluation_clock_ = time.monotonic()

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Say what was measured on held-out examples."""
        if self.evaluation_clock_ is not None:
            self.evaluating_seconds_ += time.monotonic() - self.evaluation_clock_
            self.evaluation_clock_ = None
        metrics = kwargs.get("metrics") or {}
        told = ", ".join(f"{name} {metrics[key]:.3f}" for name in self.measured if (key := f"eval_{name}") in metrics)
        if state.is_world_process_zero and told:
            self.say(f"  step {state.global_step:>5}/{state.max_steps}  held-out {told}")

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Say the training loss, the speed and the time left."""
        logs = kwargs.get("logs") or {}
        if not state.is_world_process_zero or self.followed not in logs:
            return
        done = state.global_step - self.first_step_
        seconds_per_step = (time.monotonic() - self.clock_ - self.evaluating_seconds_) / max(done, 1)
        left = seconds_per_step * (state.max_steps - state.global_step)
        self.say(
            f"  step {state.global_step:>5}/{state.max_steps}  {self.followed} {float(logs[self.followed]):.3f}"
            f"  {seconds_per_step:.2f} s/step  {int(left // 60)}:{int(left % 60):02d} left"
        )
