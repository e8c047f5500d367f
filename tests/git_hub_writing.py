"""Endpoints of the Hub stand-in that change repositories."""

from __future__ import annotations

import base64
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from git_hub_access import HubError, check_write
from git_hub_discussions import open_pull_request
from git_hub_state import Answer, Hub, Kind, Request, as_json
from git_hub_storage import NO_COMMIT, Entry, GitFailure, HeadMoved, Pointer, Repository
from hub_card_check import card_answer

_NAME: Final = re.compile(r"(?!.*(--|\.\.))[A-Za-z0-9_][\w.-]{0,95}(?<![-.])")
STALE: Final = "A commit has happened since. Please refresh and try again."


def _url(hub: Hub, kind: Kind, repo_id: str) -> str:
    return f"{hub.endpoint}/{'' if kind == 'model' else f'{kind}s/'}{repo_id}"


def create_repo(hub: Hub, request: Request) -> Answer:
    """Make a repository; where it exists the refusal carries its address, as `exist_ok` needs it."""
    sent = request.json()
    namespace, kind = sent.get("organization") or request.user, sent.get("type") or "model"
    check_write(request.account, namespace)
    if not _NAME.fullmatch(sent["name"]) or sent["name"].endswith(".git"):
        raise HubError(400, f"Invalid repo name: {sent['name']}")
    repo_id = f"{namespace}/{sent['name']}"
    with hub.lock:
        if hub.exists(kind, repo_id):
            raise HubError(409, f"You already created this {kind} repo: {repo_id}", url=_url(hub, kind, repo_id))
        hub.create(repo_id, kind=kind, private=sent.get("visibility") == "private" or bool(sent.get("private")))
    return as_json({"url": _url(hub, kind, repo_id), "name": repo_id, "id": repo_id})


def delete_repo(hub: Hub, request: Request) -> Answer:
    sent = request.json()
    repo_id = f"{sent.get('organization') or request.user}/{sent['name']}"
    named = replace(request, kind=sent.get("type") or "model", repo_id=repo_id)
    hub.writable(named)
    hub.delete(named.repo_id, kind=named.kind)
    return as_json({})


def move_repo(hub: Hub, request: Request) -> Answer:
    sent = request.json()
    named = replace(request, kind=sent.get("type") or "model", repo_id=sent["fromRepo"])
    repository = hub.writable(named)
    check_write(request.account, sent["toRepo"].partition("/")[0])
    target = hub.folder(named.kind, sent["toRepo"])
    if target.exists():
        raise HubError(409, f"There is already a repository {sent['toRepo']}")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(repository.folder, target)
    return as_json({"url": _url(hub, named.kind, sent["toRepo"])})


def settings(hub: Hub, request: Request) -> Answer:
    """Change visibility or gate."""
    hub.writable(request)
    sent = request.json()
    changes = {"private": sent["visibility"] == "private"} if "visibility" in sent else {}
    changes |= {key: sent[key] for key in ("private", "gated") if key in sent}
    hub.change(request.repo_id, kind=request.kind, **changes)
    return as_json(changes)


@dataclass(slots=True)
class _Changes:
    """What a commit's lines ask for."""

    summary: str = ""
    description: str = ""
    parent: str | None = None
    files: dict[str, bytes] = field(default_factory=dict)
    removed: list[str] = field(default_factory=list)
    large_bytes: int = 0
    """Of large files that the branch does not hold yet."""


def commit(hub: Hub, request: Request) -> Answer:
    """Make one commit of all the lines sent, on a branch, a pull request's ref, or as a new pull request."""
    repository = hub.contributable(request)
    ref = _branch(repository, request.parts["revision"])
    head = hub.commit_of(repository, ref)
    lines = [json.loads(line) for line in request.body.splitlines() if line.strip()]
    changes = _read(hub, request, repository.entries(head), lines)
    hub.check_quota(request.namespace, repository.settings()["private"], changes.large_bytes)
    more = {}
    try:
        if request.asked("create_pr"):
            head = hub.commit_of(repository, changes.parent) if changes.parent else head
            base = request.parts["revision"]
            number = open_pull_request(
                hub, repository, changes.summary, changes.description, request.user, base=base, start=head
            )
            ref = f"refs/pr/{number}"
            more = {"pullRequestUrl": f"{_url(hub, request.kind, request.repo_id)}/discussions/{number}"}
        elif changes.parent and head != repository.resolve(changes.parent):
            raise HubError(412, STALE)
        message = f"{changes.summary}\n\n{changes.description}".strip()
        oid = repository.commit(ref, head, changes.files, changes.removed, message, request.user)
    except HeadMoved as error:
        raise HubError(412, STALE) from error
    except GitFailure as error:
        raise HubError(400, str(error)) from error
    url = f"{_url(hub, request.kind, request.repo_id)}/commit/{oid}"
    return as_json({"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": ""} | more)


def _branch(repository: Repository, revision: str) -> str:
    """Return the full name of the branch or pull request that a commit goes to.

    Raises:
        HubError: If it is none.
    """
    for name in (f"refs/heads/{revision}", revision):
        if name.startswith(("refs/heads/", "refs/pr/")) and repository.refs(name).get(name):
            return name
    raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")


def _read(hub: Hub, request: Request, entries: Mapping[str, Entry], lines: list[dict]) -> _Changes:
    """Read a commit's lines: a header, then files, large files, deletions.

    Raises:
        HubError: If a large file or a deleted one is not there, a file holds a token of this Hub, or the card is bad.
    """
    changes = _Changes()
    held = {entry.pointer for entry in entries.values()}
    for line in lines:
        value = line["value"]
        match line["key"]:
            case "header":
                changes.summary, changes.description = value["summary"], value.get("description") or ""
                changes.parent = value.get("parentCommit")
            case "file":
                content = base64.b64decode(value["content"])
                _check_content(hub, request, value["path"], content)
                changes.files[value["path"]] = content
            case "lfsFile":
                pointer = _stored_pointer(hub, value["path"], value["oid"])
                changes.files[value["path"]] = pointer.content()
                changes.large_bytes += pointer.size if pointer not in held else 0
            case "deletedFile" if value["path"] in entries and not entries[value["path"]].is_folder:
                changes.removed.append(value["path"])
            case "deletedFolder" if (under := value["path"].rstrip("/")) in entries:
                changes.removed += [path for path in entries if path.startswith(f"{under}/")]
            case "deletedFile" | "deletedFolder":
                raise HubError(404, f"A file with this name doesn't exist: {value['path']}", "EntryNotFound")
            case key:
                raise HubError(400, f"unknown key {key!r} in a commit")
    changes.removed = [path for path in changes.removed if path in entries and not entries[path].is_folder]
    return changes


def _stored_pointer(hub: Hub, path: str, sha256: str) -> Pointer:
    """Return the pointer to a large file, taken out of the client's Xet store if it came by Xet.

    Raises:
        HubError: If the file was not sent.
    """
    if not hub.large.has(sha256) and not hub.xet.take_in(sha256, hub.large.path(sha256)):
        raise HubError(400, f"LFS pointer pointed to a file that does not exist: {path}")
    return Pointer(sha256, hub.large.path(sha256).stat().st_size)


def _check_content(hub: Hub, request: Request, path: str, content: bytes) -> None:
    if any(token.encode() in content for token in hub.accounts):
        raise HubError(400, f"Your push was rejected because it appears to contain valid Hugging Face secrets: {path}")
    status, found = card_answer(content.decode(), request.kind) if path == "README.md" else (200, {})
    if status != 200:
        errors = "; ".join(error["message"] for error in found["errors"])
        raise HubError(400, f"Your push was rejected during YAML metadata verification: {errors}")


def create_branch(hub: Hub, request: Request) -> Answer:
    repository, name = hub.writable(request), request.parts["name"]
    start = hub.commit_of(repository, request.json().get("startingPoint") or "main")
    try:
        repository.move(f"refs/heads/{name}", start, NO_COMMIT)
    except HeadMoved as error:
        raise HubError(409, f"Reference already exists: {name}") from error
    return as_json({})


def delete_branch(hub: Hub, request: Request) -> Answer:
    repository, name = hub.writable(request), request.parts["name"]
    if name == "main":
        raise HubError(403, "Cannot delete the default branch")
    hub.commit_of(repository, f"refs/heads/{name}")
    repository.delete(f"refs/heads/{name}")
    return as_json({})


def create_tag(hub: Hub, request: Request) -> Answer:
    repository, sent = hub.writable(request), request.json()
    at = hub.commit_of(repository, request.parts["name"])
    if repository.resolve(f"refs/tags/{sent['tag']}"):
        raise HubError(409, f"Tag reference already exists: {sent['tag']}")
    try:
        repository.tag(sent["tag"], at, sent.get("message"), request.user)
    except GitFailure as error:
        raise HubError(400, str(error)) from error
    return as_json({})


def delete_tag(hub: Hub, request: Request) -> Answer:
    repository, name = hub.writable(request), f"refs/tags/{request.parts['name']}"
    if name not in repository.refs(name):
        raise HubError(404, f"Invalid rev id: {request.parts['name']}", "RevisionNotFound")
    repository.delete(name)
    return as_json({})


def super_squash(hub: Hub, request: Request) -> Answer:
    repository, name = hub.writable(request), request.parts["name"]
    head = hub.commit_of(repository, f"refs/heads/{name}")
    return as_json(
        {"commitOid": repository.squash(f"refs/heads/{name}", head, request.json()["message"], request.user)}
    )
