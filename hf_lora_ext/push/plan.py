"""A push as plain values: what was asked for, what it does, what it left."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from ..errors import ConfigError
from .release import LeftOut

__all__ = ["MAIN", "MESSAGE", "PushPlan", "PushRequest", "PushResult"]

MAIN: Final = "main"
"""The Hub's default branch."""
MESSAGE: Final = "Push adapter"
"""Title of a commit, where none is given."""
_REFERENCE: Final = re.compile(r"(?!.*(//|\.\.|/\.|\.lock(/|$)))\w[\w./-]*(?<![./])")
"""A branch or tag: of what git allows (git-check-ref-format), what needs no quotes anywhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PushRequest:
    """What was asked for, checked as far as it can be without the Hub."""

    repo_id: str
    """`owner/name`, or a name in the token's own account."""
    private: bool | None = None
    """Whether a new repository is private; None leaves it to the account's default."""
    revision: str = MAIN
    """Branch."""
    create_pr: bool = False
    """Whether it becomes a pull request."""
    tag: str | None = None
    """Name that the commit gets, once it is verified."""
    message: str = MESSAGE
    """Title of the commit."""
    verify: bool = True
    """Whether what landed is downloaded and compared."""
    terms: Mapping[str, str | None] = field(default_factory=dict)
    """`license`, `license_name`, `license_link`."""
    allow: tuple[str, ...] = ()
    """Logins, hosts, dataset ids, a private base's id and paths that may be published all the same."""

    def command(self, folder: Path) -> str:
        """Return the command that pushes the same from a folder."""
        given = {
            "--private": self.private is True,
            "--public": self.private is False,
            "--revision": self.revision if self.revision != MAIN else None,
            "--create-pr": self.create_pr,
            "--tag": self.tag,
            "--message": self.message if self.message != MESSAGE else None,
            "--no-verify": not self.verify,
            **{f"--{name.replace('_', '-')}": value for name, value in self.terms.items()},
        }
        words = [str(folder), self.repo_id]
        for option, value in given.items():
            words += [option] if value is True else [option, value] if value else []
        for word in self.allow:
            words += ["--allow", word]
        return shlex.join(["hf-lora", "push", *words])

    def __post_init__(self) -> None:
        if self.create_pr and (self.revision != MAIN or self.tag):
            raise ConfigError("create_pr goes to main and has no tag; leave revision and tag out, tag it once merged")
        for kind, name, such in (("tag", self.tag, "v1"), ("revision", self.revision, "main or trial-2")):
            if name and not _REFERENCE.fullmatch(name):
                what = "tag" if kind == "tag" else "branch"
                raise ConfigError(
                    f"{kind} {name!r} is no name of a {what}; use letters, digits, dots and dashes, such as {such}"
                )
        if self.tag and not self.verify:
            raise ConfigError("a tag says that the push was verified; leave verify=False or the tag out")


@dataclass(frozen=True, slots=True, kw_only=True)
class PushPlan:
    """What a push does, before it does it."""

    repo_id: str
    """Where it goes."""
    revision: str
    """Branch."""
    is_private: bool | None
    """Whether the repository is private; None where it is new and the account's default decides."""
    is_new: bool | None
    """Whether the repository is made by this push; None where the Hub was not asked."""
    files: Mapping[str, int]
    """Path → bytes, of what goes."""
    unchanged: tuple[str, ...]
    """Those that the Hub holds already."""
    outdated: tuple[str, ...]
    """Files of an earlier version that this one deletes, because it has none of the name."""
    left_out: tuple[LeftOut, ...]
    """What stays where it is."""
    changes: tuple[str, ...]
    """What was cut or added, one line each."""
    doubts: tuple[str, ...]
    """What could not be checked, one line each."""
    allowed: tuple[str, ...]
    """Names that would have stopped the push, and were allowed."""
    license: str
    """The licence's identifier."""
    base: str | None
    """The base, with its revision where known, and whether it is gated."""
    parameters: int
    """Numbers in the adapter."""
    as_pull_request: bool
    """Whether it becomes a pull request."""
    tag: str | None
    """Name that the commit gets."""
    unasked: str | None = None
    """Why the Hub was not asked about the repository, in a dry run; None where it was."""

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON-ready values."""
        return {
            "repo_id": self.repo_id,
            "revision": self.revision,
            "private": self.is_private,
            "new_repository": self.is_new,
            "files": dict(self.files),
            "unchanged": list(self.unchanged),
            "outdated": list(self.outdated),
            "left_out": {left.path: left.reason for left in self.left_out},
            "changes": list(self.changes),
            "doubts": list(self.doubts),
            "allowed": list(self.allowed),
            "license": self.license,
            "base": self.base,
            "parameters": self.parameters,
            "pull_request": self.as_pull_request,
            "tag": self.tag,
            "unasked": self.unasked,
        }

    def explain(self) -> str:
        """Return the plan as text."""
        seen = {True: "private", False: "public", None: "as your account's default has it"}[self.is_private]
        state = "not looked at" if self.unasked else f"{'new, ' if self.is_new else ''}{seen}"
        where = f"{self.repo_id} ({state}), {self.revision}"
        lines = [f"to       {where}{', as a pull request' if self.as_pull_request else ''}"]
        lines += [f"base     {self.base or 'unknown'}", f"licence  {self.license}"]
        lines += [f"tag      {self.tag}, once verified"] if self.tag else []
        lines += [
            f"goes     {sum(self.files.values()):,} bytes in {len(self.files)} files, {self.parameters:,} numbers"
        ]
        for path, size in self.files.items():
            lines.append(f"  {size:>13,}  {path}{'  (there already)' if path in self.unchanged else ''}")
        lines += ["stays"] * bool(self.left_out) + [f"  {left.path}: {left.reason}" for left in self.left_out]
        lines += ["deleted"] * bool(self.outdated) + [f"  {path}: of an earlier version" for path in self.outdated]
        lines += ["changed"] * bool(self.changes) + [f"  {change}" for change in self.changes]
        lines += ["allowed"] * bool(self.allowed) + [f"  {word}" for word in self.allowed]
        lines += ["unknown"] * bool(self.doubts) + [f"  {doubt}" for doubt in self.doubts]
        if self.unasked:
            lines += [
                f"not checked, because {self.unasked}",
                f"  whether {self.repo_id} is there, who sees it, and whether you may write to it",
                f"  which of these files it holds already{', and whether the tag is free' if self.tag else ''}",
            ]
        return "\n".join(lines)


@dataclass(frozen=True, slots=True, kw_only=True)
class PushResult:
    """What a push left on the Hub."""

    status: Literal["pushed", "already there", "dry run", "declined", "left to the main process"]
    """How it ended; `already there` made no new commit."""
    repo_id: str
    """Where."""
    plan: PushPlan | None = None
    """What was to be done."""
    commit: str | None = None
    """The commit that holds the adapter."""
    pull_request: str | None = None
    """Address of the pull request."""
    is_verified: bool = False
    """Whether it was downloaded, compared with what was sent, and loaded by peft."""
    checked: tuple[str, ...] = ()
    """What was compared: `bytes` and `peft`; of a model in memory also `weights`, and `answers` where it can answer."""
    tag: str | None = None
    """The tag that it has now."""

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON-ready values."""
        return {
            "status": self.status,
            "repo_id": self.repo_id,
            "commit": self.commit,
            "pull_request": self.pull_request,
            "verified": self.is_verified,
            "checked": list(self.checked),
            "tag": self.tag,
            "plan": self.plan.to_dict() if self.plan else None,
        }
