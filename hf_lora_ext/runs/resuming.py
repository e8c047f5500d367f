"""A run that goes on from a checkpoint, which may be that of its last step."""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from ..errors import ResumeError

if TYPE_CHECKING:
    from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments

__all__ = ["train"]


class _NothingLeft(Exception):
    """The checkpoint is that of a run's last step."""


class _StopAtTheEnd(TrainerCallback):
    """Stops a run that has taken its steps: transformers 5.23 looks only after a step whether it was the last."""

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Raise if there is no step to take, or a callback has said so when the run began."""
        if state.global_step >= state.max_steps or control.should_training_stop:
            raise _NothingLeft


def train(trainer: Trainer, checkpoint: Path | None) -> None:
    """Train to the end of the run, from its start or from a checkpoint.

    A run that was killed between its last checkpoint and its end takes no step more: its callbacks are told that
    training has ended.

    Args:
        trainer: The trainer.
        checkpoint: Where to go on; None for a run of its own.

    Raises:
        ResumeError: If torch refuses what is pickled in the checkpoint: something else than numbers and names.
    """
    trainer.add_callback(stop := _StopAtTheEnd())
    try:
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    except _NothingLeft:
        trainer.control = trainer.callback_handler.on_train_end(trainer.args, trainer.state, trainer.control)
        trainer.is_in_train = False
    except UnpicklingError as error:
        raise ResumeError(
            f"{checkpoint} holds a pickle that is no trainer's own, which torch does not load "
            f"({str(error).splitlines()[0]}); remove that folder, and the same command goes on from the one before it"
        ) from error
    finally:
        trainer.remove_callback(stop)
