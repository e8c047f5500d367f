"""What is on the Hub is checked by downloading it: whole, finite, loadable, and with the Hub's own checksums."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from git_hub_state import Hub
from push_runs import REPO, lora_model, push, pushing_to, saved_adapter
from safetensors.torch import load_file, save_file

from hf_lora_ext import AdapterError, PushError, verify_push
from hf_lora_ext.adapters.peft_seam import adapter_tensors
from hf_lora_ext.push.release import CONFIG, WEIGHTS
from hf_lora_ext.push.verification import _places


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


@pytest.mark.parametrize(
    "config",
    [{}, {"use_dora": True}, {"trainable_token_indices": [3, 4]}, {"modules_to_save": ["lm_head"]},
     {"target_modules": ["embed_tokens", "q_proj"]}],
    ids=str,
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning")
def test_weights_and_answers_of_a_model_in_memory_are_compared(git_hub: Hub, tiny_model: Path, config: dict):
    with pushing_to(git_hub):
        result = push(lora_model(tiny_model, **config))
    assert result.checked == ("bytes", "peft", "weights", "answers")


def test_a_model_of_two_halves_answers_too(git_hub: Hub):
    from peft import LoraConfig, get_peft_model
    from transformers import T5Config, T5ForConditionalGeneration

    small = T5Config(vocab_size=32, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0)
    lora = LoraConfig(r=2, target_modules=["q", "v"])
    with pushing_to(git_hub):
        assert "answers" in push(get_peft_model(T5ForConditionalGeneration(small), lora)).checked


def test_what_cannot_be_compared_is_not_said_to_be(git_hub: Hub, tiny_model: Path, adapter: Path, monkeypatch):
    model = lora_model(tiny_model)
    monkeypatch.setattr(type(model.base_model.model), "main_input_name", "pixel_values")
    with pushing_to(git_hub):
        assert push(model).checked == ("bytes", "peft", "weights")
        assert push(adapter).checked == ("bytes", "peft")
        assert push(adapter, verify=False).checked == ()


def test_places_are_the_models_own_parameters(tiny_model: Path):
    model = lora_model(tiny_model, use_dora=True, modules_to_save=["lm_head"])
    own = adapter_tensors(model)
    places = _places({name: tensor.clone() for name, tensor in own.items()}, own, model)
    assert len(places) == len(own)
    for name, tensor in places.items():
        assert torch.equal(model.get_parameter(name), tensor)
    assert _places({"elsewhere": torch.ones(1)}, own, model) is None
