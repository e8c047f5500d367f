"""Each engine's rules refuse what its source refuses or gets wrong, and accept what it loads."""

from dataclasses import replace
from pathlib import Path

import pytest
from exported_adapters import mixed_adapter, random_adapter
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from hf_lora_ext import AdapterError, ConfigError, check_engine, export_adapter
from hf_lora_ext.export.engine_rules import (
    ENGINES,
    VLLM_RANKS,
    Holdings,
    Module,
    kind_of,
    max_lora_rank_for,
    serving_rank,
)
from hf_lora_ext.export.engines import serving_command

LEAVES = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj",
          "mlp.up_proj", "mlp.down_proj")  # fmt: skip
pytestmark = pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning")


def held(*, layers: int = 2, rank: int = 8, leaves: tuple[str, ...] = LEAVES, **config) -> Holdings:
    """A uniform adapter that every engine loads, with another config where one is given."""
    modules = tuple(Module(f"model.layers.{layer}.{leaf}", rank, 2.0) for layer in range(layers) for leaf in leaves)
    keys = tuple(f"base_model.model.{m.name}.lora_{side}.weight" for m in modules for side in "AB")
    settings = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": ["q_proj"], "bias": "none"}
    return Holdings(config=settings | config, modules=modules, keys=keys)


def refusing(holdings: Holdings) -> set[str]:
    return {name for name, engine in ENGINES.items() if engine.problems(holdings)}


def with_module(holdings: Holdings, name: str, **changed) -> Holdings:
    modules = tuple(replace(m, **changed) if m.name == name else m for m in holdings.modules)
    return replace(holdings, modules=modules)


def without(holdings: Holdings, name: str) -> Holdings:
    return replace(
        holdings,
        modules=tuple(m for m in holdings.modules if m.name != name),
        keys=tuple(key for key in holdings.keys if f".{name}." not in key),
    )


def and_key(holdings: Holdings, key: str) -> Holdings:
    return replace(holdings, keys=(*holdings.keys, key))


ALL = set(ENGINES)
Q0 = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("holdings", "refused_by"),
    [
        (held(), set()),
        (held(peft_type="LOHA"), ALL),
        (held(use_dora=True), ALL),
        (held(bias="lora_only"), {"vllm"}),
        (held(lora_bias=True), {"vllm"}),
        (held(init_lora_weights="pissa_niter_4"), {"vllm"}),
        (held(init_lora_weights="gaussian"), set()),
        (held(modules_to_save=["score"]), set()),
        (held(modules_to_save=["lm_head"]), {"vllm"}),
        (and_key(held(), "base_model.model.lm_head.weight"), ALL),
        (and_key(held(), "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"), ALL),
        (held(target_modules=".*q_proj"), {"sglang"}),
        (held(rank=12), {"lorax", "tgi"}),
        (held(rank=16), set()),
        (held(rank=1024), {"vllm"}),
        (with_module(held(), Q0, rank=4), {"sglang", "lorax", "tgi", "llama.cpp"}),
        (with_module(held(), Q0, scale=1.0), {"sglang", "lorax", "tgi", "llama.cpp"}),
        (without(held(), Q0), {"sglang", "lorax", "tgi"}),
        (without(held(), "model.layers.0.self_attn.k_proj"), {"lorax", "tgi"}),
        (without(held(), "model.layers.0.mlp.gate_proj"), {"sglang", "lorax", "tgi"}),
        (replace(held(), base_layers=3), {"lorax", "tgi"}),
        (held(leaves=("self_attn.q_proj", "self_attn.v_proj", "self_attn.qkv_proj")), {"lorax"}),
        (with_module(held(), Q0, kind="parameter"), ALL - {"vllm"}),
        (replace(held(), files=frozenset({"added_tokens.json"})), {"sglang"}),
    ],
)  # fmt: skip
def test_an_engine_refuses_what_its_source_does(holdings: Holdings, refused_by: set[str]):
    assert refusing(holdings) == refused_by


def test_rslora_is_read_by_vllm_lorax_and_tgi_alone():
    rslora = held(use_rslora=True, rank=16)
    rslora = replace(rslora, modules=tuple(replace(module, scale=32 / 4) for module in rslora.modules))
    assert refusing(rslora) == {"sglang", "llama.cpp"}


def test_a_raw_adapter_of_mixed_ranks_loads_in_vllm_alone(tiny_model: Path, tmp_path: Path):
    adapter = mixed_adapter(tmp_path / "adapter", tiny_model)
    assert {name for name in ENGINES if check_engine(adapter, name, base_layers=2)} == set(ENGINES) - {"vllm"}


def test_an_embedding_is_left_out_by_lorax_and_tgi_alone(tiny_model: Path, tmp_path: Path):
    adapter = random_adapter(tmp_path / "adapter", tiny_model, target_modules=["embed_tokens", "q_proj", "v_proj"])
    export_adapter(adapter, "portable", tmp_path / "out", check=False)
    assert {name for name in ENGINES if check_engine(tmp_path / "out", name)} == {"lorax", "tgi"}


def test_names_without_pefts_prefix_are_read_by_some(tiny_model: Path, tmp_path: Path):
    adapter = random_adapter(tmp_path / "adapter", tiny_model, r=8)
    file = adapter / "adapter_model.safetensors"
    tensors = {name.removeprefix("base_model.model."): tensor for name, tensor in load_file(file).items()}
    save_file(tensors, file)
    assert {name for name in ENGINES if check_engine(adapter, name)} == {"lorax", "tgi"}


@pytest.mark.parametrize("engine", ENGINES)
def test_an_engines_rules_name_version_and_source(engine: str):
    assert ENGINES[engine].version
    assert ".py" in ENGINES[engine].source
    command = serving_command(engine, "me/base", Path("out/my adapter"), 10)
    assert "me/base" in command
    assert "'out/my adapter'" in command or "\"'out" in command
    assert "{" not in command


def test_unknown_engines_and_bare_files_are_told(adapter: Path):
    with pytest.raises(ConfigError, match="did you mean `vllm`"):
        check_engine(adapter, "vlmm")
    (adapter / "adapter_config.json").unlink()
    with pytest.raises(AdapterError, match="holds no adapter_config"):
        check_engine(adapter, "vllm")
    with pytest.raises(AdapterError, match="stands alone"):
        check_engine(adapter / "adapter_model.safetensors", "vllm")


@given(st.integers(1, 600))
def test_the_rank_to_serve_is_the_smallest_that_no_engine_pads(rank: int):
    served = serving_rank(rank)
    assert served >= rank
    assert served == 8 or served % 16 == 0
    assert not any(rank <= smaller < served and (smaller == 8 or smaller % 16 == 0) for smaller in range(1, served))
    assert serving_rank(served) == served


@given(st.integers(1, 600))
def test_vllms_maximum_holds_the_rank(rank: int):
    allowed = max_lora_rank_for(rank)
    assert (allowed is None) == (rank > 512)
    if allowed is not None:
        assert allowed in VLLM_RANKS
        assert rank <= allowed


def test_a_kind_is_the_name_without_the_layers_number():
    assert kind_of("lm_head") == ("lm_head", None)
    assert kind_of("vision.layers.3.q_proj")[0] != kind_of("model.layers.3.q_proj")[0]
