"""The adapter's model card, rendered from facts alone.

What is unknown has no section: there are no placeholders. The template is `model_cards/adapter.md.jinja`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from ..resources import shipped_folder
from . import markdown
from .facts import Facts, StatedFacts, read_facts, redact, write_text_atomically
from .metadata import LANGUAGE, card_metadata
from .ownership import is_machine_made, sealed, text_block, your_text
from .view import card_view

if TYPE_CHECKING:
    from jinja2 import Template

__all__ = ["CardWritten", "card_metadata", "refresh_card", "render_card", "write_card"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class CardWritten:
    """What became of a folder's card."""

    path: Path
    """The card."""
    changed: bool
    """Whether it reads differently now."""
    kept: Path | None
    """Where a card that somebody had written or edited is now; None where there was none."""


def render_card(facts: Facts | Mapping[str, Any], template: str | Path | None = None, your_text: str = "") -> str:
    """Return the README.md text of an adapter.

    Args:
        facts: The run's facts, as `Facts` or as read from `facts.json`.
        template: A Jinja file to use in place of ours; it is given what ours is given.
        your_text: Markdown of the author's own, which stands between two marks.

    Raises:
        ConfigError: If a mapping holds no facts of this schema, or the template cannot be read or rendered.
    """
    from jinja2 import TemplateError

    known = Facts.from_dict(facts.to_dict() if isinstance(facts, Facts) else facts)  # unknown facts drop out
    source = shipped_folder("model_cards") / "adapter.md.jinja" if template is None else Path(template)
    block = text_block(your_text)
    try:
        card = _compiled(source.read_text(encoding="utf8")).render(**card_view(known), your_text=block)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"template {source}: {error}; give a Jinja file in UTF-8") from error
    except TemplateError as error:
        line = f", line {number}" if (number := getattr(error, "lineno", None)) else ""
        raise ConfigError(f"template {source}{line}: {error}; mend it, or start from our adapter.md.jinja") from error
    except Exception as error:  # a template can divide by zero, recurse for ever, include a file
        if template is None:
            raise
        raise ConfigError(
            f"template {source}: {type(error).__name__}: {error}; mend it, or start from our adapter.md.jinja"
        ) from error
    if block not in card:  # a template of the user's own that says nothing of it
        card = f"{card.rstrip()}\n\n{block}\n"
    return sealed(card.encode("utf8", "replace").decode("utf8"))


@lru_cache(maxsize=8)
def _compiled(source: str) -> Template:
    """Return a template; one run renders its card several times, and compiling takes most of that."""
    from jinja2 import StrictUndefined
    from jinja2.sandbox import SandboxedEnvironment

    environment = SandboxedEnvironment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, autoescape=False
    )
    environment.filters |= {name: getattr(markdown, name) for name in markdown.__all__}
    return environment.from_string(source)


def write_card(
    folder: str | Path,
    *,
    template: str | Path | None = None,
    language: str | Sequence[str] | None = None,
    intended_use: str | None = None,
    limitations: str | None = None,
) -> Path:
    """Write `README.md` from the `facts.json` in a folder, and return its path.

    It replaces the card that peft, trl or we wrote there and carries on the text between its marks. A card that was
    written or edited by hand is first copied to `README.kept.md`, which is logged.

    Args:
        folder: Where `facts.json` is.
        template: A Jinja file to use in place of ours.
        language: Languages of the adapter, such as `en`; kept in the facts, like the two below.
        intended_use: What the adapter is for, in paragraphs of plain text.
        limitations: What it is not for, and where it fails, likewise.

    Raises:
        ConfigError: If the folder has no facts of this schema, a language is no ISO 639 code, or the template is wrong.

    Example::

        write_card("out", language="en", intended_use="Docstrings of Python functions.")
    """
    written = refresh_card(
        folder, template=template, language=language, intended_use=intended_use, limitations=limitations
    )
    if written.kept:
        logger.warning(
            "%s was written or edited by hand: it is now %s; text between the marks in the new card stays there",
            written.path.name,
            written.kept,
        )
    return written.path


def refresh_card(
    folder: str | Path,
    *,
    template: str | Path | None = None,
    language: str | Sequence[str] | None = None,
    intended_use: str | None = None,
    limitations: str | None = None,
) -> CardWritten:
    """Do what `write_card` does, and return what became of the old card.

    Raises:
        ConfigError: As `write_card` does; nothing is written then.
    """
    card, file = Path(folder) / "README.md", Path(folder) / "facts.json"
    facts = read_facts(file)
    told = _stated(facts, language, intended_use, limitations)
    old = _text_of(card)
    new = render_card(told, template, your_text(old or ""))
    if told != facts:
        write_text_atomically(file, told.to_json())
    if old == new:
        return CardWritten(path=card, changed=False, kept=None)
    kept = None if old is None or is_machine_made(old) else _keep(card, old)
    write_text_atomically(card, new)
    return CardWritten(path=card, changed=True, kept=kept)


def _text_of(card: Path) -> str | None:
    if not card.exists():
        return None
    try:
        return card.read_bytes().decode("utf8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{card} cannot be read ({error}); save it as UTF-8 text, or move it away") from error


def _keep(card: Path, text: str) -> Path:
    """Copy a card to the first free name, and return it; what has been kept already is not kept twice."""
    number = 1
    while True:
        kept = card.with_name(f"README.kept{'' if number == 1 else f'-{number}'}.md")
        if not kept.exists() or kept.read_bytes() == text.encode("utf8"):
            write_text_atomically(kept, text)
            return kept
        number += 1


def _stated(
    facts: Facts, language: str | Sequence[str] | None, intended_use: str | None, limitations: str | None
) -> Facts:
    """Return the facts with what the author says now, in place of what was said before."""
    languages = (language,) if isinstance(language, str) else tuple(language or ())
    for code in languages:
        if not LANGUAGE.fullmatch(code):
            raise ConfigError(f"language {code!r} is none that the Hub knows; give ISO 639 codes such as en or deu")
    said = {"language": languages, "intended_use": intended_use, "limitations": limitations}
    said = {name: value for name, value in said.items() if value}
    if not said:
        return facts
    folders = [str(Path.home()), str(Path.cwd())]
    return replace(facts, stated=replace(facts.stated or StatedFacts(), **redact(said, folders)))
