"""Repositories of the Hub stand-in: bare git repositories, written with git's plumbing, and large files beside them.

A commit is a tree built in an index of its own, and one `update-ref` that names the head it was built on. Of two
commits on one head git lets one through.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

NO_COMMIT: Final = "0" * 40
AUTHOR_EMAIL: Final = "{}@users.noreply.hub.invalid"
_QUIET = {"GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.devnull, "GIT_TERMINAL_PROMPT": "0"}


class GitFailure(RuntimeError):
    """Git refused; the message is its own."""


class HeadMoved(RuntimeError):
    """The branch is no longer where the commit began."""


def git(folder: Path, *arguments: str, stdin: bytes = b"", **environment: str) -> bytes:
    """Run git on a repository, with no configuration but its own, and return what it prints."""
    result = subprocess.run(
        ["git", "-C", str(folder), *arguments],
        input=stdin,
        env=os.environ | _QUIET | environment,
        capture_output=True,
        check=False,
    )
    if result.returncode:
        raise GitFailure(f"git {arguments[0]}: {result.stderr.decode(errors='replace').strip()}")
    return result.stdout


def blob_id(content: bytes) -> str:
    """Return the id that git gives these bytes."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass(frozen=True, slots=True)
class Pointer:
    """A large file as git sees it."""

    sha256: str
    size: int

    def content(self) -> bytes:
        return f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {self.size}\n".encode()

    @classmethod
    def read(cls, content: bytes) -> Pointer | None:
        """Return the pointer that these bytes are, or None when they are an ordinary file."""
        if not content.startswith(b"version https://git-lfs.github.com/spec/v1\n"):
            return None
        fields = dict(line.split(" ", 1) for line in content.decode().splitlines())
        return cls(fields["oid"].removeprefix("sha256:"), int(fields["size"]))


@dataclass(frozen=True, slots=True)
class Entry:
    """A file or folder of a commit."""

    path: str
    is_folder: bool
    oid: str
    size: int
    """Bytes of the file itself, not of its pointer."""
    pointer: Pointer | None


@dataclass(frozen=True, slots=True)
class LogEntry:
    """A commit as the Hub lists it."""

    oid: str
    title: str
    message: str
    author: str
    seconds: int
    """Unix time."""


@dataclass(frozen=True, slots=True)
class Repository:
    """A bare git repository and, in `hub.json` beside its objects, what the Hub knows of it besides."""

    folder: Path

    @classmethod
    def create(
        cls, folder: Path, author: str, settings: Mapping[str, object], files: Mapping[str, bytes]
    ) -> Repository:
        folder.mkdir(parents=True)
        git(folder, "init", "--quiet", "--bare", "--initial-branch=main", ".")
        repository = cls(folder)
        repository.commit("refs/heads/main", NO_COMMIT, files, (), "initial commit", author)
        repository.write_settings(settings)  # last, for with it the repository exists
        return repository

    def settings(self) -> dict:
        return json.loads((self.folder / "hub.json").read_text(encoding="utf8"))

    def write_settings(self, settings: Mapping[str, object]) -> None:
        new = self.folder / "hub.json.new"
        new.write_text(json.dumps(settings), encoding="utf8")
        new.replace(self.folder / "hub.json")

    def resolve(self, revision: str) -> str | None:
        """Return the commit that a branch, tag, full ref or commit id names, or None."""
        for name in (f"refs/heads/{revision}", f"refs/tags/{revision}", revision):
            # Read without git, for every request asks this, often more than once; nothing here packs refs.
            if name.startswith("refs/") and ".." not in name and (self.folder / name).is_file():
                return _commit_named(self.folder, (self.folder / name).read_text(encoding="ascii").strip())
        if not set(revision) <= set("0123456789abcdef"):
            return None
        try:
            return _commit_named(self.folder, revision)
        except GitFailure:
            return None

    def refs(self, prefix: str) -> dict[str, str]:
        """Return each ref under a prefix with its commit."""
        listed = git(self.folder, "for-each-ref", "--format=%(refname) %(objectname) %(*objectname)", prefix).decode()
        found = (line.split(" ") for line in listed.splitlines())
        return {name: peeled or oid for name, oid, peeled in found}

    def entries(self, commit: str) -> dict[str, Entry]:
        """Return every file and folder of a commit by its path."""
        return _entries(self.folder, commit)

    def content(self, oid: str) -> bytes:
        return git(self.folder, "cat-file", "blob", oid)

    def log(self, commit: str, path: str | None = None, limit: int = 0) -> list[LogEntry]:
        """Return the commits that lead to one, newest first."""
        only = ["--", path] if path else []
        count = [f"--max-count={limit}"] if limit else []
        lines = git(self.folder, "log", "-z", "--format=%H%n%an%n%ct%n%s%n%b", *count, commit, *only).decode()
        parts = (entry.split("\n", 4) for entry in lines.split("\0") if entry)
        return [LogEntry(oid, title, body.strip(), author, int(when)) for oid, author, when, title, body in parts]

    def commit(
        self, ref: str, parent: str, files: Mapping[str, bytes], removed: Iterable[str], message: str, author: str
    ) -> str:
        """Put a commit on `parent`, move `ref` from there to it, and return it.

        Like the real Hub it commits even where nothing changes; not to ask for that is the client's part
        (https://github.com/huggingface/huggingface_hub/issues/1411).

        Args:
            ref: Full name of the branch.
            parent: Head that the commit is built on, `NO_COMMIT` for the first one.
            files: Content of each new or changed path.
            removed: Paths to take away.
            message: Message of the commit.
            author: User name.

        Raises:
            HeadMoved: If the ref is not at `parent`.
            GitFailure: If the paths make no tree, as when one is both file and folder.
        """
        tree = self._tree(parent, files, removed)
        new = self._commit_tree(tree, [parent] if parent != NO_COMMIT else [], message, author)
        self.move(ref, new, parent)
        return new

    def _tree(self, parent: str, files: Mapping[str, bytes], removed: Iterable[str]) -> str:
        with tempfile.TemporaryDirectory() as scratch:
            index = {"GIT_INDEX_FILE": str(Path(scratch) / "index")}
            git(self.folder, "read-tree", *([parent] if parent != NO_COMMIT else ["--empty"]), **index)
            staged = []
            for number, content in enumerate(files.values()):
                (Path(scratch) / str(number)).write_bytes(content)
                staged.append(str(Path(scratch) / str(number)))
            oids = git(
                self.folder, "hash-object", "-w", "--no-filters", "--stdin-paths", stdin="\n".join(staged).encode()
            )
            gone = [f"0 {NO_COMMIT}\t{path}\0" for path in removed]
            new = [f"100644 {oid}\t{path}\0" for oid, path in zip(oids.decode().split(), files, strict=True)]
            git(self.folder, "update-index", "-z", "--index-info", stdin="".join(gone + new).encode(), **index)
            return git(self.folder, "write-tree", **index).decode().strip()

    def _commit_tree(self, tree: str, parents: Sequence[str], message: str, author: str) -> str:
        names = {
            f"GIT_{role}_{field}": value
            for role in ("AUTHOR", "COMMITTER")
            for field, value in (("NAME", author), ("EMAIL", AUTHOR_EMAIL.format(author)))
        }
        options = [option for parent in parents for option in ("-p", parent)]
        return git(self.folder, "commit-tree", tree, *options, stdin=message.encode(), **names).decode().strip()

    def move(self, ref: str, new: str, old: str) -> None:
        """Move a ref, if it still is at `old`; `NO_COMMIT` creates it.

        Raises:
            HeadMoved: If it is elsewhere.
        """
        try:
            git(self.folder, "update-ref", ref, new, old)
        except GitFailure as error:
            raise HeadMoved(str(error)) from error

    def delete(self, ref: str) -> None:
        """Delete a ref, wherever it is."""
        git(self.folder, "update-ref", "-d", ref)

    def tag(self, name: str, commit: str, message: str | None, author: str) -> None:
        """Set a tag, with an object of its own if there is a message.

        Raises:
            GitFailure: If it exists, or the name is none.
        """
        annotated = ["-a", "-m", message] if message else []
        git(
            self.folder, "tag", *annotated, "--", name, commit,
            GIT_COMMITTER_NAME=author, GIT_COMMITTER_EMAIL=AUTHOR_EMAIL.format(author),
        )  # fmt: skip

    def merge(self, ref: str, head: str, other: str, message: str, author: str) -> str:
        """Merge a commit into a branch and return the merge.

        Raises:
            GitFailure: If the two conflict.
            HeadMoved: If the branch moved meanwhile.
        """
        tree = git(self.folder, "merge-tree", "--write-tree", head, other).decode().split()[0]
        new = self._commit_tree(tree, [head, other], message, author)
        self.move(ref, new, head)
        return new

    def squash(self, ref: str, head: str, message: str, author: str) -> str:
        """Replace a branch's history by one commit with its files."""
        new = self._commit_tree(f"{head}^{{tree}}", [], message, author)
        self.move(ref, new, head)
        return new


@lru_cache(maxsize=256)
def _commit_named(folder: Path, oid: str) -> str:
    """Return the commit that an object's id names: its own, or of an annotated tag the tag's; neither ever changes.

    Raises:
        GitFailure: If there is none.
    """
    return git(folder, "rev-parse", "--verify", "--quiet", f"{oid}^{{commit}}").decode().strip()


@lru_cache(maxsize=256)
def _entries(folder: Path, commit: str) -> dict[str, Entry]:
    """Read a commit's tree; a commit never changes, so neither does the answer."""
    listed = git(folder, "ls-tree", "-r", "-t", "-l", "-z", commit).decode().split("\0")[:-1]
    rows = [(*meta.split(), path) for meta, _, path in (line.partition("\t") for line in listed)]
    # The real pointers are 120 to 140 bytes; anything larger is a file.
    pointers = _read_blobs(folder, {oid for _, kind, oid, size, _ in rows if kind == "blob" and int(size) < 200})
    found = {}
    for _, kind, oid, size, path in rows:
        pointer = Pointer.read(pointers.get(oid, b""))
        size_bytes = pointer.size if pointer else 0 if kind == "tree" else int(size)
        found[path] = Entry(path, kind == "tree", oid, size_bytes, pointer)
    return found


def _read_blobs(folder: Path, oids: Iterable[str]) -> dict[str, bytes]:
    names = list(oids)
    stream = git(folder, "cat-file", "--batch", stdin="\n".join(names).encode()) if names else b""
    found = {}
    for name in names:
        header, _, stream = stream.partition(b"\n")
        size = int(header.split()[2])
        found[name], stream = stream[:size], stream[size + 1 :]
    return found


def ignored_paths(rules: str, paths: Sequence[str]) -> set[str]:
    """Return the paths that a `.gitignore` leaves out, as git itself judges."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        git(folder, "init", "--quiet")
        (folder / ".gitignore").write_text(rules, encoding="utf8")
        try:
            listed = git(folder, "check-ignore", "--no-index", "-z", "--stdin", stdin="\0".join(paths).encode())
        except GitFailure:
            return set()  # its exit code for "none of them"
    return set(listed.decode().split("\0")[:-1])


@dataclass(frozen=True, slots=True)
class LargeFiles:
    """Large files by the sha256 of their bytes."""

    folder: Path

    def path(self, sha256: str) -> Path:
        return self.folder / sha256[:2] / sha256

    def has(self, sha256: str) -> bool:
        return self.path(sha256).is_file()

    def put(self, sha256: str, content: bytes) -> bool:
        """Keep a file; return False, and keep nothing, if the bytes are not those it is named for."""
        if hashlib.sha256(content).hexdigest() != sha256:
            return False
        place = self.path(sha256)
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=place.parent, delete=False) as new:
            new.write(content)
        Path(new.name).replace(place)
        return True
