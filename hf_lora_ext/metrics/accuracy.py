"""Accuracy: the share of predicted labels that are the true ones."""

from collections.abc import Sequence

import datasets
import evaluate

__all__ = ["Accuracy"]


class Accuracy(evaluate.Metric):
    """The Hub's `accuracy`, without sample weights."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description="predictions, references: labels as whole numbers. normalize: False counts instead.",
            features=datasets.Features({"predictions": datasets.Value("int32"), "references": datasets.Value("int32")}),
        )

    def _compute(
        self, predictions: Sequence[int], references: Sequence[int], normalize: bool = True
    ) -> dict[str, float]:
        right = sum(map(int.__eq__, predictions, references))
        return {"accuracy": right / len(references) if normalize else float(right)}
