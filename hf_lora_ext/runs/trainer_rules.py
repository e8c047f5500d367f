"""What a recipe may say under its trainer: fields of the configuration, rewards, and what is measured or watched."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from .recipe_rules import (
    FROM_0,
    FROM_1,
    NOT_NEGATIVE,
    POSITIVE,
    SWITCH,
    TEXT,
    Rule,
    find_problems,
    is_names,
)
from .rewards import reward_problems
from .trackers import TRACKERS, trackers_in
from .trainer_kinds import TRAINER_KINDS, Trainer

__all__ = ["COMMON_FIELDS", "OTHER_NAMES", "TRAINING_FIELDS", "trainer_problems"]

COMMON_FIELDS: Final[Mapping[str, Rule]] = {
    "activation_checkpointing": SWITCH,
    "bf16": SWITCH,
    "dataloader_num_workers": FROM_0,
    "eval_steps": FROM_1,
    "fp16": SWITCH,
    "gradient_accumulation_steps": FROM_1,
    "learning_rate": POSITIVE,
    "logging_steps": FROM_1,
    "lr_scheduler_type": TEXT,
    "max_grad_norm": NOT_NEGATIVE,
    "max_steps": FROM_1,
    "neftune_noise_alpha": POSITIVE,
    "num_train_epochs": POSITIVE,
    "optim": TEXT,
    "per_device_eval_batch_size": FROM_1,
    "per_device_train_batch_size": FROM_1,
    "report_to": Rule(
        lambda v: (isinstance(v, str) or is_names(v)) and set(trackers_in(v)) <= set(TRACKERS),
        f"{', '.join(TRACKERS)}, a list of them, or none",
    ),
    "save_steps": FROM_1,
    "save_total_limit": FROM_1,
    "use_cpu": SWITCH,
    "warmup_steps": NOT_NEGATIVE,
    "weight_decay": NOT_NEGATIVE,
}
"""Fields of transformers' TrainingArguments that a recipe may set under every trainer."""
TRAINING_FIELDS: Final = frozenset(COMMON_FIELDS).union(*(kind.fields for kind in TRAINER_KINDS.values()))
"""Every field that a recipe may set under some trainer."""
OTHER_NAMES: Final[Mapping[str, str]] = {
    "accumulation": "gradient_accumulation_steps",
    "batch": "per_device_train_batch_size",
    "batch_size": "per_device_train_batch_size",
    "cutoff_len": "max_length",
    "epoch": "num_train_epochs",
    "epochs": "num_train_epochs",
    "gpu_batch_size": "per_device_train_batch_size",
    "grad_accum": "gradient_accumulation_steps",
    "lr": "learning_rate",
    "max_seq_length": "max_length",
    "micro_batch_size": "per_device_train_batch_size",
    "num_epochs": "num_train_epochs",
    "seq_len": "max_length",
    "sequence_len": "max_length",
    "steps": "max_steps",
    "train_batch_size": "per_device_train_batch_size",
    "warmup": "warmup_steps",
}
"""What people and other tools call a field, too far from its name to be taken for a slip → the field."""


def trainer_problems(raw: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with a raw recipe's training section, rewards and measurements under its trainer."""
    name = raw.get("trainer", "sft")
    if name not in TRAINER_KINDS:
        return []  # the rule for `trainer` says so, and nothing else can be told
    found = _field_problems(raw.get("training"), name) + _reward_problems(raw.get("rewards"), name)
    return found + _measuring_problems(raw, name)


def _field_problems(training: Any, name: Trainer) -> list[str]:
    if not isinstance(training, Mapping):
        return []
    rules = {**COMMON_FIELDS, **TRAINER_KINDS[name].fields}
    elsewhere = {key: _takers(key) for key in training if key in TRAINING_FIELDS - rules.keys()}
    found = [
        f"training.{key}: is for trainer {', '.join(takers)}, not {name}; leave it out"
        for key, takers in elsewhere.items()
    ]
    own = {key: value for key, value in training.items() if key not in elsewhere}
    meaning = {other: field for other, field in OTHER_NAMES.items() if field in rules}
    found += find_problems(own, rules, prefix="training.", meaning=meaning)
    if {"max_steps", "num_train_epochs"} <= set(training):
        found.append("training.max_steps and training.num_train_epochs exclude each other; remove one")
    if training.get("bf16") and training.get("fp16"):
        found.append("training.bf16 and training.fp16 exclude each other; remove one")
    return found


def _measuring_problems(raw: Mapping[str, Any], name: Trainer) -> list[str]:
    """Return why what a recipe wants measured, or watched, cannot be under its trainer."""
    kind, found = TRAINER_KINDS[name], []
    if raw.get("evaluate") is not None and name != "sft":
        later = f"; run `hf-lora evaluate` on the folder then{'' if name == 'classification' else ', with --data'}"
        can = kind.task_type == "CAUSAL_LM" or name == "classification"
        found.append(
            f"evaluate: measures texts that trainer sft held out, and not what {name} did; leave it out"
            f"{later if can else ''}"
        )
    if "loss" in kind.untold and raw.get("overfitting") not in (None, "ignore"):
        found.append(f"overfitting: watches the held-out loss, which says nothing under trainer {name}; leave it out")
    return found


def _takers(key: str) -> list[str]:
    return [name for name, kind in TRAINER_KINDS.items() if key in kind.fields]


def _reward_problems(rewards: Any, name: Trainer) -> list[str]:
    wants = TRAINER_KINDS[name].has_rewards
    if not wants:
        takers = ", ".join(other for other, kind in TRAINER_KINDS.items() if kind.has_rewards)
        return [f"rewards: are for trainer {takers}, not {name}; leave them out"] if rewards is not None else []
    if rewards is None:
        return [f"rewards: missing; trainer {name} needed a list, e.g. [{{reward: length, characters: 60}}]"]
    return reward_problems(rewards) if isinstance(rewards, (list, tuple)) else []
