"""A merged model answers as the trained adapter on its base, whatever was adapted, and is an ordinary model folder."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import outcome
from exported_adapters import IDS, answers, random_adapter
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_export import same
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForCausalLM,
)

from hf_lora_ext import AdapterError, export_adapter
from hf_lora_ext.export import merging
from hf_lora_ext.export.merging import split_into_files

pytestmark = pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning",
                                        "ignore:Model has `tie_word_embeddings=True`:UserWarning")  # fmt: skip


@pytest.fixture(scope="module")
def tied_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama whose head is its embedding."""
    folder = tmp_path_factory.mktemp("models") / "tied"
    torch.manual_seed(1)
    LlamaForCausalLM(AutoConfig.from_pretrained(tiny_model, tie_word_embeddings=True)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def gpt2_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2, whose layers store their weights the other way round, with the names that its first files had."""
    folder = tmp_path_factory.mktemp("models") / "gpt2"
    torch.manual_seed(2)
    GPT2LMHeadModel(GPT2Config(vocab_size=100, n_embd=32, n_layer=2, n_head=2, n_positions=64)).save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    shorter = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    assert shorter.keys() != tensors.keys()
    save_file(shorter, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


ADAPTED = {
    "dora": {"use_dora": True},
    "dora, embedding": {"use_dora": True, "target_modules": ["embed_tokens", "q_proj"]},
    "norm": {"modules_to_save": ["norm"]},
    "head as a whole": {"modules_to_save": ["lm_head"]},
    "embedding as a whole": {"modules_to_save": ["embed_tokens"]},
    "tokens": {"trainable_token_indices": [3, 90]},
    "tokens of both": {"trainable_token_indices": {"embed_tokens": [3, 90], "lm_head": [5]}},
}


@pytest.mark.parametrize("kind", ADAPTED)
def test_a_merged_model_answers_as_the_adapter(kind: str, tiny_model: Path, tmp_path: Path):
    adapter = random_adapter(tmp_path / "adapter", tiny_model, **ADAPTED[kind])
    assert not same(answers(tiny_model), answers(tiny_model, adapter), 1e-2)
    export_adapter(adapter, "merged", tmp_path / "out")
    assert same(answers(tiny_model, adapter), answers(tmp_path / "out"))


@pytest.mark.parametrize(
    ("config", "stays_tied"),
    [
        ({}, True),
        ({"trainable_token_indices": [3, 90]}, True),
        ({"target_modules": ["embed_tokens", "q_proj"]}, False),
        ({"target_modules": ["lm_head", "q_proj"]}, False),
        ({"modules_to_save": ["lm_head"]}, False),
        ({"modules_to_save": ["embed_tokens"]}, False),
        ({"use_dora": True, "target_modules": ["embed_tokens", "lm_head"]}, False),
    ],
    ids=str,
)
def test_a_tied_head_stays_tied_unless_one_side_changes(config, stays_tied: bool, tied_model: Path, tmp_path: Path):
    adapter = random_adapter(tmp_path / "adapter", tied_model, **config)
    done = export_adapter(adapter, "merged", tmp_path / "out")
    assert same(answers(tied_model, adapter), answers(tmp_path / "out"))
    assert ("lm_head.weight" in load_file(tmp_path / "out" / "model.safetensors")) is not stays_tied
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is stays_tied
    assert any("are two now" in note for note in done.notes) is not stays_tied
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert (model.lm_head.weight is model.model.embed_tokens.weight) is stays_tied


@pytest.mark.parametrize("config", [{}, {"use_dora": True}, {"use_rslora": True}, {"bias": "lora_only"},
                                    {"target_modules": ["wte", "c_attn"]}], ids=str)  # fmt: skip
def test_layers_that_store_their_weights_the_other_way_round_merge(config: dict, gpt2_model: Path, tmp_path: Path):
    settings = {"target_modules": ["c_attn", "c_fc", "c_proj"], "fan_in_fan_out": True} | config
    adapter = random_adapter(tmp_path / "adapter", gpt2_model, **settings)
    assert not same(answers(gpt2_model), answers(gpt2_model, adapter), 1e-2)
    export_adapter(adapter, "merged", tmp_path / "out")
    assert same(answers(gpt2_model, adapter), answers(tmp_path / "out"))


@pytest.mark.parametrize("form", ["portable", "compact"])
def test_they_leave_as_adapters_too(form: str, gpt2_model: Path, tmp_path: Path):
    settings = {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True, "rank_pattern": {"c_fc": 2}}
    adapter = random_adapter(tmp_path / "adapter", gpt2_model, **settings)
    export_adapter(adapter, form, tmp_path / "out")
    assert same(answers(gpt2_model, adapter), answers(gpt2_model, tmp_path / "out"))


def test_a_classifier_merges_with_its_head(tiny_model: Path, tmp_path: Path):
    from exported_adapters import classifier

    class Auto:
        from_pretrained = staticmethod(classifier)

    adapter = random_adapter(tmp_path / "adapter", tiny_model, auto=Auto, task_type="SEQ_CLS")
    export_adapter(adapter, "merged", tmp_path / "out")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    assert model.config.num_labels == 3
    with torch.no_grad():
        assert same(answers(tiny_model, adapter, auto=Auto), model(IDS).logits)


def test_a_merged_folder_is_an_ordinary_model(capsys, tiny_model: Path, tmp_path: Path):
    adapter = random_adapter(tmp_path / "adapter", tiny_model)
    code, out, _ = outcome(capsys, "merge", adapter, tmp_path / "out", "--dtype", "bfloat16")
    assert code == 0
    assert "largest difference" in out
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert tensors.keys() == load_file(tiny_model / "model.safetensors").keys()
    assert AutoConfig.from_pretrained(tmp_path / "out").dtype == torch.bfloat16
    assert (tmp_path / "out" / "generation_config.json").is_file()
    own = AutoTokenizer.from_pretrained(tiny_model)
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == own.chat_template


def test_the_weights_are_added_in_float32(tiny_model: Path, tmp_path: Path):
    half = tmp_path / "half"
    AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.bfloat16).save_pretrained(half)
    adapter = random_adapter(tmp_path / "adapter", half, target_modules=["q_proj"])
    export_adapter(adapter, "merged", tmp_path / "out")
    base, merged = (load_file(folder / "model.safetensors") for folder in (half, tmp_path / "out"))
    factors = load_file(adapter / "adapter_model.safetensors")
    name = "model.layers.1.self_attn.q_proj"
    a, b = (factors[f"base_model.model.{name}.lora_{side}.weight"] for side in "AB")
    exact = base[f"{name}.weight"].double() + 2 * b.double() @ a.double()
    assert torch.equal(merged[f"{name}.weight"], exact.to(torch.bfloat16))
    untouched = "model.layers.1.self_attn.k_proj.weight"
    assert torch.equal(merged[untouched], base[untouched])


def test_a_model_in_several_files_merges_into_several(tiny_model: Path, tmp_path: Path, monkeypatch):
    sharded = tmp_path / "sharded"
    AutoModelForCausalLM.from_pretrained(tiny_model).save_pretrained(sharded, max_shard_size="50KB")
    shutil.copy(tiny_model / "tokenizer.json", sharded)
    adapter = random_adapter(tmp_path / "adapter", sharded, target_modules="all-linear")
    monkeypatch.setattr(merging, "split_into_files", lambda sizes: split_into_files(sizes, 40_000))
    export_adapter(adapter, "merged", tmp_path / "out")
    assert same(answers(sharded, adapter), answers(tmp_path / "out"))
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    files = sorted((tmp_path / "out").glob("model-*.safetensors"))
    assert len(files) > 2
    found = {}
    for file in files:
        with safe_open(file, "pt") as stored:
            found |= {name: (file.name, stored.get_tensor(name).nbytes) for name in stored.keys()}
    assert index["weight_map"] == {name: file for name, (file, _) in found.items()}
    assert index["metadata"]["total_size"] == sum(size for _, size in found.values())


@given(st.dictionaries(st.text(min_size=1), st.integers(0, 50)), st.integers(1, 60))
def test_files_hold_every_tensor_once_in_order_and_no_more_than_they_may(sizes: dict[str, int], most: int):
    files = split_into_files(sizes, most)
    assert [name for names in files for name in names] == list(sizes)
    assert all(len(names) == 1 or sum(sizes[name] for name in names) <= most for names in files)


def test_a_packed_base_is_refused_with_what_to_give(tiny_model: Path, tmp_path: Path):
    adapter = random_adapter(tmp_path / "adapter", tiny_model)
    packed = shutil.copytree(tiny_model, tmp_path / "packed")
    config = json.loads((packed / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (packed / "config.json").write_text(json.dumps(config))
    with pytest.raises(AdapterError, match=r"stored packed \(bitsandbytes\).*unquantised model"):
        export_adapter(adapter, "merged", tmp_path / "out", base=str(packed))
    tensors = load_file(tiny_model / "model.safetensors")
    tensors["model.layers.0.self_attn.q_proj.weight"] = torch.zeros(512, dtype=torch.uint8)
    save_file(tensors, packed / "model.safetensors", metadata={"format": "pt"})
    shutil.copy(tiny_model / "config.json", packed)
    with pytest.raises(AdapterError, match=r"is stored as U8.*unquantised"):
        export_adapter(adapter, "merged", tmp_path / "out", base=str(packed))
    assert not (tmp_path / "out").exists()


def test_an_adapter_of_a_packed_base_merges_into_the_unquantised_one_and_says_so(tiny_model: Path, tmp_path: Path):
    adapter = random_adapter(tmp_path / "adapter", tiny_model)
    (adapter / "facts.json").write_text(
        json.dumps({"schema_version": 1, "quantization": {"bnb_4bit_quant_type": "nf4"}})
    )
    done = export_adapter(adapter, "merged", tmp_path / "out")
    assert any("trained on a base in nf4" in note for note in done.notes)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda tensors: tensors.pop("model.layers.0.self_attn.q_proj.weight"),
            "files hold no model.layers.0.self_attn.q",
        ),
        (lambda tensors: tensors.clear() or tensors.update(x=torch.ones(2)), "files hold no"),
    ],
)
def test_a_base_without_a_place_for_a_factor_is_refused(change, said: str, tiny_model: Path, tmp_path: Path):
    adapter = random_adapter(tmp_path / "adapter", tiny_model)
    base = shutil.copytree(tiny_model, tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    change(tensors)
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(AdapterError, match=said):
        export_adapter(adapter, "merged", tmp_path / "out", base=str(base))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", ["portable", "compact", "uniform:2", "merged"])
def test_stacked_experts_are_refused_with_the_way_out(form: str, tmp_path: Path):
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    base = tmp_path / "base"
    MixtralForCausalLM(MixtralConfig(vocab_size=100, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
                                     num_attention_heads=2, num_key_value_heads=2, num_local_experts=4)
                       ).save_pretrained(base)  # fmt: skip
    adapter = random_adapter(
        tmp_path / "adapter", base, target_modules=["q_proj"], target_parameters=["experts.gate_up_proj"]
    )
    with pytest.raises(AdapterError, match=r"experts.*merge_and_unload"):
        export_adapter(adapter, form, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_real_model_merges_in_bfloat16(tmp_path: Path):
    from hf_lora_ext.models.base_models import EMBEDDED_MODEL, find_base_model

    base = Path(find_base_model(EMBEDDED_MODEL).path)
    adapter = random_adapter(tmp_path / "adapter", base, target_modules="all-linear", spread=0.03)
    done = export_adapter(adapter, "merged", tmp_path / "out", dtype="bfloat16")
    assert 0 < done.largest_difference < 0.05 * done.largest_answer
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.dtype == torch.bfloat16
    assert model.lm_head.weight is model.model.embed_tokens.weight
