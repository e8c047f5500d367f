"""What is on the Hub is checked by downloading it: whole, finite, loadable, and with the Hub's own checksums."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from git_hub_state import Hub
from push_runs import REPO, push, pushing_to, saved_adapter
from safetensors.torch import load_file, save_file

from hf_lora_ext import AdapterError, PushError, verify_push
from hf_lora_ext.release import CONFIG, WEIGHTS


@pytest.fixture
def hub(git_hub: Hub, adapter: Path):
    with pushing_to(git_hub):
        push(adapter, tag="v1")
        yield git_hub


def test_a_pushed_adapter_is_found_whole_by_branch_tag_and_commit(hub: Hub, adapter: Path):
    digest = hashlib.sha256((adapter / WEIGHTS).read_bytes()).hexdigest()
    for revision in (None, "v1", hub.head(REPO)):
        checked = verify_push(REPO, revision, adapter)
        assert (checked.commit, checked.files[WEIGHTS]) == (hub.head(REPO), digest)
    assert checked.parameters == sum(t.numel() for t in load_file(adapter / WEIGHTS).values())


def test_another_folders_weights_are_told(hub: Hub, adapter: Path, tiny_model: Path):
    saved_adapter(adapter, tiny_model, r=4)
    with pytest.raises(PushError, match="they are two adapters"):
        verify_push(REPO, "v1", adapter)


def test_an_adapter_that_diverged_or_is_torn_is_told(hub: Hub, adapter: Path):
    tensors = load_file(adapter / WEIGHTS)
    save_file(tensors | {next(iter(tensors)): torch.full((2, 32), float("nan"))}, adapter / WEIGHTS)
    hub.push(REPO, {WEIGHTS: (adapter / WEIGHTS).read_bytes()})
    with pytest.raises(AdapterError, match="NaN"):
        verify_push(REPO)
    hub.push(REPO, {WEIGHTS: b"torn"})
    with pytest.raises(AdapterError, match="no whole safetensors file"):
        verify_push(REPO)


def test_a_config_that_peft_cannot_read_is_told(hub: Hub):
    hub.push(REPO, {CONFIG: json.dumps({"peft_type": "NONSENSE"}).encode()})
    with pytest.raises(AdapterError, match="peft cannot load the adapter"):
        verify_push(REPO)


def test_a_repository_without_an_adapter_is_told(hub: Hub):
    hub.create("me/empty", {"README.md": b"x"})
    with pytest.raises(PushError, match="it holds no adapter"):
        verify_push("me/empty")
    with pytest.raises(PushError, match="there is no me/nothing at main"):
        verify_push("me/nothing")
