"""Discussions and pull requests of the Hub stand-in."""

from __future__ import annotations

from datetime import UTC, datetime

from git_hub_access import HubError
from git_hub_state import Answer, Hub, Request, as_json, written
from git_hub_storage import NO_COMMIT, GitFailure, HeadMoved, Repository

DISCUSSIONS_ON_A_PAGE = 10


def _now() -> str:
    return written(datetime.now(UTC).timestamp())


def _event(kind: str, author: str, number: int, **data: object) -> dict:
    return {"id": f"{number:024x}", "type": kind, "createdAt": _now(), "author": {"name": author}, "data": data}


def _comment(author: str, text: str, number: int) -> dict:
    return _event("comment", author, number, edited=False, hidden=False, latest={"raw": text})


def open_discussion(repository: Repository, title: str, text: str, author: str, base: str | None = None) -> int:
    """Note a discussion, or with a base branch a pull request, and return its number."""
    settings = repository.settings()
    number = len(settings["discussions"]) + 1
    settings["discussions"].append(
        {
            "num": number, "title": title, "author": {"name": author}, "createdAt": _now(),
            "status": "open" if base is None else "draft", "isPullRequest": base is not None,
            "changes": {"base": f"refs/heads/{base}"} if base else None, "filesWithConflicts": [] if base else None,
            "events": [_comment(author, text, 0)],
        }
    )  # fmt: skip
    repository.write_settings(settings)
    return number


def open_pull_request(
    hub: Hub, repository: Repository, title: str, text: str, author: str, *, base: str, start: str
) -> int:
    """Open a pull request against a branch, its own ref at the commit `start`, and return its number."""
    with hub.lock:
        number = open_discussion(repository, title, text, author, base)
        repository.move(f"refs/pr/{number}", start, NO_COMMIT)
    return number


def _find(repository: Repository, request: Request) -> tuple[dict, dict]:
    """Return a repository's settings and, within them, the discussion that a request names."""
    settings = repository.settings()
    number = int(request.parts["number"])
    if not 0 < number <= len(settings["discussions"]):
        raise HubError(404, "Discussion not found")
    return settings, settings["discussions"][number - 1]


def _shown(request: Request, discussion: dict) -> dict:
    return discussion | {"repo": {"name": request.repo_id, "type": request.kind}}


def list_discussions(hub: Hub, request: Request) -> Answer:
    found = hub.seen(request).settings()["discussions"]
    wanted = {key: request.query.get(key, ["all"])[0] for key in ("type", "status", "author")}
    found = [
        one
        for one in reversed(found)
        if wanted["type"] in {"all", "pull_request" if one["isPullRequest"] else "discussion"}
        and wanted["status"] in {"all", "open" if one["status"] in {"open", "draft"} else "closed"}
        and wanted["author"] in {"all", one["author"]["name"]}
    ]
    start = int(request.query.get("p", ["0"])[0]) * DISCUSSIONS_ON_A_PAGE
    page = [_shown(request, one) for one in found[start : start + DISCUSSIONS_ON_A_PAGE]]
    return as_json({"discussions": page, "count": len(found), "start": start})


def create_discussion(hub: Hub, request: Request) -> Answer:
    """Open a discussion, or a pull request whose ref starts at the head of main."""
    repository, sent = hub.readable(request), request.json()
    if request.account is None:
        raise HubError(401, "Invalid username or password.")
    title, text, pull = sent["title"], sent.get("description") or "", bool(sent.get("pullRequest"))
    if pull:
        start = hub.commit_of(repository, "main")
        number = open_pull_request(hub, repository, title, text, request.user, base="main", start=start)
    else:
        with hub.lock:
            number = open_discussion(repository, title, text, request.user)
    return as_json({"num": number, "pullRequest": pull})


def discussion(hub: Hub, request: Request) -> Answer:
    """Answer with a discussion's events, and the commits of a pull request among them."""
    repository = hub.seen(request)
    _, found = _find(repository, request)
    if found["isPullRequest"]:
        base = repository.resolve(found["changes"]["base"])
        span = f"{base}..refs/pr/{found['num']}"
        pushed = [_event("commit", e.author, n, subject=e.title, oid=e.oid) for n, e in enumerate(repository.log(span))]
        found["events"] += reversed(pushed)
    return as_json(_shown(request, found))


def change_discussion(hub: Hub, request: Request) -> Answer:
    """Comment on a discussion, rename it, or open or close it."""
    repository, sent, what = hub.seen(request), request.json(), request.parts["what"]
    with hub.lock:
        kept, found = _find(repository, request)
        if what != "comment" and found["author"]["name"] != request.user:
            hub.writable(request)
        number = len(found["events"])
        if what == "comment":
            event = _comment(request.user, sent["comment"], number)
        elif what == "title":
            event = _event("title-change", request.user, number, **{"from": found["title"], "to": sent["title"]})
            found["title"] = sent["title"]
        else:
            event = _event("status-change", request.user, number, status=sent["status"])
            found["status"] = sent["status"]
        found["events"].append(event)
        repository.write_settings(kept)
    return as_json({{"comment": "newMessage", "title": "newTitle", "status": "newStatus"}[what]: event})


def merge_pull_request(hub: Hub, request: Request) -> Answer:
    """Merge a pull request into its base."""
    repository = hub.writable(request)
    with hub.lock:
        kept, found = _find(repository, request)
        if not found["isPullRequest"] or found["status"] not in {"open", "draft"}:
            raise HubError(400, "This is no open pull request")
        base, message = found["changes"]["base"], f"{found['title']} (#{found['num']})"
        try:
            oid = repository.merge(
                base, hub.commit_of(repository, base), f"refs/pr/{found['num']}", message, request.user
            )
        except (GitFailure, HeadMoved) as error:
            raise HubError(409, f"The pull request conflicts with its base: {error}") from error
        found["status"] = "merged"
        found["changes"]["mergeCommitId"] = oid
        found["events"].append(_event("status-change", request.user, len(found["events"]), status="merged"))
        repository.write_settings(kept)
    return as_json({"mergeCommitId": oid})
