"""ProgressLines: how a run goes, as lines for a log file, or as one line that a terminal redraws."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from transformers import TrainerCallback

from .resource_use import PREFIX

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments

__all__ = ["Bar", "ProgressLines"]


class Bar(Protocol):
    """A line of a terminal that is drawn again at each step; what is said otherwise goes above it."""

    def show(self, step: int, steps: int, words: str) -> None:
        """Draw step, planned steps, and what there is to say."""

    def close(self) -> None:
        """Leave it as it is, and draw no more."""


class ProgressLines(TrainerCallback):
    """Say step, loss, tokens a second, memory and time left at each log, and what was measured at each evaluation.

    Tokens and memory are those that `ResourceCallback` puts into the log; without it they are left out.

    Args:
        say: Takes one line of text.
        bar: Shows all but what evaluations measured instead, at each step.
        measured: Names of what an evaluation is told by, as the trainer logs them; where the loss is not one of them,
            the first stands in its place at each log too.
    """

    def __init__(self, say: Callable[[str], None], bar: Bar | None = None, measured: Sequence[str] = ("loss",)) -> None:
        self.say, self.bar = say, bar
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
        self.measured_: list[str] = []

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Keep the time of evaluations out of the speed."""
        self.evaluation_clock_ = getattr(self, "evaluation_clock_", None) or time.monotonic()

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Say what was measured on held-out examples."""
        if not hasattr(self, "clock_"):  # an evaluation before any training
            return
        if self.evaluation_clock_ is not None:
            self.evaluating_seconds_ += time.monotonic() - self.evaluation_clock_
            self.evaluation_clock_ = None
        metrics = kwargs.get("metrics") or {}
        told = ", ".join(f"{name} {metrics[key]:.3f}" for name in self.measured if (key := f"eval_{name}") in metrics)
        if state.is_world_process_zero and told:
            self.say(f"  step {state.global_step:>5}/{state.max_steps}  held-out {told}")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Draw the bar."""
        if self.bar is not None and state.is_world_process_zero:
            left = self._pace(state)[-1]
            self.bar.show(state.global_step, state.max_steps, "  ".join([*self.measured_, left]))

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Say what was measured, the speed and the time left."""
        logs = kwargs.get("logs") or {}
        if not state.is_world_process_zero or self.followed not in logs:
            return
        self.measured_ = measured_words(logs, self.followed)
        if self.bar is None:
            words = "  ".join([*self.measured_, *self._pace(state)])
            self.say(f"  step {state.global_step:>5}/{state.max_steps}  {words}")
        else:
            self.on_step_end(args, state, control)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leave the bar as it is."""
        if self.bar is not None:
            self.bar.close()

    def _pace(self, state: TrainerState) -> list[str]:
        """Return this process's seconds a step and the time left, in words; both without evaluations."""
        done = max(state.global_step - self.first_step_, 1)
        seconds_per_step = (time.monotonic() - self.clock_ - self.evaluating_seconds_) / done
        left = seconds_per_step * (state.max_steps - state.global_step)
        return [f"{seconds_per_step:.2f} s/step", f"{clock_words(left)} left"]


def measured_words(logs: Mapping[str, Any], followed: str = "loss") -> list[str]:
    """Return loss, tokens a second and peak memory in words, as far as a log has them.

    >>> measured_words({"loss": 2.5, "resources/tokens_per_second": 1234.5, "resources/peak_process_gib": 2.31})
    ['loss 2.500', '1,234 tokens/s', '2.31 GiB']

    Args:
        logs: A row of the trainer's log.
        followed: What stands in the place of the loss.
    """
    words = [f"{followed} {float(logs[followed]):.3f}"]
    if (speed := logs.get(f"{PREFIX}tokens_per_second")) is not None:
        words.append(f"{speed:,.0f} tokens/s")
    memory = logs.get(f"{PREFIX}peak_gpu_reserved_gib", logs.get(f"{PREFIX}peak_process_gib"))
    return [*words, f"{memory:.2f} GiB"] if memory is not None else words


def clock_words(seconds: float) -> str:
    """Return a time as people read it.

    >>> clock_words(59), clock_words(3725)
    ('0:59', '1:02:05')
    """
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
