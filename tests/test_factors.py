"""A saved adapter becomes its factors: of every kind that PEFT saves, and under the names that other tools write."""

import json
import re
import tempfile
from math import prod
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import AdaLoraConfig, LoraConfig, get_peft_model
from push_runs import lora_model, saved_adapter
from safetensors.torch import load_file, save_file
from torch import nn

from hf_lora_ext import AdapterError, rank_report
from hf_lora_ext.adapters import stored_adapter
from hf_lora_ext.adapters.factors import AdapterFactors, read_factors
from hf_lora_ext.adapters.tensor_names import CONFIG, WEIGHTS, peft_names


def updates(factors: AdapterFactors) -> dict[str, torch.Tensor]:
    """ΔW of every module; of experts, stacked."""
    return {
        name: torch.stack([(module.scaling or 1.0) * b @ a for a, b in module.blocks()]).squeeze(0)
        for name, module in factors.modules.items()
    }


def own_updates(model: nn.Module) -> dict[str, torch.Tensor]:
    """ΔW of every module as PEFT itself computes it, `(out, in)`, by PEFT's name of the wrapper."""
    found = {}
    for name, layer in model.get_base_model().named_modules():
        if "default" in getattr(layer, "r", {}):
            delta = layer.get_delta_weight("default").detach().double()
            found[name] = delta.T if "Embedding" in type(layer).__name__ else delta
    return found


def assert_agree(folder: Path, model: nn.Module) -> AdapterFactors:
    factors = read_factors(folder)
    found, wanted = updates(factors), own_updates(model)
    assert found.keys() == wanted.keys()
    for name, delta in wanted.items():
        if found[name].dim() == 3 and delta.shape != found[name].shape:
            delta = delta.transpose(1, 2)
        assert torch.allclose(found[name].view(-1), delta.reshape(-1), atol=1e-5 * float(delta.abs().max())), name
    return factors


@pytest.mark.parametrize(
    "config",
    [
        {}, {"use_rslora": True, "lora_alpha": 3}, {"use_dora": True}, {"target_modules": "all-linear"},
        {"rank_pattern": {"q_proj": 4}, "alpha_pattern": {"^model.layers.1.self_attn.v_proj": 5}},
        {"use_rslora": True, "rank_pattern": {"layers.0.self_attn.q_proj": 3}},
        {"target_modules": ["embed_tokens", "q_proj"]}, {"target_modules": ["lm_head", "down_proj"]},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning")
def test_factors_multiply_to_what_peft_adds(config: dict, tiny_model: Path, tmp_path: Path):
    model = lora_model(tiny_model, **config)
    model.save_pretrained(tmp_path)
    factors = assert_agree(tmp_path, model)
    assert factors.parameters == sum(p.numel() for n, p in model.named_parameters() if re.search(r"lora_\w*[AB]", n))


class Convolutions(nn.Module):
    def __init__(self):
        super().__init__()
        self.plain, self.single, self.line = nn.Conv2d(4, 6, 3), nn.Conv2d(6, 4, 1), nn.Conv1d(4, 5, 3)


def test_convolutions_are_kernels_laid_flat(tmp_path: Path):
    model = convolutions_model()
    model.save_pretrained(tmp_path)
    factors = assert_agree(tmp_path, model)
    assert {module.kind for module in factors.modules.values()} == {"conv"}


@pytest.mark.filterwarnings("ignore:LoRA adapter added to ConvNd layer with groups:UserWarning")
def test_a_convolution_in_groups_is_block_diagonal(tmp_path: Path):
    base = nn.Sequential(nn.Conv2d(6, 6, 3, groups=2, bias=False))
    model = get_peft_model(base, LoraConfig(r=4, target_modules=["0"], init_lora_weights=False))
    model.save_pretrained(tmp_path)
    x = torch.randn(2, 6, 5, 5)
    with torch.no_grad(), model.disable_adapter():
        plain = model(x)
    with torch.no_grad():
        added = model(x) - plain
    kernel = updates(read_factors(tmp_path))["0"].view(6, 6, 3, 3).float()
    assert torch.allclose(nn.functional.conv2d(x, kernel), added, atol=1e-5)


def experts_model(**config):
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    torch.manual_seed(0)
    base = Qwen3MoeForCausalLM(
        Qwen3MoeConfig(
            vocab_size=64, hidden_size=16, intermediate_size=32, moe_intermediate_size=8, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=2, num_experts=4, num_experts_per_tok=2, head_dim=8,
        )
    )  # fmt: skip
    parameters = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    settings = {"r": 2, "target_modules": ["q_proj"], "target_parameters": parameters, "init_lora_weights": False}
    return get_peft_model(base, LoraConfig(**settings | config))


@pytest.mark.parametrize("ranks", [{}, {"mlp.experts.down_proj": 3}, {"mlp.experts.gate_up_proj": 1}], ids=str)
@pytest.mark.filterwarnings("ignore:.*rank_pattern:RuntimeWarning")
def test_experts_are_taken_apart(ranks: dict, tmp_path: Path):
    model = experts_model(rank_pattern=ranks)
    model.save_pretrained(tmp_path)
    factors = assert_agree(tmp_path, model)
    wrapped = [module for module in factors.modules.values() if module.kind == "parameter"]
    assert len(wrapped) == 4
    assert {module.experts for module in wrapped} == {4}
    told = {module.shapes.parameter for module in wrapped}
    assert told == ({f"model.layers.{i}.{p}" for i in (0, 1) for p in model.peft_config["default"].target_parameters}
                    if ranks else {None})  # fmt: skip


def test_experts_without_their_config_are_refused(tmp_path: Path):
    experts_model().save_pretrained(tmp_path)
    (tmp_path / WEIGHTS).rename(tmp_path / "alone.safetensors")
    with pytest.raises(AdapterError, match="wrapped parameter, and no target_parameters say which; give the folder"):
        read_factors(tmp_path / "alone.safetensors")


@pytest.mark.filterwarnings("ignore:.*rank_pattern:RuntimeWarning")
def test_experts_whose_ranks_could_be_either_are_refused(tmp_path: Path):
    experts_model(rank_pattern={"mlp.experts.down_proj": 4}).save_pretrained(tmp_path)
    config = json.loads((tmp_path / CONFIG).read_text())
    config["rank_pattern"] = {"mlp.experts.down_proj": 5}
    (tmp_path / CONFIG).write_text(json.dumps(config))
    with pytest.raises(AdapterError, match="do not say which parameter is which"):
        read_factors(tmp_path)


def adalora_model(base: Path):
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    config = AdaLoraConfig(init_r=4, target_r=2, lora_alpha=6, total_step=9, tinit=1, tfinal=2, deltaT=1,
                           target_modules=["q_proj", "v_proj"], init_lora_weights=False)  # fmt: skip
    return get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)


def convolutions_model():
    targets = ["plain", "single", "line"]
    return get_peft_model(Convolutions(), LoraConfig(r=2, target_modules=targets, init_lora_weights=False))


@pytest.fixture
def adalora(tiny_model: Path, tmp_path: Path):
    model = adalora_model(tiny_model)
    model.save_pretrained(tmp_path)
    return model, tmp_path


def test_adalora_has_its_values_multiplied_in(adalora):
    model, folder = adalora
    factors = assert_agree(folder, model)
    assert factors.method == "AdaLoRA"
    assert {module.rank for module in factors.modules.values()} == {4}


@pytest.mark.filterwarnings("ignore:.*rank_pattern:RuntimeWarning")
def test_an_adalora_that_was_cut_keeps_the_scale_it_trained_with(adalora, tiny_model: Path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model, folder = adalora
    kept = {name: [True, False, "q_proj" in name, False] for name in dict(model.named_parameters()) if "lora_E" in name}
    model.peft_config["default"].rank_pattern = {n.removeprefix("base_model.model."): k for n, k in kept.items()}
    model.save_pretrained(folder)
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), str(folder))
    factors = assert_agree(folder, loaded)
    assert sorted({module.rank for module in factors.modules.values()}) == [1, 2]


def test_what_is_no_factor_is_named_and_readable(tiny_model: Path, tmp_path: Path):
    folder = saved_adapter(tmp_path, tiny_model, modules_to_save=["norm"], trainable_token_indices=[3, 4], bias="none",
                           lora_bias=False)  # fmt: skip
    factors = read_factors(folder)
    token = next(name for name in factors.others if "token_adapter" in name)
    assert "base_model.model.model.norm.weight" in factors.others
    assert factors.other(token).shape == factors.others[token] == (2, 32)
    assert factors.parameters + sum(map(prod, factors.others.values())) == factors.stored.parameters
    assert factors.stored.parameters == sum(t.numel() for t in load_file(folder / WEIGHTS).values())


def test_a_magnitude_is_read_as_it_is(tiny_model: Path, tmp_path: Path):
    folder = saved_adapter(tmp_path, tiny_model, use_dora=True)
    factors, tensors = read_factors(folder), load_file(folder / WEIGHTS)
    assert factors.method == "DoRA"
    for name, module in factors.modules.items():
        assert torch.equal(module.magnitude, tensors[peft_names(name, module.kind)["magnitude"]])
        assert torch.equal(module.a, tensors[peft_names(name, module.kind)["a"]])


@pytest.mark.parametrize(
    "renamed",
    [
        lambda key: key.removeprefix("base_model.model."),
        lambda key: key.replace(".weight", ".default.weight"),
        lambda key: "module." + key.replace("base_model.model.", "base_model.model._orig_mod."),
        lambda key: key.replace("lora_A", "lora_down").replace("lora_B", "lora_up"),
    ],
    ids=["no prefix", "adapter's name", "wrapped", "kohya"],
)
def test_other_tools_names_are_the_same_adapter(renamed, adapter: Path):
    wanted = updates(read_factors(adapter))
    tensors = {renamed(key): tensor for key, tensor in load_file(adapter / WEIGHTS).items()}
    save_file(tensors, adapter / WEIGHTS)
    found = updates(read_factors(adapter))
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_a_file_alone_has_no_scaling_unless_alpha_is_in_it(adapter: Path, tmp_path: Path):
    tensors = load_file(adapter / WEIGHTS)
    save_file(tensors, tmp_path / "mine.safetensors")
    assert {module.scaling for module in read_factors(tmp_path / "mine.safetensors").modules.values()} == {None}
    names = {key.replace("lora_A", "lora_down").replace("lora_B", "lora_up"): tensor for key, tensor in tensors.items()}
    alphas = {key.replace(".lora_down.weight", ".alpha"): torch.tensor(6.0) for key in names if "down" in key}
    save_file(names | alphas, tmp_path / "kohya.safetensors")
    assert {module.scaling for module in read_factors(tmp_path / "kohya.safetensors").modules.values()} == {3.0}


def test_the_weights_file_in_an_adapters_folder_is_read_with_its_config(adapter: Path):
    assert read_factors(adapter / WEIGHTS).config == read_factors(adapter).config != {}


def test_layers_come_in_their_order(tmp_path: Path):
    save_file(
        {f"layers.{i}.q.lora_{s}.weight": torch.ones(1, 1) for i in range(11) for s in "AB"}, tmp_path / "a.safetensors"
    )
    assert list(read_factors(tmp_path / "a.safetensors").modules) == [f"layers.{i}.q" for i in range(11)]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t, c: c.update(peft_type="LOHA"), "says LOHA, whose update is no product"),
        (lambda t, c: c.update(r=4), "has rank 2, adapter_config.json says 4"),
        (lambda t, c: c.update(lora_alpha=None), "lora_alpha=None, a number was needed"),
        (lambda t, c: c.update(lora_alpha=float("nan")), "lora_alpha=nan, a number was needed"),
        (lambda t, c: c.update(rank_pattern=[2]), r"rank_pattern=\[2\], a mapping was needed"),
        (lambda t, c: c.update(alpha_pattern={"(": 2}), "no regular expression"),
        (lambda t, c: t.pop(min(t)), "has no factor A; save"),
        (lambda t, c: t.update({min(t): torch.ones(3, 32)}), r"of shapes \(3, 32\) and \(32, 2\) do not multiply"),
        (lambda t, c: t.update({min(t): torch.ones(0)}), "do not multiply; a factor that was sharded"),
        (lambda t, c: t.update({min(t): torch.full((2, 32), float("nan"))}), "has a NaN or an infinity"),
        (lambda t, c: t.update({"layers.0.q.hada_w1_a": torch.ones(2)}), "is no factor of a LoRA, DoRA or AdaLoRA"),
        (lambda t, c: t.update({"layers.0.q.lora_diag": torch.ones(2)}), "is no factor of a LoRA, DoRA or AdaLoRA"),
        (lambda t, c: t.update({min(t).replace(".weight", ".a.weight"): torch.ones(2, 32)}), "one factor twice"),
        (
            lambda t, c: t.update({f"x.lora_{s}.{n}.weight": torch.ones(1, 1) for s in "AB" for n in "ab"}),
            "mixes the adapters a, b",
        ),
        (lambda t, c: t.update({min(t).replace(".lora_A.weight", ".alpha"): torch.ones(2)}), "one number was needed"),
        (lambda t, c: t.update({f"x.lora_{s}": torch.ones(1, 1) for s in ("A", "embedding_B")}), "not of one layer"),
        (lambda t, c: (t.clear(), t.update({"model.norm.weight": torch.ones(2)})), "no LoRA factor among 1 tensors"),
        (lambda t, c: t.clear(), "holds no tensors"),
    ],
)  # fmt: skip
def test_what_is_no_whole_lora_is_one_line(change, said: str, adapter: Path):
    tensors, config = load_file(adapter / WEIGHTS), json.loads((adapter / CONFIG).read_text())
    change(tensors, config)
    save_file(tensors, adapter / WEIGHTS)
    (adapter / CONFIG).write_text(json.dumps(config))
    with pytest.raises(AdapterError, match=said) as refused:
        read_factors(adapter)
    assert "\n" not in str(refused.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=4,
)


@settings(max_examples=150)
@given(
    key=st.sampled_from(["peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "init_r",
                         "target_parameters", "base_model_name_or_path", "use_dora"]),
    value=JSON, as_adalora=st.booleans(),
)  # fmt: skip
def test_whatever_a_config_says_is_read_or_refused_in_one_line(
    key: str, value: object, as_adalora: bool, saved_lora: Path
):
    config = json.loads((saved_lora / CONFIG).read_text()) | (
        {"peft_type": "ADALORA", "init_r": 2} if as_adalora else {}
    )
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / WEIGHTS).symlink_to(saved_lora / WEIGHTS)
        (Path(place) / CONFIG).write_text(json.dumps(config | {key: value}))
        try:
            rank_report(place).explain()
            said = ""
        except AdapterError as refused:
            said = str(refused)
        assert "\n" not in said


def test_a_pickle_is_never_opened(adapter: Path):
    (adapter / WEIGHTS).rename(adapter / "adapter_model.bin")
    for place in (adapter, adapter / "adapter_model.bin"):
        with pytest.raises(AdapterError, match=r"is a pickle, which can run code.*weights_only=True"):
            read_factors(place)


def test_a_place_without_an_adapter_says_what_is_there(adapter: Path, tmp_path: Path):
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(AdapterError, match=r"holds no adapter_model.safetensors \(found: adapter, model.safetensors\)"):
        read_factors(tmp_path)
    with pytest.raises(AdapterError, match="is not here; give an adapter's folder"):
        read_factors(tmp_path / "nowhere")
    (adapter / CONFIG).unlink()
    with pytest.raises(AdapterError, match=r"holds no adapter_config.json, which says alpha"):
        read_factors(adapter)


def test_a_header_or_config_that_is_too_long_is_refused_before_it_is_read(adapter: Path, monkeypatch):
    monkeypatch.setattr(stored_adapter, "HEADER_BYTES", 100)
    monkeypatch.setattr(stored_adapter, "safe_open", lambda *a, **k: pytest.fail("it was read"))
    with pytest.raises(AdapterError, match=r"has a header of .* bytes, an adapter's has at most 100"):
        read_factors(adapter)
    monkeypatch.setattr(stored_adapter, "CONFIG_BYTES", 10)
    with pytest.raises(AdapterError, match="a config at most 10"):
        read_factors(adapter)


def test_a_file_that_changes_under_way_is_told(adapter: Path):
    factors = read_factors(adapter)
    (adapter / WEIGHTS).write_bytes(b"")
    with pytest.raises(AdapterError, match="has changed since it was opened"):
        list(next(iter(factors.modules.values())).blocks())
