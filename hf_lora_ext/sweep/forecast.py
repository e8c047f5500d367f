"""What each trial of a sweep would take, before any is begun: the planner's memory, and the parameters that train."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Final

from ..errors import ConfigError
from ..memory.host_memory import host_warnings
from ..memory.remedies import DoesNotFit
from ..models.targets import adapter_parameters
from ..presets.configuration import Preset
from ..runs.full import without_adapter
from ..runs.recipe import Recipe
from ..runs.recipe_plan import memory_need, preset_for
from .settings import Sweep, full_recipe, planned, recipe_at
from .space import Point, ends, spoken

__all__ = ["Forecast", "check_fits", "forecast"]

GIB: Final = 2**30
MOST_ENDS: Final = 200
"""Bounding points that are looked at where TPE will choose the trials."""
FULL_BYTES: Final = 16
"""Bytes a weight that trains takes in float32: itself, its gradient and Adam's two moments."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What one trial would take."""

    point: Point
    """The trial."""
    is_full: bool = False
    """Whether it is a reference that trains all weights."""
    needed_gib: float | None
    """GiB needed, on a GPU with the planner's margin; None if not known."""
    available_gib: float | None
    """GiB that there are; None if not known."""
    parameters: int | None
    """Parameters that would train; None if not known, or where layers get ranks of their own."""
    is_lower_bound: bool = False
    """Whether it needs more: on a host, what activations take is not planned."""
    problem: str | None = None
    """Why it cannot run."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON takes."""
        return asdict(self) | {"point": dict(self.point)}


def forecast(sweep: Sweep) -> list[Forecast]:
    """Return what each trial would take; where TPE will choose them, the points that bound the space instead.

    Raises:
        ConfigError: If the model cannot be found or its size not be told.
    """
    points = planned(sweep)
    adapters = [
        _of_adapter(point, recipe_at(sweep, point, sweep.first_seed, Path(sweep.output_dir) / "forecast"))
        for point in (islice(ends(sweep.space), MOST_ENDS) if points is None else points)
    ]
    full = [
        _of_full(rate, full_recipe(sweep, rate, sweep.first_seed, Path(sweep.output_dir) / "forecast"))
        for rate in sweep.full_learning_rates
    ]
    return adapters + full


def check_fits(forecasts: list[Forecast]) -> None:
    """Raise for trials that cannot run.

    Raises:
        ConfigError: With each of them, and why.
    """
    told = [f"{spoken(f.point)}: {f.problem}" for f in forecasts if f.problem]
    if told:
        many = f"{len(told)} of {len(forecasts)} trials do not fit; take them out of the space:\n  "
        raise ConfigError(many + "\n  ".join(told))


def _of_adapter(point: Point, recipe: Recipe) -> Forecast:
    try:
        chosen = preset_for(recipe, recipe.model, recipe.data.train_examples)
    except DoesNotFit as refusal:
        return Forecast(point=point, needed_gib=None, available_gib=None, parameters=None, problem=str(refusal))
    counted = None
    if chosen.method != "prefix" and not chosen.adaptive_rank and chosen.method != "adalora":
        counted = adapter_parameters(chosen.shape, chosen.rank, chosen.targets, chosen.experts, chosen.expert_rank)
    return _judged(Forecast(point=point, parameters=counted, **_memory(chosen, recipe)), chosen)


def _memory(chosen: Preset, recipe: Recipe) -> dict[str, Any]:
    """Return needed and available GiB as a forecast has them."""
    need = memory_need(chosen, recipe)
    rounded = {name: value if value is None else round(value, 4) for name, value in
               (("needed_gib", need.needed_gib), ("available_gib", need.available_gib))}  # fmt: skip
    return {**rounded, "is_lower_bound": need.is_lower_bound}


def _judged(made: Forecast, chosen: Preset) -> Forecast:
    """Say of a forecast whether it cannot run."""
    if (warnings := host_warnings(chosen.shape, chosen.hardware, chosen.choices)) and not made.is_full:
        return replace(made, problem=f"needs {warnings[0].value}, {warnings[0].why}")
    if made.needed_gib is not None and made.available_gib is not None and made.needed_gib > made.available_gib:
        return replace(
            made,
            problem=f"needs {made.needed_gib:.3g} GiB of {made.available_gib:.3g}; set a smaller "
            "per_device_train_batch_size, or a smaller model",
        )
    return made


def _of_full(rate: float, recipe: Recipe) -> Forecast:
    point = {"training.learning_rate": rate}
    try:
        chosen = without_adapter(recipe, recipe.model)
    except DoesNotFit as refusal:
        return Forecast(
            point=point, is_full=True, needed_gib=None, available_gib=None, parameters=None, problem=str(refusal)
        )
    memory = _memory(chosen, recipe)
    if chosen.hardware.kind != "cuda":
        memory["needed_gib"] = round(chosen.shape.parameters * FULL_BYTES / GIB, 4)
    return _judged(Forecast(point=point, is_full=True, parameters=chosen.shape.parameters, **memory), chosen)
