"""`hf-lora export`: an adapter in the form that an inference engine loads."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from .quiet import quieten_libraries

if TYPE_CHECKING:
    from ..export.export import Exported

__all__ = ["command", "report"]

EPILOG = """
\b
Examples:
  hf-lora export out/sql out/sql-portable --for sglang
  hf-lora export out/sql out/sql-compact --as compact
  hf-lora export out/sql out/sql-r8 --as uniform:8 --json

Forms: portable (one rank, one scale, every layer present; all engines), compact (a rank for each layer, the smallest;
PEFT and vLLM), uniform:R (cut to rank R, then as portable), merged (the whole model; see hf-lora merge). Engines: vllm,
sglang, lorax, tgi, llama.cpp. What was written is loaded and compared with the adapter as it was trained, where the
base's weights are here. Exit code 2: something given was wrong, the form cannot hold the adapter, the engine would not
load it, or it answers otherwise; nothing is written then.
"""


@click.command("export", epilog=EPILOG)
@click.argument("adapter", type=click.Path())
@click.argument("out", type=click.Path())
@click.option("--as", "form", metavar="FORM", help="portable, compact, uniform:R or merged; else what --for loads.")
@click.option("--for", "engine", metavar="ENGINE", help="The engine that must load it; prints how to serve it.")
@click.option("--base", metavar="MODEL", help="Folder or Hub id of the base, where it is not the one recorded.")
@click.option("--dtype", metavar="DTYPE", help="Of merged: bfloat16, float16 or float32; else the base's own.")
@click.option("--no-check", is_flag=True, help="Do not load it and compare its answers.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on standard output.")
def command(adapter: str, out: str, no_check: bool, as_json: bool, **given: Any) -> None:
    """Write an adapter in the form that an inference engine loads."""
    from ..export.export import export_adapter

    quieten_libraries()
    report(export_adapter(adapter, given.pop("form"), out, check=not no_check, **given), as_json)


def report(exported: Exported, as_json: bool) -> None:
    """Print what was written."""
    if as_json:
        click.echo(json.dumps(exported.to_dict()))
        return
    rank = f", rank {exported.rank}" if exported.rank else ""
    click.echo(f"{exported.form}  {exported.folder}{rank}, {exported.size_bytes / 2**20:.1f} MiB")
    if exported.energy_lost is not None:
        click.echo(f"lost      {exported.energy_lost:.2%} of the update's energy (squared singular values)")
    if exported.largest_difference is not None:
        click.echo(
            f"answers   largest difference {exported.largest_difference:.2g} from the trained adapter's, "
            f"whose largest is {exported.largest_answer:.3g}"
        )
    for note in exported.notes:
        click.echo(f"note      {note}")
    if exported.serve:
        click.echo(f"serve     {exported.serve}")
