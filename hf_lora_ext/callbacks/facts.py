"""FactsCallback: gathers what is known of a run while it trains, into `facts.json`.

Its memory across a resume is a small file inside each checkpoint, since the Trainer by default forgets
callback state.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import fields, replace
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from transformers import TrainerCallback

from ..adapters.peft_seam import describe_adapter, describe_quantization
from ..cards.emissions import measured_emissions
from ..cards.facts import BaseModelFacts, DataFacts, Facts, StatedFacts, read_facts, redact, write_text_atomically
from ..data.examples import describe_dataset
from ..errors import ConfigError, ResumeError
from ..machine import describe_hardware, peak_memory, private_folders, software_versions
from ..plots import plot_loss
from ..runs.trainer_kinds import TRAINER_KINDS
from .losses import evaluation_in, kept_step, loss_history, thinned
from .own_card import OwnCard
from .resource_use import resources_in

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import TrainerControl, TrainerState, TrainingArguments

__all__ = ["FactsCallback"]

FACTS_FILE: Final = "facts.json"
PROGRESS_FILE: Final = "facts_progress.json"
LOSS_PICTURE: Final = "loss_curve.png"
RANK_PICTURE: Final = "rank_history.png"
logger = logging.getLogger(__name__)


class FactsCallback(TrainerCallback):
    """Write `facts.json` when training ends: model, data, every hyperparameter, versions, hardware, losses.

    Beside it the loss curve is drawn. What codecarbon measured, if it ran, is taken up. Each checkpoint has the facts
    of its moment. A README.md that you wrote in the trainer's output folder stays, and so does what you stated in facts
    that are there (`write_card`): trl writes a card of its own at each save, which is put aside.

    A trainer shows its callbacks only token columns, so the dataset is handed over here; without one, the
    facts have no data section.

    Example::

        trainer = SFTTrainer(..., callbacks=[FactsCallback(dataset=train, name="me/my-data")])

    Args:
        dataset: The training examples, in prompt-completion, messages or text form.
        eval_dataset: The held-out examples, likewise.
        name: What the data is called in the facts and on the card.
        path: File to write; `facts.json` in the trainer's output folder by default.
        data: Facts of the data, where they are known already; then `dataset` is not needed.
        base_model: Facts of the base model, where more is known than the loaded model tells.
        recipe: The recipe as YAML text.
        method: What the trainer does, where it is not one of trl's, which tell it themselves.
    """

    def __init__(
        self,
        dataset: Dataset | None = None,
        eval_dataset: Dataset | None = None,
        *,
        name: str = "unnamed data",
        path: str | Path | None = None,
        data: DataFacts | None = None,
        base_model: BaseModelFacts | None = None,
        recipe: str | None = None,
        method: str | None = None,
    ) -> None:
        if data is None and dataset is not None:
            data = describe_dataset(dataset, eval_dataset, name)
        self.data = data
        self.path = None if path is None else Path(path)
        self.base_model = base_model
        self.recipe = recipe
        self.method = method

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clock, or take it up where the checkpoint left it."""
        self.card_ = OwnCard(Path(args.output_dir)) if state.is_world_process_zero else None
        self.clock_ = time.monotonic()
        self.seconds_before_ = 0.0
        self.resumed_at_ = datetime.now(UTC)
        self.started_ = self.resumed_at_.isoformat(timespec="seconds")
        if state.global_step:
            self._recall(Path(args.output_dir) / f"checkpoint-{state.global_step}")

    def _recall(self, checkpoint: Path) -> None:
        file = checkpoint / PROGRESS_FILE
        if not file.is_file():
            return
        progress = json.loads(file.read_text(encoding="utf8"))
        seen = self.data.fingerprint if self.data else None
        if progress["train_fingerprint"] != seen:
            raise ResumeError(
                f"the training data changed since {checkpoint.name} was written (fingerprint {seen}, "
                f"then {progress['train_fingerprint']}); restore the data, or train into a new folder"
            )
        self.seconds_before_ = progress["train_seconds"]
        self.started_ = progress["started"]

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, model: Any, **kwargs: Any
    ) -> None:
        """Leave the clock and the data's fingerprint in the checkpoint, and the facts as they are by now."""
        checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if self.card_ is not None:
            self.card_.put_back_()
        if not state.is_world_process_zero or not checkpoint.is_dir():
            return
        progress = {
            "started": self.started_,
            "train_seconds": self._train_seconds(),
            "train_fingerprint": self.data.fingerprint if self.data else None,
        }
        write_text_atomically(checkpoint / PROGRESS_FILE, json.dumps(progress))
        write_text_atomically(checkpoint / FACTS_FILE, self._clean(args, state, model, Path(args.output_dir)).to_json())

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        model: Any,
        **kwargs: Any,
    ) -> None:
        """Write the facts."""
        if self.card_ is None:
            return
        self.card_.put_back_(is_over=True)
        path = self.path or Path(args.output_dir) / FACTS_FILE
        clean = self._clean(args, state, model, path.parent, _step_of_adapter(args, state))
        path.parent.mkdir(parents=True, exist_ok=True)
        if clean.loss_history:
            plot_loss(clean.loss_history, path.parent / LOSS_PICTURE, loss_title(clean), curve_label(clean))
        clean = replace(clean, pictures=pictures_beside(path.parent, clean))
        write_text_atomically(path, clean.to_json())

    def _clean(
        self, args: TrainingArguments, state: TrainerState, model: Any, folder: Path, adapter_of: int | None = None
    ) -> Facts:
        """Return the facts without this machine's names."""
        gathered = self._gather(args, state, model, adapter_of)
        return Facts.from_dict(redact(gathered.to_dict(), private_folders(folder)))

    def _gather(self, args: TrainingArguments, state: TrainerState, model: Any, adapter_of: int | None) -> Facts:
        method = training_method(args) or self.method
        kind = TRAINER_KINDS.get(method or "")
        untold = kind.untold if kind else ()
        history = thinned(loss_history(state.log_history, "reward" if "loss" in untold else "loss"))
        file = self.path or Path(args.output_dir) / FACTS_FILE
        run = {
            "started": self.started_,
            "method": method,
            "train_seconds": round(self._train_seconds(), 1),
            "examples_per_step": _examples_per_step(args),
            "steps": state.global_step,
            "adapter_of_step": adapter_of,
            "planned_steps": state.max_steps,
            "epochs": round(state.epoch, 3) if state.epoch is not None else None,
            "tokens": _last_logged(state.log_history, "num_tokens"),
            "peak_memory": peak_memory(),
            "emissions": measured_emissions(Path(args.output_dir), self.resumed_at_) or None,
        }
        run |= resources_in(state.log_history)
        adapter = describe_adapter(model) | label_names(model) if hasattr(model, "peft_config") else {}
        return Facts(
            base_model=self.base_model or _base_of(model),
            data=self.data,
            adapter=adapter,
            hyperparameters=hyperparameters(args),
            quantization=describe_quantization(model),
            run={key: value for key, value in run.items() if value is not None},
            loss_history=history,
            evaluation=evaluation_in(state.log_history, adapter_of, untold),
            environment={"versions": software_versions(), "hardware": describe_hardware()},
            recipe=self.recipe,
            stated=_stated_in(file),
        )

    def _train_seconds(self) -> float:
        return self.seconds_before_ + time.monotonic() - self.clock_


def _stated_in(file: Path) -> StatedFacts | None:
    """Return what the author said of the adapter in the facts that are there, which a later training leaves true."""
    try:
        return read_facts(file).stated if file.is_file() else None
    except ConfigError as error:
        logger.warning("what may be stated in it is lost: %s", error)
        return None


def _examples_per_step(args: TrainingArguments) -> int:
    """Return the examples that an optimizer step sees; where a batch is of completions, the prompts."""
    rows = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    return int(rows // (getattr(args, "num_generations", None) or 1))


def _step_of_adapter(args: TrainingArguments, state: TrainerState) -> int | None:
    """Return the step of the adapter that was given back when training ended; None where it is the last one."""
    step = kept_step(state.log_history)
    if step is None and args.load_best_model_at_end and state.best_model_checkpoint is not None:
        step = state.best_global_step
    return step if step != state.global_step else None


def training_method(args: TrainingArguments) -> str | None:
    """Return what trl's trainers do by the name that their cards have it, or None for another trainer.

    >>> from trl import DPOConfig
    >>> training_method(DPOConfig(output_dir="out", bf16=False))
    'dpo'
    """
    named = [kind.__name__ for kind in type(args).__mro__ if kind.__module__.startswith("trl.")]
    return named[0].removesuffix("Config").lower() or None if named else None


def label_names(model: Any) -> dict[str, list[str]]:
    """Return the labels that a classifier tells apart, in the order of its outputs; nothing for another model."""
    labels = getattr(model.config, "id2label", None)
    classifies = model.peft_config[model.active_adapter].task_type in {"SEQ_CLS", "TOKEN_CLS"}
    if not labels or not classifies or len(labels) < 2:  # a reward model has one output, and no label
        return {}
    return {"labels": [str(labels[index]) for index in sorted(labels)]}


def loss_title(facts: Facts) -> str:
    """Return the line above the loss curve: base, rank and data, as far as they are known."""
    base = facts.base_model.name if facts.base_model else "model"
    told = facts.adapter.get("ranks", facts.adapter.get("rank"))
    rank = f", LoRA rank {told}" if told is not None else ""
    return f"{base}{rank}{f', {facts.data.name}' if facts.data else ''}"


def curve_label(facts: Facts) -> str:
    """Return what the loss curve shows, with its unit where the method says which it is."""
    kind = TRAINER_KINDS.get(str(facts.run.get("method")))
    return kind.curve if kind else "loss"


def pictures_beside(folder: Path, facts: Facts) -> tuple[str, ...]:
    """Return the names of the run's pictures in a folder; one of ranks only where ranks differ."""
    wanted = ([LOSS_PICTURE] if facts.loss_history else []) + ([RANK_PICTURE] if "ranks" in facts.adapter else [])
    return tuple(name for name in wanted if (folder / name).is_file())


def _last_logged(log: list[dict[str, Any]], key: str) -> int | None:
    return next((int(entry[key]) for entry in reversed(log) if key in entry), None)


def _base_of(model: Any) -> BaseModelFacts | None:
    """Return what the loaded model tells of its base."""
    name = getattr(model.config, "_name_or_path", None)
    if not name:
        return None
    revision = getattr(model.config, "_commit_hash", None)
    is_local = Path(name).exists()
    return BaseModelFacts(
        name=Path(name).resolve().name if is_local else name,
        on_hub=not is_local and revision is not None,
        revision=None if is_local else revision,
    )


_NOT_HYPERPARAMETERS: Final = (
    "output_dir", "do_", "debug", "disable_tqdm", "eval_do_concat", "hub_", "include_", "jit", "local_rank",
    "log_", "logging_", "model_init_kwargs", "prediction_loss_only", "project", "push_", "report_to", "resume_",
    "restore_", "run_name", "save_", "skip_", "trackio", "use_cpu", "dataloader_", "ddp_", "deepspeed", "fsdp",
    "accelerator_config", "parallelism_config", "enable_jit", "eval_on_start", "eval_delay", "eval_accumulation",
    "gradient_checkpointing", "batch_eval", "eval_use_gather", "logging", "trust_remote_code", "dataset_num_proc",
    "torch_empty_cache", "overwrite",
)  # fmt: skip


def hyperparameters(args: TrainingArguments) -> dict[str, Any]:
    """Return the training arguments that shape the result; paths, tokens and reporting are left out."""
    found: dict[str, Any] = {}
    for field in fields(args):
        value = getattr(args, field.name)
        if field.name.startswith(_NOT_HYPERPARAMETERS) or field.name.endswith("_token"):
            continue
        if isinstance(value, Enum):
            value = value.value
        if isinstance(value, Mapping):
            value = {str(k): v for k, v in value.items() if isinstance(v, (str, int, float, bool))} or None
        if isinstance(value, (str, int, float, bool, dict)) and value != "":
            found[field.name] = value
    found.pop("num_train_epochs" if args.max_steps > 0 else "max_steps", None)  # the Trainer looks at one of them
    return dict(sorted(found.items()))
