"""AdaLoraCallback: the allocator, the regulariser and the memory that AdaLoRA lacks under a trainer.

Method card: `adalora.md`, beside this file.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from safetensors import safe_open
from safetensors.torch import save_file
from transformers import TrainerCallback

from ..adapters import adalora
from ..adapters.adalora_schedule import RankSchedule, check_ranks, plan_schedule
from ..cards.facts import write_text_atomically
from ..errors import ConfigError, ResumeError

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments

__all__ = ["AdaLoraCallback"]

STATE_FILE: Final = "adalora_state.safetensors"
logger = logging.getLogger(__name__)


class AdaLoraCallback(TrainerCallback):
    """Make PEFT's AdaLoRA do what its paper says, under SFTTrainer, the other TRL trainers and plain Trainer.

    It allocates ranks after every optimizer step, adds the orthogonal regulariser exactly once per step, resumes
    bit for bit, and after the training `save_model` writes an ordinary LoRA adapter with a rank of its own for
    every layer. The run's length need not be known: `total_step` is replaced by the trainer's.

    Example::

        config = AdaLoraConfig(task_type="CAUSAL_LM", init_r=12, target_r=8, target_modules="all-linear", total_step=1)
        trainer = SFTTrainer(..., peft_config=config, callbacks=[AdaLoraCallback(tinit=0.1, tfinal=0.3)])

    Args:
        tinit: Steps before ranks are dropped; below 1 a share of the run. The AdaLoraConfig's by default.
        tfinal: Steps at the final ranks; below 1 a share of the run. The AdaLoraConfig's by default.
    """

    def __init__(self, *, tinit: float | None = None, tfinal: float | None = None) -> None:
        self.tinit = tinit
        self.tfinal = tfinal

    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, model: Any, **kwargs: Any
    ) -> None:
        """Undo the cut that a loaded adapter has had, before an optimizer or a checkpoint meets it."""
        if adalora.carries_adalora(model):
            adalora.restore_width_(adalora.trainable_adalora(model))

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, model: Any, **kwargs: Any
    ) -> None:
        """Check the model, plan the run or take it up from the checkpoint, and take over from PEFT."""
        _refuse_sharding(args)
        tuner = adalora.trainable_adalora(model)
        config = adalora.config_of(tuner)
        check_ranks(config.init_r, config.target_r, config.deltaT)
        adalora.restart_allocator_(tuner)
        self.pattern_: adalora.RankPattern | None = None
        self.history_: list[dict[str, int]] = []
        if state.global_step:
            checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            self.schedule_ = _continued(self._recall(tuner, checkpoint), state.max_steps)
        else:
            tinit = config.tinit if self.tinit is None else self.tinit
            tfinal = config.tfinal if self.tfinal is None else self.tfinal
            self.schedule_ = plan_schedule(state.max_steps, tinit, tfinal)
        adalora.set_schedule_(tuner, self.schedule_)
        adalora.mute_own_regulariser_(tuner)
        adalora.save_as_itself_(model)
        logger.info("AdaLoRA: %s; final budget %d ranks", self.schedule_, adalora.target_total(tuner))

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, model: Any, **kwargs: Any
    ) -> None:
        """Add the regulariser's gradient; the trainer has unscaled and clipped the task's by now."""
        adalora.add_regulariser_gradient_(model.base_model)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, model: Any, **kwargs: Any
    ) -> None:
        """Score the directions, and drop some where the schedule says so."""
        step = state.global_step + 1  # the trainer counts this step only later
        self.pattern_ = adalora.allocate_(model.base_model, step, self.pattern_)
        if self.pattern_ is not None:
            self._note(step)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, model: Any, **kwargs: Any
    ) -> None:
        """Leave scores, pattern and schedule in the checkpoint."""
        checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if not state.is_world_process_zero or not checkpoint.is_dir():
            return
        plain = {"pattern": self.pattern_, "history": self.history_, "schedule": asdict(self.schedule_)}
        draft = checkpoint / f".{STATE_FILE}"
        save_file(adalora.scores(model.base_model), draft, metadata={"state": json.dumps(plain)})
        draft.replace(checkpoint / STATE_FILE)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, model: Any, **kwargs: Any
    ) -> None:
        """Meet the budget if the run ended before it was met, and let `save_pretrained` write plain LoRA."""
        tuner = model.base_model
        if args.load_best_model_at_end and state.best_model_checkpoint is not None:
            self._recall(tuner, Path(state.best_model_checkpoint))  # whose weights the trainer has just loaded
        self._meet_budget(tuner, state.global_step)
        adalora.save_as_lora_(model)
        if state.is_world_process_zero:
            told = {"ranks": adalora.layer_ranks(tuner), "history": self.history_}
            path = Path(args.output_dir) / "rank_history.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text_atomically(path, json.dumps(told, indent=2) + "\n")

    def _meet_budget(self, tuner: Any, step: int) -> None:
        total, budget = sum(adalora.layer_ranks(tuner).values()), adalora.target_total(tuner)
        if total <= budget or not adalora.scores(tuner):
            return
        logger.warning(
            "AdaLoRA's ranks sum to %d, over the budget of %d: the run, or its best checkpoint, ended before step %d "
            "of the schedule; they are cut now, and the adapter was not trained after that",
            total, budget, self.schedule_.freeze_step,
        )  # fmt: skip
        self.pattern_ = adalora.cut_to_target_(tuner)
        self._note(step)

    def _note(self, step: int) -> None:
        assert self.pattern_ is not None
        total = sum(map(sum, self.pattern_.values()))
        if not self.history_ or self.history_[-1]["total_rank"] != total:
            self.history_.append({"step": step, "total_rank": total})

    def _recall(self, tuner: Any, checkpoint: Path) -> RankSchedule:
        """Put back what `on_save` left, and return the schedule that was in force."""
        file = checkpoint / STATE_FILE
        if not file.is_file():
            raise ResumeError(
                f"{checkpoint.name} holds no {STATE_FILE}, so AdaLoRA's scores and ranks are unknown; resume from a "
                "checkpoint that AdaLoraCallback has written, in the trainer's output_dir, or start anew"
            )
        with safe_open(file, "pt") as stored:
            plain = json.loads(stored.metadata()["state"])
            adalora.restore_scores_(tuner, {key: stored.get_tensor(key) for key in stored.keys()})
        self.pattern_, self.history_ = plain["pattern"], plain["history"]
        return RankSchedule(**plain["schedule"])


def _continued(saved: RankSchedule, total_steps: int) -> RankSchedule:
    """Return the checkpoint's schedule for a run that may have become longer: what is frozen stays frozen."""
    if total_steps < saved.freeze_step:
        raise ResumeError(
            f"the run was planned to fix its ranks at step {saved.freeze_step} and now ends at {total_steps}; set "
            f"its length back to {saved.total_steps} steps, or start anew"
        )
    return RankSchedule(tinit=saved.tinit, freeze_step=saved.freeze_step, total_steps=total_steps)


def _refuse_sharding(args: TrainingArguments) -> None:
    kind = args.distributed_state.distributed_type.value if args.distributed_state else "NO"
    if args.fsdp or kind == "FSDP":
        kind = "FSDP"
    elif args.deepspeed or kind == "DEEPSPEED":
        kind = "DeepSpeed"
    elif kind not in ("MEGATRON_LM", "TP"):
        return
    raise ConfigError(
        f"AdaLoraCallback reads whole gradients, which {kind} hides or shards; train with DDP or on one device, or "
        "use a plain LoraConfig"
    )
