"""Metrics as plain functions of answers and references, by the rules of those on the Hub. Pure."""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

__all__ = ["AVERAGES", "averaged_f1", "exact_matches", "f1_by_label", "f1_score", "words_of"]

AVERAGES: Final = ("binary", "macro", "micro", "weighted")
_WORD: Final = re.compile(r"[^\W_]+")


def f1_score(references: Sequence[int], predictions: Sequence[int], average: str, positive: int = 1) -> float:
    """Return an F1: of one label, or over the labels that occur among references or predictions.

    F1 of a label is 2·TP / (2·TP + FP + FN), 0 where nothing is right. `macro` is the labels' mean, `weighted` weighs
    them by their references, `micro` adds up their counts first: with one label an example, that is the accuracy.

    >>> f1_score([0, 0, 1, 2], [0, 1, 1, 1], "macro")
    0.38888888888888884

    Args:
        references: True labels.
        predictions: Predicted ones.
        average: A name in `AVERAGES`.
        positive: The label that `binary` looks at.
    """
    return averaged_f1(Counter(zip(references, predictions, strict=True)), average, positive)


def f1_by_label(counts: Mapping[tuple[int, int], int]) -> dict[int, float]:
    """Return each label's F1 by counts of (reference, prediction)."""
    right: Counter[int] = Counter()
    told: Counter[int] = Counter()
    for (reference, prediction), count in counts.items():
        right[reference] += count * (reference == prediction)
        told[reference] += count
        told[prediction] += count
    return {label: 2 * right[label] / told[label] for label in sorted(told)}


def averaged_f1(counts: Mapping[tuple[int, int], int], average: str, positive: int = 1) -> float:
    """Return `f1_score` by counts of (reference, prediction)."""
    total = sum(counts.values())
    if average == "micro":
        return sum(count for (reference, prediction), count in counts.items() if reference == prediction) / total
    each = f1_by_label(counts)
    if average == "macro":
        return math.fsum(each.values()) / len(each)
    if average == "weighted":
        return math.fsum(count * each[reference] for (reference, _), count in counts.items()) / total
    return each.get(positive, 0.0)


def exact_matches(
    predictions: Iterable[str],
    references: Iterable[str],
    *,
    regexes_to_ignore: Sequence[str] = (),
    ignore_case: bool = False,
    ignore_punctuation: bool = False,
    ignore_numbers: bool = False,
) -> list[float]:
    """Return 1 for each prediction that is its reference, character for character, and 0 for the others.

    Args:
        predictions: Answers.
        references: Right answers.
        regexes_to_ignore: Patterns that are removed from both first.
        ignore_case: Whether capitals count as small letters.
        ignore_punctuation: Whether ASCII punctuation is removed.
        ignore_numbers: Whether the digits 0 to 9 are removed.
    """
    gone = (string.punctuation if ignore_punctuation else "") + (string.digits if ignore_numbers else "")
    table = str.maketrans("", "", gone)

    def plain(text: str) -> str:
        for pattern in regexes_to_ignore:
            text = re.sub(pattern, "", text)
        return (text.lower() if ignore_case else text).translate(table)

    return [float(plain(p) == plain(r)) for p, r in zip(predictions, references, strict=True)]


def words_of(text: str) -> list[str]:
    """Return a text's words in small letters, of any script that puts spaces between them.

    On ASCII text they are those of the rouge_score package, which drops all other letters.

    >>> words_of("Größe_in-cm 2")
    ['größe', 'in', 'cm', '2']
    """
    return _WORD.findall(text.lower())
