"""`hf-lora evaluate`: what an adapter changes on held-out rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import ConfigError
from .quiet import quieten_libraries

if TYPE_CHECKING:
    from rich.console import Console

    from ..cards.comparisons import Comparison, Difference
    from ..evaluation.evaluation import Evaluation

__all__ = ["command"]

EPILOG = """
\b
Examples:
  hf-lora evaluate out/quickstart
  hf-lora evaluate out/quickstart --metrics loss,exact_match,rouge --plot change.png --write
  hf-lora evaluate my-adapter --base me/base --data held_out.jsonl --limit 200 --json
  hf-lora evaluate out/quickstart --full out/full_model
  hf-lora evaluate out/quickstart --harness hellaswag,arc_easy --limit 100

ADAPTER is a run folder of `hf-lora train`, which knows its base and the rows that it held out, or any adapter with
--data: .jsonl, .json, .csv or .parquet with prompt and completion, messages, or text; of a classifier text and label.
Intervals are from a paired bootstrap over examples; where one includes 0 the table says "no difference". Nothing is
written but the plot, and with --write the metrics into facts.json and README.md. exact_match and rouge need
'hf_lora_ext[evaluate]', --harness needs 'hf_lora_ext[harness]' and is printed only. Exit codes: 0 measured, whatever
came out; 2 something given was wrong, in one line.
"""


def _names(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[str, ...]:
    return tuple(name.strip() for name in (value or "").split(",") if name.strip())


@click.command("evaluate", epilog=EPILOG)
@click.argument("adapter", type=click.Path())
@click.option("--data", metavar="FILE", help="Rows to measure on; else those that the run held out.")
@click.option("--base", metavar="MODEL", help="Base model; else the one that the adapter names.")
@click.option("--full", metavar="FOLDER", type=click.Path(), help="A full fine-tuning's model to compare with.")
@click.option(
    "--metrics",
    callback=_names,
    metavar="NAMES",
    help="Of loss, perplexity, token_accuracy, exact_match, rouge; of a classifier loss, accuracy, f1.",
)
@click.option("--limit", type=click.IntRange(min=2), metavar="ROWS", help="Measure at most so many rows.")
@click.option("--samples", type=click.IntRange(min=0), default=3, metavar="N", help="Answers to show; 3 if left out.")
@click.option("--max-new-tokens", type=click.IntRange(min=1), metavar="N", help="Tokens that an answer can have.")
@click.option("--batch-size", type=click.IntRange(min=1), default=8, metavar="N", help="Answers at once; else 8.")
@click.option("--max-length", type=int, metavar="TOKENS", help="Tokens of a row to keep; else as in the run.")
@click.option("--harness", callback=_names, metavar="TASKS", help="Tasks of lm-evaluation-harness, on both models.")
@click.option("--plot", type=click.Path(dir_okay=False), metavar="FILE", help="Draw the changes into a PNG.")
@click.option("--write", is_flag=True, help="Put the metrics into the folder's facts.json and card.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON on standard output.")
@click.option("--quiet", "-q", is_flag=True, help="Print no progress.")
def command(adapter: str, plot: str | None, write: bool, as_json: bool, quiet: bool, **given: Any) -> None:
    """Say what an adapter changes on held-out rows, with intervals.

    Base and adapter answer the same rows. Without --metrics: what one pass over the rows tells.
    """
    _check_outputs(Path(adapter), plot, write)
    from ..evaluation.evaluation import evaluate_adapter

    quieten_libraries()
    found = evaluate_adapter(adapter, say=lambda line: None if quiet else click.echo(line, err=True), **given)
    if plot is not None:
        found.plot(plot)
    card = found.write() if write else None
    if as_json:
        click.echo(json.dumps(found.to_dict()))
        return
    _print(found)
    if plot is not None:
        click.echo(f"plot  {plot}")
    if card is not None:
        click.echo(f"written into {card.with_name('facts.json')} and {card}")
    elif (Path(adapter) / "facts.json").is_file():
        click.echo("nothing is written; --write puts this into facts.json and the card")


def _check_outputs(folder: Path, plot: str | None, write: bool) -> None:
    """Refuse what could not be written, before anything is measured."""
    if plot is not None and not Path(plot).absolute().parent.is_dir():
        raise ConfigError(f"--plot {plot}: there is no folder {Path(plot).parent}; make it, or give another place")
    if write:
        from ..cards.facts import read_facts

        read_facts(folder / "facts.json")


def _print(found: Evaluation) -> None:
    from rich.console import Console

    console, compared = Console(), found.comparison
    kind = "held-out rows" if compared.held_out else "rows"
    _print_table(console, compared, f"{compared.examples:,} {kind} of {compared.data}", beside_full=False)
    if compared.full:
        _print_table(console, compared, f"beside {compared.full}, whose weights all trained", beside_full=True)
    for note in compared.notes:
        console.print(f"- {note}", highlight=False, markup=False, soft_wrap=True)
    if found.harness:
        _print_harness(console, found)
    for sample in found.samples:
        _print_sample(console, sample)


def _print_table(console: Console, compared: Comparison, title: str, *, beside_full: bool) -> None:
    other = "full" if beside_full else "base"
    table = _table(title, compared.level, other)
    from ..cards.comparisons import METRICS

    for row in compared.measured:
        value, change = (row.full, row.beside_full) if beside_full else (row.base, row.change)
        verdict = row.verdict_beside_full if beside_full else row.verdict
        if value is not None and change is not None:
            of = f" ({row.examples})" if row.examples != compared.examples else ""
            table.add_row(f"{METRICS[row.metric].words}{of}", *_cells(value, row.adapter, change), verdict)
    console.print(table)


def _print_harness(console: Console, found: Evaluation) -> None:
    table = _table("lm-evaluation-harness", found.comparison.level, "base")
    for row in found.harness:
        words = "no difference" if not row.change.is_seen else "higher" if row.change.value > 0 else "lower"
        table.add_row(f"{row.task}: {row.metric} ({row.examples})", *_cells(row.base, row.adapter, row.change), words)
    console.print(table)


def _table(title: str, level: float, other: str) -> Any:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(title), box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False, collapse_padding=True)
    table.add_column("metric", no_wrap=True)
    for heading in (other, "adapter", "change", f"{100 * level:g} % interval"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    return table


def _cells(other: float, adapter: float, change: Difference) -> tuple[str, ...]:
    return (
        f"{other:.4g}",
        f"{adapter:.4g}",
        f"{change.value:+.3g}",
        f"{change.low:+.3g} to {change.high:+.3g}",
    )


def _print_sample(console: Console, sample: Any) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=box.SIMPLE, show_header=False, pad_edge=False)
    shown.add_column(style="bold")
    shown.add_column(overflow="fold")
    told = (("asked", sample.prompt), ("base", sample.base), ("adapter", sample.adapter), ("real", sample.reference))
    for name, text in told:
        lines = text.strip().splitlines()
        shown.add_row(name, Text("\n".join(lines[:8] + (["…"] if len(lines) > 8 else []))))
    console.print(shown)
