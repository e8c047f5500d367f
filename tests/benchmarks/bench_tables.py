"""Bring the tables of README.md and the method cards up to date: `python tests/benchmarks/bench_tables.py`.

A table between `<!-- bench: NAME -->` and `<!-- end of bench -->` is made from the kept result of its benchmark in
`tests/benchmarks/results`. Where there is no result yet, the text stays as it is. Figures in sentences are not made
here: read them again when a table has changed. `--check` writes nothing and ends with 1 where text and result differ.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench_records import Table, markdown, tables_of

import hf_lora_ext

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).resolve().parent / "results"
PAGES = [ROOT / "README.md", *sorted(Path(hf_lora_ext.__file__).parent.rglob("*.md"))]
MARKED = re.compile(r"(<!-- bench: ([\w-]+) -->\n\n)(.*?)(\n\n<!-- end of bench -->)", re.DOTALL)
ASKED = ("rank 1", "rank 2", "rank 4", "energy 0.8", "energy 0.95")
"""What PEFT is asked for in compress.py."""
README_METHODS = {
    "ours": "adaptive rank",
    "truncate-whitened": "trained wide, cut afterwards by the same worth",
    "adalora": "AdaLoRA of mean rank 2",
    "uniform": "uniform rank 2",
}
CARD_METHODS = {
    "ours": "adaptive rank, `anneal`",
    "uniform": "uniform rank 2",
    "adalora": "AdaLoRA of mean rank 2, its scale tuned too",
    "truncate-whitened": "trained wide, cut afterwards by `whitened` worth",
    "truncate-svd": "trained wide, cut afterwards by singular values",
}
CHANGES = {
    "ours": "none",
    "replay": "the final ranks trained from scratch (`replay`)",
    "ours-reset": "Adam's state forgotten at each event (`ours-reset`)",
    "ours-start4": "started at 4 times the budget (`ours-start4`)",
    "ours-events4": "4 events (`ours-events4`)",
    "ours-freeze80": "ranks fixed at 80 % of the run (`ours-freeze80`)",
    "ours-input": "criterion `input` (`ours-input`)",
    "ours-random": "criterion `random` (`ours-random`)",
}
LESS = "adaptive rank minus it"


@dataclass(frozen=True, slots=True)
class View:
    """A table of a page."""

    result: str
    """The benchmark that it is made from."""
    of: Callable[[list[Table]], str]
    """From the tables that the benchmark printed to the page's."""


def presets(tables: list[Table]) -> str:
    """Return seconds of the processor, which other load hardly changes."""
    (table,) = tables
    rows = zip(table.column("what"), table.column("s of the processor"), table.column("x python"), strict=True)
    return markdown(["process", "seconds of the processor", "times `python -c pass`"], [*map(list, rows)])


def quickstart(tables: list[Table]) -> str:
    """Return losses and accuracies by seed."""
    (table,) = tables
    return markdown(table.head[:6], [row[:6] for row in table.rows])


def compressed(asked: tuple[str, ...], head: tuple[str, str]) -> Callable[[list[Table]], str]:
    """Return what makes a table with a row for what PEFT was asked for, `head` naming our two columns."""

    def of(tables: list[Table]) -> str:
        table = tables[0]
        found = {row[:2]: dict(zip(table.head, row, strict=False)) for row in table.rows}
        rows = [[what, found[what, "PEFT"]["parameters"],
                 *(found[what, method]["loss"] for method in ("PEFT", "ours, svd", "ours, whitened"))]
                for what in asked]  # fmt: skip
        return markdown(["PEFT asked for", "parameters", "PEFT", *head], rows)

    return of


def planted(methods: Mapping[str, str], head: list[str]) -> Callable[[list[Table]], str]:
    """Return what makes a table with a row a method; `head` says which of parameters, KL and difference it has."""

    def of(tables: list[Table]) -> str:
        main = {row[0]: dict(zip(table.head, row, strict=False))
                for table in tables if table.head[:2] == ("method", "value") for row in table.rows}  # fmt: skip
        against = {row[1]: row for table in tables if table.head[:2] == ("ours at", "against") for row in table.rows}
        rows = []
        for method, words in methods.items():
            cells = {head[0]: words, "parameters": main[method]["final"].removesuffix(" (over)"),
                     "KL": main[method]["value"], LESS: difference(against.get(method))}  # fmt: skip
            rows.append([cells[column] for column in head])
        return markdown(head, rows)

    return of


def difference(row: tuple[str, ...] | None) -> str:
    """Return a paired difference as the cards write it."""
    return "" if row is None else row[3].replace("-", "−") + (", a tie" if row[4] == "tie" else "")


VIEWS = {
    "presets": View("presets", presets),
    "quickstart": View("quickstart", quickstart),
    "planted": View("planted", planted(README_METHODS, ["method", "parameters", "KL"])),
    "planted-methods": View("planted", planted(CARD_METHODS, ["method", "parameters", "KL", LESS])),
    "planted-changes": View("planted-changes", planted(CHANGES, ["change", "KL", LESS])),
    "compress": View("compress", compressed((ASKED[0], *ASKED[2:]),
                                            ("ours by singular values", "ours by what the loss would miss"))),
    "compress-all": View("compress", compressed(ASKED, ("svd", "whitened"))),
}  # fmt: skip


def filled(text: str, records: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a page with its marked tables made from the results that there are.

    Raises:
        ValueError: A marked name is not known, or a result lacks what its table needs.
    """

    def table(found: re.Match[str]) -> str:
        view = VIEWS.get(found[2])
        if view is None:
            raise ValueError(f"no table {found[2]!r} is known; there are {', '.join(VIEWS)}")
        if view.result not in records:
            return found[0]
        try:
            return found[1] + view.of(tables_of(records[view.result])) + found[4]
        except (KeyError, ValueError) as error:
            raise ValueError(
                f"results/{view.result}.json does not have what table {found[2]!r} needs: {error}; "
                f"run `make bench BENCHES={view.result} AGAIN=1`"
            ) from error

    return MARKED.sub(table, text)


def kept_records(folder: Path = RESULTS) -> dict[str, Any]:
    """Return the kept results by name."""
    return {file.stem: json.loads(file.read_text(encoding="utf8")) for file in sorted(folder.glob("*.json"))}


def out_of_date(records: Mapping[str, Any]) -> dict[Path, str]:
    """Return pages whose tables are not what the results say, with the text that they should have."""
    texts = {page: page.read_text(encoding="utf8") for page in PAGES}
    wanted = {page: filled(text, records) for page, text in texts.items()}
    return {page: text for page, text in wanted.items() if text != texts[page]}


def write_tables(folder: Path = RESULTS) -> list[str]:
    """Bring the pages up to date; return those that changed, as paths in the repository."""
    changed = out_of_date(kept_records(folder))
    for page, text in changed.items():
        page.write_text(text, encoding="utf8")
    return [page.relative_to(ROOT).as_posix() for page in changed]


def main() -> int:
    """Write or check; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; end with 1 where something is old")
    if parser.parse_args().check:
        old = [page.relative_to(ROOT).as_posix() for page in out_of_date(kept_records())]
        print(f"not what the results say: {', '.join(old)}; `make bench-tables`" if old else "tables are up to date")
        return int(bool(old))
    print("\n".join(write_tables()) or "tables were up to date")
    return 0


if __name__ == "__main__":
    sys.exit(main())
