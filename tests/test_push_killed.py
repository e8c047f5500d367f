"""A push that is killed at any moment leaves the Hub whole, and the same push again finishes it with one commit."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from git_hub_access import WRITE_TOKEN
from git_hub_state import Hub
from push_runs import COMMITS, REPO, push, pushing_to

from hf_lora_ext.push.release import WEIGHTS

PUSH = """
import os, signal, sys
from hf_lora_ext import push_adapter
def say(line):
    if line.split()[0] == sys.argv[2]:
        os.kill(os.getpid(), signal.SIGKILL)
push_adapter(sys.argv[1], "me/sums", license="mit", tag="v1", say=say)
"""
STEPS = ("gather", "check", "show", "commit", "verify", "tag", "done")
CALLS = [
    *(("create", "after"), ("preupload", "after"), ("xet-token", "before"), ("commit", "before"), ("commit", "after")),
    *(("resolve", "before"), ("tag", "before"), ("tag", "after")),
]


def start(hub: Hub, adapter: Path, step: str) -> subprocess.Popen:
    environment = os.environ | {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": WRITE_TOKEN, "HF_HOME": str(hub.root / "home")}
    return subprocess.Popen(
        [sys.executable, "-c", PUSH, str(adapter), step], env=environment, stderr=subprocess.DEVNULL
    )


def finished(hub: Hub, adapter: Path) -> None:
    """Push again and look at everything."""
    if hub.exists("model", REPO):
        assert hub.history(REPO) in (COMMITS, COMMITS[1:])
    with pushing_to(hub):
        result = push(adapter, tag="v1")
    assert hub.history(REPO) == COMMITS
    assert result.commit == hub.head(REPO) == hub.head(REPO, "v1")
    assert hub.files(REPO)[WEIGHTS] == (adapter / WEIGHTS).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS)
def test_killed_at_the_beginning_of_a_step(git_hub: Hub, adapter: Path, step: str):
    process = start(git_hub, adapter, step)
    assert process.wait(300) == -signal.SIGKILL
    finished(git_hub, adapter)


@pytest.mark.parametrize(
    ("where", "when"), [pytest.param(*c, marks=[] if c == ("commit", "after") else pytest.mark.slow) for c in CALLS]
)
def test_killed_while_the_hub_acts(git_hub: Hub, adapter: Path, where: str, when: str):
    process = start(git_hub, adapter, "never")
    git_hub.faults.add(where, when, process.kill)
    assert process.wait(300) == -signal.SIGKILL
    finished(git_hub, adapter)
