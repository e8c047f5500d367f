"""`hf-lora card`: write or refresh an adapter's model card from the facts of its run."""

from __future__ import annotations

import json

import click

__all__ = ["command"]

EPILOG = """
\b
Examples:
  hf-lora card out/quickstart
  hf-lora card out/quickstart --language en --intended-use "Docstrings of Python functions."
  hf-lora card out/quickstart --template mine.md.jinja --json

FOLDER has the facts.json that a run left. What you write between the two marks in README.md stays; a card that was
written or edited elsewhere is kept beside the new one as README.kept.md, and the output says so. Exit code 2: something
given was wrong, in one line; nothing is written then.
"""


@click.command("card", epilog=EPILOG)
@click.argument("folder", type=click.Path())
@click.option("--template", metavar="FILE", type=click.Path(), help="A Jinja file in place of ours.")
@click.option("--language", "languages", metavar="CODE", multiple=True, help="ISO 639 code such as en; repeatable.")
@click.option("--intended-use", metavar="TEXT", help="What the adapter is for.")
@click.option("--limitations", metavar="TEXT", help="What it is not for, and where it fails.")
@click.option("--json", "as_json", is_flag=True, help="Print what was done as JSON.")
def command(
    folder: str,
    template: str | None,
    languages: tuple[str, ...],
    intended_use: str | None,
    limitations: str | None,
    as_json: bool,
) -> None:
    """Write or refresh the model card from a run's facts.

    Language, intended use and limitations are kept in facts.json, so they need to be said once.
    """
    from ..cards.card import refresh_card

    written = refresh_card(
        folder, template=template, language=languages, intended_use=intended_use, limitations=limitations
    )
    if as_json:
        kept = None if written.kept is None else str(written.kept)
        click.echo(json.dumps({"card": str(written.path), "changed": written.changed, "kept": kept}))
        return
    click.echo(f"{written.path} {'written' if written.changed else 'is as the facts say; nothing to do'}")
    if written.kept:
        click.echo(f"the card that was there, written or edited by hand, is now {written.kept}")
