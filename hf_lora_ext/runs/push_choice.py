"""Where a recipe publishes its adapter: its section, and what is wrong with one. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from .recipe_rules import FROM_1, SWITCH, TEXT, Rule, find_problems, is_names

__all__ = ["PushChoice", "push_problems"]

_RULES: Final = {
    "repo": TEXT,
    "every_saves": FROM_1,
    "private": SWITCH,
    "revision": TEXT,
    "tag": TEXT,
    "license": TEXT,
    "license_name": TEXT,
    "license_link": TEXT,
    "allow": Rule(is_names, "a list of names and paths that may be public"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PushChoice:
    """Where the adapter is published. The token is never a recipe's: it is the one that is logged in."""

    repo: str
    """`owner/name` on the Hub; a bare name is one in your own account."""
    every_saves: int | None = None
    """Push every so many checkpoints too; the finished run is always pushed."""
    private: bool | None = None
    """Whether a new repository is private; the account's default decides otherwise."""
    revision: str | None = None
    """Branch."""
    tag: str | None = None
    """Name that the finished run's commit gets once it is verified."""
    license: str | None = None
    """The adapter's licence by its Hub identifier; else the base's."""
    license_name: str | None = None
    """Its name, where `license` is `other`."""
    license_link: str | None = None
    """Where its text is, where `license` is `other`."""
    allow: tuple[str, ...] = ()
    """Logins, hosts, dataset ids, a private base's id and paths that may be published, word for word."""

    @property
    def arguments(self) -> dict[str, Any]:
        """What every push of the run is given."""
        names = ("private", "revision", "license", "license_name", "license_link", "allow")
        return {name: getattr(self, name) for name in names}


def push_problems(push: Mapping[str, Any]) -> list[str]:
    """Return every problem of a raw `push` section, one line each."""
    secret = "push.token: a recipe is shared, so it holds no token; log in with `hf auth login`, or set HF_TOKEN"
    told = {key: value for key, value in push.items() if key != "token"}
    return [secret] * ("token" in push) + find_problems(told, _RULES, required=("repo",), prefix="push.")
