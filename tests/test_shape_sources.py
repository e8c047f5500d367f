"""Shapes without a closed form: the meta device, stored weights, dimensions, the name; each says which it was."""

import json
from pathlib import Path

import pytest
from conftest import run_python
from git_hub_state import Hub
from test_families import SMALL, real_config, real_model

from hf_lora_ext import ConfigError
from hf_lora_ext.models.base_models import find_shape
from hf_lora_ext.models.families import expert_targets, linear_targets, shape_from_config
from hf_lora_ext.models.shape_sources import (
    shape_from_dimensions,
    shape_from_index,
    shape_from_tensors,
    shape_on_meta_device,
)

UNKNOWN = {"model_type": "llama99", "dtype": "bfloat16"}
DIMENSIONS = UNKNOWN | {
    "hidden_size": 24, "num_hidden_layers": 3, "vocab_size": 131, "num_attention_heads": 4, "intermediate_size": 40,
}  # fmt: skip
PACKED = {"quantization_config": {"quant_method": "gptq", "bits": 4}}

FIND = """
import json, sys
from hf_lora_ext import LoraExtError
from hf_lora_ext.models.base_models import find_shape
for name in sys.argv[1:]:
    try:
        shape, _ = find_shape(name)
        print(json.dumps([shape.parameters, shape.source]))
    except LoraExtError as error:
        print(json.dumps([None, str(error)]))
"""


def write_model(folder: Path, config: dict, tensors: dict | None = None, **files: dict) -> Path:
    import torch
    from safetensors.torch import save_file

    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    for name, content in files.items():
        (folder / name.replace("_index", ".index").replace("_json", ".json")).write_text(json.dumps(content))
    if tensors:
        save_file(
            {name: torch.zeros(size, dtype=getattr(torch, dtype)) for name, (dtype, size) in tensors.items()},
            folder / "model.safetensors",
        )
    return folder


FLOATS = {"a": ("bfloat16", (3, 5)), "b": ("float32", (7,)), "position_ids": ("int64", (4,))}
INTS = {"a": ("int32", (3, 5)), "scales": ("float16", (7,))}
INDEX = {"metadata": {"total_size": 2_000_000}, "weight_map": {}}


@pytest.mark.parametrize("family", SMALL)
def test_the_meta_device_tells_what_the_closed_form_tells(family: str):
    """The walk that serves unknown families finds the same in known ones."""
    base, changes = SMALL[family]
    config = real_config(family, base | changes[1]).to_dict()
    if family in {"bert", "roberta", "deberta-v2"}:
        config["architectures"] = ["SomeForMaskedLM"]
    closed, measured = shape_from_config(config), shape_on_meta_device(config, "config")
    assert measured.source == f"config ({family}, counted on the meta device)"
    for field in ("parameters", "active_parameters", "quantisable_parameters", "counted_as", "hidden", "heads", "tied"):
        assert getattr(measured, field) == getattr(closed, field), field
    routers = {x.path for x in closed.linear if "router" in x.name or x.path == "mlp.gate"}
    kinds = {
        which: {(x.path, x.in_features, x.out_features, x.has_bias, x.count, x.kept) for x in shape.linear}
        for which, shape in (("closed", closed), ("measured", measured))
    }
    ends = {kind for kind in kinds["closed"] if kind[0] not in routers}
    assert len(ends) == len(kinds["measured"])
    for path, *rest in kinds["measured"]:
        assert any(path.endswith(end) and rest == others for end, *others in ends)
    assert {x.name: x.parameters for x in measured.expert_weights} == {
        x.name: x.parameters for x in closed.expert_weights
    }


def test_a_family_without_a_closed_form_is_built_on_the_meta_device():
    small = {"vocab_size": 131, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "intermediate_size": 40, "pad_token_id": 0}  # fmt: skip
    config = real_config("starcoder2", small)
    shape, _ = find_shape(config.to_dict() | PACKED)
    packed = "its weights are packed already, as gptq"
    assert shape.source == f"config (starcoder2, counted on the meta device); {packed}"
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    model.tie_weights()
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    assert shape.lora_parameters(2, ["q_proj"]) == 2 * (24 + 24) * 2
    assert (linear_targets(shape), expert_targets(shape)) == (None, None)


def test_an_unknown_multimodal_model_is_sized_by_its_language_part():
    text = {"model_type": "llama"} | SMALL["llama"][0]
    config = {"model_type": "llava", "text_config": text}
    shape = shape_on_meta_device(config, "config.json")
    assert shape.parameters == sum(p.numel() for p in real_model("llama", SMALL["llama"][0]).parameters())
    assert shape.source == "config.json, language part of a llava model (llama, counted on the meta device)"


@pytest.mark.parametrize("config", [UNKNOWN, {}, {"model_type": "vit"}])
def test_what_transformers_cannot_build_has_no_shape_on_the_meta_device(config: dict):
    assert shape_on_meta_device(config, "config") is None


@pytest.mark.parametrize(
    ("elements", "config", "parameters"),
    [
        ({"BF16": 15, "F32": 7}, UNKNOWN, 22),
        ({"F8_E4M3": 15, "BF16": 7, "I64": 4, "BOOL": 9}, UNKNOWN, 22),
        ({"I32": 15, "F16": 7}, UNKNOWN, None),
        ({"U8": 15, "F32": 7}, UNKNOWN, None),
        ({"BF16": 15}, UNKNOWN | PACKED, None),
        ({"BF16": 15}, {"model_type": "new_vision", "text_config": {}}, None),
        ({}, UNKNOWN, None),
    ],
)
def test_stored_elements_count_unless_they_are_packed(elements: dict, config: dict, parameters: int | None):
    shape = shape_from_tensors(elements, config, "the weights")
    assert (shape and shape.parameters) == parameters


@pytest.mark.parametrize(
    ("index", "config", "parameters"),
    [
        (INDEX, UNKNOWN, 1_000_000),
        (INDEX, {"torch_dtype": "float32"}, 500_000),
        (INDEX, {"dtype": None}, None),
        (INDEX, UNKNOWN | PACKED, None),
        ({"metadata": {}}, UNKNOWN, None),
        ({"weight_map": {}}, UNKNOWN, None),
    ],
)
def test_an_index_tells_the_parameters_by_its_bytes(index: dict, config: dict, parameters: int | None):
    shape = shape_from_index(index, config, "the index")
    assert (shape and shape.parameters) == parameters


def test_dimensions_alone_give_the_size_of_a_llama():
    small = SMALL["llama"][0] | {"num_key_value_heads": 4}
    shape = shape_from_dimensions(DIMENSIONS, "config.json")
    assert shape.parameters == sum(p.numel() for p in real_model("llama", small).parameters())
    assert shape.source == "config.json (estimated as a Llama of its dimensions)"
    assert shape_from_dimensions(UNKNOWN, "config.json") is None
    assert shape_from_dimensions(DIMENSIONS | {"hidden_size": "wide"}, "config.json") is None


UNBUILT = "of the config.json's model_type='llama99' the installed transformers makes no language model"
BIN_INDEX = {"pytorch_model.bin_index_json": INDEX}


@pytest.mark.parametrize(
    ("config", "tensors", "files", "expected"),
    [
        (UNKNOWN, FLOATS, {}, (22, "the weights' safetensors headers (as stored)")),
        (UNKNOWN, None, BIN_INDEX, (10**6, "pytorch_model.bin.index.json (total_size in bfloat16)")),
        (DIMENSIONS, INTS, {}, (22008, "config.json (estimated as a Llama of its dimensions)")),
        (UNKNOWN, INTS, {}, (3 * 10**9, f"its name ({UNBUILT})")),
    ],
)
def test_a_local_folder_of_an_unknown_family_goes_down_the_chain(tmp_path: Path, config, tensors, files, expected):
    shape, _ = find_shape(write_model(tmp_path / "new-3B", config, tensors, **files))
    assert (shape.parameters, shape.source) == expected


def test_a_broken_or_empty_folder_is_refused_with_the_family(tmp_path: Path):
    folder = write_model(tmp_path / "new", UNKNOWN)
    (folder / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{unfinis")
    (folder / "model.safetensors.index.json").write_text("[1")
    with pytest.raises(ConfigError, match=r"model_type='llama99'.*upgrade transformers, or give a size key"):
        find_shape(folder)


def test_the_hub_tells_an_unknown_familys_size_by_weights_index_dimensions_or_name(git_hub: Hub, tmp_path: Path):
    index = {"model.safetensors_index_json": INDEX}
    repositories = {
        "me/counted": write_model(tmp_path / "counted", UNKNOWN, FLOATS),
        "me/indexed": write_model(tmp_path / "indexed", UNKNOWN, None, **index),
        "me/packed": write_model(tmp_path / "packed", DIMENSIONS | PACKED, INTS, **index),
        "me/named-3B": write_model(tmp_path / "named-3B", UNKNOWN, INTS),
        "me/none": write_model(tmp_path / "none", UNKNOWN),
    }
    expected = {
        "me/counted": [22, "the Hub's count of the weights (as stored)"],
        "me/indexed": [10**6, "model.safetensors.index.json on the Hub (total_size in bfloat16)"],
        "me/packed": [22008, "config.json on the Hub (estimated as a Llama of its dimensions)"],
    }
    for name, folder in repositories.items():
        git_hub.create_from(name, folder)
    result = run_python("-c", FIND, *repositories, HF_ENDPOINT=git_hub.endpoint, HF_HOME=str(tmp_path / "cache"))
    assert result.returncode == 0, result.stderr
    found = dict(zip(repositories, map(json.loads, result.stdout.splitlines()), strict=True))
    assert {name: found[name] for name in expected} == expected
    assert found["me/named-3B"][0] == 3 * 10**9
    assert found["me/named-3B"][1].startswith("its name (of the config.json on the Hub's model_type='llama99'")
    assert found["me/none"][0] is None
    assert "and its name states no size; give a local folder" in found["me/none"][1]
    assert not any(
        request.path.endswith("model.safetensors") for request in git_hub.faults.log
    )  # sizes cost no weights
