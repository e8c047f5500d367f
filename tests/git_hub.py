"""A Hub on loopback that takes pushes, for the real huggingface_hub client.

It keeps repositories as bare git repositories and large files by LFS or by the client's own Xet store; knows users,
tokens, private and gated repositories, pull requests and quotas; and goes wrong on request (`hub_faults`). What it
does not do: sign addresses, redirect to a content network or after a move, scan files, rate-limit, serve git itself.

In a test the fixture `git_hub`; as a process `python tests/git_hub.py --port 0 --root DIR`, which prints its endpoint.
"""

from __future__ import annotations

import argparse
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar
from urllib.parse import parse_qs, unquote, urlsplit

import git_hub_discussions as discussions
import git_hub_reading as reading
import git_hub_uploads as uploads
import git_hub_writing as writing
from git_hub_access import HubError, who
from git_hub_state import Answer, Hub, Request, as_error
from hub_faults import Fault, Logged

_API = r"/api/(?P<kinds>model|dataset|space)s/(?P<repo_id>[^/]+/[^/]+)"
_PLAIN = r"/(?:(?P<kinds>dataset|space)s/)?(?P<repo_id>[^/]+/[^/]+)"
_OID = r"(?P<oid>[0-9a-f]{64})"
_REVISION = r"/(?P<revision>[^/]+)"
_NAME = r"/(?P<name>[^/]+)"
_DISCUSSION = r"/discussions/(?P<number>\d+)"

_Endpoint = Callable[[Hub, Request], Answer]
ROUTES: list[tuple[str, str, str, _Endpoint]] = [
    # what a `Fault` calls it, method, path, function; the first that matches
    ("whoami", "GET", "/api/whoami-v2", reading.whoami),
    ("validate-yaml", "POST", "/api/validate-yaml", reading.validate_yaml),
    ("auth-check", "GET", f"{_API}/auth-check(?P<write>/write)?", reading.auth_check),
    ("create", "POST", "/api/repos/create", writing.create_repo),
    ("delete", "DELETE", "/api/repos/delete", writing.delete_repo),
    ("move", "POST", "/api/repos/move", writing.move_repo),
    ("settings", "PUT", f"{_API}/settings", writing.settings),
    ("preupload", "POST", f"{_API}/preupload{_REVISION}", uploads.preupload),
    ("commit", "POST", f"{_API}/commit{_REVISION}", writing.commit),
    ("xet-token", "GET", f"{_API}/xet-(?P<mode>read|write)-token{_REVISION}", uploads.xet_token),
    ("lfs-batch", "POST", rf"{_PLAIN}\.git/info/lfs/objects/batch", uploads.lfs_batch),
    ("lfs-verify", "POST", rf"{_PLAIN}\.git/info/lfs/objects/verify", uploads.lfs_verify),
    ("lfs-put", "PUT", f"/lfs/{_OID}", uploads.lfs_put),
    ("lfs-part", "PUT", rf"/lfs/{_OID}/parts/(?P<number>\d+)", uploads.lfs_part),
    ("lfs-complete", "POST", f"/lfs/{_OID}/complete", uploads.lfs_complete),
    ("lfs-duplicate", "POST", f"{_API}/lfs-files/duplicate", uploads.lfs_duplicate),
    ("tree", "GET", f"{_API}/tree{_REVISION}(?:/(?P<path>.*))?", reading.tree),
    ("paths-info", "POST", f"{_API}/paths-info{_REVISION}", reading.paths_info),
    ("refs", "GET", f"{_API}/refs", reading.refs),
    ("commits", "GET", f"{_API}/commits{_REVISION}", reading.commits),
    ("branch", "POST", f"{_API}/branch{_NAME}", writing.create_branch),
    ("branch", "DELETE", f"{_API}/branch{_NAME}", writing.delete_branch),
    ("tag", "POST", f"{_API}/tag{_NAME}", writing.create_tag),
    ("tag", "DELETE", f"{_API}/tag{_NAME}", writing.delete_tag),
    ("super-squash", "POST", f"{_API}/super-squash{_NAME}", writing.super_squash),
    ("discussions", "GET", f"{_API}/discussions", discussions.list_discussions),
    ("discussions", "POST", f"{_API}/discussions", discussions.create_discussion),
    ("discussions", "GET", f"{_API}{_DISCUSSION}", discussions.discussion),
    ("merge", "POST", f"{_API}{_DISCUSSION}/merge", discussions.merge_pull_request),
    ("discussions", "POST", f"{_API}{_DISCUSSION}/(?P<what>comment|title|status)", discussions.change_discussion),
    ("info", "GET", f"{_API}(?:/revision{_REVISION})?", reading.repo_info),
    ("resolve", "GET", f"{_PLAIN}/resolve{_REVISION}/(?P<path>.+)", reading.resolve),
]
_COMPILED = [(where, method, re.compile(path), endpoint) for where, method, path, endpoint in ROUTES]

_PROXY_PAGE = b"<html><head><title>502 Bad Gateway</title></head><body><h1>502 Bad Gateway</h1></body></html>"


class _Dropped(Exception):
    """The connection is to close without an answer."""


class _Handler(BaseHTTPRequestHandler):
    hub: ClassVar[Hub]
    timeout = 60

    def _serve(self) -> None:
        body = self._body()
        address = urlsplit(self.path)
        method = "GET" if self.command == "HEAD" else self.command
        try:
            where, endpoint, parts = _route(method, address.path)
            account = who(self.hub.accounts, self.headers.get("Authorization"))
        except HubError as error:
            return self._send(as_error(error))
        request = Request(
            self.command, address.path, parse_qs(address.query, keep_blank_values=True), self.headers, body, account,
            kind=parts.pop("kinds", None) or "model", repo_id=parts.pop("repo_id", ""), parts=parts,
        )  # fmt: skip
        self.hub.faults.log.append(Logged(where, self.command, address.path, address.query, request.user))
        try:
            self._answer(where, endpoint, request)
        except _Dropped:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve

    def _body(self) -> bytes:
        """Read the whole body: a client whose body is refused unread sees a broken pipe, not the answer."""
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _answer(self, where: str, endpoint: _Endpoint, request: Request) -> None:
        fault = self.hub.faults.strike(where, "before")
        instead = self._misbehave(fault) if fault else None
        if instead:
            return self._send(instead)
        try:
            answer = endpoint(self.hub, request)
        except HubError as error:
            answer = as_error(error)
        except Exception as error:
            self.hub.bugs.append(error)
            answer = as_error(HubError(500, f"the stand-in itself failed: {error!r}"))
        fault_after = self.hub.faults.strike(where, "after")
        instead = self._misbehave(fault_after) if fault_after else None
        halved = "truncate" in {one.what for one in (fault, fault_after) if one}
        self._send(instead or answer, halved=halved)

    def _misbehave(self, fault: Fault) -> Answer | None:
        """Do what a fault says, and return the answer that it gives in the place of the right one."""
        if callable(fault.what):
            fault.what()
        elif fault.what == "drop":
            raise _Dropped
        elif fault.what == "html":
            return Answer(502, _PROXY_PAGE, {"Content-Type": "text/html"})
        elif fault.what == "slow":
            time.sleep(fault.seconds)
        elif isinstance(fault.what, int):
            answer = as_error(HubError(fault.what, f"injected {fault.what}"))
            wait = {} if fault.retry_after is None else {"Retry-After": str(fault.retry_after)}
            return Answer(answer.status, answer.content, {**answer.headers, **wait})
        return None

    def _send(self, answer: Answer, halved: bool = False) -> None:
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.content[: len(answer.content) // 2] if halved else answer.content)

    def log_message(self, format: str, *args: object) -> None:
        """Stay silent; the hub's log has it."""


def _route(method: str, path: str) -> tuple[str, _Endpoint, dict[str, str]]:
    """Return an endpoint's name, its function, and what the path names.

    Raises:
        HubError: If there is no such endpoint.
    """
    for where, its_method, pattern, endpoint in _COMPILED:
        found = pattern.fullmatch(path) if its_method == method else None
        if found:
            return where, endpoint, {key: unquote(value) for key, value in found.groupdict().items() if value}
    if re.match(r"/api/(model|dataset|space)s/|/.+/resolve/", path):  # an id without a namespace, as gpt2
        raise HubError(404, "Repository not found", "RepoNotFound")
    raise HubError(404, f"Sorry, we can't find the page you are looking for: {method} {path}")


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Let a client go away, as one that is killed does; anything else is a bug and is shown."""
        if not isinstance(sys.exception(), (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)


def _listen(hub: Hub, port: int) -> _Server:
    server = _Server(("127.0.0.1", port), type("Handler", (_Handler,), {"hub": hub}))
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    return server


@contextmanager
def git_hub_on_loopback(root: Path) -> Iterator[Hub]:
    """Serve a Hub that keeps everything under a folder; yield it.

    Raises:
        ExceptionGroup: At the end, if an endpoint failed otherwise than with an answer.
    """
    hub = Hub(root)
    server = _listen(hub, 0)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    if hub.bugs:
        raise ExceptionGroup("the Hub stand-in failed", hub.bugs)


def main(arguments: list[str] | None = None) -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description="A Hub on loopback that takes pushes.")
    parser.add_argument("--port", type=int, default=0, help="0 takes any that is free")
    parser.add_argument("--root", type=Path, required=True, help="folder that keeps everything; may be used again")
    parser.add_argument("--fault", type=Fault.parse, action="append", default=[], help="where:when:what[:times[:skip]]")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job is started with it ignored
    hub = Hub(options.root)
    hub.faults.pending += options.fault
    with _listen(hub, options.port) as server:
        print(hub.endpoint, flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return


if __name__ == "__main__":
    main()
