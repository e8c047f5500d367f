"""ResourceCallback: what a run uses of the machine, told to every tracker, and held against its memory plan."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from transformers import TrainerCallback

from ..cards.facts import write_text_atomically
from ..machine import gpu_energy_joules, peak_memory
from ..memory.fitting import Fit
from ..memory.measured import departures, peaks_against_plan
from .pace import Pace
from .trainer_fit import come_before_trackers_

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments

__all__ = ["ResourceCallback", "resources_in"]

PREFIX: Final = "resources/"
"""What its keys begin with in the trainer's log."""
PROGRESS_FILE: Final = "resources_progress.json"
JOULES_PER_KWH: Final = 3.6e6
logger = logging.getLogger(__name__)


class ResourceCallback(TrainerCallback):
    """Add to each log: median step time, tokens a second, peak memory, the GPUs' energy; all under `resources/`.

    A step's time has the loading of its data, and neither evaluations nor saving. Tokens are those that the trainer
    counts: trl's do by themselves, a plain Trainer with `include_num_input_tokens_seen`. The peak is that of the main
    process and its GPU, from the process's start; energy that of all visible GPUs of the main process's machine, by
    NVML's counter, other programs' included. The last log of a training has the numbers of the whole run, which
    `FactsCallback` takes into facts and card. A resumed run goes on counting. `tests/benchmarks/callback_cost.py`
    prints what it costs a step. The GPU's part was never run on one.

    Example::

        trainer = SFTTrainer(..., callbacks=[ResourceCallback(plan=p.found), FactsCallback(dataset)])

    Args:
        plan: The memory plan behind the run, `Preset.found`: planned peaks are then told beside the measured ones,
            with their ratio, unless the run departs from the plan.
    """

    def __init__(self, plan: Fit | None = None) -> None:
        self.plan = plan
        self.pace_ = Pace()

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Come before the trackers, which then get the numbers."""
        come_before_trackers_(self)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begin to count, or go on from the checkpoint."""
        self.is_main_ = state.is_world_process_zero
        if not self.is_main_:
            return
        self.pace_ = Pace(self.pace_.counter)
        self.peaks_: dict[str, float] = {}
        self.joules_before_, self.joules_at_begin_ = 0.0, gpu_energy_joules()
        file = Path(args.output_dir) / f"checkpoint-{state.global_step}" / PROGRESS_FILE
        if state.global_step and file.is_file():
            saved = json.loads(file.read_text(encoding="utf8"))
            self.pace_.take_up(saved["pace"])
            self.peaks_, self.joules_before_ = saved["peaks"], saved["joules"]
        self.compares_ = self.plan is not None and not self._departs(args)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take the time."""
        if self.is_main_:
            self.pace_.begin_step()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Count the step."""
        if self.is_main_:
            self.pace_.end_step()

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Leave the evaluation out of the step's time."""
        self.pace_.pause()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Leave the saving out of the step's time, and the counts in the checkpoint."""
        self.pace_.pause()
        checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if self.is_main_ and checkpoint.is_dir():
            kept = {"pace": self.pace_.to_dict(), "peaks": self._peaks(), "joules": self._joules()}
            write_text_atomically(checkpoint / PROGRESS_FILE, json.dumps(kept))

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        logs: dict[str, Any],
        **kwargs: Any,
    ) -> None:
        """Add the numbers to a log of training, before any tracker reads it."""
        is_last = "train_runtime" in logs
        if not state.is_world_process_zero or not (is_last or "loss" in logs):
            return
        self.pace_.count(logs, state)
        lap = self.pace_.lap()
        numbers = self._numbers(self.pace_.tokens_per_second if is_last else lap)
        logs |= numbers
        if state.log_history:
            state.log_history[-1] |= numbers

    def _numbers(self, tokens_per_second: float | None) -> dict[str, float]:
        peaks, joules, pace = self._peaks(), self._joules(), self.pace_.step_seconds
        told: dict[str, float | None] = {
            "step_seconds": None if pace is None else round(pace, 4),
            "tokens": self.pace_.tokens,
            "tokens_per_second": None if tokens_per_second is None else round(tokens_per_second, 1),
            "gpu_energy_kwh": None if joules is None else float(f"{joules / JOULES_PER_KWH:.4g}"),
            **{f"peak_{name}": peak for name, peak in peaks.items()},
        }
        if self.plan is not None and self.compares_:
            told |= {f"plan_{name}": number for name, number in peaks_against_plan(self.plan, peaks).items()}
        return {f"{PREFIX}{name}": number for name, number in told.items() if number is not None}

    def _peaks(self) -> dict[str, float]:
        """Return the peaks so far, those before a resume included."""
        now = peak_memory()
        return {name: max(self.peaks_.get(name, 0.0), now.get(name, 0.0)) for name in {**self.peaks_, **now}}

    def _joules(self) -> float | None:
        now = gpu_energy_joules() if self.joules_at_begin_ is not None else None
        if now is None or self.joules_at_begin_ is None:
            return None
        return (self.joules_before_ or 0.0) + now - self.joules_at_begin_

    def _departs(self, args: TrainingArguments) -> bool:
        """Return whether the run is another than the one planned, and say in what."""
        assert self.plan is not None
        checkpointing = getattr(args, "activation_checkpointing", None)
        found = departures(
            self.plan,
            micro_batch=args.per_device_train_batch_size,
            sequence=getattr(args, "max_length", None),
            checkpointing=args.gradient_checkpointing if checkpointing is None else checkpointing,
            devices=args.world_size,
        )
        if found:
            logger.info("the memory plan is not compared with this run, which has %s", ", ".join(found))
        return bool(found)


def resources_in(log: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what a run used by the last row of its log that says so, as facts of the run; empty without."""
    row: Mapping[str, Any] = next((entry for entry in reversed(log) if f"{PREFIX}step_seconds" in entry), {})
    told = {key.removeprefix(PREFIX): value for key, value in row.items() if key.startswith(PREFIX)}
    plan = {name.removeprefix("plan_"): value for name, value in told.items() if name.startswith("plan_")}
    peaks = {name.removeprefix("peak_"): value for name, value in told.items() if name.startswith("peak_")}
    found = {
        "median_step_seconds": told.get("step_seconds"),
        "tokens": told.get("tokens"),
        "tokens_per_second": told.get("tokens_per_second"),
        "gpu_energy_kwh": told.get("gpu_energy_kwh"),
        "peak_memory": peaks or None,
        "peak_against_plan": plan or None,
    }
    return {name: value for name, value in found.items() if value is not None}
