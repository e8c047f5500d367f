"""Rows for the text tasks of the rank benchmark, split so that what is held out was not seen.

Without a file the text is that of the interpreter's own standard library: for `causal` functions and the first line
of their docstrings, for `classification` docstrings and the package that they are from. Both are split by module. The
text depends on the version of Python, so results name a fingerprint of it.
"""

from __future__ import annotations

import ast
import hashlib
import json
import sysconfig
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_lora_ext.data.stdlib_docstrings import docstring_examples

HELD_OUT = 0.2
"""Share that is held out where no file is given for it."""
FEWEST_MODULES, FEWEST_ROWS = 10, 100
"""What a package needs to be a class."""
LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "turtledemo", "ensurepip"}

Row = dict[str, str]


@dataclass(frozen=True, slots=True)
class Split:
    """Rows to learn from and rows to measure on."""

    train: list[Row]
    held_out: list[Row]

    @property
    def fingerprint(self) -> str:
        """A hash of all rows in order."""
        told = json.dumps([self.train, self.held_out], sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()[:16]


def read_split(columns: tuple[str, str], data: Path | None, held_out: Path | None, limit: int) -> Split:
    """Return the rows of a file, or the built-in ones.

    Args:
        columns: `prompt` and `completion`, or `text` and `label`.
        data: JSON lines with these columns; the built-in text if None.
        held_out: JSON lines to measure on; if None they are split off by a hash of the first column, so that equal
            prompts or texts are never on both sides.
        limit: Held-out rows at most, chosen by their hash.

    Raises:
        SystemExit: If a file lacks a column, or nothing is left on one side.
    """
    if data is None:
        examples = docstring_examples() if columns[0] == "prompt" else package_examples()
        rows = [{column: row[column] for column in (*columns, "module")} for row in examples]
        groups: Sequence[str] = columns[1:] if columns[1] == "label" else ()
        split = by_module(rows, lambda row: tuple(row[column] for column in groups))
    elif held_out is None:
        rows = read_rows(data, columns)
        split = Split([row for row in rows if hashed(row[columns[0]]) >= HELD_OUT],
                      [row for row in rows if hashed(row[columns[0]]) < HELD_OUT])  # fmt: skip
    else:
        split = Split(read_rows(data, columns), read_rows(held_out, columns))
    if not split.train or not split.held_out:
        raise SystemExit(f"{len(split.train)} rows to train on and {len(split.held_out)} held out; give more data")
    return Split(split.train, sorted(split.held_out, key=lambda row: hashed(json.dumps(row)))[:limit])


def read_rows(path: Path, columns: tuple[str, str]) -> list[Row]:
    """Return two columns of a file of JSON lines, as text."""
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf8").splitlines(), 1):
        row = json.loads(line)
        missing = [column for column in columns if column not in row]
        if missing:
            raise SystemExit(f"{path.name}, line {number}: no {missing[0]!r}, found {', '.join(row)}")
        rows.append({column: str(row[column]) for column in columns})
    return rows


def by_module(rows: Iterable[Row], group: Callable[[Row], tuple[str, ...]]) -> Split:
    """Hold out whole modules of each group, by the hash of their names, until they have their share of the rows.

    Every group keeps at least one module to train on; a module with more than the share of its group stays there.
    """
    modules: dict[tuple[str, ...], dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        modules[group(row)][row["module"]].append({key: value for key, value in row.items() if key != "module"})
    split = Split([], [])
    for found in modules.values():
        left = HELD_OUT * sum(map(len, found.values()))
        for name in sorted(found, key=hashed):
            side = split.held_out if len(found[name]) <= left else split.train
            side += found[name]
            left -= len(found[name]) if side is split.held_out else 0
    return split


def package_examples() -> list[Row]:
    """Return `text`, `label` and `module` of documented functions and classes in the library's larger packages.

    The text is the docstring without its name, doctests and all; the label is the package. Docstrings that
    occur more than once are left out, since they could be on both sides of a split.
    """
    found: dict[str, list[Row]] = defaultdict(list)
    root = Path(sysconfig.get_paths()["stdlib"])
    for file in sorted(root.rglob("*.py")):
        module = file.relative_to(root)
        if len(module.parts) > 1 and not LEFT_OUT & set(module.parts):
            for text in docstrings(file):
                found[text].append({"text": text, "label": module.parts[0], "module": module.as_posix()})
    packages: dict[str, list[Row]] = defaultdict(list)
    for rows in found.values():
        if len(rows) == 1:
            packages[rows[0]["label"]] += rows
    return [row for rows in packages.values() if len(rows) >= FEWEST_ROWS
            and len({row["module"] for row in rows}) >= FEWEST_MODULES for row in rows]  # fmt: skip


def docstrings(file: Path) -> list[str]:
    """Return the docstrings of a file's functions and classes; none if it does not parse."""
    try:
        tree = ast.parse(file.read_text(encoding="utf8"))
    except (UnicodeDecodeError, SyntaxError):  # sample files in other encodings or of other Pythons
        return []
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return [text for node in ast.walk(tree) if isinstance(node, kinds) if (text := ast.get_docstring(node))]


def hashed(text: Any) -> float:
    """Map a text to [0, 1) by its content."""
    return int.from_bytes(hashlib.sha256(str(text).encode()).digest()[:6]) / 2**48
