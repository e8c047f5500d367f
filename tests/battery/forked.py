"""Runs of `hf-lora` in processes of their own, forked from one that has loaded the libraries, to be killed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Child", "ending_of", "finished", "load_libraries", "start"]


@dataclass(frozen=True, slots=True)
class Child:
    """A run that was started."""

    pid: int
    log: Path

    def kill_after(self, seconds: float) -> bool:
        """Kill it with signal 9 after some seconds; return whether it was still running."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if os.waitpid(self.pid, os.WNOHANG)[0]:
                return False
            time.sleep(0.002)
        os.kill(self.pid, signal.SIGKILL)
        _, status = os.waitpid(self.pid, 0)
        return os.WIFSIGNALED(status)

    def wait(self) -> int:
        """Return its exit code when it has ended."""
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def said(self) -> str:
        """Return what it printed."""
        return self.log.read_text(encoding="utf8", errors="replace")


def ending_of(child: Child) -> str:
    """Wait for a run; return `done`, `refused` (in words, exit code 2), or its other exit code."""
    code = child.wait()
    said = child.said()
    if code == 2 and "hf-lora: " in said and "Traceback" not in said:
        return "refused"
    return f"exit {code}" if code else "done"


def load_libraries() -> None:
    """Import what a run needs, once for all children, without computing anything: threads do not survive a fork."""
    import matplotlib.font_manager  # noqa: F401 - builds its cache
    import trl

    import hf_lora_ext.runs.runner
    import hf_lora_ext.runs.training

    assert trl.SFTTrainer
    assert hf_lora_ext.runs.runner
    assert hf_lora_ext.runs.training


def start(arguments: Sequence[str | Path], log: Path) -> Child:
    """Start `hf-lora` in a child; what it prints goes to the end of a file."""
    if pid := os.fork():
        return Child(pid, log)
    code = 1
    try:
        target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(target, 1)
        os.dup2(target, 2)
        from hf_lora_ext.cli import main

        main([*map(str, arguments)])
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(code)


def finished(arguments: Sequence[str | Path], log: Path) -> Child:
    """Run `hf-lora` to its end; raise with what it said if that was no good end."""
    child = start(arguments, log)
    if code := child.wait():
        raise RuntimeError(f"hf-lora {' '.join(map(str, arguments))} ended with {code}:\n{child.said()}")
    return child
