"""What a benchmark leaves: its tables as data, beside all that determines them. Plain values in and out."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bench_suite import Benchmark

DETERMINES = ("command", "code", "versions", "given")
"""Keys of a record by which a later run knows that it would find the same."""


@dataclass(frozen=True, slots=True)
class Table:
    """A table that a benchmark printed."""

    above: str
    """The last line of text before it; empty if there is none."""
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def column(self, name: str) -> tuple[str, ...]:
        """Return a column's cells.

        Raises:
            ValueError: There is no such column.
        """
        if name not in self.head:
            raise ValueError(f"no column {name!r} in a table of {', '.join(self.head)}")
        return tuple(row[self.head.index(name)] for row in self.rows)


def read_output(text: str) -> tuple[list[Table], list[str]]:
    """Return (the Markdown tables of a text, its other lines that are not empty)."""
    tables: list[Table] = []
    notes: list[str] = []
    block: list[tuple[str, ...]] = []
    for line in [*text.splitlines(), ""]:
        if line.startswith("|"):
            block.append(tuple(cell.strip() for cell in line.strip().strip("|").split(" |")))
            continue
        if len(block) > 1 and all(re.fullmatch(r":?-+:?", part) for part in _parts(block[1])):
            tables.append(Table(notes[-1] if notes else "", block[0], tuple(block[2:])))
        block = []
        if line.strip():
            notes.append(line.rstrip())
    return tables, notes


def _parts(row: Sequence[str]) -> list[str]:
    """Return the cells of a separator, which may be written without spaces."""
    return [part.strip() for cell in row for part in cell.split("|")]


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Return a Markdown table, all but the first columns set to the right.

    Args:
        head: The columns' names.
        rows: Their cells.
        left: Columns that are set to the left.
    """
    line = "|" + "|".join(["---"] * left + ["---:"] * (len(head) - left)) + "|"
    return "\n".join([_line(head), line, *(_line(row) for row in rows)])


def _line(cells: Sequence[str]) -> str:
    return "|" + "|".join(f" {cell} " if cell else " " for cell in cells) + "|"


def determined(
    benchmark: Benchmark, *, code: str, versions: Mapping[str, str], given: Mapping[str, str]
) -> dict[str, Any]:
    """Return all that determines a benchmark's result but the machine, without a path of this machine.

    Args:
        benchmark: The benchmark.
        code: Hash of the code that it runs.
        versions: Of Python and the libraries.
        given: SHA-256 of each file or folder that the caller gave.
    """
    words = [argument.replace("{work}", f"build/bench/{benchmark.name}") for argument in benchmark.arguments]
    command = " ".join(["python", f"tests/benchmarks/{benchmark.script}", *words])
    return {"command": re.sub(r"\{(\w+)\}", lambda found: found[1].upper(), command), "code": code,
            "versions": dict(versions), "given": dict(given)}  # fmt: skip


def is_current(record: Mapping[str, Any] | None, now: Mapping[str, Any]) -> bool:
    """Return whether a kept record is what the same command would find again."""
    return record is not None and all(record.get(key) == now[key] for key in DETERMINES)


def record_of(benchmark: Benchmark, now: Mapping[str, Any], output: str, **measured: Any) -> dict[str, Any]:
    """Return what is kept of a finished benchmark.

    Args:
        benchmark: The benchmark.
        now: What `determined` returned.
        output: What it printed, without paths of this machine.
        measured: `machine`, `seconds` and `load`, the machine's mean load in the last minute.
    """
    tables, notes = read_output(output)
    return {"name": benchmark.name, **now, "seeds": list(benchmark.seeds), **measured,
            "tables": [asdict(table) for table in tables], "notes": notes}  # fmt: skip


def tables_of(record: Mapping[str, Any]) -> list[Table]:
    """Return a kept record's tables."""
    return [Table(told["above"], tuple(told["head"]), tuple(map(tuple, told["rows"]))) for told in record["tables"]]
