"""The Hub stand-in takes what the real client sends, and answers as the real Hub does."""

from pathlib import Path

import numpy as np
import pytest
from git_hub_access import WRITE_TOKEN
from git_hub_state import Hub
from huggingface_hub import (
    CommitOperationAdd,
    HfApi,
    snapshot_download,
)
from safetensors.numpy import save

WEIGHTS = save({"a": np.random.default_rng(0).standard_normal((3_000_000,)).astype(np.float32)})  # 12 MB


def client(hub: Hub, token: str | bool = WRITE_TOKEN) -> HfApi:
    return HfApi(endpoint=hub.endpoint, token=token)


def add(**files: bytes) -> list[CommitOperationAdd]:
    return [CommitOperationAdd(path, content) for path, content in files.items()]


def small(number: int = 0) -> list[CommitOperationAdd]:
    return [CommitOperationAdd("note.txt", f"note {number}".encode())]


@pytest.fixture(params=["xet", "lfs"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Send large files by Xet, or with Xet turned off by LFS."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", request.param == "lfs")
    return request.param


def test_what_is_pushed_comes_back_byte_for_byte(git_hub: Hub, way: str, tmp_path: Path):
    api = client(git_hub)
    assert api.create_repo("me/adapter", private=True).repo_id == "me/adapter"
    before = git_hub.head("me/adapter")
    files = [CommitOperationAdd("adapter_model.safetensors", WEIGHTS), CommitOperationAdd("a/b/note.txt", b"hello\r\n")]
    pushed = api.create_commit("me/adapter", files, commit_message="Push", parent_commit=before)
    assert pushed.oid == git_hub.head("me/adapter") != before
    assert api.model_info("me/adapter").safetensors.total == 3_000_000
    folder = Path(
        snapshot_download(
            "me/adapter", revision=pushed.oid, cache_dir=tmp_path, endpoint=git_hub.endpoint, token=WRITE_TOKEN
        )
    )
    assert (folder / "adapter_model.safetensors").read_bytes() == WEIGHTS
    assert (folder / "a/b/note.txt").read_bytes() == b"hello\r\n"
    sent = {request.where for request in git_hub.faults.log}
    assert ("xet-token" in sent, "lfs-part" in sent) == (way == "xet", way == "lfs")
