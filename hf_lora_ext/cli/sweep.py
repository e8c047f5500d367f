"""`hf-lora sweep`: try a recipe at many points of a space."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import click

from ..errors import LoraExtError
from ..sweep.settings import Sweep, load_sweep
from ..sweep.space import shown
from .quiet import quieten_libraries
from .train import full_disk_explained

if TYPE_CHECKING:
    from ..sweep.forecast import Forecast
    from ..sweep.report import SweepResult

__all__ = ["command"]

EPILOG = """
\b
Examples:
  hf-lora sweep recipes/sweep_rank.yaml --dry-run
  hf-lora sweep recipes/sweep_rank.yaml
  hf-lora sweep recipes/sweep_rank.yaml base.data.source=mine.jsonl output_dir=out/mine
  hf-lora sweep recipes/sweep_rank.yaml --report --json

The same command goes on where a killed sweep stopped, its last trial from its checkpoint. Started several times, from
machines that share the folder too, the processes share the trials; give each a device with CUDA_VISIBLE_DEVICES.
Exit code 2: something given was wrong, a trial does not fit, or none was finished; 130: interrupted.
"""


@click.command("sweep", epilog=EPILOG)
@click.argument("sweep", type=click.Path())
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--dry-run", is_flag=True, help="Print the trials with what they need, refuse what does not fit, stop.")
@click.option("--report", is_flag=True, help="Say what is known by now, and stop.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on standard output.")
@click.option("--quiet", "-q", is_flag=True, help="Print no progress; errors and --json still show.")
def command(sweep: str, overrides: tuple[str, ...], dry_run: bool, report: bool, as_json: bool, quiet: bool) -> None:
    """Try a recipe at many points, and say which is best.

    SWEEP is a YAML file. KEY=VALUE replaces one of its values; keys are dotted, values are YAML.
    """
    if dry_run and report:
        raise click.UsageError("--dry-run and --report exclude each other")
    chosen = load_sweep(sweep, overrides)
    if dry_run:
        _print_forecasts(chosen, as_json)
        return
    result = _report(chosen) if report else _run(chosen, quiet)
    if as_json:
        click.echo(json.dumps(result.to_dict()))
    elif not quiet:
        _print_result(result)
    if result.best is None and not report:
        raise LoraExtError(f"no trial in {result.folder} was finished; see the table with --report")


def _report(chosen: Sweep) -> SweepResult:
    from ..sweep.sweeper import report_sweep

    return report_sweep(chosen)


def _run(chosen: Sweep, quiet: bool) -> SweepResult:
    def say(line: str) -> None:
        if not quiet:
            click.echo(line, err=True)

    os.environ["TQDM_DISABLE"] = "1"  # read when tqdm is imported, which nothing has done yet
    with full_disk_explained(chosen.output_dir):
        from ..sweep.sweeper import run_sweep

        quieten_libraries()
        return run_sweep(chosen, say)


def _print_forecasts(chosen: Sweep, as_json: bool) -> None:
    from ..sweep.forecast import check_fits, forecast

    found = forecast(chosen)
    if as_json:
        click.echo(json.dumps([made.to_dict() for made in found]))
    else:
        whole = chosen.points + len(chosen.full_learning_rates)
        seeds = "1 seed" if chosen.seeds == 1 else f"{chosen.seeds} seeds"
        click.echo(f"{whole} trials of {seeds}: {whole * chosen.seeds} runs into {chosen.output_dir}")
        if chosen.strategy == "bayesian":
            click.echo("each is chosen from those before; these bound the space:")
        _print_table(*_forecast_rows(chosen, found))
    check_fits(found)


def _forecast_rows(chosen: Sweep, found: list[Forecast]) -> tuple[list[str], list[list[str]]]:
    needed = "GiB, at least" if any(f.is_lower_bound for f in found) else "GiB needed"
    headings = [*(key.rpartition(".")[2] for key in chosen.space), "parameters", needed, "of GiB", "fits"]
    return headings, [
        [
            *(shown(f.point[key]) if key in f.point else "all weights" for key in chosen.space),
            "" if f.parameters is None else f"{f.parameters:,}",
            "not known" if f.needed_gib is None else f"{f.needed_gib:.2f}",
            "not known" if f.available_gib is None else f"{f.available_gib:g}",
            "no" if f.problem else "yes" if f.needed_gib is not None else "not known",
        ]
        for f in found
    ]


def _print_result(result: SweepResult) -> None:
    """Print the table, what it says, and what to do next."""
    words = {"others still work": "other processes still work on it; --report says more when they are done",
             "time is up": "the time is up; the same command goes on"}  # fmt: skip
    click.echo(f"{result.folder}: {words.get(result.status, result.status)}")
    _print_table(*result.table())
    for note in result.notes():
        click.echo(note)
    click.echo(f"written: {', '.join(result.files)}")
    if result.best is not None:
        click.echo(f"next:    hf-lora train {result.folder / 'best.yaml'}")


def _print_table(headings: list[str], rows: list[list[str]]) -> None:
    """Print rows under their headings, numbers to the right, however wide the screen is."""
    left = [heading in ("trial", "state", "fits") for heading in headings]
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    click.echo()
    for row in [headings, ["-" * width for width in widths], *rows]:
        cells = (c.ljust(w) if is_left else c.rjust(w) for c, w, is_left in zip(row, widths, left, strict=True))
        click.echo("  ".join(cells).rstrip())
    click.echo()
