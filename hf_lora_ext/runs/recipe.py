"""Recipes: a training run as choices in YAML, checked strictly and completely before anything is spent.

`load_recipe` reads a file and `key=value` overrides; `validate` returns every problem at once.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from ..choices.advice import TASKS, Task
from ..choices.methods import INITS, METHODS, Method, check_features
from ..choices.run import ATTENTIONS, OPTIMIZERS, SHARDINGS, RunWishes, Sharding, check_run, run_features
from ..choices.wishes import LoraWishes, check_wishes, wish_features
from ..data.forms import COLUMNS
from ..errors import ConfigError
from ..strict_yaml import dump_yaml, kind_of, read_mapping, read_yaml
from .declared import HardwareChoice, hardware_problems
from .evaluate_choice import EvaluateChoice, evaluate_problems
from .push_choice import PushChoice, push_problems
from .recipe_rules import FRACTION, FROM_0, FROM_1, SWITCH, TEXT, Rule, find_problems, is_names, is_whole, one_of
from .trainer_kinds import TRAINERS, Trainer
from .trainer_rules import OTHER_NAMES, TRAINING_FIELDS, trainer_problems

__all__ = [
    "DataChoice",
    "Recipe",
    "apply_overrides",
    "dump_recipe",
    "lay_over",
    "load_recipe",
    "parse_recipe",
    "validate",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class DataChoice:
    """Where the examples come from and how they are split."""

    source: str
    """A local .jsonl, .json, .csv or .parquet file, `builtin:NAME`, or a Hub dataset id."""
    eval_source: str | None = None
    """Held-out examples, in the same forms; without it they are split off the source."""
    split: str = "train"
    """Split of a Hub dataset."""
    revision: str | None = None
    """Revision of a Hub dataset."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Our column → theirs, e.g. `prompt: question`."""
    group_by: str | None = None
    """Column whose values stay together on one side of the split."""
    eval_fraction: float = 0.1
    """Share of the examples (or groups) held out, chosen by a hash of their content."""
    train_examples: int | None = None
    """Use at most this many training examples."""
    eval_examples: int | None = None
    """Use at most this many held-out examples."""
    max_characters: int | None = None
    """Leave out examples with more characters than this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A whole training run, as choices."""

    model: str
    """Hub id or local folder of the base model."""
    output_dir: str
    """Run folder: adapter, facts, card, plots and checkpoints."""
    data: DataChoice
    """The examples."""
    revision: str | None = None
    """Revision of the base model on the Hub."""
    trainer: Trainer = "sft"
    """How it learns: a name in `trainer_kinds.TRAINER_KINDS`."""
    rewards: tuple[Mapping[str, Any], ...] | None = None
    """What completions are rewarded by, under `grpo` and `rloo`: names in `rewards.REWARDS` with their settings."""
    method: Method = "lora"
    """What is trained and how the base is held: a name in `methods.METHODS`."""
    init: str | None = None
    """How the adapter's factors start: a name in `methods.INITS`."""
    rank: int | Literal["auto"] | None = None
    """Overrides the preset's rank; `auto` takes the advice for task and examples."""
    task: Task | None = None
    """What is learned, for `rank: auto`: a name in `advice.TASKS`."""
    alpha: int | None = None
    """Overrides the preset's alpha."""
    dropout: float | None = None
    """Overrides the preset's adapter dropout."""
    targets: str | tuple[str, ...] | None = None
    """Overrides the preset's adapted modules."""
    experts: bool | None = None
    """Whether the experts of a mixture get an adapter each."""
    new_tokens: tuple[int, ...] | None = None
    """Ids of tokens that were added to the model, whose rows of embedding and head train."""
    adaptive_rank: bool | None = None
    """Whether the rank is a mean that layers share as they need it."""
    optimizer: str | None = None
    """A name in `run.OPTIMIZERS`."""
    attention: str | None = None
    """Attention kernel, by its transformers name."""
    sharding: Sharding | None = None
    """How several devices share the work."""
    training: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the trainer's configuration that replace the preset's."""
    samples: int = 3
    """Held-out examples answered by base and adapter at the end."""
    overfitting: Literal["warn", "stop", "best", "ignore"] | None = None
    """What is done about it; by default `best`, or `warn` where it cannot be, below `advice.SMALL_DATA` examples."""
    evaluate: EvaluateChoice | None = None
    """What is measured of base and adapter at the end, beside what the trainer measures."""
    seed: int = 0
    """Seed of initialisation, data order and dropout."""
    push: PushChoice | None = None
    """Where the adapter is published when the run is finished; no part of what the run is."""
    hardware: HardwareChoice | None = None
    """What the recipe is written for; no part of what the run is."""

    @property
    def wishes(self) -> LoraWishes:
        """What the recipe fixes of the adapter."""
        rank = None if self.rank == "auto" else self.rank
        return LoraWishes(
            rank=rank,
            alpha=self.alpha,
            dropout=self.dropout,
            targets=self.targets,
            experts=self.experts,
            new_tokens=self.new_tokens,
            adaptive_rank=self.adaptive_rank,
        )

    @property
    def run_wishes(self) -> RunWishes:
        """What the recipe fixes of the run."""
        return RunWishes(init=self.init, optimizer=self.optimizer, attention=self.attention, sharding=self.sharding)


_RECIPE_RULES: Final = {
    "model": TEXT,
    "output_dir": TEXT,
    "data": Rule(lambda v: isinstance(v, Mapping), "a mapping with at least `source`"),
    "revision": TEXT,
    "trainer": one_of(*TRAINERS),
    "rewards": Rule(lambda v: isinstance(v, (list, tuple)) and bool(v), "a list of rewards"),
    "method": one_of(*METHODS),
    "init": one_of(*INITS),
    "optimizer": one_of(*OPTIMIZERS),
    "attention": one_of(*ATTENTIONS),
    "sharding": one_of(*SHARDINGS),
    "rank": Rule(lambda v: v == "auto" or is_whole(v, 1), "a whole number from 1, or auto"),
    "task": one_of(*TASKS),
    "alpha": FROM_1,
    "dropout": FRACTION,
    "targets": Rule(lambda v: (isinstance(v, str) and bool(v)) or is_names(v), "all-linear or a list of module names"),
    "experts": SWITCH,
    "new_tokens": Rule(
        lambda v: isinstance(v, (list, tuple)) and bool(v) and all(is_whole(x, 0) for x in v), "a list of token ids"
    ),
    "adaptive_rank": SWITCH,
    "training": Rule(lambda v: isinstance(v, Mapping), "a mapping of fields of the trainer's configuration"),
    "samples": FROM_0,
    "overfitting": one_of("warn", "stop", "best", "ignore"),
    "evaluate": Rule(lambda v: isinstance(v, Mapping), "a mapping with at least `metrics`"),
    "seed": FROM_0,
    "push": Rule(lambda v: isinstance(v, Mapping), "a mapping with at least `repo`"),
    "hardware": Rule(lambda v: isinstance(v, Mapping), "a mapping such as {gpus: 2, gpu_memory_gib: 24}"),
}
_DATA_RULES: Final = {
    "source": TEXT,
    "eval_source": TEXT,
    "split": TEXT,
    "revision": TEXT,
    "columns": Rule(
        lambda v: isinstance(v, Mapping) and set(v) <= COLUMNS and is_names([*v.values(), "x"]),
        f"a mapping from {', '.join(sorted(COLUMNS))} to a column of yours",
    ),
    "group_by": TEXT,
    "eval_fraction": FRACTION,
    "train_examples": FROM_1,
    "eval_examples": FROM_1,
    "max_characters": FROM_1,
}
_OTHER_NAMES: Final = {
    **{name: f"training.{field}" for name, field in OTHER_NAMES.items()},
    **{field: f"training.{field}" for field in TRAINING_FIELDS},
    **{"r": "rank", "lora_r": "rank"},
}
"""What is no key of a recipe → the key that says it."""


def validate(raw: Mapping[str, Any]) -> list[str]:
    """Return every problem of a raw recipe, one line each; empty when it is right."""
    raw = _given(raw)
    problems = find_problems(raw, _RECIPE_RULES, required=("model", "output_dir", "data"), meaning=_OTHER_NAMES)
    data, push = raw.get("data"), raw.get("push")
    if isinstance(measured := raw.get("evaluate"), Mapping):
        problems += evaluate_problems(measured)
    if isinstance(data, Mapping):
        problems += find_problems(data, _DATA_RULES, required=("source",), prefix="data.")
        if data.get("eval_source") and "eval_fraction" in data:
            problems.append("data.eval_source and data.eval_fraction exclude each other; remove one")
        if not data.get("eval_source") and data.get("eval_fraction") == 0:
            problems.append("data.eval_fraction: found 0 without eval_source; a held-out set is needed, e.g. 0.1")
    problems += trainer_problems(raw)
    if isinstance(push, Mapping):
        problems += push_problems(push)
    if isinstance(hardware := raw.get("hardware"), Mapping):
        problems += hardware_problems(hardware)
    return problems or _conflicts(raw)


def _conflicts(raw: Mapping[str, Any]) -> list[str]:
    """Return what does not work together among values that are each right, from the table that presets use."""
    method = raw.get("method", "lora")
    run = RunWishes(**{name: raw.get(name) for name in RunWishes.__slots__})
    names = ("rank", "alpha", "dropout", "targets", "experts", "new_tokens", "adaptive_rank")
    adapter: dict[str, Any] = {name: tuple(v) if isinstance(v := raw.get(name), list) else v for name in names}
    training = raw.get("training", {})
    if "task" in raw and raw.get("rank") != "auto":
        return ["task: is for rank: auto; add it, or leave task out"]
    if (raw.get("overfitting"), method) in (("best", "adalora"), ("best", "prefix"), ("stop", "adalora")):
        return [f"overfitting: {raw['overfitting']} does not work with method {method}; use warn or ignore"]
    if "evaluate" in raw and run.init and INITS[run.init].changes_base:
        return [
            f"evaluate: init {run.init} changes the base while it trains; run `hf-lora evaluate` on the folder then"
        ]
    if "evaluate" in raw and run.sharding in ("fsdp", "zero3"):
        return [f"evaluate: under {run.sharding} no process has the whole model; run `hf-lora evaluate` on the folder"]
    if adapter["rank"] == "auto" and method != "prefix":
        adapter["rank"] = None
    try:
        wishes = LoraWishes(**adapter)
        check_run(method, run, also=wish_features(wishes))
        check_wishes(method, wishes)
        asked = {"checkpointing"} if training.get("activation_checkpointing") else set()
        asked |= {"packing"} if training.get("packing") else set()
        asked |= {f"trainer {raw.get('trainer', 'sft')}"} | wish_features(wishes)
        check_features(run_features(method, run) | asked)
    except ConfigError as error:
        return [str(error)]
    return []


def _given(raw: Mapping[Any, Any]) -> dict[Any, Any]:
    """Leave out what is null, in the sections too: null means unset."""
    return {k: _given(v) if isinstance(v, Mapping) and k != "columns" else v for k, v in raw.items() if v is not None}


def parse_recipe(raw: Mapping[str, Any], where: str = "recipe") -> Recipe:
    """Return the recipe that a raw mapping describes.

    Raises:
        ConfigError: Naming every problem.
    """
    if problems := validate(raw):
        many = f"{len(problems)} problems" if len(problems) > 1 else "a problem"
        lines = "\n  ".join(problems)
        raise ConfigError(f"{where} has {many}:\n  {lines}" if len(problems) > 1 else f"{where}: {lines}")
    given = _given(raw)
    data = given.pop("data")
    kinds = {"push": PushChoice, "evaluate": EvaluateChoice, "hardware": HardwareChoice}
    sections = {name: kind(**_without_lists(given.pop(name))) for name, kind in kinds.items() if name in given}
    return Recipe(data=DataChoice(**data), **sections, **_without_lists(given))


def _without_lists(given: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Return the recipe in a YAML file, with `key=value` overrides (dotted keys, YAML values) laid over it.

    Raises:
        ConfigError: If the file is missing or is not YAML, or the recipe has problems; all of them are named.
    """
    raw = read_mapping(path, "recipe", "recipes/quickstart.yaml")
    return parse_recipe(apply_overrides(raw, overrides), f"recipe {path}")


def apply_overrides(raw: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return `raw` with each `dotted.key=value` set; values are read as YAML.

    Raises:
        ConfigError: If an override has no `=`, or goes below a value that is no mapping.
    """
    result = dict(raw)
    for override in overrides:
        dotted, equals, text = override.partition("=")
        if not equals or not dotted.strip():
            raise ConfigError(
                f"override {override!r} is not key=value; write it without spaces around =, e.g. training.max_steps=20"
            )
        where = f"override {override!r}"
        result = lay_over(result, {dotted.strip(): read_yaml(text, where)}, where)
    return result


def lay_over(raw: Mapping[str, Any], values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return a copy of `raw` with each dotted key set to its value, a tuple as the list that YAML has.

    Raises:
        ConfigError: If a key goes below a value that is no mapping; `where` says whose it is.
    """
    result: dict[str, Any] = copy.deepcopy(dict(raw))
    for dotted, value in values.items():
        *parents, last = dotted.split(".")
        level = result
        for parent in parents:
            child = level[parent] = {} if level.get(parent) is None else level[parent]
            if not isinstance(child, dict):
                raise ConfigError(f"{where}: {parent} holds {kind_of(child)}, so it has no key {last!r}")
            level = child
        level[last] = list(value) if isinstance(value, tuple) else value
    return result


def dump_recipe(recipe: Recipe) -> str:
    """Return the recipe as YAML that `load_recipe` reads back to an equal recipe."""
    plain = {key: value for key, value in asdict(recipe).items() if value is not None}
    for section in {"data", "push", "evaluate", "hardware"} & plain.keys():
        told = {key: value for key, value in plain[section].items() if value not in (None, ())}
        plain[section] = {key: list(value) if isinstance(value, tuple) else value for key, value in told.items()}
    if recipe.data.eval_source:
        plain["data"].pop("eval_fraction")
    return dump_yaml({key: list(value) if isinstance(value, tuple) else value for key, value in plain.items()})
