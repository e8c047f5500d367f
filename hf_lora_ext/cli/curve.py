"""`hf-lora curve`: held-out loss at every budget of one trained adapter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .quiet import quieten_libraries

if TYPE_CHECKING:
    from ..analysis.curve import RankCurve

__all__ = ["command"]

EPILOG = """
\b
Examples:
  hf-lora curve out/quickstart
  hf-lora curve out/quickstart --criterion both --plot rank_curve.png
  hf-lora curve my-adapter --base me/base --data held_out.jsonl --calibration train.jsonl --json

ADAPTER is a run folder of `hf-lora train`, which knows its base, held-out and training rows, or any LoRA adapter. Rows
are as in a recipe: .jsonl, .json, .csv or .parquet with prompt and completion, messages, or text. Nothing is trained or
written, but for the plot. Exit code 2: something given was wrong, in one line.
"""


@click.command("curve", epilog=EPILOG)
@click.argument("adapter", type=click.Path())
@click.option("--data", metavar="FILE", help="Held-out rows; else those of the run.")
@click.option("--calibration", metavar="FILE", help="Training rows, for whitened; else those of the run.")
@click.option("--base", metavar="MODEL", help="Base model; else the one that the adapter names.")
@click.option("--criterion", metavar="[whitened|svd|both]", help="Order of directions; else whitened if it can be.")
@click.option("--max-length", type=int, metavar="TOKENS", help="Tokens of a row to keep; else as in the run.")
@click.option("--plot", type=click.Path(dir_okay=False), metavar="FILE", help="Draw the curve into a PNG.")
@click.option("--json", "as_json", is_flag=True, help="Print the curve as JSON on standard output.")
@click.option("--quiet", "-q", is_flag=True, help="Print no progress.")
def command(adapter: str, criterion: str | None, plot: str | None, as_json: bool, quiet: bool, **given: Any) -> None:
    """Say what an adapter would lose at every smaller size.

    The knee is the smallest size whose held-out loss is within one standard error of the whole adapter's.
    """
    from ..analysis.measure import curves_of

    quieten_libraries()
    found = curves_of(adapter, criterion, say=lambda line: None if quiet else click.echo(line, err=True), **given)
    if plot is not None:
        found[0].plot(plot, f"{Path(adapter).resolve().name}: held-out loss by parameters kept", beside=found[1:])
    if as_json:
        told = [curve.to_dict() for curve in found]
        click.echo(json.dumps(told if criterion == "both" else told[0]))
        return
    for curve in found:
        _print_curve(curve)
    if plot is not None:
        click.echo(f"plot  {plot}")


def _print_curve(curve: RankCurve) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    seen = f", {curve.calibration_examples} training examples looked at" if curve.calibration_examples else ""
    table = Table(
        title=f"{curve.criterion}: {curve.examples} held-out examples, {curve.tokens:,} tokens{seen}",
        caption="above the whole adapter's loss, ± one paired standard error", caption_justify="left",
        box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False,
    )  # fmt: skip
    for heading in ("parameters", "share", "layers", "top rank", "loss", "above", "±", ""):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_row("0", "0.0 %", "0", "0", f"{curve.base_loss:.4f}", f"{curve.base_loss - curve.whole.loss:+.4f}",
                  f"{curve.gain_error:.4f}", "base")  # fmt: skip
    for point in curve.points:
        mark = "knee" if point is curve.knee else "whole" if point is curve.whole else ""
        layers = sum(rank > 0 for rank in point.ranks.values())
        table.add_row(
            f"{point.parameters:,}", f"{point.parameters / curve.whole.parameters:.1%}".replace("%", " %"), str(layers),
            str(max(point.ranks.values())), f"{point.loss:.4f}", f"{point.rise:+.4f}", f"{point.rise_error:.4f}", mark,
        )  # fmt: skip
    console = Console()
    console.print(table)
    knee = curve.knee
    console.print(
        f"knee: {knee.parameters:,} of {curve.whole.parameters:,} parameters, loss {knee.loss:.4f} "
        f"({knee.rise:+.4f}, within the {curve.gain_error:.4f} that the adapter's gain is known to)",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
