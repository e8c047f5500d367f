"""F1: the harmonic mean of precision and recall, of one label or averaged over labels."""

from collections import Counter
from collections.abc import Sequence

import datasets
import evaluate

from hf_lora_ext.metrics.definitions import AVERAGES, f1_by_label, f1_score

__all__ = ["F1"]


class F1(evaluate.Metric):
    """The Hub's `f1`, without sample weights and `labels`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description="predictions, references: labels as whole numbers. "
            f"average: {', '.join(AVERAGES)}, or None for each label's; pos_label: the one that `binary` looks at.",
            features=datasets.Features({"predictions": datasets.Value("int32"), "references": datasets.Value("int32")}),
        )

    def _compute(
        self,
        predictions: Sequence[int],
        references: Sequence[int],
        average: str | None = "binary",
        pos_label: int = 1,
    ) -> dict[str, float | list[float]]:
        if average is None:
            return {"f1": list(f1_by_label(Counter(zip(references, predictions, strict=True))).values())}
        if average not in AVERAGES:
            raise ValueError(f"average {average!r} is not known; valid: {', '.join(AVERAGES)}, or None")
        if average == "binary" and (many := len({*references, *predictions} | {pos_label})) > 2:
            raise ValueError(f"average='binary' is for two labels, found {many}; give average='macro' or 'micro'")
        return {"f1": f1_score(references, predictions, average, pos_label)}
