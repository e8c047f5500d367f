"""`hf-lora rollback`: put an earlier version of an adapter back."""

from __future__ import annotations

import json
import sys

import click

from ..errors import PushError

__all__ = ["command"]

EPILOG = """
\b
Examples:
  hf-lora rollback me/docstrings v1 --dry-run
  hf-lora rollback me/docstrings v1 --yes

The files are copied on the Hub as a new commit: nothing is uploaded, and the versions between stay in the history.
Exit code 2: there is no such version, you declined, the Hub refused, or somebody else committed meanwhile.
"""


@click.command("rollback", epilog=EPILOG)
@click.argument("repo", metavar="OWNER/NAME")
@click.argument("version", metavar="TAG")
@click.option("--revision", default="main", show_default=True, help="Branch that gets the commit.")
@click.option("--message", help="Title of the commit.")
@click.option("--dry-run", is_flag=True, help="Show what would change, and stop.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON; do not ask.")
def command(
    repo: str, version: str, revision: str, message: str | None, dry_run: bool, yes: bool, as_json: bool
) -> None:
    """Put an earlier version of an adapter back as a new commit.

    TAG is a tag or a commit.
    """
    from ..push.rollbacks import rollback

    if not (yes or as_json or dry_run) and sys.stdin.isatty():
        planned = rollback(repo, version, revision=revision, dry_run=True)
        click.echo(f"{repo} {revision}: {len(planned.restored)} files back, {len(planned.deleted)} deleted")
        if planned.status != "already there" and not click.confirm(f"roll back to {version}?"):
            raise PushError("declined; nothing was written")
    done = rollback(repo, version, revision=revision, message=message, dry_run=dry_run)
    if as_json:
        click.echo(json.dumps(done.to_dict()))
        return
    for path in done.restored:
        click.echo(f"  back     {path}")
    for path in done.deleted:
        click.echo(f"  deleted  {path}")
    click.echo(f"{done.status}  {done.repo_id} at {done.commit}")
