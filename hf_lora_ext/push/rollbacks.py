"""An earlier version of an adapter, put back as a new commit: copied on the Hub, nothing is uploaded or lost."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from ..errors import PushError
from ..hub.landing import RemoteFile
from ..hub.repository import Change, Repository
from .plan import MAIN

__all__ = ["RolledBack", "rollback"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RolledBack:
    """What a rollback did, or would do."""

    status: Literal["rolled back", "already there", "dry run"]
    """How it ended."""
    repo_id: str
    """Where."""
    to: str
    """The commit whose files are in force again."""
    commit: str
    """The head now."""
    restored: tuple[str, ...]
    """Files that were put back."""
    deleted: tuple[str, ...]
    """Files that the earlier version did not have."""

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON-ready values."""
        return {
            "status": self.status,
            "repo_id": self.repo_id,
            "to": self.to,
            "commit": self.commit,
            "restored": list(self.restored),
            "deleted": list(self.deleted),
        }


def rollback(
    repo_id: str,
    to: str,
    *,
    revision: str = MAIN,
    token: str | None = None,
    dry_run: bool = False,
    message: str | None = None,
) -> RolledBack:
    """Put an earlier version's files back as a new commit; the versions between stay in the history.

    Args:
        repo_id: `owner/name`.
        to: Tag or commit of the version.
        revision: Branch that gets the commit.
        token: Hub token; the one that is logged in if left out.
        dry_run: Say what would be done, and stop.
        message: Title of the commit.

    Raises:
        PushError: If there is no such version, the Hub refuses, or somebody committed meanwhile.
    """
    repository = Repository.at(repo_id, token)
    head, target = repository.head(revision), repository.head(to)
    if head is None:
        raise PushError(f"there is no {repo_id} at {revision} that you may see; check id, branch and token")
    if target is None:
        tags = ", ".join(sorted(repository.tags())) or "none"
        raise PushError(f"there is no {repo_id} at {to} that you may see; give a commit or one of its tags: {tags}")
    now, then = repository.files(head), repository.files(target)
    wanted: dict[str, RemoteFile | None] = {path: then.get(path) for path in now.keys() | then.keys()}
    restored = tuple(sorted(p for p, file in then.items() if p not in now or not now[p].has_content_of(file)))
    deleted = tuple(sorted(now.keys() - then.keys()))
    done = RolledBack(status="dry run", repo_id=repo_id, to=target, commit=head, restored=restored, deleted=deleted)
    if not restored and not deleted:
        return replace(done, status="already there")
    if dry_run:
        return done
    landed = repository.commit_once(
        Change(copied=restored, copied_from=target, deleted=deleted),
        wanted,
        parent=head,
        revision=revision,
        message=message or f"Roll back to {to}",
    )
    return replace(done, status="rolled back", commit=landed.commit)
