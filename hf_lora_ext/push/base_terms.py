"""What is known of an adapter's base when it is published: its id, its licence, and the texts that go along."""

from __future__ import annotations

import re
import shutil
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from .. import hub
from ..cards.facts import BaseModelFacts, Facts
from ..cards.licences import LICENCE_TERMS
from ..errors import ConfigError
from .release_card import card_metadata_of
from .release_terms import Terms, licence_of_text

__all__ = ["NOT_SAID", "copy_agreement", "find_base", "find_terms"]

_CACHED: Final = re.compile(r".*models--(?P<owner>[\w.-]+?)--(?P<name>[\w.-]+)[/\\]snapshots[/\\](?P<commit>\w{40})")
_HUB_ID: Final = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")
_AGREEMENT: Final = re.compile(r"(LICEN[SC]E|USE_POLICY)(\.(md|txt))?")
NOT_SAID: Final = Terms(id="unknown")
"""What is shown for a licence that a push would ask for."""


def find_base(config: Mapping[str, Any], facts: Facts | None) -> BaseModelFacts | None:
    """Return the base that a config names: by its Hub id where that is known, else by the last part of its path."""
    name = config.get("base_model_name_or_path")
    recorded = facts.base_model if facts else None
    if recorded and recorded.on_hub:
        return recorded
    if not isinstance(name, str) or not name:
        return recorded
    if cached := _CACHED.match(name):
        return BaseModelFacts(name=f"{cached['owner']}/{cached['name']}", on_hub=True, revision=cached["commit"])
    if not _HUB_ID.fullmatch(name) or Path(name).is_dir():
        last = re.split(r"[/\\]", name.rstrip("/\\"))[-1]
        return recorded if recorded and recorded.name == last else BaseModelFacts(name=last, on_hub=False)
    return BaseModelFacts(name=name, on_hub=True, revision=config.get("revision"))


def find_terms(
    base: BaseModelFacts | None,
    recorded: str | None,
    card: Mapping[str, Any],
    given: Mapping[str, str | None],
    token: str | None = None,
    allowed: Collection[str] = (),
    *,
    may_guess: bool = False,
) -> tuple[BaseModelFacts | None, Terms, hub.HubModel | None]:
    """Return the base with its licence, the terms that the adapter goes under, and what the Hub says of the base.

    Args:
        base: What the adapter's config tells.
        recorded: The path or id that the config names, as it is on this machine.
        card: The metadata of the folder's own card.
        given: What the user said: `license`, `license_name`, `license_link`.
        token: Hub token; the one that is logged in if left out.
        allowed: Names that may be published; a base of such a name need not be one that the token may see.
        may_guess: Whether the terms are `NOT_SAID`, and no error, where nobody says what the licence is.

    Raises:
        ConfigError: If nobody says what the licence is, or it is none of the Hub's, or the Hub shows no such base.
    """
    local = Path(recorded) if recorded and Path(recorded).is_dir() else None
    found: dict[str, Any] = dict(_local_terms(local)) if local else {}
    model = _looked_up(base, token, allowed) if base and base.on_hub else None
    if base and model is not None:
        base = replace(base, name=model.name)
        found = {"license": model.license, "license_name": model.license_name, "license_link": model.license_link}
    if base and base.license and not found.get("license"):
        found = {"license": base.license, "license_name": base.license_name, "license_link": base.license_link}
    first = next((said for said in (given, card, found) if said.get("license")), None)
    if first is None and may_guess:
        return base, NOT_SAID, model
    if first is None:
        who = base.name if base else "the base"
        raise ConfigError(f"nothing says what licence {who} has; give license= (--license), such as apache-2.0")
    terms = Terms(id=str(first["license"]), name=first.get("license_name"), link=first.get("license_link"))
    if base and not base.license and found.get("license"):
        base = replace(base, license=str(found["license"]))
    return base, terms, model


def _looked_up(base: BaseModelFacts, token: str | None, allowed: Collection[str]) -> hub.HubModel | None:
    try:
        return hub.find_model(base.name, base.revision, token)
    except ConfigError as error:
        if base.name in allowed:
            return None
        raise ConfigError(
            f"the adapter's base: {error}; where the name is right and may be public all the same, allow= (--allow) "
            f"{base.name}"
        ) from error


def _local_terms(folder: Path) -> dict[str, Any]:
    """Return what a model's folder says of its licence: its card, else the text beside it."""
    card = folder / "README.md"
    metadata = card_metadata_of(card.read_text(encoding="utf8")) if card.is_file() else {}
    if metadata.get("license"):
        return metadata
    texts = [file for file in sorted(folder.iterdir()) if file.is_file() and _AGREEMENT.fullmatch(file.name)]
    known = (licence_of_text(file.read_text(encoding="utf8", errors="replace")) for file in texts)
    license = next(filter(None, known), None)
    return {"license": license} if license else {}


def copy_agreement(
    base: BaseModelFacts | None, recorded: str | None, license: str, folder: Path, token: str | None = None
) -> list[str]:
    """Put the texts that the licence asks for into the release where it has none, and return their names."""
    if license not in LICENCE_TERMS or any(_AGREEMENT.fullmatch(file.name) for file in folder.iterdir()):
        return []
    if recorded and Path(recorded).is_dir():
        texts = [file for file in sorted(Path(recorded).iterdir()) if _AGREEMENT.fullmatch(file.name)]
    elif base and base.on_hub:
        texts = hub.download_texts(base.name, base.revision, _AGREEMENT, token)
    else:
        texts = []
    for file in texts:
        shutil.copyfile(file, folder / file.name)
    return [file.name for file in texts]
