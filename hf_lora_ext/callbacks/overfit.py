"""OverfitCallback: what a run does when its training loss falls and its held-out loss rises."""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from transformers import TrainerCallback

from ..adapters.peft_seam import keep_aside, load_kept_
from ..cards.facts import write_text_atomically
from ..choices.overfitting import PATIENCE, find_overfitting
from ..errors import ConfigError, nearest
from ..ranks.storage import BEST_FOLDER
from ..runs.trainer_kinds import TRAINER_KINDS
from .adaptive_rank import AdaptiveRankCallback
from .facts import training_method
from .losses import KEPT_STEP, loss_history
from .trainer_fit import come_before_trackers_, companion_of

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments

__all__ = ["OverfitCallback"]

Action = Literal["warn", "stop", "best"]
PROGRESS_FILE: Final = "overfit_progress.json"
NEST: Final = "kept"
"""Folder in a checkpoint for the best adapter's: one deeper than transformers looks for adapters to load."""
_NOT_KEPT: Final = ("ADALORA", "PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING", "MULTITASK_PROMPT_TUNING")
logger = logging.getLogger(__name__)


class OverfitCallback(TrainerCallback):
    """Watch the held-out loss: say when the run overfits, end it there, or keep the best adapter of the run.

    The rule is `choices.overfitting.find_overfitting`: over the last evaluations the held-out loss rose beyond its
    noise while the training loss fell. It needs `eval_loss`, two times `patience` evaluations, and training losses
    logged at least as often. It is a function of the trainer's log alone, so a resumed run decides as it would have.

    `best` trains on to the planned end, and then gives the adapter with the lowest held-out loss back, whether the
    rule saw anything or not. It lies in `best_adapter` in the output folder and in each checkpoint meanwhile, and needs
    neither `load_best_model_at_end`, which it leaves to the trainer where it is set, nor a checkpoint at each
    evaluation. With `AdaptiveRankCallback` only what is within the budget is kept. The lowest of several losses
    flatters a little: compare adapters on other examples than those. Under GRPO and RLOO, whose loss says nothing of
    the adapter, it warns once and does nothing.

    Example::

        trainer = SFTTrainer(..., eval_dataset=held_out, callbacks=[OverfitCallback(action="best")])

    Args:
        action: `warn` says so once; `stop` ends the training too, with the adapter as it is then; `best` as above.
        patience: Evaluations that are taken together.

    Raises:
        ConfigError: If the arguments cannot be right.
    """

    def __init__(self, *, action: Action = "warn", patience: int = PATIENCE) -> None:
        if action not in get_args(Action):
            raise ConfigError(f"action {action!r} is not known; {nearest(str(action), get_args(Action))}")
        if isinstance(patience, bool) or not isinstance(patience, int) or patience < 1:
            raise ConfigError(f"patience={patience!r} must be a whole number from 1: evaluations that count together")
        self.action, self.patience = action, patience

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, model: Any, **kwargs: Any
    ) -> None:
        """Refuse what cannot work; take up what the checkpoint knows."""
        come_before_trackers_(self)  # before AdaptiveRankCallback ends the run, and FactsCallback tells of it
        self._refuse(args, model)
        kind = TRAINER_KINDS.get(training_method(args) or "")
        sees = kind is None or "loss" not in kind.untold
        if not sees:
            logger.warning("the loss of this trainer says nothing of the adapter, so overfitting cannot be seen")
        self.keeps_ = sees and self.action == "best" and not args.load_best_model_at_end
        self.folder_ = Path(args.output_dir) / BEST_FOLDER
        self.kept_: dict[str, float] | None = None
        self.ranks_ = companion_of(self, AdaptiveRankCallback)
        if self.keeps_:
            self._take_up(args, state)
        self.told_ = sees and state.global_step > 0 and self._was_told(state)
        self.is_over_ = self.told_ and self.action == "stop"
        control.should_training_stop |= self.is_over_
        self.is_training_ = sees

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, model: Any, **kwargs: Any
    ) -> None:
        """Let nothing change in a run that was resumed after it had ended: a trainer stops only after a step."""
        if self.is_over_:
            for parameter in model.parameters():
                parameter.grad = None

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        model: Any,
        metrics: dict[str, float],
        **kwargs: Any,
    ) -> None:
        """Keep the adapter if it is the best so far, and act if the run overfits."""
        if not getattr(self, "is_training_", False) or "eval_loss" not in metrics:
            return
        if self.keeps_ and self._is_best(state.global_step, metrics["eval_loss"]):
            self.kept_ = {"step": state.global_step, "loss": metrics["eval_loss"]}
            if args.should_save:
                shutil.rmtree(self.folder_, ignore_errors=True)  # checkpoints share the bytes of its files
                keep_aside(model, self.folder_)
        found = find_overfitting(loss_history(state.log_history), self.patience)
        if found is not None and not self.told_ and state.is_world_process_zero:
            logger.warning("the run overfits: %s", found)
        self.told_ |= found is not None
        control.should_training_stop |= found is not None and self.action == "stop"

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Leave the best adapter so far in the checkpoint, sharing its bytes."""
        checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if not self.keeps_ or not args.should_save or not checkpoint.is_dir():
            return
        nest = checkpoint / NEST
        shutil.rmtree(nest, ignore_errors=True)
        if self.kept_ is not None:
            shutil.copytree(self.folder_, nest / BEST_FOLDER, copy_function=_link)
        write_text_atomically(checkpoint / PROGRESS_FILE, json.dumps(self.kept_))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, model: Any, **kwargs: Any
    ) -> None:
        """Give the best adapter back, and note in the trainer's log of which step it is."""
        self.is_training_ = False
        if not self.keeps_ or self.kept_ is None:
            return
        if self.kept_["step"] != state.global_step:
            args.distributed_state.wait_for_everyone()
            load_kept_(model, self.folder_)
            args.distributed_state.wait_for_everyone()
        state.log_history.append({"step": state.global_step, KEPT_STEP: self.kept_["step"]})
        logger.info("the adapter is that of step %d, held-out loss %.4f", self.kept_["step"], self.kept_["loss"])
        if args.should_save:
            shutil.rmtree(self.folder_, ignore_errors=True)

    def _is_best(self, step: int, loss: float) -> bool:
        """Return whether an adapter is worth keeping: trained, within the budget, and better than the one kept."""
        if step == 0 or not math.isfinite(loss) or (self.ranks_ is not None and self.ranks_.is_over_budget):
            return False
        return self.kept_ is None or loss < self.kept_["loss"]

    def _take_up(self, args: TrainingArguments, state: TrainerState) -> None:
        """Begin with what the checkpoint kept, or with nothing."""
        checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if args.should_save:
            shutil.rmtree(self.folder_, ignore_errors=True)
        if not state.global_step or not (checkpoint / PROGRESS_FILE).is_file():
            return
        self.kept_ = json.loads((checkpoint / PROGRESS_FILE).read_text(encoding="utf8"))
        if self.kept_ is not None and args.should_save:
            shutil.copytree(checkpoint / NEST / BEST_FOLDER, self.folder_, copy_function=_link)

    def _was_told(self, state: TrainerState) -> bool:
        """Return whether the run overfitted at one of its evaluations before it was resumed."""
        history = loss_history(state.log_history)
        steps = [row["step"] for row in history if "eval_loss" in row]
        until = ([row for row in history if row["step"] <= step] for step in steps)
        return any(find_overfitting(rows, self.patience) for rows in until)

    def _refuse(self, args: TrainingArguments, model: Any) -> None:
        """Raise where the action cannot be done; warn where nothing will be seen."""
        if args.eval_strategy == "no":
            logger.warning(
                "nothing is evaluated, so overfitting cannot be seen; hold examples out (eval_dataset) and set "
                "eval_strategy='steps' with eval_steps"
            )
        problem, config = "", getattr(model, "peft_config", {}).get(getattr(model, "active_adapter", None))
        kind = getattr(getattr(config, "peft_type", None), "value", None)
        if self.action == "stop" and kind == "ADALORA":
            problem = "AdaLoRA meets its ranks late, and would be cut where the run stops"
        elif self.action == "best" and not args.load_best_model_at_end:
            shared = args.distributed_state.distributed_type.value if args.distributed_state else "NO"
            if args.fsdp or args.deepspeed or shared in ("FSDP", "DEEPSPEED"):
                problem = "FSDP and DeepSpeed keep the adapter in shards"
            elif kind is None:
                problem = f"{type(model).__name__} carries no adapter, which alone can be kept"
            elif kind in _NOT_KEPT:
                problem = f"peft cannot load an adapter of kind {kind} back into the model that trained it as it was"
        if problem:
            raise ConfigError(
                f"OverfitCallback(action={self.action!r}): {problem}; use action='warn', or load_best_model_at_end=True"
            )


def _link(source: str, target: str) -> None:
    """Share a file's bytes, or copy it where the disk cannot."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
