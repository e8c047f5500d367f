"""The licence that a release goes under, and what it lacks of what the base's licence asks for."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from ..cards.licences import LICENCE_TERMS
from ..errors import ConfigError, nearest

__all__ = ["HUB_LICENCES", "Terms", "find_doubts", "find_missing", "licence_of_text", "notice_for"]

HUB_LICENCES: Final = frozenset(
    """
    afl-3.0 agpl-3.0 apache-2.0 apple-amlr apple-ascl artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0
    bigscience-openrail-m bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5
    cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0
    cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0
    cdla-permissive-2.0 cdla-sharing-1.0 creativeml-openrail-m deepfloyd-if-license ecl-2.0 epl-1.0 epl-2.0
    etalab-2.0 eupl-1.1 eupl-1.2 fair-noncommercial-research-license gemma gfdl gpl gpl-2.0 gpl-3.0 h-research
    intel-research isc lgpl lgpl-2.1 lgpl-3.0 lgpl-lr llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 lppl-1.3c mit
    mpl-2.0 ms-pl ncsa odbl odc-by ofl-1.1 open-mdw openmdw-1.0 openmdw-1.1 openrail openrail++ osl-3.0 other pddl
    postgresql unknown unlicense wtfpl zlib
    """.split()
)
"""The identifiers that a card may have (https://huggingface.co/docs/hub/repositories-licenses)."""


_FREE: Final = frozenset(
    "apache-2.0 mit bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear isc zlib unlicense wtfpl cc0-1.0 cc-by-4.0".split()
)
"""Licences that let changed works go under another one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """The licence that an adapter is published under."""

    id: str
    """The Hub's identifier."""
    name: str | None = None
    """Its name, where the identifier is `other`."""
    link: str | None = None
    """Where its text is, where the identifier is `other`."""

    def __post_init__(self) -> None:
        if self.id not in HUB_LICENCES:
            raise ConfigError(f"license {self.id!r} is no identifier of the Hub ({nearest(self.id, HUB_LICENCES)})")
        if self.id == "other" and not (self.name and self.link):
            raise ConfigError(
                "license other needs its name and a link to its text; give license_name= (--license-name) and "
                "license_link= (--license-link)"
            )

    def metadata(self) -> dict[str, str]:
        """Return the card's keys."""
        known = {"license": self.id, "license_name": self.name, "license_link": self.link}
        return {key: value for key, value in known.items() if value}


def notice_for(license: str) -> str | None:
    """Return the text of the NOTICE file that a licence asks for."""
    asked = LICENCE_TERMS.get(license)
    return asked.attribution + "\n" if asked else None


_OPENINGS: Final = (
    ("llama3.1", r"LLAMA 3\.1 COMMUNITY LICENSE"),
    ("llama3.2", r"LLAMA 3\.2 COMMUNITY LICENSE"),
    ("llama3.3", r"LLAMA 3\.3 COMMUNITY LICENSE"),
    ("llama4", r"LLAMA 4 COMMUNITY LICENSE"),
    ("llama3", r"META LLAMA 3 COMMUNITY LICENSE"),
    ("llama2", r"LLAMA 2 COMMUNITY LICENSE"),
    ("gemma", r"Gemma Terms of Use"),
    ("apache-2.0", r"Apache License\s+Version 2\.0"),
    ("mit", r"MIT License|Permission is hereby granted, free of charge, to any person"),
    ("bsd-3-clause", r"BSD 3-Clause"),
    ("cc-by-4.0", r"Creative Commons Attribution 4\.0 International"),
)


def licence_of_text(text: str) -> str | None:
    """Return the identifier of a licence's text, by its title, or None.

    >>> licence_of_text("MIT License, Copyright")
    'mit'
    """
    start = text[:3000]
    return next((name for name, title in _OPENINGS if re.search(title, start, re.IGNORECASE)), None)


def find_missing(license: str, repository: str, files: Iterable[str], card: str, notice: str) -> list[str]:
    """Return what a licence asks for and the release lacks, each with how to add it.

    Args:
        license: The Hub's identifier.
        repository: The repository's name, without its owner.
        files: The paths that go.
        card: The card's text.
        notice: The NOTICE file's text, or nothing.
    """
    if (asked := LICENCE_TERMS.get(license)) is None:
        return []
    missing = []
    if asked.name_prefix and not _begins(repository, asked.name_prefix):
        prefix = asked.name_prefix.replace(" ", "-")
        missing.append(f"a name that begins with {prefix} ({repository!r} does not): push to {prefix}-{repository}")
    if not any(path.partition(".")[0] in {"LICENSE", "LICENCE"} for path in files):
        missing.append(f"a copy of the agreement ({asked.agreement}): put it into the folder as LICENSE")
    if _plain(asked.attribution) not in _plain(notice):
        missing.append(f"a NOTICE file with the line {asked.attribution!r}")
    shown = asked.built_with or (asked.policy if license == "gemma" else None)
    if shown and shown not in card:
        missing.append(f"{shown!r} on the card: write it into README.md")
    return missing


def _plain(text: str) -> str:
    """Return a text without what differs between copies of one sentence: line breaks, and how © is written."""
    return " ".join(text.replace("©", "(c)").split())


def find_doubts(base: str, license: str | None, terms: Terms) -> list[str]:
    """Return what a licence may ask for that nobody here checks, one line each.

    Args:
        base: The base's name.
        license: The base's licence, where it is known.
        terms: What the adapter goes under.
    """
    if license in LICENCE_TERMS or (not license and terms.id in LICENCE_TERMS):
        return []
    if not license or license in {"other", "unknown"}:
        return [f"the licence of {base}: what it asks of an adapter was not checked"]
    if "rail" in license:
        return [
            f"the licence of {base}, {license}, forbids uses and asks to pass that on with a copy of it (sections 4, "
            "5): that was not checked"
        ]
    if license != terms.id and license not in _FREE:
        return [f"{base} is under {license} and the adapter goes under {terms.id}: whether it may was not checked"]
    return []


def _begins(name: str, words: str) -> bool:
    """Tell whether a name begins with words, whatever joins them."""
    plain = [text.lower().replace("-", "").replace("_", "").replace(" ", "") for text in (name, words)]
    return plain[0].startswith(plain[1])
