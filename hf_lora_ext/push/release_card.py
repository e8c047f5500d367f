"""The card that goes with a release: whose it is, what its metadata must say, and what is wrong with it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from ..cards.card import render_card
from ..cards.facts import BaseModelFacts, Facts
from ..cards.ownership import is_machine_made, resealed, your_text
from ..errors import ConfigError
from ..strict_yaml import dump_yaml, read_yaml

__all__ = ["base_metadata", "card_for", "card_metadata_of", "card_problems", "tags_without_paths", "with_metadata"]

_HEADER: Final = re.compile(r"\A\s*---\r?\n(?P<yaml>.*?)^---[ \t]*\r?$\n?", re.DOTALL | re.MULTILINE)
_HUB_ID: Final = re.compile(r"[\w][\w.-]*(/[\w][\w.-]*)?")
_BASE_TAG: Final = re.compile(r"base_model:(?:adapter:)?(?P<base>.+)")
_PLACEHOLDER: Final = re.compile(
    r"More Information Needed|fine-tuned version of \[?None\]?|^base_model: None", re.MULTILINE
)


def card_for(own: str | None, facts: Facts, *, is_of_a_run: bool) -> tuple[str, str]:
    """Return the card's text, and where it is from.

    Args:
        own: The folder's README.md; what a person wrote in it is kept.
        facts: What the card would be made from.
        is_of_a_run: Whether they are a run's; else they are what adapter and base tell by themselves.
    """
    if own is not None and not is_machine_made(own):
        return own, "the folder's own README.md"
    card = render_card(facts, your_text=your_text(own or ""))
    return card, "facts.json" if is_of_a_run else "the adapter's config alone; train with FactsCallback for a full one"


def card_metadata_of(card: str) -> dict[str, Any]:
    """Return the metadata block of a card; a card without one has none.

    Raises:
        ConfigError: If the block is not valid YAML.
    """
    match = _HEADER.match(card)
    read = read_yaml(match["yaml"], "README.md's metadata") if match else None
    if read is not None and not isinstance(read, dict):
        raise ConfigError("README.md's metadata is no mapping of keys to values; write it as `license: mit`")
    return read or {}


def with_metadata(card: str, wanted: Mapping[str, Any]) -> tuple[str, list[str]]:
    """Return the card with the metadata that must be there, and what was changed.

    Args:
        card: The card's text.
        wanted: Key → value; None takes the key away. A card that agrees keeps every byte.

    Raises:
        ConfigError: If its metadata is not valid YAML.
    """
    found = card_metadata_of(card)
    changes = [key for key, value in wanted.items() if found.get(key) != value]
    if not changes:
        return card, []
    merged = {key: value for key, value in (found | dict(wanted)).items() if value is not None}
    match = _HEADER.match(card)
    body = card[match.end() :] if match else "\n" + card
    amended = f"---\n{dump_yaml(merged)}---\n{body}"
    return resealed(amended) if is_machine_made(card) else amended, sorted(changes)


def base_metadata(base: BaseModelFacts | None) -> dict[str, Any]:
    """Return what the metadata must say of the base: its Hub id, never a path."""
    if base is None or not base.on_hub:
        return {"base_model": None, "base_model_relation": None}
    return {"base_model": base.name, "base_model_relation": "adapter"}


def tags_without_paths(card: str) -> dict[str, Any]:
    """Return the card's tags where peft has put a local base's path into one of them, without that one.

    `save_pretrained` of peft 0.21 writes `base_model:adapter:` and the path into whatever card is there; the Hub makes
    that tag of `base_model` by itself.
    """
    tags = card_metadata_of(card).get("tags")
    if not isinstance(tags, list):
        return {}
    kept = [tag for tag in tags if not (found := _BASE_TAG.fullmatch(str(tag))) or _HUB_ID.fullmatch(found["base"])]
    return {"tags": kept or None} if kept != tags else {}


def card_problems(card: str) -> list[str]:
    """Return what the Hub would refuse, or a reader should not be shown."""
    problems = []
    metadata = card_metadata_of(card)
    bases = metadata.get("base_model")
    for base in bases if isinstance(bases, list) else [bases] if bases else []:
        if not _HUB_ID.fullmatch(str(base)):
            problems.append(f"README.md's base_model {base!r} is no Hub id such as owner/name; correct or remove it")
    if "licence" in metadata:
        problems.append("README.md's metadata has the key licence, the Hub reads license; rename it")
    if _PLACEHOLDER.search(card):
        problems.append("README.md has placeholders; fill them in or remove them")
    return problems
