"""What a trained adapter is measured with: its base, held-out rows and training rows, as its run recorded them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ..cards.facts import Facts, read_facts
from ..choices.methods import Method
from ..data.examples import Examples, load_examples
from ..data.labels import numbered, read_labelled
from ..errors import AdapterError, ConfigError
from ..models.base_models import find_base_model
from ..runs.recipe import DataChoice, Recipe, load_recipe
from ..runs.run_folder import RECIPE_FILE
from ..runs.trainer_kinds import TRAINER_KINDS

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["LABELS", "TEXT", "Subject", "find_subject", "training_rows"]

Row = Mapping[str, Any]
TEXT: Final = "CAUSAL_LM"
LABELS: Final = "SEQ_CLS"
_TASKS: Final = {TEXT: "a model that continues text", LABELS: "a classifier"}
"""PEFT's task type → what has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """An adapter in a folder, with what is known of its run."""

    folder: Path
    """The adapter."""
    base: str
    """The base model: a folder or a Hub id."""
    revision: str | None
    """Its revision on the Hub."""
    method: Method
    """How the base is held: a preset's method."""
    held_out: Iterable[Row] | None
    """Rows to measure on, where they are known."""
    training: Iterable[Row] | None
    """Rows that it was trained on, where they are known."""
    max_length: int | None
    """Tokens of a row that it was trained on."""
    assistant_only: bool | None
    """Whether of messages only the assistant's turns counted; None where that is not known."""
    facts: Facts | None
    """What the run left of itself."""
    classifies: bool
    """Whether it is a classifier's, which gives a label and no text."""

    def load_(self, labels: int | None = None) -> tuple[PeftModel, PreTrainedTokenizerBase]:
        """Load the adapted model, as its run held it, and the tokenizer.

        Args:
            labels: How many labels a classifier tells apart.

        Raises:
            ConfigError: If the base cannot be found.
        """
        from ..presets.preset import preset
        from ..runs.building import load_adapted

        base = find_base_model(self.base, self.revision)
        return load_adapted(preset(base.path, method=self.method), base, self.folder, labels)

    def load_whole_(self, folder: Path, labels: int | None = None) -> PreTrainedModel:
        """Load a model whose weights all trained, in the precision of the adapter's base, ready to be asked.

        Args:
            folder: Where it was saved.
            labels: How many labels a classifier tells apart.
        """
        from ..presets.preset import preset
        from ..runs.building import load_whole

        return load_whole(preset(str(folder), method="lora"), folder, labels)


def find_subject(
    adapter: str | Path,
    *,
    base: str | None = None,
    data: str | None = None,
    calibration: str | None = None,
    max_length: int | None = None,
    calibrated: bool = True,
    tasks: Sequence[str] = (TEXT,),
) -> Subject:
    """Return what is known of an adapter; nothing is loaded but rows of text.

    A folder of `hf-lora train` says it all in its `recipe.yaml` and `facts.json`; what is given wins.

    Args:
        adapter: The folder.
        base: The base model, else the one of the run, or of `adapter_config.json`.
        data: Rows to measure on, as a recipe's `data.source`; else those that the run held out.
        calibration: Rows that it was trained on, likewise; else the run's.
        max_length: Tokens of a row to keep; else as in the run.
        calibrated: Whether training rows are needed where `data` is given; else the run's rows are then left unread.
        tasks: PEFT's task types that can be measured; an adapter that has none continues text.

    Raises:
        ConfigError: If rows cannot be read, or are others than in the run, or it does another task.
        AdapterError: If there is no adapter in the folder, or it names no base.
    """
    folder = Path(adapter)
    config = _config(folder)
    classifies = config.get("task_type") == LABELS
    recipe = load_recipe(folder / RECIPE_FILE) if (folder / RECIPE_FILE).is_file() else None
    facts = read_facts(folder / "facts.json") if (folder / "facts.json").is_file() else None
    _check_task(folder, config, recipe, tasks)
    settled = data and (calibration or not calibrated)
    own = _own_examples(folder, recipe, facts) if recipe and _is_measurable(recipe) and not settled else None
    names = facts.adapter.get("labels") if facts else None
    given = facts.hyperparameters if facts else {}
    named = base or (recipe.model if recipe else config.get("base_model_name_or_path"))
    if not named:
        raise AdapterError(f"{folder} does not say which model it adapts; name it with base= (--base)")
    return Subject(
        folder=folder,
        base=str(named),
        revision=recipe.revision if recipe and not base else None,
        method=recipe.method if recipe else "lora",
        held_out=_rows(data, classifies, names) if data else own.held_out if own else None,
        training=_rows(calibration, classifies, names) if calibration else own.train if own else None,
        max_length=max_length or given.get("max_length"),
        assistant_only=given.get("assistant_only_loss"),
        facts=facts,
        classifies=classifies,
    )


def _check_task(folder: Path, config: Mapping[str, Any], recipe: Recipe | None, tasks: Sequence[str]) -> None:
    """Raise where what is measured says nothing of an adapter."""
    found = config.get("task_type") or TEXT
    trainer = recipe.trainer if recipe else None
    if found in tasks and trainer != "reward":
        return
    what = "a reward model" if trainer == "reward" else _TASKS.get(found, f"a {found} model")
    raise ConfigError(
        f"{folder} holds the adapter of {what}, and what is measured here is of "
        f"{' or '.join(_TASKS[task] for task in tasks)}; give the adapter of one"
    )


def _is_measurable(recipe: Recipe) -> bool:
    """Return whether the rows that a run held out can be measured on, as they are."""
    return recipe.trainer in ("sft", "classification")


def training_rows(adapter: str | Path) -> Iterable[Row] | None:
    """Return the rows that an adapter was trained on; None where no recipe says so, or they are no longer there."""
    folder = Path(adapter)
    if not (folder / RECIPE_FILE).is_file():
        return None
    facts = read_facts(folder / "facts.json") if (folder / "facts.json").is_file() else None
    try:
        recipe = load_recipe(folder / RECIPE_FILE)
        rows: Iterable[Row] | None = _own_examples(folder, recipe, facts).train if _is_measurable(recipe) else None
    except ConfigError:
        return None
    return rows


def _config(folder: Path) -> dict[str, Any]:
    from ..adapters.stored_adapter import read_config

    file = folder / "adapter_config.json"
    if not file.is_file():
        raise AdapterError(f"{folder} holds no adapter_config.json; give the folder of a trained adapter")
    return read_config(file)


def _rows(source: str, classifies: bool, names: Sequence[str] | None) -> Iterable[Row]:
    """Return all rows of a source, checked; a classifier's with their labels, by number where their names are known."""
    rows: Iterable[Row]
    if not classifies:
        rows = load_examples(DataChoice(source=source, eval_source=source)).held_out
    elif names:  # as a run of ours holds them, so that rows which it was trained on are found again
        rows = numbered(read_labelled(source), names)
    else:
        rows = read_labelled(source)
    return rows


def _own_examples(folder: Path, recipe: Recipe, facts: Facts | None) -> Examples:
    """Return the run's examples, after a look at whether they still are those that it was trained on."""
    found = load_examples(recipe.data, TRAINER_KINDS[recipe.trainer].forms)
    known = facts.data if facts else None
    if known and (known.fingerprint, known.eval_fingerprint) != (found.facts.fingerprint, found.facts.eval_fingerprint):
        raise ConfigError(
            f"the examples of {recipe.data.source} are not those that {folder} was trained on, so held-out ones may "
            "have been trained on; restore them, or give rows to measure on (--data) and training rows (--calibration)"
        )
    return found
