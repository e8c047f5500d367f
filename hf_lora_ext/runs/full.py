"""Full fine-tuning for reference: all weights of the base train on a recipe's data, and are measured, not kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..cards.facts import Facts, read_facts, write_text_atomically
from ..data.examples import load_examples
from ..memory.preset_plans import FULL, PlanRequest
from ..memory.remedies import plan_run
from ..models.base_models import find_base_model
from ..presets.configuration import Preset
from .recipe import Recipe
from .recipe_plan import preset_for
from .run_folder import RunFolder, claimed, owned_folder
from .runner import trainer_settings

if TYPE_CHECKING:
    from transformers import TrainerCallback

__all__ = ["run_full", "without_adapter"]


def run_full(recipe: Recipe, callbacks: Sequence[TrainerCallback] = ()) -> Facts:
    """Train all weights on a recipe's data with its learning rate and schedule; return the facts, which alone stay.

    A run that was killed begins anew, since its checkpoints would be 12 bytes a weight. One that is finished is not
    repeated.

    Args:
        recipe: The choices; what it says of an adapter must have been left out.
        callbacks: Trainer callbacks beside the run's own.

    Raises:
        ConfigError: If anything about the recipe, its data, model or folder is wrong, before training.
    """
    if (folder := owned_folder(recipe)).is_finished:
        return read_facts(folder.facts)
    with claimed(recipe) as folder:
        return _train(recipe, folder, callbacks)


def _train(recipe: Recipe, folder: RunFolder, callbacks: Sequence[TrainerCallback]) -> Facts:
    from ..callbacks import EvaluateAtEnd, FactsCallback
    from .building import build_trainer

    examples = load_examples(recipe.data)
    base = find_base_model(recipe.model, recipe.revision)
    chosen = without_adapter(recipe, base.path)
    settings = trainer_settings(recipe, resuming=False) | {"save_strategy": "no"}
    facts = FactsCallback(
        path=folder.facts, data=examples.facts, base_model=replace(base.facts, parameters=chosen.shape.parameters)
    )
    trainer = build_trainer(
        chosen,
        base,
        examples,
        chosen.sft_config(str(folder.checkpoints), **settings),
        [EvaluateAtEnd(), facts, *callbacks],
        recipe.training.get("assistant_only_loss"),
        adapted=False,
    )
    trainer.train()
    trained = sum(weight.numel() for weight in trainer.model.parameters() if weight.requires_grad)
    gathered = read_facts(folder.facts)
    whole = replace(
        gathered, adapter={"trainable_parameters": trained}, run={**gathered.run, "method": FULL, "finished": True}
    )
    write_text_atomically(folder.facts, whole.to_json())
    return whole


def without_adapter(recipe: Recipe, model: str | Path) -> Preset:
    """Return the recipe's preset with batch and checkpointing planned for weights that all train.

    Raises:
        ConfigError: If full fine-tuning does not fit the GPU; with what would.
    """
    chosen = preset_for(recipe, str(model), None)
    if chosen.found is None:
        return chosen
    request = PlanRequest(shape=chosen.shape, method=FULL, run=recipe.run_wishes)
    found = plan_run(request, chosen.hardware)
    plan = found.plan
    return replace(
        chosen,
        micro_batch=plan.micro_batch,
        accumulation=plan.accumulation,
        activation_checkpointing=plan.checkpointing,
        found=found,
    )
