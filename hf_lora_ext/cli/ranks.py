"""`hf-lora ranks`: what an adapter does with its ranks."""

from __future__ import annotations

import json

import click

from .quiet import quieten_downloads

__all__ = ["command"]

EPILOG = """
\b
Examples:
  hf-lora ranks out/quickstart
  hf-lora ranks out/quickstart --top 20 --plot out/quickstart
  hf-lora ranks me/docstrings --revision v1 --json

ADAPTER is a folder, a .safetensors file, or a Hub id; LoRA, rsLoRA, DoRA or AdaLoRA, from PEFT or another tool. The
base model is not loaded. Columns: effective and stable rank; directions that carry 90, 95 and 99 % of the update's
energy; how many are stronger than those of random factors of that shape; the last one's energy, of an even share;
the module's share of the whole update. Exit code 2: there is no such adapter, or it is broken, in one line.
"""


@click.command("ranks", epilog=EPILOG)
@click.argument("adapter")
@click.option("--revision", help="Branch, tag or commit on the Hub; main if left out.")
@click.option("--top", type=click.IntRange(min=1), metavar="N", help="Rows for the N largest shares alone.")
@click.option("--plot", metavar="FOLDER|FILE.png", help="Draw heat maps and spectra as PNG.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def command(adapter: str, revision: str | None, top: int | None, plot: str | None, as_json: bool) -> None:
    """Say which modules of an adapter have rank to spare, and which lack it."""
    from ..analysis.rank_report import rank_report

    quieten_downloads()
    report = rank_report(adapter, revision=revision)
    drawn = report.plot(plot) if plot else []
    if as_json:
        click.echo(json.dumps(report.to_dict() | {"plots": [str(path) for path in drawn]}))
        return
    click.echo(report.explain(top))
    for path in drawn:
        click.echo(f"drawn: {path}")
