"""Sweep files: a recipe, a space around it and a strategy, checked strictly and completely before anything is spent.

`load_sweep` reads a file and `key=value` overrides; `validate_sweep` returns every problem at once.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Final, Literal

from ..errors import ConfigError, nearest
from ..runs.recipe import Recipe, apply_overrides, lay_over, parse_recipe, validate
from ..runs.recipe_rules import FROM_1, POSITIVE, SWITCH, TEXT, Rule, find_problems, is_number, is_whole, one_of
from ..runs.trainer_kinds import TRAINER_KINDS
from ..runs.trainer_rules import OTHER_NAMES, TRAINING_FIELDS
from ..strict_yaml import dump_yaml, read_mapping
from .space import Choices, Point, Range, Space, ends, grid, grid_size, random_points, spoken

__all__ = [
    "Strategy", "Sweep", "dump_sweep", "full_recipe", "load_sweep", "parse_sweep", "planned", "recipe_at",
    "validate_sweep",
]  # fmt: skip

Strategy = Literal["grid", "random", "bayesian"]
MOST_GRID: Final = 1000
"""Trials of a grid above which a typo is likelier than a wish."""

_ADAPTER_KEYS: Final = (
    "method",
    "init",
    "rank",
    "alpha",
    "dropout",
    "targets",
    "experts",
    "adaptive_rank",
    "optimizer",
)
_TRAINING_KEYS: Final = (
    "gradient_accumulation_steps", "learning_rate", "lr_scheduler_type", "max_grad_norm", "max_steps",
    "neftune_noise_alpha", "num_train_epochs", "per_device_train_batch_size", "warmup_steps", "weight_decay",
)  # fmt: skip
SWEPT: Final = (*_ADAPTER_KEYS, "data.train_examples", *(f"training.{key}" for key in _TRAINING_KEYS))
"""Keys that a space may have: those under which the held-out loss stays the same measurement."""
_OTHER_NAMES: Final = {
    f"{section}{other}": f"training.{field}"
    for other, field in OTHER_NAMES.items()
    for section in ("", "training.")
    if field in _TRAINING_KEYS
}
"""What people call a key → the key."""
_WHOLE: Final = (
    "rank", "alpha", "data.train_examples", "training.gradient_accumulation_steps", "training.max_steps",
    "training.per_device_train_batch_size",
)  # fmt: skip
"""Keys whose ranges have whole numbers alone; {low: 0, high: 1} of another has what is between."""
_FULL_IGNORES: Final = (*_ADAPTER_KEYS, "task", "new_tokens", "evaluate", "push")
"""Keys of a recipe that say nothing where all weights train."""

_RULES: Final = {
    "base": Rule(lambda v: isinstance(v, Mapping) or TEXT.accepts(v), "a recipe, or the path of one"),
    "fixed": Rule(lambda v: isinstance(v, Mapping), "a mapping of dotted recipe keys to values"),
    "output_dir": TEXT,
    "space": Rule(lambda v: isinstance(v, Mapping) and bool(v), "a mapping of dotted recipe keys to what they may be"),
    "strategy": one_of("grid", "random", "bayesian"),
    "trials": FROM_1,
    "seeds": FROM_1,
    "prune": SWITCH,
    "time_limit_minutes": POSITIVE,
    "full_learning_rates": Rule(
        lambda v: isinstance(v, (list, tuple)) and bool(v) and all(POSITIVE.accepts(x) for x in v),
        "a list of numbers above 0",
    ),
}
_RANGE_RULES: Final = {
    "low": Rule(lambda v: is_number(v, float("-inf")), "a number"),
    "high": Rule(lambda v: is_number(v, float("-inf")), "a number"),
    "log": SWITCH,
    "steps": Rule(lambda v: is_whole(v, 2), "a whole number from 2"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """A whole sweep, as choices."""

    base: Mapping[str, Any]
    """The recipe, raw and without its folder; what `fixed` says is laid over it."""
    output_dir: str
    """Sweep folder: trials, their storage, tables, plots and the winning recipe."""
    space: Space
    """What is tried."""
    strategy: Strategy = "grid"
    """How points are chosen: all of a grid, by chance, or by Optuna's TPE from the trials before."""
    trials: int | None = None
    """Points to try; a grid has its own number."""
    seeds: int = 3
    """Runs a point, with the recipe's seed and those after it: one run alone gives no standard error."""
    prune: bool = False
    """Whether a trial ends early whose held-out loss is worse than the median of the others at the same step."""
    time_limit_minutes: float | None = None
    """Each process begins no trial after so many minutes."""
    full_learning_rates: tuple[float, ...] = field(default=())
    """For reference, train all weights too, once with each of these rates."""

    @property
    def points(self) -> int:
        """How many points are tried, the references not counted: fewer than `trials` where the space has fewer."""
        fixed = planned(self)
        return (self.trials or 0) if fixed is None else len(fixed)

    @property
    def first_seed(self) -> int:
        """The seed of each point's first run."""
        return int(self.base.get("seed") or 0)


def planned(sweep: Sweep) -> list[dict[str, Any]] | None:
    """Return the points that are tried, in order; None where each depends on the trials before it."""
    if sweep.strategy == "grid":
        return list(grid(sweep.space))
    if sweep.strategy == "random":
        return random_points(sweep.space, sweep.trials or 0, sweep.first_seed)
    return None


def recipe_at(sweep: Sweep, point: Point, seed: int, folder: str | Path) -> Recipe:
    """Return the recipe of one run: the base with a point laid over it, in a folder of its own, never pushed."""
    where = f"the recipe of {spoken(point)}"
    raw = lay_over(sweep.base, point, where) | {"output_dir": str(folder), "seed": seed}
    raw.pop("push", None)
    return parse_recipe(raw, where)


def full_recipe(sweep: Sweep, learning_rate: float, seed: int, folder: str | Path) -> Recipe:
    """Return the recipe of a reference run: the base's data and training, without what is about an adapter."""
    raw = {key: value for key, value in sweep.base.items() if key not in _FULL_IGNORES}
    where = f"the recipe of full fine-tuning at {learning_rate:g}"
    raw = lay_over(raw, {"training.learning_rate": learning_rate}, where) | {"output_dir": str(folder), "seed": seed}
    return parse_recipe(raw, where)


def validate_sweep(raw: Mapping[str, Any]) -> list[str]:
    """Return every problem of a raw sweep whose base is a mapping, one line each; empty when it is right."""
    raw = {key: value for key, value in raw.items() if value is not None}
    problems = find_problems(raw, _RULES, required=("base", "output_dir", "space"))
    base, space, strategy = raw.get("base"), raw.get("space"), str(raw.get("strategy", "grid"))
    if strategy == "grid" and "trials" in raw:
        problems.append("trials: a grid has its own number of trials; leave it out, or use strategy random")
    if strategy in ("random", "bayesian") and "trials" not in raw:
        problems.append(f"trials: missing; strategy {strategy} needed: {FROM_1.need}")
    wrong = {key: _axis_problems(key, axis, strategy) for key, axis in _dotted(space).items()}
    problems += [problem for found in wrong.values() for problem in found]
    if not isinstance(base, Mapping):
        return problems
    try:
        base = lay_over(base, _dotted(raw.get("fixed")), "fixed")
    except ConfigError as error:
        return [*problems, str(error)]
    raw_recipe = {**base, "output_dir": "unused"}
    if of_base := validate(raw_recipe):
        return [*problems, *(f"base.{problem}" for problem in of_base)]
    problems += _trainer_problems(str(base.get("trainer") or "sft"), bool(raw.get("full_learning_rates")))
    right = _read_space({key: axis for key, axis in _dotted(space).items() if not wrong[key]})
    problems += [problem for key, axis in right.items() for problem in _value_problems(raw_recipe, key, axis)]
    return problems or _point_problems(raw_recipe, right, strategy)


def _trainer_problems(trainer: str, has_references: bool) -> list[str]:
    """Return why trials of a trainer cannot be compared, with each other or with full fine-tuning."""
    if "loss" in TRAINER_KINDS[trainer].untold:
        return [f"base.trainer: found {trainer}, whose loss says nothing; trials are compared by their held-out loss"]
    if has_references and trainer != "sft":
        return [f"full_learning_rates: are for trainer sft, not {trainer}; leave them out"]
    return []


def _dotted(section: Any) -> dict[str, Any]:
    """Return a mapping of dotted keys, where `training` and `data` may also be mappings of their own."""
    flat: dict[str, Any] = {}
    for key, value in section.items() if isinstance(section, Mapping) else ():
        if key in ("training", "data") and isinstance(value, Mapping):
            flat |= {f"{key}.{name}": inner for name, inner in value.items()}
        else:
            flat[str(key)] = value
    return flat


def _axis_problems(key: str, axis: Any, strategy: str) -> list[str]:
    if key not in SWEPT:
        return [f"space.{key}: {_why_not(key)}"]
    if isinstance(axis, (list, tuple)):
        repeated = len({json.dumps(value) for value in axis}) < len(axis)
        empty = [f"space.{key}: found an empty list, needed at least one value"] * (not axis)
        return empty + [f"space.{key}: a value appears twice; keep one"] * repeated
    if not isinstance(axis, Mapping):
        return [f"space.{key}: found {axis!r}, needed a list of values, or {{low: …, high: …}}"]
    given = {name: value for name, value in axis.items() if value is not None}
    if problems := find_problems(given, _RANGE_RULES, required=("low", "high"), prefix=f"space.{key}."):
        return problems
    if given["low"] >= given["high"]:
        return [f"space.{key}: low {given['low']} is not below high {given['high']}"]
    if given.get("log") and given["low"] <= 0:
        return [f"space.{key}.low: found {given['low']}, needed a number above 0 with log"]
    if (strategy == "grid") != ("steps" in given):
        needed = "is missing; a grid needed: how many values" if strategy == "grid" else "is for strategy grid"
        return [f"space.{key}.steps: {needed}"]
    return []


def _why_not(key: str) -> str:
    known = {"model", "data", "samples", "overfitting", "evaluate", "push", "trainer", "rewards"}
    known |= {f"training.{name}" for name in TRAINING_FIELDS}
    if key in known or key.startswith(("data.", "evaluate.", "push.")):
        return "trials that differ in it cannot be compared by their held-out loss; set it in base or fixed"
    if key in ("seed", "output_dir"):
        return f"each run gets its own; {'use `seeds`' if key == 'seed' else 'leave it out'}"
    return f"unknown key; {nearest(key, SWEPT, _OTHER_NAMES)}"


def _point_problems(base: Mapping[str, Any], space: Space, strategy: str) -> list[str]:
    """Return what is wrong with values together, once where many points have it."""
    if strategy == "grid" and (size := grid_size(space)) > MOST_GRID:
        return [f"space: a grid of {size:,} trials is more than {MOST_GRID:,}; give fewer values, or strategy random"]
    told: dict[str, str] = {}
    for point in grid(space) if strategy == "grid" else islice(ends(space), MOST_GRID):
        for problem in validate(lay_over(base, point, "space")):
            told.setdefault(problem, f"space, at {spoken(point)}: {problem}")
    return list(told.values())


def _value_problems(base: Mapping[str, Any], key: str, axis: Choices | Range) -> list[str]:
    """Return the problems of single values; what they do to other keys is looked at point by point."""
    found = [problem for value in axis.ends for problem in validate(lay_over(base, {key: value}, "space"))]
    return [f"space.{problem}" for problem in dict.fromkeys(found) if problem.startswith(f"{key}:")]


def _read_space(raw: Mapping[str, Any]) -> dict[str, Choices | Range]:
    return {
        key: _read_range(key, axis)
        if isinstance(axis, Mapping)
        else Choices(tuple(tuple(v) if isinstance(v, list) else v for v in axis))
        for key, axis in raw.items()
    }


def _read_range(key: str, raw: Mapping[str, Any]) -> Range:
    given = {name: value for name, value in raw.items() if value is not None}
    ends = {name: given[name] if key in _WHOLE else float(given[name]) for name in ("low", "high")}
    return Range(**given | ends)


def parse_sweep(raw: Mapping[str, Any], where: str = "sweep") -> Sweep:
    """Return the sweep that a raw mapping describes, whose base is a mapping.

    Raises:
        ConfigError: Naming every problem.
    """
    if problems := validate_sweep(raw):
        many = f"{where} has {len(problems)} problems:\n  " if len(problems) > 1 else f"{where}: "
        raise ConfigError(many + "\n  ".join(problems))
    given = {key: value for key, value in raw.items() if value is not None}
    base, fixed = given.pop("base"), given.pop("fixed", {})
    base = {key: value for key, value in lay_over(base, _dotted(fixed), "fixed").items() if key != "output_dir"}
    rates = tuple(given.pop("full_learning_rates", ()))
    return Sweep(base=base, space=_read_space(_dotted(given.pop("space"))), full_learning_rates=rates, **given)


def load_sweep(path: str | Path, overrides: Sequence[str] = ()) -> Sweep:
    """Return the sweep in a YAML file, with `key=value` overrides (dotted keys, YAML values) laid over it.

    A base that is a path is looked for from the sweep file's folder.

    Raises:
        ConfigError: If a file is missing or is not YAML, or the sweep has problems; all of them are named.
    """
    raw = read_mapping(path, "sweep", "recipes/sweep_rank.yaml")
    if isinstance(base := raw.get("base"), str) and base.strip():
        raw = raw | {"base": read_mapping(Path(path).parent / base, "base recipe", "recipes/quickstart.yaml")}
    return parse_sweep(apply_overrides(raw, overrides), f"sweep {path}")


def dump_sweep(sweep: Sweep) -> str:
    """Return the sweep as YAML that `load_sweep` reads back to an equal sweep, wherever the file is."""
    plain: dict[str, Any] = {
        "base": dict(sweep.base),
        "output_dir": sweep.output_dir,
        "space": {key: _axis_as_yaml(axis) for key, axis in sweep.space.items()},
        "strategy": sweep.strategy,
        "trials": sweep.trials,
        "seeds": sweep.seeds,
        "prune": sweep.prune,
        "time_limit_minutes": sweep.time_limit_minutes,
        "full_learning_rates": list(sweep.full_learning_rates),
    }
    return dump_yaml({key: value for key, value in plain.items() if value not in (None, [])})


def _axis_as_yaml(axis: Choices | Range) -> Any:
    if isinstance(axis, Choices):
        return [list(value) if isinstance(value, tuple) else value for value in axis.values]
    named: Iterable[str] = ("low", "high", "log", "steps")
    return {name: value for name in named if (value := getattr(axis, name)) is not None}
