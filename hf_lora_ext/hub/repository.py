"""One model repository that is written to: each call as the Hub has it, and the one commit that lands exactly once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

from ..errors import PushError
from .failures import Failure, Result, failure_of, patiently
from .landing import LONGEST_TRIES_SECONDS, TRIES, Landing, RemoteFile, differing, first_after, judge, wait_seconds

if TYPE_CHECKING:
    from huggingface_hub import HfApi

__all__ = ["Account", "Change", "Landed", "Repository", "is_public_dataset", "stored_token"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """Who the token belongs to."""

    name: str
    """User."""
    organizations: Mapping[str, str | None]
    """Their organisations → their role in each: read, contributor, write or admin."""
    role: str | None
    """The token's role: read, write or fineGrained."""
    token: Mapping[str, Any] = field(default_factory=dict)
    """What the Hub says of the token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Landed:
    """A commit that the Hub holds."""

    commit: str
    """Its id."""
    pull_request: str | None = None
    """Address of the pull request, where it is one."""
    is_new: bool = True
    """Whether this call made it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What a commit does to the files."""

    added: Mapping[str, Path] = field(default_factory=dict)
    """Path in the repository → local file."""
    copied: tuple[str, ...] = ()
    """Paths that become what they were at `copied_from`."""
    copied_from: str | None = None
    """A commit of the repository."""
    deleted: tuple[str, ...] = ()
    """Paths that go."""

    def operations(self, wanted: Mapping[str, RemoteFile | None]) -> list[Any]:
        """Return the client's operations, anew: it marks those that it was given.

        Args:
            wanted: What the files are afterwards, so that the client need not read them through for their SHA-256.
        """
        from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete

        added = [CommitOperationAdd(path, str(file)) for path, file in self.added.items()]
        for operation in added:
            if (known := wanted.get(operation.path_in_repo)) is not None and known.sha256:
                operation.upload_info.sha256 = bytes.fromhex(known.sha256)
        return [
            *added,
            *(CommitOperationCopy(path, path, src_revision=self.copied_from) for path in self.copied),
            *(CommitOperationDelete(path, is_folder=False) for path in self.deleted),
        ]


@dataclass(frozen=True, slots=True)
class Repository:
    """A model repository on the Hub, under one token."""

    api: HfApi
    """The client."""
    id: str
    """`owner/name`."""

    @classmethod
    def at(cls, repo_id: str, token: str | None) -> Repository:
        """Return the repository under a token, or under the one that is logged in."""
        from huggingface_hub import HfApi

        return cls(HfApi(token=token), repo_id)

    def account(self) -> Account:
        """Return who pushes.

        Raises:
            PushError: If there is no token, it is not accepted, or the Hub is out of reach.
        """
        said = patiently(self.api.whoami, "asking the Hub who you are")
        token = (said.get("auth") or {}).get("accessToken") or {}
        organizations = {each["name"]: each.get("roleInOrg") for each in said.get("orgs") or ()}
        return Account(name=said["name"], organizations=organizations, role=token.get("role"), token=token)

    def is_private(self) -> bool | None:
        """Return whether the repository is private, or None where there is none that this token sees."""
        return self._read(lambda: bool(self.api.model_info(self.id).private))

    def head(self, revision: str) -> str | None:
        """Return the commit that a revision is at, or None where there is no such revision."""
        return self._read(lambda: self.api.model_info(self.id, revision=revision).sha)

    def tags(self) -> dict[str, str]:
        """Return the repository's tags with their commits."""
        refs = patiently(lambda: self.api.list_repo_refs(self.id), f"reading the tags of {self.id}")
        return {tag.name: tag.target_commit for tag in refs.tags}

    def files(self, revision: str) -> dict[str, RemoteFile]:
        """Return every file at a revision."""
        from huggingface_hub import RepoFile

        tree = patiently(
            lambda: list(self.api.list_repo_tree(self.id, recursive=True, revision=revision)),
            f"reading the files of {self.id}",
        )
        return {
            entry.path: RemoteFile(entry.blob_id, entry.lfs.sha256 if entry.lfs else None)
            for entry in tree
            if isinstance(entry, RepoFile)
        }

    def history(self, revision: str) -> list[str]:
        """Return the commits of a revision, newest first."""
        commits = patiently(
            lambda: self.api.list_repo_commits(self.id, revision=revision), f"reading the commits of {self.id}"
        )
        return [commit.commit_id for commit in commits]

    def _read(self, call: Callable[[], Result]) -> Result | None:
        """Return what a call gives, or None where the Hub says that it is not there."""

        def asked() -> Result | None:
            try:
                return call()
            except Exception as error:
                failure = failure_of(error)
                if failure is None or failure.kind != "absent":
                    raise
                return None

        return patiently(asked, f"reading {self.id}")

    def create(self, private: bool | None) -> None:
        """Make the repository, unless it is there."""
        patiently(lambda: self.api.create_repo(self.id, private=private, exist_ok=True), f"making {self.id}")

    def create_branch(self, branch: str) -> None:
        """Make a branch at the head of `main`, unless it is there."""
        patiently(lambda: self.api.create_branch(self.id, branch=branch, exist_ok=True), f"making branch {branch}")

    def tag(self, name: str, commit: str) -> None:
        """Give a commit a tag, unless it has it.

        Raises:
            PushError: If another commit has the tag.
        """
        patiently(lambda: self.api.create_tag(self.id, tag=name, revision=commit, exist_ok=True), f"tagging {name}")
        if (at := self.tags().get(name)) != commit:
            raise PushError(f"tag {name} of {self.id} is at {at}, not at {commit}; choose another tag")

    def download(self, commit: str, paths: Sequence[str], folder: Path) -> Path:
        """Download files of a commit, past every cache, and return the folder that has them."""

        def fetch(path: str) -> str:
            return self.api.hf_hub_download(self.id, path, revision=commit, cache_dir=folder)

        self._check_transfer("read", commit)
        # The client itself is patient with a download; what a second try mends is a body that was cut short.
        found = [Path(patiently(partial(fetch, path), f"downloading {path}", tries=2)) for path in paths]
        return found[0].parents[len(Path(paths[0]).parts) - 1]

    def _check_transfer(self, way: Literal["read", "write"], revision: str, *, as_request: bool = False) -> None:
        """Ask for the token that a transfer by Xet begins with, because hf_xet is silent about one that it cannot get.

        hf_xet 1.8 asks for it again for up to 6 minutes, and calls a refusal a network error
        (`HF_XET_CLIENT_RETRY_MAX_DURATION` in xet-runtime, src/config/groups/client.rs).

        Raises:
            PushError: If the Hub refuses it.
            HubAway: If it fails to the end.
        """
        from huggingface_hub import constants, get_session
        from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]

        if constants.HF_HUB_DISABLE_XET or find_spec("hf_xet") is None:
            return
        place = f"{self.api.endpoint}/api/models/{self.id}/xet-{way}-token/{quote(revision, safe='')}"
        query = "?create_pr=1" * as_request

        def asked() -> None:
            answer = get_session().get(place + query, headers=build_hf_headers(token=self.api.token))
            if answer.status_code != 404:  # then the client may know another way, and says it where it does not
                hf_raise_for_status(answer)
                answer.json()

        patiently(asked, f"asking for the token to {way} large files of {self.id}")

    def open_pull_request(self, author: str, wanted: Mapping[str, RemoteFile | None]) -> Landed | None:
        """Return an open pull request of `author` that holds what is wanted, or None."""
        found = patiently(
            lambda: list(
                self.api.get_repo_discussions(
                    self.id, author=author, discussion_type="pull_request", discussion_status="open"
                )
            ),
            f"reading the pull requests of {self.id}",
        )
        for request in found:
            reference = f"refs/pr/{request.num}"
            if not differing(wanted, self.files(reference)) and (commit := self.head(reference)):
                return Landed(commit=commit, pull_request=request.url, is_new=False)
        return None

    def commit_once(
        self,
        change: Change,
        wanted: Mapping[str, RemoteFile | None],
        *,
        parent: str,
        revision: str,
        message: str,
        pull_request_of: str | None = None,
        say: Callable[[str], None] = lambda line: None,
    ) -> Landed:
        """Make one commit on `parent`, and return only when the Hub holds it.

        Args:
            change: What it does.
            wanted: What the files are afterwards; None where there must be none.
            parent: The head that was seen; the commit is refused where another came after it.
            revision: Branch.
            message: Title of the commit.
            pull_request_of: The user's name, where it becomes a pull request of theirs.
            say: Takes one line for each try that failed, with how long is waited before the next.

        Raises:
            PushError: If it was refused, another commit was first, or the Hub failed to the end.
        """
        if change.added:
            with _told_as_no_commit():
                self._check_transfer("write", revision, as_request=pull_request_of is not None)
        attempt, began = 0, time.monotonic()
        while True:
            attempt += 1
            failure, link = self._try_to_commit(
                change, wanted, parent, revision, message, as_request=pull_request_of is not None
            )
            landed = self._find(wanted, parent, revision, pull_request_of, link)
            if landed is not None:
                return landed
            if failure is None:
                raise PushError(f"{self.id}: the Hub said that the commit is made, and does not show it; run it again")
            pause = wait_seconds(attempt, failure.retry_after) if failure.kind == "transient" else None
            if pause is None or time.monotonic() - began > LONGEST_TRIES_SECONDS:
                raise PushError(f"committing to {self.id}: {failure.told}; no commit was made")
            say(f"try {attempt} of {TRIES} failed: {failure.text}; the next in {pause:g} s")
            time.sleep(pause)

    def _try_to_commit(
        self,
        change: Change,
        wanted: Mapping[str, RemoteFile | None],
        parent: str,
        revision: str,
        message: str,
        as_request: bool,
    ) -> tuple[Failure | None, str | None]:
        """Return how a commit failed, if it did, and the address of its pull request, if it is one."""
        try:
            made = self.api.create_commit(
                self.id,
                change.operations(wanted),
                commit_message=message,
                parent_commit=parent,
                revision=revision,
                create_pr=as_request,
            )
        except Exception as error:
            if (failure := failure_of(error)) is None:
                raise
            return failure, None
        return None, made.pr_url

    def _find(
        self,
        wanted: Mapping[str, RemoteFile | None],
        parent: str,
        revision: str,
        pull_request_of: str | None,
        link: str | None,
    ) -> Landed | None:
        """Return the commit that landed, whatever the answer said; None where none did.

        Raises:
            PushError: If another commit was first.
        """
        try:
            if pull_request_of is not None:
                found = self.open_pull_request(pull_request_of, wanted)
                return None if found is None else Landed(commit=found.commit, pull_request=link or found.pull_request)
            landing = self._landing(wanted, parent, revision)
        except PushError as error:
            raise PushError(
                f"{error}; whether the commit landed is not known: run the same again, it makes no second one"
            ) from error
        if landing.state == "conflict":
            raise PushError(
                f"{self.id}: {landing.in_its_way(parent, revision)}, which this push was made for; nothing of theirs "
                "or yours is lost: look at it, and run the same again to put yours on top"
            )
        return Landed(commit=landing.commit) if landing.state == "landed" and landing.commit else None

    def _landing(self, wanted: Mapping[str, RemoteFile | None], parent: str, revision: str) -> Landing:
        history = self.history(revision)
        after = first_after(parent, history)
        is_ours = after is not None and not differing(wanted, self.files(after))
        return judge(parent, history, is_ours)


@contextmanager
def _told_as_no_commit() -> Iterator[None]:
    try:
        yield
    except PushError as error:
        raise type(error)(f"{error}; no commit was made") from error


def stored_token() -> str | None:
    """Return the token that is logged in, so that it is looked for in what is pushed."""
    from huggingface_hub import get_token

    return get_token()


def is_public_dataset(name: str) -> bool:
    """Return whether a Hub dataset can be seen by everybody: asked without a token."""
    from huggingface_hub import HfApi, errors

    def asked() -> bool:
        try:
            return not HfApi().dataset_info(name, token=False).private
        except errors.OfflineModeIsEnabled:
            raise
        except Exception as error:
            failure = failure_of(error)
            if failure is None or failure.kind == "transient":
                raise
            return False

    return patiently(asked, f"asking whether dataset {name} is public")
