"""Labels of texts: which there are, by name, and their numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import ConfigError

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["label_names", "numbered"]


def label_names(rows: Dataset, train: Dataset, held_out: Dataset, name: str) -> tuple[str, ...]:
    """Return the labels in the order of their numbers: as the data names them, else sorted.

    Args:
        rows: All rows, whose `label` may name its values (`ClassLabel`).
        train: Those to learn from.
        held_out: Those to measure on.
        name: What the data is called, for the error.

    Raises:
        ConfigError: If fewer than two labels are learned, or one is only held out.
    """
    named = getattr(rows.features["label"], "names", None)
    learned, measured = set(train["label"]), set(held_out["label"])
    if len(learned) < 2:
        raise ConfigError(f"data {name} has {_told(learned)} to learn, needed two labels or more; give more examples")
    if unseen := measured - learned:
        raise ConfigError(
            f"data {name}: {_told(unseen)} is held out and never learned; give more examples of it, or leave it out"
        )
    if named:
        return tuple(named)
    return tuple(str(label) for label in sorted(learned))


def numbered(rows: Dataset, labels: tuple[str, ...]) -> Dataset:
    """Return the rows with their labels' numbers in the place of their names."""
    from datasets import Dataset

    if getattr(rows.features["label"], "names", None):
        return rows
    number = {label: place for place, label in enumerate(labels)}
    return Dataset.from_list([{**row, "label": number[str(row["label"])]} for row in rows])


def _told(labels: set[Any]) -> str:
    shown = sorted(map(str, labels))
    return f"label {', '.join(shown[:3])}{', …' if len(shown) > 3 else ''}"
