"""Xet storage of the Hub stand-in: the client's own on-disk store, which it uses when a token says `local:///dir`.

Such a store can be open in one process at a time. So every token names a fresh copy (hard links, and its small
index) of one master store that no client ever opens; after a commit the master takes in what the client left there.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import hf_xet

_HEADER_BYTES: Final = 48
_ROW_BYTES: Final = 48
_VERIFIED: Final = 1 << 31
_HAS_SHA256: Final = 1 << 30
_END: Final = b"\xff" * 32


@dataclass(frozen=True, slots=True)
class XetFile:
    """A file in a store."""

    store: Path
    xet_hash: str
    size: int


@dataclass(slots=True)
class XetStore:
    """The master store and the copies lent to clients."""

    folder: Path
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _lent: list[Path] = field(default_factory=list)
    _known: dict[str, XetFile] = field(default_factory=dict)

    def lend(self) -> str:
        """Return the URL of a copy of the master store for one client."""
        with self._lock:
            copy = self.folder / f"lent-{len(self._lent)}"
            _copy_store(self._master, copy)
            self._lent.append(copy)
        return f"local://{copy}"

    @property
    def _master(self) -> Path:
        return self.folder / "master"

    def xet_hash(self, sha256: str) -> str | None:
        """Return the Xet hash of a file that was taken in, or None if it did not come by Xet."""
        with self._lock:
            if sha256 not in self._known:
                self._known = _files(self._master)
            return self._known[sha256].xet_hash if sha256 in self._known else None

    def take_in(self, sha256: str, target: Path) -> bool:
        """Rebuild a file that a client has uploaded, and keep it in the master store too.

        Returns:
            Whether there is such a file, and its bytes are what its sha256 says.
        """
        with self._lock:
            found = next((files[sha256] for store in self._lent if sha256 in (files := _files(store))), None)
            if found is None:
                return False
            # The client may still hold its store open, and only one process can.
            aside = self.folder / "aside"
            _copy_store(found.store, aside)
            _download(aside, found, aside / "file")
            whole = hashlib.sha256((aside / "file").read_bytes()).hexdigest() == sha256
            if whole:
                _upload(self._master, aside / "file", sha256)
                target.parent.mkdir(parents=True, exist_ok=True)
                (aside / "file").replace(target)
            shutil.rmtree(aside)
        return whole


def _copy_store(source: Path, target: Path) -> None:
    """Copy a store: what never changes by hard link, its index by value, a client's caches not at all."""
    for kind in ("xorbs", "shards"):
        (target / "xet" / "xorbs" / kind).mkdir(parents=True)
        for file in (source / "xet" / "xorbs" / kind).glob("*"):
            os.link(file, target / "xet" / "xorbs" / kind / file.name)
    for file in (source / "xet" / "xorbs").glob("*.redb"):
        shutil.copy(file, target / "xet" / "xorbs" / file.name)


def _files(store: Path) -> dict[str, XetFile]:
    """Return the files that a store's shards describe, by sha256."""
    found = {}
    for shard in (store / "xet" / "xorbs" / "shards").glob("*.mdb"):
        for sha256, xet_hash, size in _read_shard(shard.read_bytes()):
            found[sha256] = XetFile(store, xet_hash, size)
    return found


def _read_shard(shard: bytes) -> Iterator[tuple[str, str, int]]:
    """Yield sha256, Xet hash and size in bytes of each file in a shard.

    The format is that of https://huggingface.co/docs/xet/shard: after the header, for each file a row with its hash,
    flags and the number of segments; a row for each segment; as many rows again if the segments are verified; a row
    with the sha256 if there is one.
    """
    at = _HEADER_BYTES
    while (name := shard[at : at + 32]) != _END:
        flags = int.from_bytes(shard[at + 32 : at + 36], "little")
        segments = int.from_bytes(shard[at + 36 : at + 40], "little")
        rows = range(at + _ROW_BYTES, at + _ROW_BYTES * (segments + 1), _ROW_BYTES)
        size = sum(int.from_bytes(shard[row + 36 : row + 40], "little") for row in rows)
        at += _ROW_BYTES * (1 + segments * (2 if flags & _VERIFIED else 1))
        if flags & _HAS_SHA256:
            yield _hex(shard[at : at + 32]), _hex(name), size
            at += _ROW_BYTES


def _hex(digest: bytes) -> str:
    """Write a hash as Xet does: four little-endian words."""
    return "".join(f"{int.from_bytes(digest[i : i + 8], 'little'):016x}" for i in range(0, 32, 8))


def _access(store: Path) -> dict[str, object]:
    return {"endpoint": f"local://{store}", "token": "any", "token_expiry_unix_secs": int(time.time()) + 3600}


def _download(store: Path, file: XetFile, target: Path) -> None:
    with hf_xet.XetSession().new_file_download_group(**_access(store)) as group:
        group.start_download_file(hf_xet.XetFileInfo(file.xet_hash, file.size), str(target))


def _upload(store: Path, file: Path, sha256: str) -> None:
    with hf_xet.XetSession().new_upload_commit(**_access(store)) as upload:
        upload.start_upload_file(str(file), sha256=sha256)
