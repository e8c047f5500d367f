"""TrainLog: what the trainer logged, as JSON lines in a file that a resumed run goes on with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from ..cards.facts import json_ready, write_text_atomically

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments

__all__ = ["TrainLog"]


class TrainLog(TrainerCallback):
    """Write each row of the trainer's log as it comes: one JSON object a line, with its step.

    When a run begins, resumes or ends, the file is written anew from the trainer's own log, which is in the checkpoint:
    what was logged after it is logged again, and so is in the file once.

    Args:
        path: File to write.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write what the checkpoint knows, or an empty file."""
        self._write(state)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        logs: dict[str, Any],
        **kwargs: Any,
    ) -> None:
        """Add a row."""
        if state.is_world_process_zero and self.path.is_file():
            with self.path.open("a", encoding="utf8") as file:
                file.write(_line(state.log_history[-1] | logs))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Have the file say what the trainer's log does in the end."""
        self._write(state)

    def _write(self, state: TrainerState) -> None:
        if state.is_world_process_zero:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_text_atomically(self.path, "".join(map(_line, state.log_history)))


def _line(row: dict[str, Any]) -> str:
    return json.dumps(json_ready({"step": row["step"]} | row), default=float) + "\n"
