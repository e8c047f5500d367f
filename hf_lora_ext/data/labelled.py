"""Labelled texts for a classifier: rows of `text` and `label`, read and checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, nearest
from .files import is_data_file, read_data_file

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["label_indices", "read_labelled"]


def read_labelled(source: str) -> Dataset:
    """Return the `text` and `label` of each row of a local file.

    Raises:
        ConfigError: If it is no such file, has no such columns, or a text is missing.
    """
    if not is_data_file(source):
        raise ConfigError(
            f"data {source}: labelled rows are read from a .jsonl, .json, .csv or .parquet file; give one"
        )
    rows = read_data_file(Path(source).expanduser())
    if missing := {"text", "label"} - set(rows.column_names):
        found = ", ".join(rows.column_names)
        raise ConfigError(f"data {source} has columns {found}, and no {' or '.join(sorted(missing))}; rename yours")
    for number, text in enumerate(rows["text"], 1):
        if not isinstance(text, str) or not text.strip():
            raise ConfigError(f"data {source}, row {number}: text is empty, needed text; fix or remove the row")
    return rows.select_columns(["text", "label"])


def label_indices(rows: Sequence[Mapping[str, Any]], labels: int, names: Sequence[str] | None) -> list[int]:
    """Return each row's label as the index of the classifier's output.

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
        label = by_name.get(row["label"], row["label"])
        if isinstance(label, str) and label.isdecimal():
            label = int(label)
        if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < labels:
            hint = nearest(str(label), by_name) if by_name else f"needed a whole number from 0 to {labels - 1}"
            raise ConfigError(f"row {number}: label {row['label']!r} is none of the classifier's {labels}; {hint}")
        found.append(label)
    return found
