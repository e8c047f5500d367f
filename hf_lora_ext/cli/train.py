"""`hf-lora train`: run a recipe."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..errors import LoraExtError, PushError
from ..runs.recipe import load_recipe
from ..runs.shipped import recipe_file
from .quiet import quieten_libraries

if TYPE_CHECKING:
    from ..runs.runner import RunResult

__all__ = ["command", "full_disk_explained"]

EPILOG = """
\b
Examples:
  hf-lora train recipes/quickstart.yaml
  hf-lora train quickstart
  hf-lora train recipes/quickstart.yaml data.source=mine.jsonl output_dir=out/mine
  hf-lora train recipes/quickstart.yaml training.max_steps=20 seed=1 --json
  hf-lora train recipes/quickstart.yaml push.repo=me/docstrings push.private=true

The same command goes on where a killed run stopped, and says what is there when the run is finished; with push.repo it
pushes that. Exit code 2: something given was wrong, the disk is full, or the finished run was not pushed; 130:
interrupted.
"""


@click.command("train", epilog=EPILOG)
@click.argument("recipe", type=click.Path())
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on standard output.")
@click.option("--quiet", "-q", is_flag=True, help="Print no progress; errors and --json still show.")
def command(recipe: str, overrides: tuple[str, ...], as_json: bool, quiet: bool) -> None:
    """Train the LoRA adapter that a recipe describes.

    RECIPE is a YAML file, or the name of one that comes with the package. KEY=VALUE replaces one of its values; keys
    are dotted, values are YAML.
    """
    chosen = load_recipe(recipe_file(recipe), overrides)

    def say(line: str) -> None:
        if not quiet:
            click.echo(line, err=True)

    if quiet:
        os.environ["TQDM_DISABLE"] = "1"  # read when tqdm is imported, which nothing has done yet
    with full_disk_explained(chosen.output_dir):
        from ..runs.runner import run_recipe

        quieten_libraries()
        result = run_recipe(chosen, say)
    if as_json:
        pushed = {"push": result.push.to_dict()} if result.push else {}
        told = {"folder": str(result.folder), "status": result.status, "facts": result.facts.to_dict()}
        click.echo(json.dumps(told | pushed))
    elif not quiet:
        _print_result(result, recipe)
    if result.push_problem:
        raise PushError(result.push_problem)


@contextmanager
def full_disk_explained(output_dir: str) -> Iterator[None]:
    """Turn a disk that filled up while training into one message.

    torch and safetensors report a full disk as errors of their own, so the words are looked at too.
    """
    try:
        yield
    except LoraExtError:
        raise
    except Exception as error:
        full = getattr(error, "errno", None) in {errno.ENOSPC, errno.EDQUOT} or "No space left" in str(error)
        if not full and not _disk_is_full(output_dir):
            raise
        raise LoraExtError(
            f"the disk of output_dir {output_dir} is full ({type(error).__name__}); free some space and run the "
            "same command again: it goes on from the last whole checkpoint"
        ) from error


def _disk_is_full(output_dir: str) -> bool:
    from ..machine import free_disk_bytes

    return free_disk_bytes(Path(output_dir)) < 2**20


def _print_result(result: RunResult, recipe_file: str) -> None:
    """Print the closing tables: losses, samples, cost, and what to do next."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    facts, console = result.facts, Console()
    table = Table(title=f"{result.folder} ({result.status})", box=box.SIMPLE_HEAD, title_justify="left")
    for heading in ("", "base", "adapter"):
        table.add_column(heading, justify="left" if not heading else "right")
    for metric, value in facts.evaluation.get("adapter", {}).items():
        before = facts.evaluation.get("base", {}).get(metric)
        table.add_row(f"held-out {metric}", "" if before is None else f"{before:.3f}", f"{value:.3f}")
    console.print(table)
    for sample in facts.samples:
        shown = Table(box=box.SIMPLE, show_header=False, pad_edge=False)
        shown.add_column(style="bold")
        shown.add_column(overflow="fold")
        for name, text in (
            ("held out", sample.prompt),
            ("base", sample.base),
            ("adapter", sample.adapter),
            ("real", sample.reference),
        ):
            shown.add_row(name, _clipped(text))
        console.print(shown)
    for name, text in _cost_lines(result, recipe_file):
        console.print(f"{name:<22} {text}", highlight=False, soft_wrap=True)


def _clipped(text: str, lines: int = 8) -> str:
    from rich.markup import escape

    kept = text.strip().splitlines()
    return escape("\n".join(kept[:lines] + (["…"] if len(kept) > lines else [])))


def _program() -> str:
    """Return how this command was called, so that the next one can be pasted."""
    called = Path(sys.argv[0])
    if called.name != "hf-lora" or shutil.which("hf-lora") == str(called.absolute()):
        return "hf-lora"
    return os.path.relpath(called) if called.is_relative_to(Path.cwd()) or not called.is_absolute() else str(called)


def _cost_lines(result: RunResult, recipe_file: str) -> list[tuple[str, str]]:
    """Return what the run cost and left behind, and what to do next, as (name, text)."""
    run, adapter = result.facts.run, result.facts.adapter
    seconds = int(run.get("train_seconds", 0))
    peaks = ", ".join(
        f"{name.removesuffix('_gib').replace('_', ' ')} {value:g} GiB"
        for name, value in run.get("peak_memory", {}).items()
    )
    folder = result.folder
    return [
        (
            "training time",
            f"{seconds // 60}:{seconds % 60:02d} min for {run.get('steps')} steps, evaluations included",
        ),
        ("peak memory", peaks),
        ("trainable parameters", f"{adapter.get('trainable_parameters', 0):,}"),
        ("adapter size", f"{adapter.get('bytes', 0) / 2**20:.1f} MiB"),
        ("card and loss curve", f"{folder / 'README.md'}, {folder / 'loss_curve.png'}"),
        *([("on the Hub", f"{result.push.repo_id} at {result.push.commit}, verified")] if result.push else []),
        (
            "next, on your own data",
            f"{_program()} train {recipe_file} data.source=YOURS.jsonl output_dir=out/mine",
        ),
    ]
