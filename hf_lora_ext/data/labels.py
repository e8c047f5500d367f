"""Labels of texts: which there are, by name, and their numbers; and labelled texts read to measure a classifier on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ..errors import ConfigError, nearest
from .files import is_data_file, read_data_file
from .forms import FORMS, row_problem

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["label_indices", "label_names", "numbered", "read_labelled"]

_FORM: Final = "labelled text"


def read_labelled(source: str) -> Dataset:
    """Return the `text` and `label` of each row of a local file, with labels as they are.

    Raises:
        ConfigError: If it is no such file, has no such columns, or a row has no text or no label.
    """
    if not is_data_file(source):
        raise ConfigError(
            f"data {source}: labelled rows are read from a .jsonl, .json, .csv or .parquet file; give one"
        )
    rows = read_data_file(Path(source).expanduser())
    if missing := set(FORMS[_FORM]) - set(rows.column_names):
        found = ", ".join(rows.column_names)
        raise ConfigError(f"data {source} has columns {found}, and no {' or '.join(sorted(missing))}; rename yours")
    rows = rows.select_columns([*FORMS[_FORM]])
    for number, row in enumerate(rows, 1):
        if problem := row_problem(row, _FORM):
            raise ConfigError(f"data {source}, row {number}: {problem}; fix or remove the row")
    return rows


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
    learned, measured = set(train["label"]), set(held_out["label"])
    if len(learned) < 2:
        raise ConfigError(f"data {name} has {_told(learned)} to learn, needed two labels or more; give more examples")
    if unseen := measured - learned:
        raise ConfigError(
            f"data {name}: {_told(unseen)} is held out and never learned; give more examples of it, or leave it out"
        )
    return _own_names(rows) or tuple(str(label) for label in sorted(learned))


def numbered(rows: Dataset, labels: Sequence[str]) -> Dataset:
    """Return the rows with their labels' numbers in the place of their names.

    Args:
        rows: `text` and `label`.
        labels: Names of all labels, in the order of their numbers.

    Raises:
        ConfigError: If a label is none of them.
    """
    from datasets import Dataset

    own = _own_names(rows)
    if own == tuple(labels):
        return rows
    told: Iterable[Mapping[str, Any]] = ({**row, "label": own[row["label"]]} for row in rows) if own else rows
    indices = label_indices([*told], len(labels), labels)
    return Dataset.from_list([{**row, "label": index} for row, index in zip(rows, indices, strict=True)])


def label_indices(rows: Sequence[Mapping[str, Any]], labels: int, names: Sequence[str] | None) -> list[int]:
    """Return each row's label as the index of the classifier's output; a name goes before a number.

    >>> label_indices([{"label": "cat"}, {"label": 0}, {"label": "1"}], 2, ["dog", "cat"])
    [1, 0, 1]

    Args:
        rows: Rows with `label`: an index, or a name.
        labels: How many outputs there are.
        names: Their names, where the run recorded them.

    Raises:
        ConfigError: If a label is no output's.
    """
    by_name = {name: index for index, name in enumerate(names or ())}
    found = []
    for number, row in enumerate(rows, 1):
        label = by_name.get(str(row["label"]), row["label"])
        if isinstance(label, str) and label.isdecimal():
            label = int(label)
        if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < labels:
            hint = nearest(str(label), by_name) if by_name else f"needed a whole number from 0 to {labels - 1}"
            raise ConfigError(f"row {number}: label {row['label']!r} is none of the classifier's {labels}; {hint}")
        found.append(label)
    return found


def _own_names(rows: Dataset) -> tuple[str, ...]:
    """Return the names that the data gives its labels itself; none where it does not."""
    return tuple(getattr(rows.features["label"], "names", None) or ())


def _told(labels: set[Any]) -> str:
    shown = sorted(map(str, labels))
    return f"label {', '.join(shown[:3])}{', …' if len(shown) > 3 else ''}"
