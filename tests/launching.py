"""`accelerate launch` on the CPU, from tests that run beside others."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def launched(processes: int, *script: str, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a script under `accelerate launch`, with gloo; return the finished process.

    accelerate finds a free port and lets go of it, and torch binds it seconds later; another test's connection may have
    it by then. Where the port is taken, accelerate lets torch bind one itself. So one is held that it is given.
    """
    with socket.socket() as held:
        held.bind(("localhost", 0))
        held.listen()
        command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--num_processes",
                   str(processes), "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
                   "--num_cpu_threads_per_process", "1", "--main_process_port", str(held.getsockname()[1])]  # fmt: skip
        command += ["--multi_gpu"] if processes > 1 else ["--cpu"]  # its name for torchrun; the trainer asks for gloo
        return subprocess.run([*command, *script], env=environment, capture_output=True, text=True, timeout=600,
                              check=False)  # fmt: skip


def launch(script: Path, processes: int, **settings: Any) -> subprocess.CompletedProcess[str]:
    """Run a script of the tests, whose argument is its settings as JSON."""
    return launched(processes, str(script), json.dumps(settings), environment=os.environ)
