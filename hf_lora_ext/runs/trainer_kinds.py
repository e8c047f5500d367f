"""The trainers that a recipe can name: what each takes, what may be set, what it measures, what does not go with it.

Pure, and the one place for it. What excludes a trainer otherwise (`trainer dpo` and `init pissa`) is a row of
`choices.methods.CONFLICTS`, where all refusals of combinations are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from ..choices.run import LORA_RATE
from ..data.forms import TEXT_FORMS
from ..errors import ConfigError, nearest
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
    is_number,
    is_whole,
    one_of,
)
from .rewards import reward_problems
from .trackers import TRACKERS, trackers_in

__all__ = [
    "COMMON_FIELDS",
    "TRAINERS",
    "TRAINER_KINDS",
    "TRAINING_FIELDS",
    "Trainer",
    "TrainerKind",
    "config_fields",
    "kind_arguments",
    "trainer_kind",
    "trainer_problems",
]

Trainer = Literal["sft", "dpo", "kto", "reward", "grpo", "rloo", "classification", "seq2seq"]
TRAINERS: Final[tuple[Trainer, ...]] = get_args(Trainer)

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
_SHARE: Final = Rule(lambda v: is_number(v, 0, 1.0000001), "a number from 0 to 1")
_PAIR_SIZE: Final = Rule(lambda v: is_whole(v, 2), "a whole number from 2")
_LOSSES: Final = Rule(lambda v: (isinstance(v, str) and bool(v)) or is_names(v), "a loss of TRL, or a list of them")
_NUMBERS: Final = Rule(
    lambda v: isinstance(v, (list, tuple)) and bool(v) and all(is_number(x, 0) for x in v), "a list of numbers from 0"
)
_SAMPLED: Final[Mapping[str, Rule]] = {
    "beta": NOT_NEGATIVE,
    "disable_dropout": SWITCH,
    "epsilon": POSITIVE,
    "epsilon_high": POSITIVE,
    "mask_truncated_completions": SWITCH,
    "max_completion_length": FROM_1,
    "min_p": _SHARE,
    "num_generations": _PAIR_SIZE,
    "num_generations_eval": FROM_1,
    "num_iterations": FROM_1,
    "repetition_penalty": POSITIVE,
    "steps_per_generation": FROM_1,
    "temperature": POSITIVE,
    "top_k": FROM_0,
    "top_p": _SHARE,
}
"""Fields of TRL's two trainers that learn from their own completions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerKind:
    """What a trainer is, independent of model and data."""

    trainer: str
    """Class of trl, or of transformers where `is_trl` is false."""
    config: str
    """Class of its configuration, likewise."""
    is_trl: bool = True
    """Which of the two libraries has both."""
    model: str = "AutoModelForCausalLM"
    """Class of transformers that loads its base."""
    task_type: str = "CAUSAL_LM"
    """What peft calls it."""
    forms: tuple[str, ...]
    """Names in `data.forms.FORMS`, in the order in which they are looked for."""
    fields: Mapping[str, Rule]
    """Fields of its configuration that a recipe may set beside the common ones, by the names that the library gives."""
    learning_rate: float | None = None
    """Peak rate of a plain LoRA; None for the preset's, which is SFT's."""
    source: str = ""
    """Where that rate is from."""
    rows: int = 1
    """Sequences that pass the model for one example, which share the memory that a preset plans for one."""
    measured: tuple[str, ...] = ("loss",)
    """What an evaluation is told by, most telling first, by the names that the trainer logs."""
    curve: str
    """What its loss curve shows, with the unit."""
    untold: tuple[str, ...] = ()
    """What it logs of an evaluation and says nothing of the adapter."""
    generations: int | None = None
    """Completions of a prompt, where it learns from its own: the library's default."""
    answers: bool = False
    """Whether held-out prompts can be answered by the base and by the adapter."""

    @property
    def has_rewards(self) -> bool:
        """Whether a recipe names rewards for it."""
        return self.generations is not None

    def fitted_rate(self, rate: float, plain: float) -> float:
        """Return the peak learning rate for a method and size.

        Args:
            rate: What SFT takes for them.
            plain: What SFT takes for a plain LoRA, of which `learning_rate` is the counterpart.
        """
        return rate if self.learning_rate is None else float(f"{rate * self.learning_rate / plain:.4g}")


_TEN_TIMES: Final = "ten times that of full fine-tuning (LoRA Without Regret, Thinking Machines 2025)"
_PREFERENCE_FORMS: Final = ("preference", "implicit preference")
TRAINER_KINDS: Final[Mapping[str, TrainerKind]] = {
    "sft": TrainerKind(
        trainer="SFTTrainer",
        config="SFTConfig",
        curve="loss (nats per supervised token)",
        forms=TEXT_FORMS,
        fields={"assistant_only_loss": SWITCH, "completion_only_loss": SWITCH, "max_length": FROM_1, "packing": SWITCH},
        answers=True,
    ),
    "dpo": TrainerKind(
        trainer="DPOTrainer",
        config="DPOConfig",
        curve="loss (nats per pair)",
        forms=_PREFERENCE_FORMS,
        fields={
            "beta": POSITIVE,
            "disable_dropout": SWITCH,
            "label_smoothing": _SHARE,
            "ld_alpha": _SHARE,
            "loss_type": _LOSSES,
            "loss_weights": _NUMBERS,
            "max_length": FROM_1,
            "precompute_ref_log_probs": SWITCH,
            "use_weighting": SWITCH,
        },
        learning_rate=5e-6,
        source=f"trl/scripts/dpo.py, with LoRA: {_TEN_TIMES}",
        rows=2,
        measured=("rewards/accuracies", "rewards/margins", "loss"),
        answers=True,
    ),
    "kto": TrainerKind(
        trainer="KTOTrainer",
        config="KTOConfig",
        curve="loss (0 to 1)",
        forms=("unpaired preference", "preference"),
        fields={
            "beta": POSITIVE,
            "desirable_weight": NOT_NEGATIVE,
            "disable_dropout": SWITCH,
            "loss_type": one_of("kto", "apo_zero_unpaired"),
            "max_length": FROM_1,
            "per_device_train_batch_size": _PAIR_SIZE,  # its KL term pairs a prompt with its neighbour's completion
            "precompute_ref_log_probs": SWITCH,
            "undesirable_weight": NOT_NEGATIVE,
        },
        learning_rate=5e-6,
        source=f"5e-7 in trl/scripts/kto.py; {_TEN_TIMES}",
        measured=("rewards/margins", "loss"),
        answers=True,
    ),
    "reward": TrainerKind(
        trainer="RewardTrainer",
        config="RewardConfig",
        curve="loss (nats per pair)",
        model="AutoModelForSequenceClassification",
        task_type="SEQ_CLS",
        forms=_PREFERENCE_FORMS,
        fields={"center_rewards_coefficient": NOT_NEGATIVE, "disable_dropout": SWITCH, "max_length": FROM_1},
        learning_rate=1e-4,
        source=f"TRL's RewardConfig, and its LoRA example: {_TEN_TIMES}",
        rows=2,
        measured=("accuracy", "margin", "loss"),
    ),
    "grpo": TrainerKind(
        trainer="GRPOTrainer",
        config="GRPOConfig",
        curve="reward",
        forms=("prompt-only",),
        fields={
            **_SAMPLED,
            "importance_sampling_level": one_of("token", "sequence"),
            "loss_type": TEXT,
            "scale_rewards": one_of("group", "batch", "none"),
        },
        learning_rate=1e-5,
        source=f"1e-6 in TRL's GRPOConfig; {_TEN_TIMES}",
        generations=8,
        measured=("reward",),
        untold=("loss",),
        answers=True,
    ),
    "rloo": TrainerKind(
        trainer="RLOOTrainer",
        config="RLOOConfig",
        curve="reward",
        forms=("prompt-only",),
        fields={**_SAMPLED, "normalize_advantages": SWITCH},
        learning_rate=1e-5,
        source=f"1e-6 in TRL's RLOOConfig; {_TEN_TIMES}",
        generations=2,
        measured=("reward",),
        untold=("loss",),
        answers=True,
    ),
    "classification": TrainerKind(
        trainer="Trainer",
        config="TrainingArguments",
        curve="loss (nats per text)",
        is_trl=False,
        model="AutoModelForSequenceClassification",
        task_type="SEQ_CLS",
        forms=("labelled text",),
        fields={"label_smoothing_factor": _SHARE, "max_length": FROM_1},
        measured=("accuracy", "loss"),
    ),
    "seq2seq": TrainerKind(
        trainer="Seq2SeqTrainer",
        config="Seq2SeqTrainingArguments",
        curve="loss (nats per token of the answer)",
        is_trl=False,
        model="AutoModelForSeq2SeqLM",
        task_type="SEQ_2_SEQ_LM",
        forms=("prompt-completion",),
        fields={"label_smoothing_factor": _SHARE, "max_length": FROM_1},
        answers=True,
    ),
}
"""Name in a recipe → what it is."""
TRAINING_FIELDS: Final = frozenset(COMMON_FIELDS).union(*(kind.fields for kind in TRAINER_KINDS.values()))
"""Every field that a recipe may set under some trainer."""


def trainer_kind(name: str) -> TrainerKind:
    """Return what a trainer is, by its name.

    Raises:
        ConfigError: If the name is not known.
    """
    if name not in TRAINER_KINDS:
        raise ConfigError(f"trainer {name!r} is not known; {nearest(str(name), TRAINERS)}")
    return TRAINER_KINDS[name]


def kind_arguments(name: Trainer, of_sft: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a trainer is given in the place of what SFT is given, for the same preset.

    Args:
        name: The trainer.
        of_sft: What SFT is given (`presets.arguments.training_arguments`).
        overrides: What the user fixes.
    """
    kind, given = TRAINER_KINDS[name], dict(of_sft)
    given["learning_rate"] = kind.fitted_rate(given["learning_rate"], LORA_RATE)
    micro, accumulation = given["per_device_train_batch_size"], given["gradient_accumulation_steps"]
    shared = min(kind.rows, micro)
    least = 2 if name == "kto" else 1  # its KL term pairs a prompt with its neighbour's completion
    fitted = max(least, micro // shared)
    given["per_device_train_batch_size"] = given["per_device_eval_batch_size"] = fitted
    given["gradient_accumulation_steps"] = max(1, micro * accumulation // fitted)
    if kind.generations is not None:
        number = overrides.get("num_generations_eval") or overrides.get("num_generations") or kind.generations
        given["per_device_eval_batch_size"] = max(1, micro // number) * number  # TRL wants whole groups in a batch
    return given


def config_fields(name: Trainer, training: Mapping[str, Any]) -> dict[str, Any]:
    """Return those fields of a recipe's training section that the trainer's configuration has too.

    Transformers' own trainers get tokens from us, as long as the preset says, and their configuration has no length.
    """
    ours = () if TRAINER_KINDS[name].is_trl else ("max_length",)
    return {field: value for field, value in training.items() if field not in ours}


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
    found += find_problems(own, rules, prefix="training.")
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
