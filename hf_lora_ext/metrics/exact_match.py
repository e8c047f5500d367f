"""Exact match: the share of answers that are the reference, character for character."""

from collections.abc import Sequence

import datasets
import evaluate

from hf_lora_ext.metrics.definitions import exact_matches

__all__ = ["ExactMatch"]


class ExactMatch(evaluate.Metric):
    """The Hub's `exact_match`; with `use_aggregator=False`, which it has not, each answer's 1 or 0."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description="predictions, references: texts. regexes_to_ignore, ignore_case, ignore_punctuation, "
            "ignore_numbers: what does not count. use_aggregator: False for each answer's 1 or 0.",
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
            ),
        )

    def _compute(
        self,
        predictions: Sequence[str],
        references: Sequence[str],
        regexes_to_ignore: Sequence[str] | None = None,
        ignore_case: bool = False,
        ignore_punctuation: bool = False,
        ignore_numbers: bool = False,
        use_aggregator: bool = True,
    ) -> dict[str, float | list[float]]:
        each = exact_matches(
            predictions,
            references,
            regexes_to_ignore=regexes_to_ignore or (),
            ignore_case=ignore_case,
            ignore_punctuation=ignore_punctuation,
            ignore_numbers=ignore_numbers,
        )
        return {"exact_match": sum(each) / len(each) if use_aggregator else each}
