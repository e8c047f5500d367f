"""The Hub stand-in's state, and the requests and answers that its endpoints are functions of."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

from git_hub_access import Account, HubError, check_gate, check_sight, check_token, check_write, default_accounts
from git_hub_storage import NO_COMMIT, Entry, LargeFiles, Pointer, Repository
from git_hub_xet import XetStore
from hub_faults import Faults

Kind = Literal["model", "dataset", "space"]

# The suffixes that a new repository's .gitattributes names, as huggingface.co writes it.
LARGE_SUFFIXES: Final = tuple(
    """
    .7z .arrow .bin .bz2 .ckpt .ftz .gz .h5 .joblib .mlmodel .model .msgpack .npy .npz .onnx .ot .parquet .pb
    .pickle .pkl .pt .pth .rar .safetensors .tar .tflite .tgz .wasm .xz .zip .zst
    """.split()
)
REGULAR_LIMIT_BYTES: Final = 10 << 20
"""Larger files are large files whatever their name (https://huggingface.co/docs/hub/storage-limits)."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request that has found its endpoint."""

    method: str
    path: str
    query: Mapping[str, list[str]]
    headers: Mapping[str, str]
    body: bytes
    account: Account | None
    kind: Kind = "model"
    repo_id: str = ""
    parts: Mapping[str, str] = field(default_factory=dict)
    """What else the path names: `revision`, `path`, `number` …"""

    def json(self) -> dict[str, Any]:
        return json.loads(self.body or b"{}")

    def asked(self, name: str) -> bool:
        """Say whether a query flag is set."""
        return self.query.get(name, ["false"])[0].lower() in {"1", "true"}

    @property
    def user(self) -> str:
        return self.account.user if self.account else "nobody"

    @property
    def namespace(self) -> str:
        return self.repo_id.partition("/")[0]


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer as it goes out."""

    status: int
    content: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


def as_json(body: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Answer:
    """Return an answer with a JSON body."""
    content = json.dumps(body, default=str).encode()
    return Answer(status, content, {"Content-Type": "application/json; charset=utf-8"} | dict(headers or {}))


def as_error(error: HubError) -> Answer:
    """Return the answer that an error is."""
    headers = {"X-Error-Message": error.message}
    if error.code:
        headers["X-Error-Code"] = error.code
    return as_json({"error": error.message} | error.body, error.status, headers)


def written(seconds: float) -> str:
    """Write a Unix time as the client parses it."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def goes_large(path: str, size: int) -> bool:
    """Say whether a file is stored beside git."""
    return size > 0 and (size > REGULAR_LIMIT_BYTES or path.endswith(LARGE_SUFFIXES))


@dataclass
class Hub:
    """Everything the stand-in knows, and the same for a test that looks from inside."""

    root: Path
    endpoint: str = ""
    accounts: dict[str, Account] = field(default_factory=default_accounts)
    faults: Faults = field(default_factory=Faults)
    private_quota_bytes: int | None = None
    """What a namespace's private repositories may hold of large files on main."""
    page_size: int = 1000
    """Entries on a page of a tree."""
    multipart_bytes: int = 5 << 20
    """Large files beyond it go up in parts of this size."""
    bugs: list[Exception] = field(default_factory=list)
    """What went wrong in the stand-in itself."""

    def __post_init__(self) -> None:
        self.root = self.root.resolve()
        self.large = LargeFiles(self.root / "large")
        self.xet = XetStore(self.root / "xet")
        self.lock = threading.RLock()

    def folder(self, kind: Kind, repo_id: str) -> Path:
        return self.root / f"{kind}s" / f"{repo_id}.git"

    def exists(self, kind: Kind, repo_id: str) -> bool:
        return (self.folder(kind, repo_id) / "hub.json").is_file()

    def seen(self, request: Request) -> Repository:
        """Return the repository of a request whose sender may know of it.

        Raises:
            HubError: If there is none for this sender.
        """
        exists = self.exists(request.kind, request.repo_id)
        repository = Repository(self.folder(request.kind, request.repo_id))
        private = exists and repository.settings()["private"]
        check_sight(request.account, request.namespace, private, exists)
        return repository

    def readable(self, request: Request) -> Repository:
        """Return the repository of a request whose sender may read its files.

        Raises:
            HubError: If it is gated, or there is none for this sender.
        """
        repository = self.seen(request)
        settings = repository.settings()
        check_gate(request.account, request.namespace, request.repo_id, settings["gated"], settings["admitted"])
        return repository

    def writable(self, request: Request) -> Repository:
        """Return the repository of a request whose sender may write to it.

        Raises:
            HubError: If the sender may not, or there is none for this sender.
        """
        repository = self.seen(request)
        check_write(request.account, request.namespace, request.repo_id)
        return repository

    def contributable(self, request: Request) -> Repository:
        """Return the repository of a request that writes to a revision, or opens a pull request.

        Anyone who may read and has a token that writes may open one, and push to one that is theirs.

        Raises:
            HubError: If the sender may not, or there is none for this sender.
        """
        revision = request.parts.get("revision")
        opens = request.asked("create_pr") or revision is None
        if not opens and not self._is_own_pull(request, revision):
            return self.writable(request)
        repository = self.readable(request)
        check_token(request.account)
        if not request.account.may_propose(request.namespace, request.repo_id):
            raise HubError(403, "Forbidden: this token may not open pull requests here")
        return repository

    def _is_own_pull(self, request: Request, revision: str) -> bool:
        found = re.fullmatch(r"refs/pr/(\d+)", revision)
        discussions = self.seen(request).settings()["discussions"] if found else []
        number = int(found[1]) if found else 0
        return 0 < number <= len(discussions) and discussions[number - 1]["author"]["name"] == request.user

    def commit_of(self, repository: Repository, revision: str) -> str:
        """Return the commit that a revision names.

        Raises:
            HubError: If there is none.
        """
        commit = repository.resolve(revision)
        if commit is None:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    def bytes_of(self, repository: Repository, entry: Entry) -> bytes:
        """Return a file's bytes, wherever they are stored."""
        return self.large.path(entry.pointer.sha256).read_bytes() if entry.pointer else repository.content(entry.oid)

    def stored(self, path: str, content: bytes) -> bytes:
        """Return what git is to keep of a file: its bytes, or the pointer to where they were put."""
        if not goes_large(path, len(content)):
            return content
        sha256 = hashlib.sha256(content).hexdigest()
        self.large.put(sha256, content)
        return Pointer(sha256, len(content)).content()

    def check_quota(self, namespace: str, private: bool, more_bytes: int) -> None:
        """Refuse large files that a namespace's private storage has no room for.

        Raises:
            HubError: If it is, or would be, over its quota.
        """
        if not private or self.private_quota_bytes is None:
            return
        used = sum(
            entry.size
            for folder in self.root.glob(f"*s/{namespace}/*.git")
            if Repository(folder).settings()["private"]
            for entry in Repository(folder).entries(Repository(folder).resolve("main") or NO_COMMIT).values()
            if entry.pointer
        )
        if used + more_bytes > self.private_quota_bytes:
            raise HubError(
                403,
                "Private repository storage limit reached, please upgrade your plan to increase your private storage"
                " limit.",
            )

    # What follows is for tests: the same acts without a client.

    def create(
        self,
        repo_id: str,
        files: Mapping[str, bytes] | None = None,
        *,
        kind: Kind = "model",
        private: bool = False,
        gated: Literal[False, "auto", "manual"] = False,
    ) -> Repository:
        """Make a repository, with the `.gitattributes` that every new one has."""
        rules = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LARGE_SUFFIXES)
        settings = {
            "private": private, "gated": gated, "admitted": [], "discussions": [],
            "createdAt": written(datetime.now(UTC).timestamp()),
        }  # fmt: skip
        content = {".gitattributes": rules.encode()}
        folder = self.folder(kind, repo_id)
        repository = Repository.create(folder, repo_id.partition("/")[0], settings, content)
        if files:
            self.push(repo_id, files, kind=kind, user=repo_id.partition("/")[0])
        return repository

    def create_from(self, repo_id: str, folder: Path, **more: Any) -> Repository:
        """Make a repository of a folder's files; the other arguments are those of `create`."""
        files = {
            str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()
        }
        return self.create(repo_id, files, **more)

    def push(
        self,
        repo_id: str,
        files: Mapping[str, bytes],
        *,
        revision: str = "main",
        kind: Kind = "model",
        user: str = "you",
        message: str = "A push from elsewhere",
    ) -> str:
        """Commit files as another client would, and return the commit."""
        repository = Repository(self.folder(kind, repo_id))
        stored = {path: self.stored(path, content) for path, content in files.items()}
        return repository.commit(
            f"refs/heads/{revision}", self.commit_of(repository, revision), stored, (), message, user
        )

    def head(self, repo_id: str, revision: str = "main", *, kind: Kind = "model") -> str:
        """Return the commit that a revision is at."""
        return self.commit_of(Repository(self.folder(kind, repo_id)), revision)

    def history(self, repo_id: str, revision: str = "main", *, kind: Kind = "model") -> list[str]:
        """Return the titles of the commits that led to a revision, newest first."""
        return [
            entry.title for entry in Repository(self.folder(kind, repo_id)).log(self.head(repo_id, revision, kind=kind))
        ]

    def files(self, repo_id: str, revision: str = "main", *, kind: Kind = "model") -> dict[str, bytes]:
        """Return the bytes of each file at a revision."""
        repository = Repository(self.folder(kind, repo_id))
        entries = repository.entries(self.head(repo_id, revision, kind=kind))
        return {path: self.bytes_of(repository, entry) for path, entry in entries.items() if not entry.is_folder}

    def change(self, repo_id: str, *, kind: Kind = "model", **settings: Any) -> None:
        """Change settings: `private`, `gated`, `admitted` (users whom the gate lets through)."""
        repository = Repository(self.folder(kind, repo_id))
        with self.lock:
            repository.write_settings(repository.settings() | settings)

    def delete(self, repo_id: str, *, kind: Kind = "model") -> None:
        shutil.rmtree(self.folder(kind, repo_id))
