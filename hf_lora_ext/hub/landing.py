"""Whether a commit landed: decided from what the repository holds, never from the answer to the call that made it.

A commit names its parent, so of several tries at most one can land. After an answer that was lost or says nothing, the
history since that parent tells: the first commit after it is ours if it holds our bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

__all__ = [
    "LONGEST_TRIES_SECONDS",
    "TRIES",
    "Landing",
    "RemoteFile",
    "differing",
    "first_after",
    "judge",
    "wait_seconds",
]

TRIES: Final = 5
"""How often a call is made before it counts as failed; the client's own downloads are as patient."""
LONGEST_TRIES_SECONDS: Final = 300.0
"""After how long a failed commit is not tried again; one try of hf_xet can take 360 s by itself."""
LONGEST_WAIT_SECONDS: Final = 60.0
"""The longest wait that a server may ask for before the push gives up and says so."""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file as the Hub lists it, or as it would list one of ours."""

    blob: str
    """Git's blob id; of a large file, of the pointer to it."""
    sha256: str | None = None
    """SHA-256 of the content, where the Hub stores the file as a large one."""

    def has_content_of(self, other: RemoteFile) -> bool:
        """Return whether both are the same bytes."""
        if self.sha256 and other.sha256:
            return self.sha256 == other.sha256
        return self.blob == other.blob


@dataclass(frozen=True, slots=True)
class Landing:
    """What became of a commit."""

    state: Literal["landed", "not there", "conflict"]
    """Whether the Hub holds it."""
    commit: str | None = None
    """The commit that landed, or the one in its way; None where the branch shows none at all."""

    def in_its_way(self, parent: str, revision: str) -> str:
        """Return what kept a commit on `parent` out, as the beginning of a sentence.

        >>> Landing("conflict", "b2").in_its_way("a1", "main")
        'somebody committed b2 on main after a1'
        """
        if self.commit is None:
            return f"{revision} shows no commit any more, and its head was {parent}"
        return f"somebody committed {self.commit} on {revision} after {parent}"


def differing(wanted: Mapping[str, RemoteFile | None], found: Mapping[str, RemoteFile]) -> list[str]:
    """Return the paths that are not as wanted; a file that is wanted as None must not be there.

    >>> differing({"a": RemoteFile("1"), "b": None}, {"a": RemoteFile("1"), "b": RemoteFile("2")})
    ['b']
    """
    return sorted(path for path, file in wanted.items() if not _agrees(file, found.get(path)))


def _agrees(wanted: RemoteFile | None, found: RemoteFile | None) -> bool:
    if wanted is None or found is None:
        return wanted is found
    return found.has_content_of(wanted)


def first_after(parent: str, history: Sequence[str]) -> str | None:
    """Return the commit that came right after `parent`.

    Args:
        parent: The head that was seen before.
        history: Commits, newest first.

    Returns:
        The commit; None where `parent` is still the head, or is no longer in the history (rewritten).
    """
    if parent not in history or history[0] == parent:
        return None
    return history[history.index(parent) - 1]


def judge(parent: str, history: Sequence[str], is_ours: bool) -> Landing:
    """Return what became of a commit on `parent`.

    Args:
        parent: The head that was seen before.
        history: Commits, newest first.
        is_ours: Whether the first commit after `parent` holds our bytes.
    """
    if history and history[0] == parent:
        return Landing("not there")
    after = first_after(parent, history)
    if after is not None and is_ours:
        return Landing("landed", after)
    return Landing("conflict", after or (history[0] if history else None))


def wait_seconds(attempt: int, asked: float | None, tries: int = TRIES) -> float | None:
    """Return how long to wait before another try, or None to give up.

    Args:
        attempt: Tries so far, from 1.
        asked: What the server asked for (`Retry-After`), in seconds.
        tries: How many there are.
    """
    if attempt >= tries or (asked is not None and asked > LONGEST_WAIT_SECONDS):
        return None
    return float(asked) if asked is not None else float(2 ** (attempt - 1))
