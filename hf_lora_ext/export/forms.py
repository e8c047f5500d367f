"""The forms that an adapter can leave in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ..errors import ConfigError, nearest

__all__ = ["FORMS", "Form", "parse_form"]

FORMS: Final = {
    "portable": "one rank, one scale, every layer present: what all engines load",
    "compact": "a rank for each layer, the smallest file: PEFT and engines that read patterns",
    "uniform:R": "cut to rank R everywhere by singular values, then as portable",
    "merged": "the whole model with the adapter in its weights",
}
"""Form → what it is."""


@dataclass(frozen=True, slots=True)
class Form:
    """A form, understood."""

    name: str
    """`portable`, `compact`, `uniform` or `merged`."""
    rank: int | None = None
    """The rank to cut to, of `uniform`."""

    def __str__(self) -> str:
        return self.name if self.rank is None else f"{self.name}:{self.rank}"


def parse_form(said: str) -> Form:
    """Return the form that a text names.

    >>> parse_form("uniform:8")
    Form(name='uniform', rank=8)

    Raises:
        ConfigError: If there is no such form.
    """
    name, colon, rank = said.partition(":")
    if name == "uniform":
        if rank.isascii() and rank.isdecimal() and int(rank) > 0:
            return Form(name, int(rank))
        raise ConfigError(f"form {said} needs a rank from 1, such as uniform:8")
    if name in FORMS and not colon:
        return Form(name)
    raise ConfigError(f"form {said!r} is not known; {nearest(said, FORMS)}")
