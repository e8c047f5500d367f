"""`hf-lora merge`: the whole model with the adapter in its weights."""

from __future__ import annotations

import click

from .quiet import quieten_libraries

__all__ = ["command"]

EPILOG = """
\b
Examples:
  hf-lora merge out/sql out/sql-model
  hf-lora merge out/sql out/sql-model --base meta-llama/Llama-2-7b-hf --dtype bfloat16

The weights are added in float32 and written one file after the other, so that no more than a file is in memory; the
comparison needs the base in float32, and is left out where it does not fit. An adapter that was trained on 4-bit
weights goes into the unquantised ones. Exit code 2: something given was wrong, the base is
packed or not here, or the model answers otherwise than the trained adapter; nothing is written then.
"""


@click.command("merge", epilog=EPILOG)
@click.argument("adapter", type=click.Path())
@click.argument("out", type=click.Path())
@click.option("--base", metavar="MODEL", help="Folder or Hub id of the base, where it is not the one recorded.")
@click.option("--dtype", metavar="DTYPE", help="bfloat16, float16 or float32; else the base's own.")
@click.option("--no-check", is_flag=True, help="Do not load both and compare their answers.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on standard output.")
def command(adapter: str, out: str, base: str | None, dtype: str | None, no_check: bool, as_json: bool) -> None:
    """Write the whole model with an adapter in its weights."""
    from ..export.export import export_adapter
    from .export import report

    quieten_libraries()
    report(export_adapter(adapter, "merged", out, base=base, dtype=dtype, check=not no_check), as_json)
