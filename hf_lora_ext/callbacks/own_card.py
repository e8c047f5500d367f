"""A card that its user wrote, kept while a trainer trains: trl 1.16 writes a README.md of its own at each save."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from ..cards.ownership import is_machine_made, your_text

__all__ = ["OwnCard", "is_own"]

CARD: Final = "README.md"
COPY: Final = "README.own.md"
"""Where the card lies meanwhile, so that a run that is killed right after trl wrote its own has it when it goes on."""


def is_own(card: Path) -> bool:
    """Return whether a file is a card that a person wrote, or wrote something in."""
    if not card.is_file():
        return False
    try:
        text = card.read_bytes().decode("utf8")
    except UnicodeDecodeError:
        return True
    return bool(text.strip()) and (not is_machine_made(text) or bool(your_text(text)))


class OwnCard:
    """The user's card of a folder, put back after each save.

    Args:
        folder: The trainer's output folder.
    """

    def __init__(self, folder: Path) -> None:
        self.card, self.copy = folder / CARD, folder / COPY
        if is_own(self.card):
            self.copy.write_bytes(self.card.read_bytes())

    def put_back_(self, *, is_over: bool = False) -> None:
        """Put the card back where a library has written over it; what its user wrote meanwhile stays.

        Args:
            is_over: Whether the training is, so that the copy is needed no more.
        """
        if self.copy.is_file() and not is_own(self.card):
            draft = self.copy.with_suffix(".draft")
            draft.write_bytes(self.copy.read_bytes())
            draft.replace(self.card)
        if is_over:
            self.copy.unlink(missing_ok=True)
