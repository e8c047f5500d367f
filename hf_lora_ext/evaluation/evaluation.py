"""What an adapter changes on held-out rows: base and adapter, and a full fine-tuning if there is one, compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from ..adapters.stored_adapter import read_config
from ..analysis.curve import Reading
from ..analysis.passes import at_rest
from ..analysis.subject import LABELS, TEXT, Subject, find_subject, training_rows
from ..cards.card import refresh_card
from ..cards.comparisons import Comparison, merged_comparisons
from ..cards.facts import Facts, Sample, read_facts, redact, write_text_atomically
from ..data.examples import fingerprint, sample_rows
from ..data.files import is_data_file
from ..errors import ConfigError
from ..machine import private_folders
from ..metrics import check_installed
from ..runs.evaluate_choice import checked_metrics
from .answers import BATCH_SIZE
from .bootstrap import RESAMPLES
from .classes import labels_of
from .comparing import RowSource, compared, rows_among, samples_from, score_both
from .harness import HarnessRow, check_harness, run_harness
from .measuring import Asked, LabelRows, Row, Say, label_rows, score, text_rows

__all__ = ["Evaluation", "evaluate_adapter"]

_LEAST: Final = {"limit": 2, "samples": 0, "max_new_tokens": 1, "batch_size": 1, "max_length": 2, "resamples": 100}


def _silent(line: str) -> None:
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What an adapter changes."""

    folder: Path
    """The adapter."""
    comparison: Comparison
    """Metrics of base and adapter, with intervals."""
    samples: tuple[Sample, ...]
    """Answers beside each other."""
    losses: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """`base` and `adapter` → loss of each example, in nats a supervised token."""
    harness: tuple[HarnessRow, ...] = ()
    """Tasks of lm_eval."""

    def to_dict(self) -> dict[str, Any]:
        """Return all but the single losses as JSON-ready values, with what each interval says."""
        told = asdict(self.comparison)
        for row, measured in zip(told["measured"], self.comparison.measured, strict=True):
            row["verdict"] = measured.verdict
        return {
            "folder": str(self.folder),
            **told,
            "samples": [asdict(sample) for sample in self.samples],
            "harness": [asdict(row) for row in self.harness],
        }

    def plot(self, path: str | Path) -> None:
        """Draw each metric's difference with its interval, and the loss of each example, into a PNG.

        Raises:
            ConfigError: If the file cannot be written.
        """
        from .pictures import plot_comparison

        try:
            plot_comparison(self.comparison, self.losses, Path(path), self.folder.resolve().name)
        except OSError as error:
            raise ConfigError(f"plot {path} cannot be written ({error.strerror}); give another place") from error

    def write(self) -> Path:
        """Put the comparison into the folder's facts and card, beside what is known; return the card.

        Raises:
            ConfigError: If the folder has no facts of a run.
        """
        file = self.folder / "facts.json"
        facts = read_facts(file)
        samples = facts.samples or (self.samples if self.comparison.held_out else ())
        told = replace(facts, comparisons=merged_comparisons(facts.comparisons, self.comparison), samples=samples)
        clean = Facts.from_dict(redact(told.to_dict(), private_folders(self.folder)))
        write_text_atomically(file, clean.to_json())
        return refresh_card(self.folder).path


def evaluate_adapter(
    adapter: str | Path,
    *,
    data: str | None = None,
    base: str | None = None,
    full: str | Path | None = None,
    metrics: Sequence[str] | None = None,
    limit: int | None = None,
    samples: int = 3,
    max_new_tokens: int | None = None,
    batch_size: int = BATCH_SIZE,
    max_length: int | None = None,
    resamples: int = RESAMPLES,
    harness: Sequence[str] = (),
    say: Say = _silent,
) -> Evaluation:
    """Return what an adapter changes: base and adapter on the same rows, with paired bootstrap intervals.

    Nothing is written; `Evaluation.write` puts it into facts and card.

    Args:
        adapter: The folder; one of `hf-lora train` knows its base and the rows that it held out.
        data: Rows to measure on, as a recipe's `data.source`; for a classifier a file with `text` and `label`.
        base: The base model, else the one of the run, or of `adapter_config.json`.
        full: Folder of a model whose weights all trained, to compare with.
        metrics: `loss`, `perplexity`, `token_accuracy`, `exact_match`, `rouge`; of a classifier `loss`, `accuracy`,
            `f1`. Else those that need no written answers.
        limit: Rows at most, chosen by a hash of their content; of a task of `harness`, its first documents.
        samples: Answers to show.
        max_new_tokens: Tokens that an answer can have; else as many as the longest real answer, up to 256, or 40 where
            answers are only shown.
        batch_size: Answers at once.
        max_length: Tokens of a row to keep; else as in the run.
        resamples: Draws behind each interval.
        harness: Tasks of lm_eval to run on both as well.
        say: Takes one line of progress.

    Raises:
        ConfigError: If something given is wrong, rows cannot be read, or a package is missing.
        AdapterError: If there is no adapter in the folder, or it names no base.

    Example::

        found = evaluate_adapter("out/quickstart", metrics=["loss", "rouge"], limit=200)
        print(found.comparison.measured[0].change)
    """
    _check_numbers(limit=limit, samples=samples, max_new_tokens=max_new_tokens, batch_size=batch_size,
                   max_length=max_length, resamples=resamples)  # fmt: skip
    _check_full(full)
    check_harness(harness)
    subject = find_subject(adapter, base=base, data=data, max_length=max_length, calibrated=False, tasks=(TEXT, LABELS))
    asked = Asked(
        metrics=checked_metrics(metrics, subject.classifies), samples=samples, max_new_tokens=max_new_tokens,
        batch_size=batch_size,
    )  # fmt: skip
    if not subject.classifies:
        check_installed(asked.metrics)
    rows, source = _rows(subject, data, limit)
    if source.trained_on:
        say(f"warning  {source.trained_on} of {len(rows)} rows were trained on, which flatters the adapter")
    labelled = _labelled(subject, rows)
    labels = None if labelled is None else labelled.labels
    say(f"model    {subject.base}")
    model, tokenizer = subject.load_(labels)
    prepared = labelled.rows if labelled else text_rows(rows, _reading(subject, tokenizer), asked)
    told = score_both(model, tokenizer, prepared, asked, say)
    with at_rest(model):
        tasks = run_harness(model, tokenizer, harness, limit=limit, batch_size=batch_size, resamples=resamples, say=say)
    if full is not None:
        del model  # two models at once are one too many for some machines
        told["full"] = score(subject.load_whole_(Path(full), labels), tokenizer, prepared, asked, "full", say)
    whole = None if full is None else Path(full).resolve().name
    return Evaluation(
        folder=subject.folder,
        comparison=compared(told, prepared, source, len(rows), resamples=resamples, full=whole),
        samples=samples_from(told, prepared, samples),
        losses={who: outcome.losses for who, outcome in told.items() if outcome.losses},
        harness=tasks,
    )


@dataclass(frozen=True, slots=True)
class _Labelled:
    """What a classifier is measured on."""

    rows: LabelRows
    labels: int


def _labelled(subject: Subject, rows: Sequence[Row]) -> _Labelled | None:
    """Return rows with their labels as indices; None where the adapter is no classifier's."""
    if not subject.classifies:
        return None
    labels = labels_of(subject.folder, read_config(subject.folder / "adapter_config.json"))
    names = subject.facts.adapter.get("labels") if subject.facts else None
    return _Labelled(label_rows(rows, labels, names, subject.max_length), labels)


def _reading(subject: Subject, tokenizer: Any) -> Reading:
    return Reading(tokenizer, subject.max_length, subject.assistant_only)


def _check_numbers(**given: int | None) -> None:
    for name, value in given.items():
        if value is not None and value < _LEAST[name]:
            raise ConfigError(f"{name}={value}: needed a whole number from {_LEAST[name]}")


def _check_full(full: str | Path | None) -> None:
    if full is not None and not (Path(full) / "config.json").is_file():
        raise ConfigError(f"{full} holds no config.json; give the folder that a full fine-tuning saved its model in")


def _rows(subject: Subject, data: str | None, limit: int | None) -> tuple[list[Row], RowSource]:
    """Return the rows to measure on, and what is known of them.

    Raises:
        ConfigError: If there are none.
    """
    if subject.held_out is None:
        raise ConfigError(f"{subject.folder} tells no rows that it held out: give held-out rows with data= (--data)")
    whole: Any = subject.held_out
    known = subject.facts.data if subject.facts else None
    rows: list[Row] = list(sample_rows(whole, limit))
    trained = subject.training if subject.training is not None else training_rows(subject.folder)
    among = None if trained is None else rows_among(rows, trained)
    if data is None:
        name, held_out = known.name if known else "held-out rows of the run", True
    else:
        name = Path(data).name if is_data_file(data) else data
        seen = fingerprint(whole)
        held_out = known is not None and seen == known.eval_fingerprint
        among = len(rows) if known is not None and seen == known.fingerprint else among
    return rows, RowSource(name=name, held_out=held_out, fingerprint=fingerprint(rows), trained_on=among)
