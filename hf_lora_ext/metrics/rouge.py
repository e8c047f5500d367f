"""ROUGE: how many words, pairs of words, and words in order an answer shares with its reference (Lin 2004).

The figures are F-measures of the rouge_score package.
"""

from collections.abc import Callable, Sequence
from typing import Final

import datasets
import evaluate
from rouge_score import rouge_scorer

__all__ = ["Rouge"]

TYPES: Final = ("rouge1", "rouge2", "rougeL", "rougeLsum")


class _Words:
    """A function from text to words, as rouge_score takes it."""

    def __init__(self, tokenize: Callable[[str], list[str]]) -> None:
        self.tokenize = tokenize


class Rouge(evaluate.Metric):
    """The Hub's `rouge`, but that the aggregate is the plain mean, where the Hub's is the median of random resamples.

    One reference an answer.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=__doc__,
            citation="Chin-Yew Lin, ROUGE: A Package for Automatic Evaluation of Summaries, 2004",
            inputs_description=f"predictions, references: texts. rouge_types: of {', '.join(TYPES)}. use_stemmer: "
            "whether English endings are cut off. tokenizer: a function from text to words; else rouge_score's, which "
            "knows the letters a to z and digits alone. use_aggregator: False for each answer's.",
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
            ),
        )

    def _compute(
        self,
        predictions: Sequence[str],
        references: Sequence[str],
        rouge_types: Sequence[str] = TYPES,
        use_aggregator: bool = True,
        use_stemmer: bool = False,
        tokenizer: Callable[[str], list[str]] | None = None,
    ) -> dict[str, float | list[float]]:
        words = None if tokenizer is None else _Words(tokenizer)
        scorer = rouge_scorer.RougeScorer([*rouge_types], use_stemmer=use_stemmer, tokenizer=words)
        scored = [scorer.score(reference, answer) for answer, reference in zip(predictions, references, strict=True)]
        each = {kind: [score[kind].fmeasure for score in scored] for kind in rouge_types}
        if not use_aggregator:
            return {**each}
        return {kind: sum(values) / len(values) for kind, values in each.items()}
