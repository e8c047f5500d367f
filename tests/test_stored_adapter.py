"""A weights file is read in blocks; what is torn, not finite or of another adapter is refused with its name."""

import json
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from push_runs import saved_adapter
from safetensors.torch import load_file, save_file
from test_factors import experts_model

from hf_lora_ext import AdapterError
from hf_lora_ext.adapters import stored_adapter as module
from hf_lora_ext.adapters.stored_adapter import check_against_config, read_stored_adapter
from hf_lora_ext.push.release import CONFIG, WEIGHTS


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    return saved_adapter(tmp_path / "adapter", tiny_model)


def config_of(folder: Path) -> dict:
    return json.loads((folder / CONFIG).read_text())


def checked(folder: Path) -> module.StoredAdapter:
    stored = read_stored_adapter(folder / WEIGHTS)
    check_against_config(folder / WEIGHTS, stored, config_of(folder))
    return stored


def test_a_saved_adapter_is_whole(folder: Path):
    stored = checked(folder)
    assert stored.parameters == sum(t.numel() for t in load_file(folder / WEIGHTS).values())
    assert stored.dtypes == ("F32",)


@pytest.mark.parametrize(
    "config",
    [
        {"use_dora": True}, {"target_modules": "all-linear"}, {"rank_pattern": {"q_proj": 4}}, {"bias": "lora_only"},
        {"modules_to_save": ["lm_head"]}, {"target_modules": ["embed_tokens", "q_proj"]},
        {"trainable_token_indices": [3, 4]}, {"target_modules": r".*\.0\.self_attn\.[qv]_proj"}, {"use_rslora": True},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning")
def test_what_peft_saves_agrees_with_its_config(config: dict, tiny_model: Path, tmp_path: Path):
    folder = saved_adapter(tmp_path / "adapter", tiny_model, **config)
    assert checked(folder).shapes.keys() == load_file(folder / WEIGHTS).keys()


@settings(max_examples=20)
@given(data=st.data())
def test_a_single_number_that_is_not_finite_is_found_in_any_block(data: st.DataObject, tmp_path_factory):
    shape = data.draw(st.sampled_from([(1,), (7, 5), (33, 1), (3, 4, 5), ()]))
    tensor = torch.zeros(shape, dtype=data.draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16])))
    tensor.view(-1)[data.draw(st.integers(0, tensor.numel() - 1))] = data.draw(
        st.sampled_from([float("nan"), float("inf"), float("-inf")])
    )
    file = tmp_path_factory.mktemp("weights") / WEIGHTS
    save_file({"fine": torch.ones(3), "bad": tensor}, file)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK_ELEMENTS", data.draw(st.integers(1, 12)))
        with pytest.raises(AdapterError, match="bad has a NaN or an infinity"):
            read_stored_adapter(file)


def test_a_file_that_was_cut_or_lengthened_is_refused(folder: Path):
    whole = (folder / WEIGHTS).read_bytes()
    for torn in (whole[:-1], whole + b"\0", whole[:100], b"", b"\xff" * 8 + whole[8:], whole[:8] + b"{" * 50):
        (folder / WEIGHTS).write_bytes(torn)
        with pytest.raises(AdapterError, match="no whole safetensors file"):
            read_stored_adapter(folder / WEIGHTS)


def test_packed_and_empty_weights_are_refused(folder: Path):
    save_file({"x": torch.zeros(4, dtype=torch.uint8)}, folder / WEIGHTS)
    with pytest.raises(AdapterError, match="x is U8"):
        read_stored_adapter(folder / WEIGHTS)
    save_file({}, folder / WEIGHTS)
    with pytest.raises(AdapterError, match="holds no tensors"):
        read_stored_adapter(folder / WEIGHTS)


def renamed(tensors: dict, part: str, other: str) -> None:
    for key in [key for key in tensors if key.endswith(part)]:
        tensors[key.replace(part, other)] = tensors.pop(key)


def cut_to_nothing(tensors: dict, config: dict) -> None:
    config["r"] = 0
    tensors |= {key: (t[:0] if "lora_A" in key else t[:, :0]).contiguous() for key, t in tensors.items()}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tensors, config: config.update(r=4), "has rank 2, adapter_config.json says 4"),
        (lambda tensors, config: tensors.pop(next(iter(tensors))), "has no factor A"),
        (lambda tensors, config: config.update(target_modules=["q_proj"]), "does not name"),
        (lambda tensors, config: tensors.update({"base_model.model.extra.weight": torch.ones(2)}), "does not name"),
        (lambda tensors, config: (tensors.clear(), tensors.update(x=torch.ones(1))), "no factor A or B"),
        (lambda tensors, config: renamed(tensors, "lora_A.weight", "lora_A.default.weight"), "PEFT does not look for"),
        (lambda tensors, config: renamed(tensors, "lora_A.weight", "lora_down.weight"), "PEFT does not look for"),
        (lambda tensors, config: cut_to_nothing(tensors, config), "has rank 0, which PEFT does not know"),
    ],
)
def test_config_and_weights_of_two_adapters_are_told(change, said: str, folder: Path):
    tensors, config = load_file(folder / WEIGHTS), config_of(folder)
    change(tensors, config)
    save_file(tensors, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(config))
    with pytest.raises(AdapterError, match=said):
        checked(folder)


def test_ranks_by_full_name_are_those_of_the_wrapped_layers(folder: Path):
    tensors, config = load_file(folder / WEIGHTS), config_of(folder)
    name = next(key for key in tensors if key.endswith("lora_A.weight")).removesuffix(".lora_A.weight")
    tensors[f"{name}.lora_A.weight"] = tensors[f"{name}.lora_A.weight"][:1].clone()
    tensors[f"{name}.lora_B.weight"] = tensors[f"{name}.lora_B.weight"][:, :1].clone()
    config["rank_pattern"] = {"^" + re.escape(name.removeprefix("base_model.model.")): 1}
    save_file(tensors, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(config))
    assert checked(folder).shapes[f"{name}.lora_A.weight"][0] == 1


def test_a_part_that_a_variant_of_lora_keeps_is_no_fault(folder: Path):
    tensors = load_file(folder / WEIGHTS)
    name = next(iter(tensors)).partition(".lora_")[0] + ".lora_diag"
    save_file(tensors | {name: torch.ones(2)}, folder / WEIGHTS)
    assert name in checked(folder).shapes


def test_an_adapter_of_token_rows_alone_needs_no_factors(folder: Path):
    name = "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"
    (folder / CONFIG).write_text(json.dumps(config_of(folder) | {"trainable_token_indices": [3]}))
    save_file({name: torch.ones(1, 32)}, folder / WEIGHTS)
    assert set(checked(folder).shapes) == {name}


@pytest.mark.filterwarnings("ignore:.*alpha_pattern:RuntimeWarning")
def test_the_ranks_of_experts_are_those_of_the_config_too(tmp_path: Path):
    alphas = {"mlp.experts.down_proj": 32}  # of equal ranks, only alpha would say which parameter is which
    experts_model(alpha_pattern=alphas).save_pretrained(tmp_path)
    assert checked(tmp_path).shapes
    (tmp_path / CONFIG).write_text(json.dumps(config_of(tmp_path) | {"rank_pattern": {"mlp.experts.down_proj": 5}}))
    with pytest.raises(AdapterError, match="do not say which parameter is which"):
        checked(tmp_path)
