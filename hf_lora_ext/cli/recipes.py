"""`hf-lora recipes`: the recipes that come with the package."""

from __future__ import annotations

import json

import click

from ..errors import ConfigError
from ..runs.declared import HardwareChoice
from ..runs.shipped import shipped_recipe, shipped_recipes, write_told

__all__ = ["command"]

EPILOG = """
\b
Examples:
  hf-lora recipes
  hf-lora recipes qlora_7b
  hf-lora recipes --json
  hf-lora init qlora_7b mine.yaml

Memory is our planner's estimate on the hardware that a recipe is written for. `hf-lora train NAME` runs one as it is,
`hf-lora init NAME` copies it. Exit code 2: there is no such recipe.
"""


@click.command("recipes", epilog=EPILOG)
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.option("--write", is_flag=True, help="Write recipes/README.md and each Memory: line, as `make recipes` does.")
def command(name: str | None, as_json: bool, write: bool) -> None:
    """List the recipes that come with the package, or show one."""
    if write:
        if name or as_json:
            raise ConfigError("--write is for all recipes and their page; leave NAME and --json out")
        _write()
    elif name is not None:
        shipped = shipped_recipe(name)
        text = shipped.file.read_text(encoding="utf8")
        click.echo(json.dumps(shipped.to_dict() | {"text": text}) if as_json else text, nl=as_json)
    elif as_json:
        click.echo(json.dumps([shipped.to_dict() for shipped in shipped_recipes()]))
    else:
        _print_table()


def _write() -> None:
    try:
        changed = write_told()
    except OSError as error:
        raise ConfigError(f"{error.filename} cannot be written ({error.strerror}); use a checkout of yours") from error
    for file in changed:
        click.echo(f"wrote {file}")


def _print_table() -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("recipe", "model", "trains", "rank", "for", "needs GiB"):
        right = heading in ("rank", "needs GiB")
        table.add_column(heading, overflow="fold", no_wrap=heading != "model", justify="right" if right else "left")
    for shipped in shipped_recipes():
        told = shipped.to_dict()
        needs = "" if told["needed_gib"] is None else f"{told['needed_gib']:.1f}"
        rank = "" if told["rank"] is None else str(told["rank"])
        trains = f"{told['trainer']} {told['method']}"
        table.add_row(told["name"], told["model"], trains, rank, _short(shipped.recipe.hardware), needs)
    Console().print(table)


def _short(declared: HardwareChoice | None) -> str:
    """Return declared hardware in a few characters."""
    if declared is None:
        return ""
    if declared.gpu_memory_gib is None:
        return f"CPU, {declared.host_gib:g} GiB"
    machines = f"{declared.machines}×" if declared.machines > 1 else ""
    return f"{machines}{declared.gpus}×{declared.gpu_memory_gib:g} GiB"
