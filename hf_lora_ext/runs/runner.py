"""The runner: one recipe from data to adapter, facts, plot and card, resumable at any moment.

Everything that can be wrong with the recipe, the data, the model's name and the folder is found out first;
the model is loaded after that.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..cards.card import render_card
from ..cards.comparisons import Comparison
from ..cards.facts import Facts, read_facts, redact, write_text_atomically
from ..choices.advice import overfitting_risk
from ..data.examples import Examples, load_examples
from ..errors import ConfigError, LoraExtError
from ..machine import private_folders
from ..models.base_models import BaseModel, find_base_model
from ..models.targets import adapter_parameters
from ..presets.arguments import overfit_arguments
from ..presets.configuration import Preset
from ..presets.explanation import warning_lines
from .building import check_model
from .processes import by_first, find_processes, first_then_others
from .publishing import check_push, publish, pushing_on_the_way
from .recipe import Recipe, dump_recipe
from .recipe_plan import check_launched, preset_here
from .rewards import MODEL, reward_columns
from .run_folder import RunFolder, checkpoint_to_resume, claimed, owned_folder
from .trackers import check_trackers
from .trainer_kinds import config_fields, trainer_kind

if TYPE_CHECKING:
    from transformers import Trainer, TrainerCallback

    from ..callbacks.progress import Bar
    from ..push.plan import PushResult

__all__ = ["RunResult", "run_recipe", "trainer_settings"]

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """What a run left behind."""

    folder: Path
    """The run folder."""
    facts: Facts
    """Everything known about the run."""
    status: Literal["trained", "resumed", "already finished"]
    """How it came about."""
    push: PushResult | None = None
    """What the Hub holds of it, where the recipe says to push."""
    push_problem: str | None = None
    """Why the Hub does not hold it, with the command that pushes it."""


def run_recipe(
    recipe: Recipe,
    say: Say = print,
    callbacks: Sequence[TrainerCallback] = (),
    bar: Bar | None = None,
) -> RunResult:
    """Train what a recipe describes, go on with it, or report that it is finished.

    Args:
        recipe: The choices.
        say: Takes one line of progress.
        callbacks: Trainer callbacks beside the run's own; they change nothing that a resumed run would lack.
        bar: Shows how the training goes; lines through `say` if left out.

    Raises:
        ConfigError: If anything about the recipe, its data, model or folder is wrong, before training.
        ResumeError: If the folder's run cannot be continued.
        PushError: If the Hub would not take what the recipe says to push, before training; what fails after it is
            told in the result.
    """
    here, kind = find_processes(), trainer_kind(recipe.trainer)
    say = say if here.is_first else _nothing
    if (done := by_first(lambda: _finished(recipe, say))) is not None:
        return done
    _check_surroundings(recipe, say)
    say(f"data     {recipe.data.source}")
    columns = reward_columns(recipe.rewards or ())
    examples = first_then_others(lambda: load_examples(recipe.data, kind.forms, columns))
    say(f"         {len(examples.train):,} to train on, {len(examples.held_out):,} held out ({examples.form})")
    say(f"         {examples.facts.note}")
    say(f"model    {recipe.model}")
    base = first_then_others(lambda: find_base_model(recipe.model, recipe.revision))
    chosen, note = preset_here(recipe, base.path, len(examples.train), gpus=here.local_size, machines=here.machines)
    check_model(recipe.trainer, chosen.shape)
    if note:
        say(f"hardware {note}")
    check_launched(chosen.sharding)
    if base.facts.note:
        say(f"         {base.facts.note}")
    say(f"trainer  {kind.trainer}")
    say(f"preset   {chosen.method}, rank {chosen.rank}, alpha {chosen.alpha}, {chosen.dtype}, {chosen.hardware}")
    for line in warning_lines(chosen):
        say(f"look out {line}")
    if here.size > 1:
        say(f"         {here.size} processes, each with a batch of its own")
        first_then_others(lambda: _downloaded(base))
    from ..callbacks import ProgressLines

    with _claimed_by_first(recipe, needed_bytes=_disk_needed(chosen)) as folder:
        return _train(recipe, folder, examples, base, chosen, say, [ProgressLines(say, bar, kind.measured), *callbacks])


def _check_surroundings(recipe: Recipe, say: Say) -> None:
    """Find out before anything is read what the run and its end would need: launcher, trackers, metrics, access."""
    check_launched(recipe.sharding)
    check_trackers(recipe.training.get("report_to"))
    if recipe.evaluate is not None:
        from ..metrics import check_installed

        check_installed(recipe.evaluate.metrics)
    if (push := recipe.push) is not None:
        by_first(lambda: check_push(push, say))


def _nothing(line: str) -> None:
    """Say nothing: the first process does."""


def _finished(recipe: Recipe, say: Say) -> RunResult | None:
    """Return the run that the folder holds, pushed if the recipe says so; None if it is not finished."""
    if not (folder := owned_folder(recipe)).is_finished:
        return None
    say(f"{folder.root} holds this run, finished; nothing to {'train' if recipe.push else 'do'}")
    result = RunResult(folder=folder.root, facts=read_facts(folder.facts), status="already finished")
    return _published(recipe, result, say)


def _downloaded(base: BaseModel) -> None:
    """Have a model of the Hub in its cache, so that the processes of a machine do not all fetch it."""
    from ..hub import download_model

    if not Path(base.path).is_dir() and find_processes().local_rank == 0:
        download_model(base.path, base.revision)


@contextmanager
def _claimed_by_first(recipe: Recipe, needed_bytes: int) -> Iterator[RunFolder]:
    """Let the first process hold the run folder for all."""
    with ExitStack() as held:
        yield by_first(lambda: held.enter_context(claimed(recipe, needed_bytes)))


def _disk_needed(chosen: Preset) -> int:
    """Return the bytes a run writes: adapter, and two or three checkpoints with Adam's two moments, in float32."""
    adapted = adapter_parameters(chosen.shape, chosen.rank, chosen.targets, chosen.experts, chosen.expert_rank)
    parameters = chosen.start_factor * adapted if adapted else chosen.shape.parameters // 50
    return 4 * parameters * (1 + 3 * 3) + 64 * 2**20


def _train(
    recipe: Recipe,
    folder: RunFolder,
    examples: Examples,
    base: BaseModel,
    chosen: Preset,
    say: Say,
    more: Sequence[TrainerCallback],
) -> RunResult:
    from .resuming import train
    from .sharded import is_sharded, save_sharded

    checkpoint = by_first(lambda: checkpoint_to_resume(folder.checkpoints, find_processes().size))
    settings = trainer_settings(recipe, resuming=checkpoint is not None)
    args = chosen.training_config(recipe.trainer, str(folder.checkpoints), **settings)
    say("training" if checkpoint is None else f"resuming from {checkpoint.name}")
    callbacks = [*_callbacks(recipe, folder, examples, base, chosen), *pushing_on_the_way(recipe.push, say), *more]
    trainer = _build(recipe, chosen, base, examples, args, callbacks)
    if examples.form == "messages":
        say(f"loss     on {'the assistant turns alone' if trainer.args.assistant_only_loss else 'all turns'}")
    train(trainer, checkpoint)
    say("saving")
    if is_sharded(trainer):
        save_sharded(trainer, folder.root)
    return by_first(lambda: _ended(recipe, folder, trainer, examples, checkpoint, say))


def _callbacks(
    recipe: Recipe, folder: RunFolder, examples: Examples, base: BaseModel, chosen: Preset
) -> list[TrainerCallback]:
    """Return what watches a run and tells of it, in the order in which it must see things."""
    from ..callbacks import EvaluateAtEnd, FactsCallback, ResourceCallback, TrainLog

    gather = FactsCallback(
        path=folder.facts,
        data=examples.facts,
        base_model=_sized(base, chosen),
        recipe=_portable_recipe(recipe),
        method=recipe.trainer,
    )
    # Completions being generated are not planned.
    plan = None if trainer_kind(recipe.trainer).has_rewards else chosen.found
    watching = [*_watching(recipe, chosen, len(examples.train)), ResourceCallback(plan=plan)]
    return [*watching, EvaluateAtEnd(), gather, TrainLog(folder.log)]


def _ended(
    recipe: Recipe, folder: RunFolder, trainer: Trainer, examples: Examples, checkpoint: Path | None, say: Say
) -> RunResult:
    """Complete the folder and publish it: the first process's part."""
    facts = _finish(recipe, folder, trainer, examples, say)
    result = RunResult(folder=folder.root, facts=facts, status="trained" if checkpoint is None else "resumed")
    return _published(recipe, result, say)


def _watching(recipe: Recipe, chosen: Preset, examples: int) -> list[TrainerCallback]:
    """Return the callback that watches for overfitting, where the recipe or the number of examples asks for it.

    None watches a loss that says nothing.
    """
    from ..callbacks import OverfitCallback

    unasked = recipe.overfitting is None and overfitting_risk(examples) is None
    if unasked or recipe.overfitting == "ignore" or "loss" in trainer_kind(recipe.trainer).untold:
        return []
    return [OverfitCallback(**overfit_arguments(recipe.method, chosen.sharding, recipe.overfitting)[1])]


def _published(recipe: Recipe, result: RunResult, say: Say) -> RunResult:
    """Push a finished run, if its recipe says so; it stays finished whatever the Hub does."""
    if recipe.push is None:
        return result
    try:
        return replace(result, push=publish(recipe.push, result.folder, say))
    except LoraExtError as error:
        return replace(result, push_problem=f"{result.folder} is finished, and was not pushed: {error}")


def trainer_settings(recipe: Recipe, resuming: bool) -> dict[str, Any]:
    """Return fields of the trainer's configuration: evaluate at the start and regularly; keep two checkpoints."""
    settings: dict[str, Any] = {
        "seed": recipe.seed,
        "report_to": "none",
        "disable_tqdm": True,
        "eval_strategy": "steps",
        "eval_steps": 100,
        "eval_on_start": not resuming,
        "save_steps": 100,
        "save_total_limit": 2,
        "logging_steps": 10,
    }
    settings |= config_fields(recipe.trainer, recipe.training)
    if settings.get("bf16") or settings.get("fp16"):
        settings = {"bf16": False, "fp16": False} | settings
    return settings


def _build(
    recipe: Recipe, chosen: Preset, base: BaseModel, examples: Examples, args: Any, callbacks: list[Any]
) -> Trainer:
    """Build the trainer, turning peft's and trl's own complaints about the recipe into ours."""
    from .building import build_trainer

    try:
        return build_trainer(
            chosen,
            base,
            examples,
            args,
            callbacks,
            recipe.training.get("assistant_only_loss"),
            trainer=recipe.trainer,
            rewards=recipe.rewards or (),
        )
    except ConfigError:
        raise
    except ValueError as error:
        if "Target modules" in str(error):
            raise ConfigError(
                f"targets {chosen.targets} match no module of {base.facts.name}; use all-linear"
            ) from error
        raise ConfigError(f"the trainer refuses this recipe: {str(error).splitlines()[0]}") from error


def _sized(base: BaseModel, chosen: Preset) -> Any:
    return replace(base.facts, parameters=chosen.shape.parameters)


def _portable_recipe(recipe: Recipe) -> str:
    """Return the recipe as YAML with local paths cut to their last part."""
    source, held = recipe.data.source, recipe.data.eval_source
    data = replace(recipe.data, source=redact(source), eval_source=redact(held))
    model = Path(recipe.model).resolve().name if Path(recipe.model).is_dir() else recipe.model
    rewards = recipe.rewards and tuple(
        {key: redact(value) if key == MODEL else value for key, value in reward.items()} for reward in recipe.rewards
    )
    portable = replace(recipe, model=model, data=data, rewards=rewards, output_dir=redact(recipe.output_dir), push=None)
    return dump_recipe(portable)


def _finish(recipe: Recipe, folder: RunFolder, trainer: Trainer, examples: Examples, say: Say) -> Facts:
    """Save the adapter, complete the facts, draw the plot and write the card; the facts come last and end the run."""
    from ..adapters.peft_seam import describe_saved, save_adapter
    from ..callbacks.facts import curve_label, loss_title, pictures_beside
    from ..evaluation.answers import answer_samples
    from ..plots import plot_loss
    from .sharded import is_sharded

    initial = folder.checkpoints / "initial_adapter"
    if not is_sharded(trainer):
        save_adapter(trainer.model, folder.root, initial if initial.is_dir() else None)
    trainer.processing_class.save_pretrained(str(folder.root))
    for history in folder.checkpoints.glob("rank_history.*"):
        shutil.copy(history, folder.root)
    facts = read_facts(folder.facts)
    compared = _compared(recipe, trainer, examples, say)
    can_answer = trainer_kind(recipe.trainer).answers and not is_sharded(trainer)  # parts answer only all together
    wanted = recipe.samples if can_answer else 0
    facts = replace(
        facts,
        samples=answer_samples(trainer.model, trainer.processing_class, examples.held_out, most=wanted),
        comparisons=compared,
        adapter=_as_saved(facts.adapter, describe_saved(folder.root)),
        evaluation=_of_the_base(facts.evaluation, recipe.init),
        run={**facts.run, "finished": True},
    )
    facts = Facts.from_dict(redact(facts.to_dict(), private_folders(folder.root)))
    plot_loss(facts.loss_history, folder.loss_curve, loss_title(facts), curve_label(facts))
    facts = replace(facts, pictures=pictures_beside(folder.root, facts))
    write_text_atomically(folder.card, render_card(facts))  # over the one that peft wrote with the adapter
    write_text_atomically(folder.facts, facts.to_json())
    return facts


def _compared(recipe: Recipe, trainer: Trainer, examples: Examples, say: Say) -> tuple[Comparison, ...]:
    """Return what the recipe wants measured of base and adapter, now that the last step is done."""
    from ..analysis.curve import Reading
    from ..evaluation.comparing import compare_at_end

    if recipe.evaluate is None:
        return ()
    say(f"evaluate {', '.join(recipe.evaluate.metrics)}")
    reading = Reading(trainer.processing_class, trainer.args.max_length, trainer.args.assistant_only_loss)
    found = compare_at_end(trainer.model, trainer.processing_class, examples, recipe.evaluate, reading, say)
    for line in found.lines:
        say(f"         {line}")
    return (found,)


def _as_saved(trained: Mapping[str, Any], saved: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts of the saved adapter, and what it was while it trained where that was something else."""
    if saved["kind"] != trained["kind"]:  # AdaLoRA leaves as LoRA with ranks of its own; the trained rank is their mean
        return {**trained, **saved, "rank": trained["rank"], "trained_as": trained["kind"]}
    if saved.get("rank") != trained.get("rank"):  # PiSSA and OLoRA leave for the unchanged base with twice the rank
        return {**trained, **saved, "trained_rank": trained["rank"]}
    return {**trained, **saved}


def _of_the_base(evaluation: Mapping[str, Any], init: str | None) -> dict[str, Any]:
    """Return the evaluation without what only seems the base's: LoftQ's adapter is more than nothing at step 0."""
    return {who: measured for who, measured in evaluation.items() if who != "base" or init != "loftq"}
