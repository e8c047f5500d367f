"""Local files of examples: JSON lines, JSON, CSV and Parquet, read so that a mistake is named by its line.

JSON and CSV are read as they stand: a text that looks like a date, a number or "None" stays a text.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ..errors import ConfigError

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["is_data_file", "read_data_file"]

Row = dict[str, Any]


def is_data_file(source: str) -> bool:
    """Return whether a source is named like a file that `read_data_file` reads."""
    return Path(source).suffix.lower() in {*_READERS, ".parquet"}


def read_data_file(file: Path) -> Dataset:
    """Return the rows of a file.

    Raises:
        ConfigError: If the file is missing, empty, malformed or not UTF-8, with the line where that shows.
    """
    from datasets import Dataset

    if not file.is_file():
        kind = "a folder" if file.is_dir() else "no such file"
        raise ConfigError(f"data {file}: {kind}; check the path, or give another file")
    if file.suffix.lower() == ".parquet":
        return _read_parquet(file)
    try:
        rows = _READERS[file.suffix.lower()](file)
    except UnicodeDecodeError as error:
        raise ConfigError(f"data {file}, line {_line_of_bad_byte(file)}: not UTF-8 text; save it as UTF-8") from error
    if not rows:
        raise ConfigError(f"data {file} has no rows; give at least two examples")
    columns = {name: [row.get(name) for row in rows] for name in dict.fromkeys(name for row in rows for name in row)}
    for name, values in columns.items():
        _check_one_kind(name, values, file)
    return Dataset.from_dict(columns)


def _read_json_lines(file: Path) -> list[Row]:
    return list(_json_lines(file))


def _json_lines(file: Path) -> Iterator[Row]:
    with file.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                where = f"data {file}, line {number}"
                yield _as_row(_parse(line.strip(), where), where)


def _read_json(file: Path) -> list[Row]:
    """Read a list of objects, or JSON lines under the wrong name."""
    text = file.read_text(encoding="utf-8-sig")
    if not text.lstrip().startswith("["):
        return _read_json_lines(file)
    rows = _parse(text, f"data {file}")
    return [_as_row(row, f"data {file}, row {number}") for number, row in enumerate(rows, 1)]


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        at = f"column {error.colno}" if error.lineno == 1 else f"line {error.lineno}, column {error.colno}"
        raise ConfigError(f"{where}: not JSON ({error.msg} at {at}); fix or remove it") from error
    except (RecursionError, ValueError) as error:
        raise ConfigError(f"{where}: not usable JSON ({error}); fix or remove it") from error


def _as_row(value: Any, where: str) -> Row:
    if not isinstance(value, dict):
        raise ConfigError(f'{where}: found {type(value).__name__}, needed an object such as {{"text": "…"}}')
    return value


def _read_csv(file: Path) -> list[Row]:
    """Read a CSV with a header; every value is text."""
    with file.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.reader(lines, strict=True)
        try:
            header = next(reader, [])
            _check_commas(header, file)
            rows = []
            for values in reader:
                if values and len(values) != len(header):
                    raise ConfigError(
                        f"data {file}, line {reader.line_num}: found {len(values)} values, needed {len(header)} as in "
                        "the header; quote texts that contain commas"
                    )
                rows += [dict(zip(header, values, strict=True))] if values else []
        except csv.Error as error:
            raise ConfigError(f"data {file}, line {reader.line_num}: not CSV ({error}); fix or remove it") from error
    return rows


def _check_commas(header: list[str], file: Path) -> None:
    """Refuse what spreadsheets write where the comma is the decimal sign."""
    other = next((mark for mark in (";", "\t", "|") if len(header) == 1 and mark in header[0]), None)
    if other is not None:
        raise ConfigError(f"data {file}: columns are separated by {other!r}, needed commas; save it with commas")


def _read_parquet(file: Path) -> Dataset:
    import pyarrow
    from datasets import Dataset
    from pyarrow import parquet

    try:
        return Dataset(parquet.read_table(file))
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"data {file}: not Parquet ({reason}); write it anew") from error


def _check_one_kind(name: str, values: list[Any], file: Path) -> None:
    """Refuse a column that mixes texts, numbers and lists, which no table can hold."""
    kinds: dict[str, int] = {}
    for number, value in enumerate(values, 1):
        if value is not None:
            kinds.setdefault("number" if type(value) in (int, float) else type(value).__name__, number)
    if len(kinds) > 1:
        shown = ", ".join(f"{kind} in row {number}" for kind, number in kinds.items())
        raise ConfigError(f"data {file}: column {name} mixes kinds ({shown}); make them one, or remove the column")


def _line_of_bad_byte(file: Path) -> int:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                line.decode("utf8")
            except UnicodeDecodeError:
                return number
    raise AssertionError("a file that is not UTF-8 has such a line")


_READERS: Final[dict[str, Callable[[Path], list[Row]]]] = {
    ".jsonl": _read_json_lines,
    ".json": _read_json,
    ".csv": _read_csv,
}
