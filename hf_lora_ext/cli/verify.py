"""`hf-lora verify`: check an adapter that is on the Hub."""

from __future__ import annotations

import json

import click

from .quiet import quieten_downloads

__all__ = ["command"]

EPILOG = """
\b
Examples:
  hf-lora verify me/docstrings
  hf-lora verify me/docstrings --revision v1 --folder out/quickstart --json

Downloads it into an empty cache, compares every file with the Hub's own checksum, and loads it with peft. Exit code 2:
it is not there, a byte differs, or it is no whole adapter.
"""


@click.command("verify", epilog=EPILOG)
@click.argument("repo", metavar="OWNER/NAME")
@click.option("--revision", help="Branch, tag or commit; main if left out.")
@click.option("--folder", type=click.Path(), help="A local folder whose weights must be the same.")
@click.option("--json", "as_json", is_flag=True, help="Print what was checked as JSON.")
def command(repo: str, revision: str | None, folder: str | None, as_json: bool) -> None:
    """Check that an adapter on the Hub is whole and loads."""
    from ..push.verification import verify_push

    quieten_downloads()
    checked = verify_push(repo, revision, folder)
    if as_json:
        click.echo(json.dumps(checked.to_dict()))
        return
    for path, sha256 in checked.files.items():
        click.echo(f"{sha256}  {path}")
    click.echo(f"verified  {checked.repo_id} at {checked.commit}: {checked.parameters:,} numbers, loaded by peft")
