"""A Hub on loopback that serves folders to the real huggingface_hub client.

Only reading: repository information, file trees and file contents, as the public Hub answers them. A dataset is a
folder under a name that begins with `datasets/`.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from math import prod
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from safetensors import safe_open

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LICENSE = "apache-2.0"


class _Handler(BaseHTTPRequestHandler):
    repositories: Mapping[str, Path]
    gated: frozenset[str]
    log: list[str]

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        self.log.append(f"{self.command} {path}")
        if path.startswith("api/models/"):
            self._repository_api("", path.removeprefix("api/models/").split("/"), parse_qs(urlsplit(self.path).query))
        elif path.startswith("api/datasets/"):
            self._repository_api("datasets/", path.removeprefix("api/datasets/").split("/"), {})
        elif "/resolve/" in path:
            name, _, rest = path.partition("/resolve/")
            self._file(name, rest.split("/", 1)[1])
        else:
            self._answer(404, {"error": "not found"})

    def do_POST(self) -> None:
        """Answer `paths-info`, the one reading call that is a POST."""
        sent = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        path = unquote(urlsplit(self.path).path).strip("/")
        self.log.append(f"POST {path}")
        kind, owner, name = path.removeprefix("api/").split("/")[:3]
        folder = self.repositories.get(f"{owner}/{name}" if kind == "models" else f"{kind}/{owner}/{name}")
        if "/paths-info/" not in path or folder is None:
            return self._answer(404, {}, {"X-Error-Code": "RepoNotFound"})
        self._answer(200, [_listed(folder / p) for p in sent.get("paths", []) if (folder / p).is_file()])

    def _repository_api(self, kind: str, parts: list[str], query: Mapping[str, list[str]]) -> None:
        name, rest = "/".join(parts[:2]), parts[2:]
        folder = self.repositories.get(kind + name)
        if folder is None:
            self._answer(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        elif rest[:1] == ["revision"] and rest[1] not in {"main", COMMIT}:
            self._answer(404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"})
        elif rest[:1] == ["tree"]:
            self._answer(200, [] if len(rest) > 2 else [_listed(file) for file in folder.iterdir()])
        elif "safetensors" in query.get("expand", []):
            elements = _stored_elements(folder)
            counted = {"safetensors": {"parameters": elements, "total": sum(elements.values())}} if elements else {}
            self._answer(200, {"id": name, **counted})
        else:
            names = [{"rfilename": f.name} for f in folder.iterdir()]
            card = {"license": LICENSE}
            self._answer(
                200, {"id": name, "sha": COMMIT, "siblings": names, "cardData": card, "tags": [], "private": False}
            )

    def _file(self, name: str, file_name: str) -> None:
        folder = self.repositories.get(name)
        if folder is None:
            return self._answer(404, {}, {"X-Error-Code": "RepoNotFound"})
        if name in self.gated:
            return self._answer(403, {}, {"X-Error-Code": "GatedRepo"})
        file = folder / file_name
        if not file.is_file():
            return self._answer(404, {}, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        content = file.read_bytes()
        etag = hashlib.sha256(content).hexdigest()
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{etag}"', "Content-Type": "application/octet-stream"}
        self._send(200, content, headers)

    def _answer(self, status: int, body: object, headers: Mapping[str, str] | None = None) -> None:
        self._send(status, json.dumps(body).encode(), {"Content-Type": "application/json"} | dict(headers or {}))

    def _send(self, status: int, content: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Stay silent; `log` has it."""


def _listed(file: Path) -> dict[str, object]:
    return {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": "0" * 40}


def _stored_elements(folder: Path) -> dict[str, int]:
    """Count the elements of each dtype in a folder's safetensors files, as the Hub does when they are pushed."""
    elements: dict[str, int] = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():
                tensor = tensors.get_slice(name)
                elements[tensor.get_dtype()] = elements.get(tensor.get_dtype(), 0) + prod(tensor.get_shape())
    return elements


@contextmanager
def hub_on_loopback(
    repositories: Mapping[str, Path], gated: frozenset[str] = frozenset()
) -> Iterator[tuple[str, list[str]]]:
    """Serve folders as model repositories; yield the endpoint and the list of requests."""
    log: list[str] = []
    handler = type("Handler", (_Handler,), {"repositories": repositories, "gated": gated, "log": log})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", log
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
