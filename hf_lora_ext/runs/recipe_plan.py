"""What a recipe takes: its preset, for the hardware that is found or that it declares, and the memory of its own batch.

`preset_here` is asked before anything is spent: it says what this machine lacks of what the recipe is written for, and
refuses where the plan does not fit.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any, Final

from ..errors import ConfigError
from ..hardware import Hardware
from ..machine import find_hardware
from ..memory.host_memory import host_warnings, least_host_bytes
from ..memory.peaks import estimate_memory
from ..memory.remedies import DoesNotFit
from ..models.base_models import find_shape
from ..presets.configuration import Preset
from ..presets.preset import decide, preset
from .declared import shortfall
from .recipe import Recipe
from .trainer_kinds import trainer_kind

__all__ = ["MemoryNeed", "check_launched", "declared_preset", "memory_need", "preset_for", "preset_here"]

GIB: Final = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryNeed:
    """What a run needs of one device, or of the host where that computes."""

    needed_gib: float | None
    """GiB, margin included; None where the planner does not know."""
    available_gib: float | None
    """GiB that are there; None where that is not known."""
    is_lower_bound: bool = False
    """Whether it is the weights alone, without activations: on a CPU."""


def preset_for(
    recipe: Recipe, model: str, examples: int | None, *, ask_hub: bool = True, **hardware: float | None
) -> Preset:
    """Return the preset that a recipe's choices give.

    Args:
        recipe: The choices.
        model: Where its base model is, or its name.
        examples: Training examples, for a rank of `auto`.
        ask_hub: Whether a popular model is looked up on the Hub although its config is shipped with this package.
        **hardware: What declares hardware in `preset`; without, it is what is found.
    """
    targets = list(recipe.targets) if isinstance(recipe.targets, tuple) else recipe.targets
    declared: dict[str, Any] = hardware
    return preset(
        model,
        method=recipe.method,
        rank=recipe.rank,
        alpha=recipe.alpha,
        dropout=recipe.dropout,
        targets=targets,
        experts=recipe.experts,
        new_tokens=recipe.new_tokens,
        adaptive_rank=recipe.adaptive_rank,
        task=recipe.task,
        examples=examples if recipe.rank == "auto" else None,
        init=recipe.init,
        optimizer=recipe.optimizer,
        attention=recipe.attention,
        sharding=recipe.sharding,
        max_length=recipe.training.get("max_length"),
        ask_hub=ask_hub,
        **declared,
    )


def declared_preset(recipe: Recipe) -> Preset:
    """Return the preset on the hardware that a recipe declares, whatever machine this is.

    Raises:
        ConfigError: If it declares none, or does not fit it, or its model is not known without the Hub.
    """
    declared = recipe.hardware
    if declared is None:
        raise ConfigError("the recipe declares no hardware; add e.g. hardware: {gpus: 1, gpu_memory_gib: 24}")
    examples = recipe.data.train_examples
    if declared.gpu_memory_gib is not None:
        return preset_for(recipe, recipe.model, examples, ask_hub=False, **declared.arguments)
    shape, name = find_shape(recipe.model, ask_hub=False)
    host = Hardware(kind="cpu", host_memory_gib=declared.host_gib, declared=True)
    run = replace(recipe.run_wishes, max_length=recipe.training.get("max_length"))
    return decide(shape, host, method=recipe.method, wishes=recipe.wishes, run=run, model_id=name)


def memory_need(chosen: Preset, recipe: Recipe) -> MemoryNeed:
    """Return what a recipe's run needs, with its own batch where it names one, whose examples may be two sequences."""
    if chosen.found is None:
        if chosen.hardware.kind == "cuda":
            return MemoryNeed(needed_gib=None, available_gib=chosen.hardware.memory_gib)
        least = least_host_bytes(chosen.shape, chosen.choices) / GIB
        return MemoryNeed(needed_gib=least, available_gib=chosen.hardware.host_memory_gib, is_lower_bound=True)
    batch = recipe.training.get("per_device_train_batch_size")
    own = {
        "micro_batch": None if batch is None else batch * trainer_kind(recipe.trainer).rows,
        "accumulation": recipe.training.get("gradient_accumulation_steps"),
        "checkpointing": recipe.training.get("activation_checkpointing"),
    }
    plan = replace(chosen.found.plan, **{name: value for name, value in own.items() if value is not None})
    needed = estimate_memory(chosen.shape, plan).needed
    return MemoryNeed(needed_gib=needed / GIB, available_gib=chosen.found.available / GIB)


def preset_here(recipe: Recipe, model: str, examples: int, *, gpus: int = 1, machines: int = 1) -> tuple[Preset, str]:
    """Return the preset on this machine, and what to say of the hardware that the recipe is written for.

    Args:
        recipe: The choices.
        model: Where its base model is.
        examples: Training examples.
        gpus: Processes on each machine, which have a GPU each where there are any.
        machines: Machines that take part.

    Raises:
        ConfigError: If it does not fit, with what the recipe is written for where this machine has less.
    """
    found = find_hardware()
    taking: dict[str, Any] = {"gpus": gpus, "machines": machines} if found.kind == "cuda" else {}
    declared = recipe.hardware
    if declared is None:
        return preset_for(recipe, model, examples, **taking), ""
    try:
        chosen = preset_for(recipe, model, examples, **taking)
    except DoesNotFit as refusal:
        if not (lacks := shortfall(declared, replace(found, devices=gpus * machines, machines=machines))):
            raise
        raise ConfigError(f"{_less(declared, lacks)}: {refusal}") from refusal
    if not (lacks := shortfall(declared, chosen.hardware)):
        return chosen, ""
    if problem := _problem(chosen, recipe):
        raise ConfigError(
            f"{_less(declared, lacks)}: {problem}; use such a machine, or a smaller model=, or a smaller batch, e.g. "
            "training.per_device_train_batch_size=1; hardware=null leaves the question out"
        )
    slow = ", on the CPU, which is slow" if chosen.hardware.kind == "cpu" and declared.gpu_memory_gib else ""
    return chosen, f"{_less(declared, lacks)}; it fits by our estimate{slow}"


def _less(declared: object, lacks: tuple[str, ...]) -> str:
    return f"the recipe is written for {declared}, and here is {', '.join(lacks)}"


def _problem(chosen: Preset, recipe: Recipe) -> str:
    """Return why a run does not fit here; nothing where it does by our estimate."""
    if chosen.hardware.kind != "cuda":
        warnings = host_warnings(chosen.shape, chosen.hardware, chosen.choices)
        return f"it needs at least {warnings[0].value} for base and adapter" if warnings else ""
    need = memory_need(chosen, recipe)
    if need.needed_gib is None or need.available_gib is None:
        return "the planner does not know what this adapter takes"
    return (
        f"it needs {need.needed_gib:.1f} GiB of {need.available_gib:g}" if need.needed_gib > need.available_gib else ""
    )


def check_launched(sharding: str | None) -> None:
    """Raise where the weights are to be shared out and accelerate has not started this process so.

    Raises:
        ConfigError: With the commands that do.
    """
    launched = {"fsdp": "ACCELERATE_USE_FSDP", "zero3": "ACCELERATE_USE_DEEPSPEED"}
    if sharding not in launched or os.environ.get(launched[sharding], "false").lower() == "true":
        return
    raise ConfigError(
        f"sharding {sharding} shares the weights out over processes that `accelerate launch` starts; write its file "
        "with `hf-lora train RECIPE --accelerate-config FILE`, then run "
        "`accelerate launch --config_file FILE -m hf_lora_ext.cli train RECIPE`"
    )
