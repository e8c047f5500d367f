"""`hf-lora push`: publish an adapter on the Hub."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import click

from ..errors import PushError
from .quiet import quieten_downloads

if TYPE_CHECKING:
    from ..push.plan import PushPlan, PushResult

__all__ = ["command"]

EPILOG = """
\b
Examples:
  hf-lora push out/quickstart me/docstrings --dry-run
  hf-lora push out/quickstart me/docstrings --private --tag v1
  hf-lora push out/sql team/sql --create-pr --license apache-2.0 --yes

FOLDER holds an adapter, such as a finished run; a bare NAME is one in your own account. Log in first: `hf auth login`,
or set HF_TOKEN; --dry-run needs neither. Only what an adapter needs goes. The same command again finishes a push that
was interrupted. Exit code 2: something given was wrong, would leak, you declined, or the Hub refused.
"""


@click.command("push", epilog=EPILOG)
@click.argument("folder", type=click.Path())
@click.argument("repo", metavar="OWNER/NAME")
@click.option("--private/--public", default=None, help="Visibility of a new repository; else your account's default.")
@click.option("--revision", help="Branch; main if left out.")
@click.option("--create-pr", is_flag=True, help="Make a pull request.")
@click.option("--tag", help="Name that the commit gets once it is verified.")
@click.option("--license", metavar="ID", help="The adapter's licence by its Hub identifier; else the base's.")
@click.option("--license-name", help="Its name, where --license is other.")
@click.option("--license-link", help="Where its text is, where --license is other.")
@click.option(
    "--allow",
    multiple=True,
    metavar="WORD",
    help="A login, host, dataset, base or path that may be public; repeatable.",
)
@click.option("--message", help="Title of the commit.")
@click.option("--no-verify", is_flag=True, help="Do not download and compare what landed.")
@click.option("--dry-run", is_flag=True, help="Show what would go where, and stop.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on standard output; do not ask.")
def command(folder: str, repo: str, no_verify: bool, yes: bool, as_json: bool, **given: Any) -> None:
    """Publish an adapter on the Hub, checked before and verified after."""
    from ..push.push import push_adapter

    quieten_downloads()

    def confirm(plan: PushPlan) -> bool:
        if as_json:
            return True
        click.echo(plan.explain())
        return yes or not sys.stdin.isatty() or click.confirm("push this?")

    result = push_adapter(folder, repo, verify=not no_verify, confirm=confirm, say=_say, **given)
    if result.status == "declined":
        raise PushError("declined; nothing was written")
    if as_json:
        click.echo(json.dumps(result.to_dict()))
    else:
        _print(result)


def _say(line: str) -> None:
    click.echo(line, err=True)


def _print(result: PushResult) -> None:
    if result.status == "dry run" and result.plan:
        click.echo(result.plan.explain())
    verified = ", verified" if result.is_verified else ""
    tagged = f", tag {result.tag}" if result.tag else ""
    at = f": {result.pull_request or result.commit}" if result.commit else ""
    click.echo(f"{result.status}  {result.repo_id}{at}{verified}{tagged}")
