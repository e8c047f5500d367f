"""Endpoints of the Hub stand-in that only read."""

from __future__ import annotations

import json
from collections.abc import Iterable
from math import prod
from pathlib import Path
from urllib.parse import parse_qs, quote, urlencode

from git_hub_access import HubError
from git_hub_state import Answer, Hub, Request, as_json, written
from git_hub_storage import Entry, LogEntry, Repository
from hub_card_check import card_answer, metadata

COMMITS_ON_A_PAGE = 50


def whoami(hub: Hub, request: Request) -> Answer:
    if request.account is None:
        raise HubError(401, "Invalid username or password.")
    return as_json(request.account.whoami())


def auth_check(hub: Hub, request: Request) -> Answer:
    """Say whether the sender may read a repository, or write to it."""
    if "write" in request.parts:
        hub.writable(request)
    hub.readable(request)
    return as_json({})


def validate_yaml(hub: Hub, request: Request) -> Answer:
    sent = request.json()
    status, body = card_answer(sent["content"], sent["repoType"])
    return as_json(body, status)


def repo_info(hub: Hub, request: Request) -> Answer:
    """Answer `model_info` and `dataset_info`: what the Hub knows of a revision, its card's metadata among it."""
    repository = hub.seen(request)
    commit = hub.commit_of(repository, request.parts.get("revision", "main"))
    entries = repository.entries(commit)
    card = metadata(hub.bytes_of(repository, entries["README.md"]).decode()) if "README.md" in entries else {}
    settings = repository.settings()
    info = {
        "_id": request.repo_id, "id": request.repo_id, "author": request.namespace, "sha": commit,
        "private": settings["private"], "gated": settings["gated"], "disabled": False, "downloads": 0, "likes": 0,
        "createdAt": settings["createdAt"], "lastModified": written(repository.log(commit, limit=1)[0].seconds),
        "tags": _tags(card), "cardData": card, "usedStorage": sum(e.size for e in entries.values()),
        "siblings": [_sibling(e, request.asked("blobs")) for e in entries.values() if not e.is_folder],
    }  # fmt: skip
    if request.kind == "model":
        info |= {"modelId": request.repo_id} | {
            key: card[key] for key in ("pipeline_tag", "library_name", "model-index") if key in card
        }
    elements = _stored_elements(hub, entries.values()) if request.kind == "model" else {}
    if elements:
        info["safetensors"] = {"parameters": elements, "total": sum(elements.values())}
    wanted = request.query.get("expand", []) + request.query.get("expand[]", [])
    return as_json({key: value for key, value in info.items() if not wanted or key in {"_id", "id", *wanted}})


def _tags(card: dict) -> list[str]:
    """Return a card's tags, with those that the Hub makes of its other metadata."""
    tags = [str(tag) for tag in card.get("tags") or []]
    for key, prefix in (("library_name", ""), ("pipeline_tag", ""), ("license", "license:"), ("datasets", "dataset:")):
        value = card.get(key) or []
        tags += [f"{prefix}{one}" for one in (value if isinstance(value, list) else [value])]
    bases = card.get("base_model") or []
    relation = card.get("base_model_relation")
    for base in bases if isinstance(bases, list) else [bases]:
        tags += [f"base_model:{base}", *([f"base_model:{relation}:{base}"] if relation else [])]
    return list(dict.fromkeys(tags))


def _sibling(entry: Entry, blobs: bool) -> dict:
    more = {"size": entry.size, "blobId": entry.oid} if blobs else {}
    if blobs and entry.pointer:
        pointer = entry.pointer
        more["lfs"] = {"sha256": pointer.sha256, "size": pointer.size, "pointerSize": len(pointer.content())}
    return {"rfilename": entry.path} | more


def _stored_elements(hub: Hub, entries: Iterable[Entry]) -> dict[str, int]:
    """Count the elements of each dtype in a revision's safetensors files, as the Hub does when they are pushed."""
    elements: dict[str, int] = {}
    for entry in entries:
        if entry.path.endswith(".safetensors") and entry.pointer:
            for tensor in _tensors(hub.large.path(entry.pointer.sha256)).values():
                elements[tensor["dtype"]] = elements.get(tensor["dtype"], 0) + prod(tensor["shape"])
    return elements


def _tensors(file: Path) -> dict[str, dict]:
    """Return what a safetensors file says of its tensors, nothing if it is none."""
    with file.open("rb") as stream:
        header_bytes = int.from_bytes(stream.read(8), "little")
        if header_bytes > file.stat().st_size:
            return {}
        try:
            tensors = json.loads(stream.read(header_bytes))
        except ValueError:
            return {}
    return {name: tensor for name, tensor in tensors.items() if name != "__metadata__"}


def tree(hub: Hub, request: Request) -> Answer:
    """List a folder, a page at a time."""
    repository = hub.seen(request)
    commit = hub.commit_of(repository, request.parts["revision"])
    entries, folder = repository.entries(commit), request.parts.get("path", "").strip("/")
    if folder and (folder not in entries or not entries[folder].is_folder):
        raise HubError(404, f'"{folder}" does not exist on "{request.parts["revision"]}"', "EntryNotFound")
    under = f"{folder}/" if folder else ""
    listed = [entry for path, entry in entries.items() if path.startswith(under)]
    if not request.asked("recursive"):
        listed = [entry for entry in listed if "/" not in entry.path[len(under) :]]
    start = int(request.query.get("cursor", ["0"])[0])
    size = min(hub.page_size, int(request.query.get("limit", [hub.page_size])[0]))
    expand = request.asked("expand")
    page = [described(hub, repository, commit, entry, expand) for entry in listed[start : start + size]]
    return as_json(page, headers=_next_page(hub, request, "cursor", start + size) if len(listed) > start + size else {})


def _next_page(hub: Hub, request: Request, name: str, value: int) -> dict[str, str]:
    query = {key: values for key, values in request.query.items() if key != name} | {name: [str(value)]}
    return {"Link": f'<{hub.endpoint}{request.path}?{urlencode(query, doseq=True)}>; rel="next"'}


def described(hub: Hub, repository: Repository, commit: str, entry: Entry, expand: bool = False) -> dict:
    """Return a file or folder as a tree lists it."""
    found: dict = {"type": "directory" if entry.is_folder else "file", "oid": entry.oid, "size": entry.size}
    found["path"] = entry.path
    if entry.pointer:
        pointer = entry.pointer
        found["lfs"] = {"oid": pointer.sha256, "size": pointer.size, "pointerSize": len(pointer.content())}
        xet_hash = hub.xet.xet_hash(pointer.sha256)
        if xet_hash:
            found["xetHash"] = xet_hash
    if expand:
        last = repository.log(commit, entry.path, limit=1)[0]
        found["lastCommit"] = {"id": last.oid, "title": last.title, "date": written(last.seconds)}
    return found


def paths_info(hub: Hub, request: Request) -> Answer:
    """Describe the paths that a form names; those that are not there are left out."""
    repository = hub.seen(request)
    commit = hub.commit_of(repository, request.parts["revision"])
    form = request.json() if "json" in request.headers.get("Content-Type", "") else parse_qs(request.body.decode())
    entries = repository.entries(commit)
    expand = str(form.get("expand", ["false"])[0]).lower() in {"1", "true"}
    asked = (path.strip("/") for path in form.get("paths", []))
    return as_json([described(hub, repository, commit, entries[path], expand) for path in asked if path in entries])


def refs(hub: Hub, request: Request) -> Answer:
    repository = hub.seen(request)

    def listed(prefix: str) -> list[dict]:
        found = repository.refs(prefix)
        return [{"name": name.removeprefix(prefix), "ref": name, "targetCommit": oid} for name, oid in found.items()]

    pulls = {"pullRequests": listed("refs/pr/")} if request.asked("include_prs") else {}
    return as_json({"branches": listed("refs/heads/"), "tags": listed("refs/tags/"), "converts": []} | pulls)


def commits(hub: Hub, request: Request) -> Answer:
    repository = hub.seen(request)
    found = repository.log(hub.commit_of(repository, request.parts["revision"]))
    page = int(request.query.get("p", ["0"])[0])
    part = found[page * COMMITS_ON_A_PAGE : (page + 1) * COMMITS_ON_A_PAGE]
    more = len(found) > (page + 1) * COMMITS_ON_A_PAGE
    headers = {"X-Total-Count": str(len(found))} | (_next_page(hub, request, "p", page + 1) if more else {})
    return as_json([_logged(entry) for entry in part], headers=headers)


def _logged(entry: LogEntry) -> dict:
    return {
        "id": entry.oid, "title": entry.title, "message": entry.message, "date": written(entry.seconds),
        "authors": [{"user": entry.author, "avatar": ""}],
        "formatted": {"title": entry.title, "message": entry.message},
    }  # fmt: skip


def resolve(hub: Hub, request: Request) -> Answer:
    """Answer with a file, or the part of it that a `Range` names."""
    repository = hub.readable(request)
    commit = hub.commit_of(repository, request.parts["revision"])
    path = request.parts["path"]
    entry = repository.entries(commit).get(path)
    headers = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes", "Access-Control-Expose-Headers": "X-Repo-Commit"}
    if entry is None or entry.is_folder:
        body = {"error": "Entry not found"}
        return as_json(body, 404, headers | {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"})
    headers |= {"ETag": f'"{entry.oid}"', "Content-Type": "application/octet-stream"}
    if entry.pointer:
        headers |= _linked(hub, request, commit, entry)
    return _ranged(hub.bytes_of(repository, entry), request.headers.get("Range"), headers)


def _linked(hub: Hub, request: Request, commit: str, entry: Entry) -> dict[str, str]:
    """Return the headers of a large file; by Xet if it came so."""
    sha256 = entry.pointer.sha256
    headers = {"X-Linked-Etag": f'"{sha256}"', "X-Linked-Size": str(entry.size), "ETag": f'"{sha256}"'}
    xet_hash = hub.xet.xet_hash(sha256)
    if xet_hash:
        token = f"{hub.endpoint}/api/{request.kind}s/{quote(request.repo_id)}/xet-read-token/{commit}"
        headers |= {"X-Xet-Hash": xet_hash, "Link": f'<{token}>; rel="xet-auth"'}
    return headers


def _ranged(content: bytes, wanted: str | None, headers: dict[str, str]) -> Answer:
    if wanted is None:
        return Answer(200, content, headers)
    first, _, last = wanted.removeprefix("bytes=").partition("-")
    start, stop = int(first), int(last) + 1 if last else len(content)
    if start >= len(content):
        return Answer(416, b"", headers | {"Content-Range": f"bytes */{len(content)}"})
    part = content[start:stop]
    span = f"bytes {start}-{start + len(part) - 1}/{len(content)}"
    return Answer(206, part, headers | {"Content-Range": span})
