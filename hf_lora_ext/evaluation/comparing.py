"""Base and adapter on the same rows: what each says, and the comparison that comes of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from ..analysis.curve import Reading
from ..analysis.passes import at_rest
from ..cards.comparisons import METRICS, Comparison
from ..cards.facts import Sample
from ..data.examples import Examples, fingerprint, sample_rows
from ..errors import ConfigError
from ..runs.evaluate_choice import EvaluateChoice
from .answers import samples_of
from .bootstrap import LEVEL, RESAMPLES, compare
from .measuring import Asked, LabelRows, Outcome, Row, Say, TextRows, score, text_rows

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase

__all__ = ["RowSource", "compare_at_end", "compared", "samples_from", "score_both"]

FEW: Final = 30
"""Examples below which a note says that the intervals are too narrow; `bootstrap` says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowSource:
    """Where rows come from."""

    name: str
    """Name of the source."""
    held_out: bool
    """Whether the run held them out itself."""
    fingerprint: str
    """SHA-256 over their content."""
    trained_on: int | None
    """How many of them were trained on; None where that cannot be told."""


def compare_at_end(
    model: PeftModel, tokenizer: PreTrainedTokenizerBase, examples: Examples, choice: EvaluateChoice, reading: Reading,
    say: Callable[[str], None],
) -> Comparison:  # fmt: skip
    """Return base and adapter on the rows that a run held out, when its last step is done.

    Args:
        model: The trained model, on its unchanged base; it is left as it was.
        tokenizer: Its tokenizer.
        examples: The run's examples.
        choice: What the recipe asks for.
        reading: How rows become tokens.
        say: Takes one line of progress.

    Raises:
        ConfigError: If rows ask nothing, and answers are wanted.
    """
    rows = list(sample_rows(examples.held_out, choice.examples))
    asked = Asked(metrics=choice.metrics, max_new_tokens=choice.max_new_tokens)
    prepared = text_rows(rows, reading, asked)
    told = score_both(model, tokenizer, prepared, asked, say)
    source = RowSource(
        name=examples.facts.name, held_out=True, fingerprint=fingerprint(rows),
        trained_on=rows_among(rows, examples.train),
    )  # fmt: skip
    return compared(told, prepared, source, len(rows))


def rows_among(rows: Sequence[Row], trained: Any) -> int:
    """Return how many rows are, word for word, among others.

    >>> rows_among([{"text": "a"}, {"text": "b"}], [{"text": "b"}, {"text": "c"}])
    1
    """
    known = {fingerprint([row]) for row in trained}
    return sum(fingerprint([row]) in known for row in rows)


def score_both(
    model: PeftModel, tokenizer: PreTrainedTokenizerBase, rows: TextRows | LabelRows, asked: Asked, say: Say
) -> dict[str, Outcome]:
    """Return what base and adapter say of rows; the model is left as it was."""
    with at_rest(model):
        with model.disable_adapter():
            base = score(model, tokenizer, rows, asked, "base", say)
        return {"base": base, "adapter": score(model, tokenizer, rows, asked, "adapter", say)}


def compared(
    told: Mapping[str, Outcome],
    rows: TextRows | LabelRows,
    source: RowSource,
    count: int,
    *,
    resamples: int = RESAMPLES,
    full: str | None = None,
) -> Comparison:
    """Return the comparison of what models said.

    Args:
        told: `base`, `adapter`, and `full` where there is one → what each said.
        rows: The rows.
        source: Where they come from.
        count: How many there are.
        resamples: Draws behind each interval.
        full: Name of the model whose weights all trained.

    Raises:
        ConfigError: If fewer than 2 rows are left to draw from.
    """
    scores = {who: outcome.scores for who, outcome in told.items()}
    if (fewest := min(score.examples for score in scores["adapter"].values())) < 2:
        raise ConfigError(f"{fewest} row is left to measure on, which gives no interval; give at least 2, better 100")
    whole = compare(scores["base"], scores["adapter"], scores.get("full"), resamples=resamples)
    measured = tuple(row for row in whole if row.is_finite)
    lost = [METRICS[row.metric].words for row in whole if not row.is_finite]
    overflow = (f"Not a number, and so left out: {', '.join(lost)}.",) if lost else ()
    answered = isinstance(rows, TextRows) and any(row.metric.startswith(("exact", "rouge")) for row in measured)
    return Comparison(
        data=source.name,
        held_out=source.held_out,
        examples=count,
        fingerprint=source.fingerprint,
        measured=measured,
        resamples=resamples,
        level=LEVEL,
        trained_on=source.trained_on,
        full=full,
        max_new_tokens=rows.max_new_tokens if isinstance(rows, TextRows) and answered else None,
        notes=(*_notes(told, source, fewest, count, answered), *overflow, *rows.notes),
    )


def _notes(told: Mapping[str, Outcome], source: RowSource, fewest: int, count: int, answered: bool) -> tuple[str, ...]:
    """Return what a reader must know, a sentence each."""
    notes = []
    if source.trained_on:
        notes.append(f"The adapter was trained on {source.trained_on} of these {count} rows, which flatters it.")
    elif source.trained_on is None:
        notes.append("Whether the adapter was trained on some of these rows is not known.")
    if fewest < FEW:
        notes.append(f"Of {fewest} examples the intervals come out too narrow; measure on more.")
    cut = {who: sum(answer.is_cut for answer in outcome.answers) for who, outcome in told.items()}
    if answered and any(cut.values()):
        words = ", ".join(f"{number} of {who}'s" for who, number in cut.items() if number)
        notes.append(f"Answers that were cut off at the most tokens: {words}.")
    return tuple(notes)


def samples_from(told: Mapping[str, Outcome], rows: TextRows | LabelRows, count: int) -> tuple[Sample, ...]:
    """Return the first answers of base and adapter; none of a classifier."""
    if isinstance(rows, LabelRows):
        return ()
    return samples_of(rows.questions[:count], told["base"].answers[:count], told["adapter"].answers[:count])
