"""`hf-lora compress`: a smaller adapter from a trained one."""

from __future__ import annotations

import json
from typing import Any, cast

import click

from .quiet import quieten_libraries

__all__ = ["command"]

EPILOG = """
\b
Examples:
  hf-lora compress out/quickstart out/half --budget 50%
  hf-lora compress my-adapter smaller --budget 200000
  hf-lora compress out/quickstart out/knee --budget knee
  hf-lora compress my-adapter smaller --budget 25% --base me/base --calibration train.jsonl

A number or share needs the adapter alone, and takes the largest singular values of all layers together. With
--criterion whitened or --calibration, what is kept is what the loss would miss most, by the base and training rows.
OUT is a new folder; peft loads it without this package. Exit code 2: something given was wrong, in one line.
"""


@click.command("compress", epilog=EPILOG)
@click.argument("adapter", type=click.Path())
@click.argument("out", type=click.Path())
@click.option("--budget", required=True, metavar="SIZE", help="50%, 200000 (parameters), or knee.")
@click.option("--criterion", metavar="[whitened|svd]", help="Order of directions.")
@click.option("--base", metavar="MODEL", help="Base model; else the one that the adapter names.")
@click.option("--data", metavar="FILE", help="Held-out rows for the knee; else those of the run.")
@click.option("--calibration", metavar="FILE", help="Training rows, for whitened; else those of the run.")
@click.option("--max-length", type=int, metavar="TOKENS", help="Tokens of a row to keep; else as in the run.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on standard output.")
@click.option("--quiet", "-q", is_flag=True, help="Print no progress.")
def command(adapter: str, out: str, budget: str, as_json: bool, quiet: bool, **given: Any) -> None:
    """Write a smaller adapter: the directions that are worth most."""
    from ..analysis.budgets import parse_budget

    wanted = parse_budget(budget)
    from ..analysis.compress import compress_adapter

    quieten_libraries()
    done = compress_adapter(
        adapter,
        out,
        budget=cast("Any", wanted),
        say=lambda line: None if quiet else click.echo(line, err=True),
        **given,
    )
    if as_json:
        click.echo(json.dumps(done.to_dict()))
        return
    gone = sum(not rank for rank in done.ranks.values())
    click.echo(
        f"{done.folder}: {done.parameters:,} of {done.parameters_before:,} parameters "
        f"({done.parameters / done.parameters_before:.1%}), by {done.criterion}\n"
        f"{done.energy:.1%} of the update's squared norm is left; ranks 1 to {max(done.ranks.values())} in "
        f"{len(done.ranks) - gone} layers, {gone} left"
    )
    if done.curve is not None:
        knee, whole = done.curve.knee, done.curve.whole
        click.echo(f"held-out loss {knee.loss:.4f}, {knee.rise:+.4f} ± {knee.rise_error:.4f} from {whole.loss:.4f}")
