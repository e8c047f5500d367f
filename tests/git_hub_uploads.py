"""Endpoints of the Hub stand-in that take files before a commit names them: by LFS, in one or many parts, or by Xet."""

from __future__ import annotations

import hashlib
import time
from dataclasses import replace
from typing import Final

from git_hub_access import HubError
from git_hub_state import Answer, Hub, Request, as_json, goes_large
from git_hub_storage import ignored_paths

TOKEN_SECONDS: Final = 3600
PREUPLOAD_LIMIT: Final = 256
"""Files a `preupload` call may name, and objects an LFS batch."""


def preupload(hub: Hub, request: Request) -> Answer:
    """Say of each file how it is to be sent, whether it is ignored, and what is there already."""
    repository = hub.contributable(request)
    sent = request.json()
    if len(sent["files"]) > PREUPLOAD_LIMIT:
        raise HubError(400, f"files: at most {PREUPLOAD_LIMIT} are allowed, found {len(sent['files'])}")
    entries = repository.entries(hub.commit_of(repository, request.parts["revision"]))
    rules = sent.get("gitIgnore")
    if rules is None and ".gitignore" in entries:
        rules = hub.bytes_of(repository, entries[".gitignore"]).decode()
    ignored = ignored_paths(rules, [file["path"] for file in sent["files"]]) if rules else set()
    answers = []
    for file in sent["files"]:
        entry = entries.get(file["path"])
        mode = "lfs" if goes_large(file["path"], file["size"]) else "regular"
        answer = {"path": file["path"], "uploadMode": mode, "shouldIgnore": file["path"] in ignored}
        if entry and not entry.is_folder:
            answer["oid"] = entry.pointer.sha256 if entry.pointer else entry.oid
        answers.append(answer)
    return as_json({"files": answers, "commitOid": hub.commit_of(repository, request.parts["revision"])})


def lfs_batch(hub: Hub, request: Request) -> Answer:
    """Say of each large file where to send it, or that it is there."""
    sent = request.json()
    # The client names no revision when it opens a pull request, which needs no right to write.
    parts = {"revision": sent["ref"]["name"]} if "ref" in sent else {}
    repository = hub.contributable(replace(request, parts=parts))
    missing = [one for one in sent["objects"] if not hub.large.has(one["oid"])]
    hub.check_quota(request.namespace, repository.settings()["private"], sum(one["size"] for one in missing))
    objects = [one | ({"actions": _actions(hub, request, **one)} if one in missing else {}) for one in sent["objects"]]
    return as_json(
        {"transfer": "multipart", "objects": objects}, headers={"Content-Type": "application/vnd.git-lfs+json"}
    )


def _actions(hub: Hub, request: Request, oid: str, size: int) -> dict:
    prefix = "" if request.kind == "model" else f"{request.kind}s/"
    verify = {"href": f"{hub.endpoint}/{prefix}{request.repo_id}.git/info/lfs/objects/verify"}
    if size <= hub.multipart_bytes:
        return {"upload": {"href": f"{hub.endpoint}/lfs/{oid}"}, "verify": verify}
    count = -(-size // hub.multipart_bytes)
    parts = {str(number): f"{hub.endpoint}/lfs/{oid}/parts/{number}" for number in range(1, count + 1)}
    header = {"chunk_size": str(hub.multipart_bytes)} | parts
    return {"upload": {"href": f"{hub.endpoint}/lfs/{oid}/complete", "header": header}, "verify": verify}


def lfs_put(hub: Hub, request: Request) -> Answer:
    if not hub.large.put(request.parts["oid"], request.body):
        raise HubError(400, "BadDigest: the bytes do not match the sha256 that was announced")
    return Answer(200, headers={"ETag": f'"{hashlib.md5(request.body).hexdigest()}"'})


def lfs_part(hub: Hub, request: Request) -> Answer:
    place = hub.root / "parts" / request.parts["oid"] / request.parts["number"]
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(request.body)
    return Answer(200, headers={"ETag": f'"{hashlib.md5(request.body).hexdigest()}"'})


def lfs_complete(hub: Hub, request: Request) -> Answer:
    """Join the parts that came, if they are those that the client names."""
    oid, content = request.parts["oid"], b""
    for number, part in enumerate(request.json()["parts"], start=1):
        place = hub.root / "parts" / oid / str(number)
        found = place.read_bytes() if place.is_file() else b""
        if part["partNumber"] != number or part["etag"].strip('"') != hashlib.md5(found).hexdigest():
            raise HubError(400, f"InvalidPart: part {number} is missing or not what its ETag says")
        content += found
    if not hub.large.put(oid, content):
        raise HubError(400, "BadDigest: the parts do not make the file that was announced")
    return as_json({"success": True})


def lfs_verify(hub: Hub, request: Request) -> Answer:
    hub.seen(request)
    sent = request.json()
    if not hub.large.has(sent["oid"]) or hub.large.path(sent["oid"]).stat().st_size != sent["size"]:
        raise HubError(404, "Object does not exist on the server")
    return as_json({})


def xet_token(hub: Hub, request: Request) -> Answer:
    """Lend a copy of the Xet store, to whoever may read or write."""
    if request.parts["mode"] == "read":
        repository = hub.readable(request)
    else:
        repository = hub.contributable(request)
        hub.check_quota(request.namespace, repository.settings()["private"], 0)
    if request.parts["revision"] != "None":  # what the client calls the revision of a pull request to come
        hub.commit_of(repository, request.parts["revision"])
    token = {"casUrl": hub.xet.lend(), "accessToken": "lent", "exp": int(time.time()) + TOKEN_SECONDS}
    headers = {
        "X-Xet-Cas-Url": token["casUrl"],
        "X-Xet-Access-Token": token["accessToken"],
        "X-Xet-Token-Expiration": str(token["exp"]),
    }
    return as_json(token, headers=headers)


def lfs_duplicate(hub: Hub, request: Request) -> Answer:
    """Let another repository use large files; all repositories share one store, so this only checks that they exist."""
    hub.readable(request)
    files = request.json()["files"]
    failed = [one | {"error": "File not found"} for one in files if not hub.large.has(one["sha256"])]
    return as_json({"success": [one for one in files if hub.large.has(one["sha256"])], "failed": failed})
