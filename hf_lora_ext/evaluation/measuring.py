"""One model after the other on the same rows: what each says, scored example by example."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from ..analysis.curve import Reading, encoded
from ..analysis.passes import example_scores
from ..data.labels import label_indices
from ..data.tokens import TokenExample
from ..errors import ConfigError
from ..metrics import load_metric
from ..metrics.definitions import words_of
from ..runs.evaluate_choice import ANSWERED
from .answers import BATCH_SIZE, MAX_NEW_TOKENS, Answer, Question, answers_to, questions_in
from .bootstrap import Score
from .classes import classify
from .scores import f1_statistic, mean_statistic, perplexity_statistic, ratio_statistic

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Asked", "LabelRows", "Outcome", "TextRows", "label_rows", "score", "text_rows"]

LONGEST_ANSWER: Final = 256
"""Tokens that an answer can have at most where nobody says how many."""
Row = Mapping[str, Any]
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What is wanted of each model."""

    metrics: tuple[str, ...]
    """Names in `TEXT_METRICS`, or in `CLASS_METRICS`."""
    samples: int = 0
    """Answers to show."""
    max_new_tokens: int | None = None
    """Tokens that an answer can have; None for as many as the longest real answer, up to 256."""
    batch_size: int = BATCH_SIZE
    """Answers, or texts to label, at once."""

    @property
    def needs_answers(self) -> bool:
        """Whether every row is answered."""
        return not {*ANSWERED}.isdisjoint(self.metrics)

    @property
    def needs_tokens(self) -> bool:
        """Whether every token is looked at."""
        return bool({*self.metrics} - {*ANSWERED})


@dataclass(frozen=True, slots=True, kw_only=True)
class TextRows:
    """Rows for a model that writes."""

    examples: Sequence[TokenExample]
    """As tokens."""
    questions: Sequence[Question]
    """What is asked, of as many as are answered."""
    max_new_tokens: int
    """Tokens that an answer can have."""
    notes: tuple[str, ...]
    """What of the rows was left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelRows:
    """Rows for a classifier."""

    texts: Sequence[str]
    """The texts."""
    labels: Sequence[int]
    """Their true labels."""
    max_length: int | None
    """Tokens of a text to keep."""
    notes: tuple[str, ...]
    """What a reader must know of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one model said."""

    scores: Mapping[str, Score]
    """By names in `METRICS`."""
    losses: tuple[float, ...] = ()
    """Of each example, in nats a supervised token, where the loss was measured."""
    answers: tuple[Answer, ...] = ()
    """To the questions."""


def text_rows(rows: Sequence[Row], reading: Reading, asked: Asked) -> TextRows:
    """Return rows as tokens and questions.

    Args:
        rows: `prompt` + `completion`, `messages` or `text`.
        reading: How they become tokens.
        asked: What is wanted.

    Raises:
        ConfigError: If a metric needs answers and the rows ask nothing, or the loss counts no token of any row.
    """
    assert reading.tokenizer is not None
    notes = []
    examples = encoded(rows, reading) if asked.needs_tokens else []
    if asked.needs_tokens and len(examples) < len(rows):
        notes.append(
            f"{len(rows) - len(examples)} of {len(rows)} rows have no token that the loss counts within "
            f"{reading.max_length} tokens and are left out of it."
        )
    questions = questions_in(rows if asked.needs_answers else rows[: asked.samples], reading.tokenizer)
    if asked.needs_answers and len(questions) < 2:
        raise ConfigError(
            f"{' and '.join(name for name in asked.metrics if name in ANSWERED)} compare answers, and "
            f"{len(questions)} of {len(rows)} rows ask something; give rows of prompt and completion, or of messages"
        )
    if asked.needs_answers and len(questions) < len(rows):
        notes.append(f"{len(rows) - len(questions)} of {len(rows)} rows ask nothing and are left out of the answers.")
    return TextRows(
        examples=examples, questions=questions, max_new_tokens=_answer_length(questions, reading, asked),
        notes=tuple(notes),
    )  # fmt: skip


def _answer_length(questions: Sequence[Question], reading: Reading, asked: Asked) -> int:
    """Return how many tokens an answer can have: the longest real one's, and one for its end."""
    if asked.max_new_tokens is not None:
        return asked.max_new_tokens
    if not asked.needs_answers:
        return MAX_NEW_TOKENS
    tokenizer: Any = reading.tokenizer
    lengths = [len(tokenizer(question.reference, add_special_tokens=False).input_ids) for question in questions]
    return min(LONGEST_ANSWER, max(lengths) + 1)


def label_rows(rows: Sequence[Row], labels: int, names: Sequence[str] | None, max_length: int | None) -> LabelRows:
    """Return labelled rows.

    Args:
        rows: `text` and `label`, its number.
        labels: How many labels the classifier tells apart.
        names: Their names, if they are known, for the note.
        max_length: Tokens of a text to keep.

    Raises:
        ConfigError: If a label is none of the classifier's.
    """
    true = label_indices(rows, labels, None)
    commonest = max(set(true), key=lambda label: (true.count(label), -label))
    share = true.count(commonest) / len(true)
    notes = (
        "The base has a head that has learned nothing, so that it answers by chance; the commonest label "
        f"({names[commonest] if names else commonest}) alone would be right in {share:.1%} of the rows.".replace(
            "%", " %"
        ),
    )
    return LabelRows(texts=[row["text"] for row in rows], labels=true, max_length=max_length, notes=notes)


def score(
    model: Any, tokenizer: PreTrainedTokenizerBase, rows: TextRows | LabelRows, asked: Asked, who: str, say: Say
) -> Outcome:
    """Return what a model in evaluation mode says of rows.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        rows: The rows.
        asked: What is wanted.
        who: What the model is called in lines of progress.
        say: Takes them.
    """
    if isinstance(rows, LabelRows):
        return _labelled(model, tokenizer, rows, asked, _telling(say, who, "labelled", len(rows.texts)))
    scores: dict[str, Score] = {}
    losses: tuple[float, ...] = ()
    if rows.examples:
        losses, scores = _of_tokens(model, rows.examples, asked, _telling(say, who, "read", len(rows.examples)))
    answers = answers_to(
        model, tokenizer, rows.questions, rows.max_new_tokens, asked.batch_size,
        _telling(say, who, "answered", len(rows.questions)),
    )  # fmt: skip
    if asked.needs_answers:
        scores |= _of_answers(rows.questions, answers, asked)
    return Outcome(scores=scores, losses=losses, answers=tuple(answers))


def _of_tokens(
    model: Any, examples: Sequence[TokenExample], asked: Asked, tell: Callable[[int], None]
) -> tuple[tuple[float, ...], dict[str, Score]]:
    """Return each example's loss a token, and the metrics over tokens, each example weighed by how many it has."""
    seen, tokens = example_scores(model, examples, tell), [example.supervised for example in examples]
    statistics = {
        "loss": ratio_statistic(seen.nats, tokens),
        "perplexity": perplexity_statistic(seen.nats, tokens),
        "token_accuracy": ratio_statistic(seen.right, tokens),
    }
    losses = tuple(nats / count for nats, count in zip(seen.nats, tokens, strict=True))
    return losses, {name: Score(statistics[name], len(examples)) for name in asked.metrics if name in statistics}


def _of_answers(questions: Sequence[Question], answers: Sequence[Answer], asked: Asked) -> dict[str, Score]:
    """Return the metrics over answers, every answer of the same weight."""
    texts = {
        "predictions": [answer.text for answer in answers],
        "references": [question.reference for question in questions],
    }
    each: dict[str, list[float]] = {}
    if "exact_match" in asked.metrics:
        each |= load_metric("exact_match").compute(**texts, use_aggregator=False)
    if "rouge" in asked.metrics:
        kinds = ["rouge1", "rouge2", "rougeL"]
        each |= load_metric("rouge").compute(**texts, rouge_types=kinds, tokenizer=words_of, use_aggregator=False)
    return {name: Score(mean_statistic(values), len(answers)) for name, values in each.items()}


def _labelled(
    model: Any, tokenizer: PreTrainedTokenizerBase, rows: LabelRows, asked: Asked, tell: Callable[[int], None]
) -> Outcome:
    said = classify(
        model, tokenizer, rows.texts, rows.labels, max_length=rows.max_length, batch_size=asked.batch_size, tell=tell
    )
    right = [float(told == true) for told, true in zip(said.predicted, rows.labels, strict=True)]
    statistics = {
        "loss": {"loss": mean_statistic(said.nats)},
        "accuracy": {"accuracy": mean_statistic(right)},
        "f1": {f"f1_{kind}": f1_statistic(rows.labels, said.predicted, kind) for kind in ("macro", "micro")},
    }
    wanted = [pair for name in asked.metrics for pair in statistics[name].items()]
    return Outcome(scores={name: Score(s, len(right)) for name, s in wanted}, losses=said.nats)


def _telling(say: Say, who: str, verb: str, total: int) -> Callable[[int], None]:
    """Return what says about every tenth of a pass, and its end."""
    said = 0

    def tell(done: int) -> None:
        nonlocal said
        if done == total or done - said >= total / 10:
            said = done
            say(f"{who:<8} {verb} {done:,} of {total:,}")

    return tell
