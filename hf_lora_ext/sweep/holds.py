"""Who works on a trial: a lock and a heartbeat, so that a killed process is told from one that is busy.

On the machine of the process that works, the lock says it at once: the system frees it with the process. From another
machine, whose view of the lock depends on the file system, the heartbeat says it, after some missed beats.
"""

from __future__ import annotations

import hashlib
import os
import socket
import threading
from pathlib import Path
from typing import Final

from ..cards.facts import write_text_atomically

__all__ = ["Hold", "is_abandoned"]

BEAT_SECONDS: Final = 15.0
SILENCE_SECONDS: Final = 120.0
"""Age of the last beat from which another machine's process counts as gone: eight beats, so that a short stall of a
network file system does not start a trial twice."""

_LOCK: Final = ".lock"
_PULSE: Final = ".pulse"


class Hold:
    """A trial's folder, held for this process until `release`, with a heartbeat.

    Raises:
        filelock.Timeout: If another process holds it.
    """

    def __init__(self, folder: Path) -> None:
        from filelock import FileLock

        folder.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(folder / _LOCK, timeout=5)  # who asks whether it is free has it for a moment
        self._lock.acquire()
        self._pulse = folder / _PULSE
        write_text_atomically(self._pulse, _this_machine())
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._beat, name=f"heartbeat of {folder.name}", daemon=True)
        self._thread.start()

    def _beat(self) -> None:
        while not self._released.wait(BEAT_SECONDS):
            os.utime(self._pulse)

    def release(self) -> None:
        """Let another process have the trial."""
        self._released.set()
        self._thread.join()
        self._lock.release()


def is_abandoned(folder: Path) -> bool:
    """Return whether nobody works on a trial that was begun in this folder."""
    pulse = folder / _PULSE
    if pulse.is_file() and pulse.read_text(encoding="ascii") != _this_machine():
        return _age_seconds(pulse) > SILENCE_SECONDS
    return _is_free(folder / _LOCK)


def _is_free(lock: Path) -> bool:
    from filelock import FileLock, Timeout

    if not lock.exists():
        return True
    try:
        with FileLock(lock, timeout=0):
            return True
    except Timeout:
        return False


def _age_seconds(file: Path) -> float:
    """Return a file's age by the clock of the file system that holds it, which may not be this machine's."""
    probe = file.with_name(f"{_PULSE}.{os.getpid()}")
    probe.touch()
    try:
        return probe.stat().st_mtime - file.stat().st_mtime
    finally:
        probe.unlink()


def _this_machine() -> str:
    """Return a name for this machine that tells nobody which one it is."""
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:16]
