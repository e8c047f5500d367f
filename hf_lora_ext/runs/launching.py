"""`--launch ddpN`: one command that is N processes, with one log, one exit code, and no process left behind.

The processes get the environment that torchrun gives them, which accelerate and the trainer read. torchrun itself is
not used, since it turns every exit code into 1 and prints a traceback of its own.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import IO, Final

from ..errors import ConfigError
from ..hardware import Hardware

__all__ = ["follow_launcher", "launch", "processes_of"]

FOLLOWS: Final = "HF_LORA_EXT_FOLLOWS_LAUNCHER"
"""Set in processes that end with the one that started them."""
POLL_SECONDS: Final = 0.05
GRACE_SECONDS: Final = 10.0
"""How long the other processes have to come to an end of their own after one has failed, or was told to stop."""
TAIL_LINES: Final = 20


def processes_of(launch: str, found: Hardware) -> int:
    """Return how many processes `ddpN` asks for on this machine.

    Raises:
        ConfigError: If it is written otherwise, or there are fewer GPUs.
    """
    match = re.fullmatch(r"ddp([1-9]\d*)", launch)
    if match is None:
        raise ConfigError(
            f"--launch {launch}: needed ddp and a number, such as ddp2; what FSDP and ZeRO-3 share out is started by "
            "`accelerate launch --config_file FILE`, with the FILE of --accelerate-config FILE"
        )
    number = int(match[1])
    if found.kind == "mps" and number > 1:
        raise ConfigError(f"--launch {launch}: this machine has one Apple GPU; leave --launch out")
    if found.kind == "cuda" and number > found.devices:
        raise ConfigError(
            f"--launch {launch}: found {found.devices} GPU{'s' * (found.devices > 1)} here, needed {number}, one for "
            f"each process; use ddp{found.devices}, or leave --launch out"
        )
    return number


@dataclass(frozen=True, slots=True)
class _Child:
    """A process of the run."""

    process: subprocess.Popen[bytes]
    log: IO[bytes] | None
    """What it says; None for the first, which says it to the terminal."""


def launch(command: Sequence[str], number: int, say: Callable[[str], None]) -> int:
    """Run a command in N processes of one run; return its exit code, as a shell would see it.

    The first process has the terminal. What another says is kept, and shown if that one fails first.

    Args:
        command: The program and its arguments.
        number: Processes.
        say: Takes one line about a process that failed.
    """
    port = _free_port()
    children: list[_Child] = []
    try:
        children += (_started(command, rank, number, port) for rank in range(number))
        return _supervised(children, say)
    finally:
        _end(children)
        for child in children:
            if child.log is not None:
                child.log.close()


def _started(command: Sequence[str], rank: int, number: int, port: int) -> _Child:
    cores = os.cpu_count() or 1
    own = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": number,
        "LOCAL_WORLD_SIZE": number,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        FOLLOWS: 1,
    }
    threads = {"OMP_NUM_THREADS": str(max(1, cores // number))} | dict(os.environ)
    log = None if rank == 0 else tempfile.TemporaryFile()
    process = subprocess.Popen(
        command,
        env=threads | {name: str(value) for name, value in own.items()},
        stdin=subprocess.PIPE,  # whose end tells the process that this one is gone
        stdout=log,
        stderr=log,
        start_new_session=True,  # Ctrl-C reaches this process alone, which then ends the others
    )
    return _Child(process, log)


def _supervised(children: Sequence[_Child], say: Callable[[str], None]) -> int:
    """Wait until all are done, or one has failed; return the exit code of the run."""
    while True:
        codes = [child.process.poll() for child in children]
        failed = next((rank for rank, code in enumerate(codes) if code), None)
        if failed is not None:
            break
        if all(code == 0 for code in codes):
            return 0
        time.sleep(POLL_SECONDS)
    if codes[failed] == signal.SIGTERM or (codes[failed] or 0) > 0:
        # What is wrong with the run is wrong in every process, and the first is the one that tells it.
        _wait(children[:1], GRACE_SECONDS)
        failed = 0 if (children[0].process.poll() or 0) > 0 else failed
    code = children[failed].process.poll() or 1
    _end(children)
    _tell(failed, code, children[failed], len(children), say)
    return 128 - code if code < 0 else code


def _tell(rank: int, code: int, child: _Child, number: int, say: Callable[[str], None]) -> None:
    who = f"process {rank} of {number}"
    if code < 0:
        name = signal.Signals(-code).name
        say(f"hf-lora: {who} was killed ({name}), and the others were ended; the same command again goes on")
    if child.log is not None:
        child.log.seek(0)
        tail = child.log.read().decode(errors="replace").splitlines()[-TAIL_LINES:]
        for line in [f"hf-lora: {who} ended with {code}; it said last:"] * bool(tail) + tail:
            say(line)


def _end(children: Sequence[_Child]) -> None:
    """End what still runs: asked first, then killed."""
    for child in children:
        if child.process.poll() is None:
            child.process.terminate()
    _wait(children, GRACE_SECONDS)
    for child in children:
        if child.process.poll() is None:
            child.process.kill()
        child.process.wait()
        if child.process.stdin is not None:
            child.process.stdin.close()


def _wait(children: Sequence[_Child], seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until and any(child.process.poll() is None for child in children):
        time.sleep(POLL_SECONDS)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def follow_launcher() -> None:
    """End this process when the one that launched it is gone, however that ended; nothing where none did."""
    if FOLLOWS not in os.environ:
        return

    def wait() -> None:
        while os.read(sys.stdin.fileno(), 1024):
            pass
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=wait, daemon=True, name="follow-launcher").start()
