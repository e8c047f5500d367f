"""Initialisations: every one trains, and its adapter gives the same answers on the plain base."""

import json
import shutil
import sys
import types
import warnings
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
from small_runs import EIGHT, logits, losses, reloaded, trainer_for

from hf_lora_ext import ConfigError, preset
from hf_lora_ext.choices.methods import INITS

PAIRED = [(name, "qlora" if name == "loftq" else "lora") for name, init in INITS.items() if not init.refusal]
PAIRED += [("loftq", "qlora8"), ("eva", "qlora"), ("eva", "rslora"), ("eva", "dora"), ("eva", "qdora")]


@pytest.mark.filterwarnings("ignore:.*quantization.*:UserWarning", "ignore:MatMul8bitLt.*:UserWarning")
@pytest.mark.parametrize(("init", "method"), PAIRED)
def test_an_initialisation_trains_and_its_adapter_gives_the_same_answers_on_the_plain_base(
    init: str, method: str, wide_model: Path, tmp_path: Path
):
    from peft import PeftConfig

    p = preset(str(wide_model), init=init, method=method, rank=4)
    rate = 5e-3 if INITS[init].changes_base else 1e-2 if method == "rslora" else 2e-2
    trainer = trainer_for(p, tmp_path, steps=25, learning_rate=rate)
    base = logits(trainer.model)
    trainer.train()
    assert losses(trainer)[-1] < losses(trainer)[0] / 2
    trained = logits(trainer.model)
    assert (trained - base).abs().max() > 1
    trainer.save_model(str(tmp_path / "adapter"))
    assert (trained - logits(reloaded(p, tmp_path / "adapter"))).abs().max() == 0
    if INITS[init].changes_base:
        plain = tmp_path / "plain_adapter"
        config = PeftConfig.from_pretrained(plain)
        assert (config.r, config.lora_alpha, config.init_lora_weights) == (8, 16, True)
        assert (trained - logits(reloaded(p, plain))).abs().max() < 1e-4
    else:
        assert not (tmp_path / "plain_adapter").exists()
    if INITS[init].by_callback:
        assert PeftConfig.from_pretrained(tmp_path / "adapter").init_lora_weights is True


def started(trainer):
    """The trainer with its adapter started, and no step made."""
    from transformers import TrainerControl

    for name in ("EvaCallback", "LoftqCallback"):
        for callback in trainer.callback_handler.callbacks:
            if type(callback).__name__ == name:
                callback.on_train_begin(
                    trainer.args, trainer.state, TrainerControl(), model=trainer.model,
                    train_dataloader=trainer.get_train_dataloader(),
                )  # fmt: skip
    return trainer


def dequantized_int8(layer):
    from bitsandbytes.functional import int8_vectorwise_dequant

    return int8_vectorwise_dequant(layer.weight.data, layer.weight.SCB)


def factors(model, which: str) -> dict:
    ends = f".lora_{which}.default.weight"
    return {name.removesuffix(ends): w.detach() for name, w in model.named_parameters() if name.endswith(ends)}


def test_eva_finds_the_directions_that_peft_finds(wide_model: Path, tmp_path: Path):
    import torch
    from peft import EvaConfig, LoraConfig, get_eva_state_dict
    from transformers import AutoModelForCausalLM

    p = preset(str(wide_model), init="eva", rank=4)
    trainer = started(trainer_for(p, tmp_path, 1))
    ours = factors(trainer.model, "A")
    config = LoraConfig(
        r=4, init_lora_weights="eva", eva_config=EvaConfig(rho=1.0), target_modules="all-linear", task_type="CAUSAL_LM"
    )
    plain = AutoModelForCausalLM.from_pretrained(wide_model)
    config.target_modules = {name.rpartition(".")[2] for name in ours}
    theirs = get_eva_state_dict(plain, [dict(b) for b in trainer.get_train_dataloader()], config)
    assert len(ours) == len(theirs) == 14
    for name, directions in theirs.items():
        a = ours[f"base_model.model.{name}"]
        assert torch.allclose(a @ a.T, torch.eye(4), atol=1e-4)
        overlap = torch.linalg.svdvals(a @ directions.float().T)  # cosines of the angles between the two subspaces
        assert overlap.min() > 0.97, name
    assert not any(b.any() for b in factors(trainer.model, "B").values())


def test_layers_that_read_the_same_input_share_their_directions(wide_model: Path, tmp_path: Path):
    import torch

    a = factors(started(trainer_for(preset(str(wide_model), init="eva", rank=4), tmp_path, 1)).model, "A")
    block = "base_model.model.model.layers.0."
    assert torch.equal(a[f"{block}self_attn.q_proj"], a[f"{block}self_attn.v_proj"])
    assert torch.equal(a[f"{block}mlp.gate_proj"], a[f"{block}mlp.up_proj"])
    assert not torch.equal(a[f"{block}self_attn.q_proj"], a[f"{block}self_attn.o_proj"])


def test_eva_leaves_random_state_mode_and_data_order_alone(wide_model: Path, tmp_path: Path):
    import torch

    trainer = trainer_for(preset(str(wide_model), init="eva", rank=4), tmp_path, 1)
    trainer.model.train()
    before = torch.get_rng_state()
    first = next(iter(trainer.get_train_dataloader()))["input_ids"]
    torch.set_rng_state(before)
    started(trainer)
    assert trainer.model.training
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(next(iter(trainer.get_train_dataloader()))["input_ids"], first)


def test_a_second_training_of_the_same_adapter_goes_on_from_the_first(wide_model: Path, tmp_path: Path):
    import torch

    trainer = trainer_for(preset(str(wide_model), init="eva", rank=2), tmp_path, 3, learning_rate=1e-2)
    trainer.train()
    trained = {name: w.clone() for name, w in factors(trainer.model, "A").items()}
    started(trainer)
    assert all(torch.equal(w, trained[name]) for name, w in factors(trainer.model, "A").items())


@pytest.mark.filterwarnings("ignore:.*quantization.*:UserWarning", "ignore:MatMul8bitLt.*:UserWarning")
@pytest.mark.parametrize("method", ["qlora", "qlora8"])
@pytest.mark.parametrize("alpha", [4, 8, 1])
def test_loftq_starts_as_the_best_approximation_of_what_quantisation_took(
    method: str, alpha: int, wide_model: Path, tmp_path: Path
):
    import torch
    from transformers import AutoModelForCausalLM

    p = preset(str(wide_model), init="loftq", method=method, rank=4, alpha=alpha)
    model = started(trainer_for(p, tmp_path, 1)).model
    whole = dict(AutoModelForCausalLM.from_pretrained(wide_model).named_parameters())
    a, b = factors(model, "A"), factors(model, "B")
    assert len(a) == 14
    for name in a:
        layer = model.get_submodule(name)
        exact = torch.eye(layer.in_features)
        packed = layer.base_layer(exact).T if method == "qlora" else dequantized_int8(layer.base_layer)
        residual = (whole[f"{name.removeprefix('base_model.model.')}.weight"] - packed).detach().float()
        left = residual - layer.scaling["default"] * b[name].float() @ a[name].float()
        best = torch.linalg.svdvals(residual)[4:].square().sum().sqrt()
        assert best < residual.norm()
        assert abs(left.norm() - best) < 0.01 * residual.norm()  # the factors are held in bfloat16


def test_eva_needs_a_rank_within_the_layers_and_tokens_enough(wide_model: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match=r"at most 64 directions in what enters .*, its rank is 65; lower the rank"):
        started(trainer_for(preset(str(wide_model), init="eva", rank=65), tmp_path, 1))
    with pytest.raises(ConfigError, match=r"at least 64 tokens .*; lower the rank, add data, or leave init out"):
        started(trainer_for(preset(str(wide_model), init="eva", rank=40), tmp_path, 1, rows=EIGHT[:1]))


@pytest.mark.filterwarnings("ignore:.*quantization.*:UserWarning")
def test_loftq_needs_the_unquantised_weights(wide_model: Path, tmp_path: Path):
    from safetensors.torch import load_file, save_file

    from hf_lora_ext.models.stored_weights import StoredWeights

    with pytest.raises(ConfigError, match="make the preset for a model's folder or Hub id"):
        preset("7B", init="loftq", method="qlora").callbacks()
    with pytest.raises(ConfigError, match=r"holds no \*\.safetensors"):
        StoredWeights(str(tmp_path)).find()
    weights = load_file(wide_model / "model.safetensors")
    key = "model.layers.0.self_attn.q_proj.weight"
    stored = StoredWeights(str(tmp_path))
    save_file({key.removeprefix("model."): weights[key].byte()}, tmp_path / "model.safetensors")
    stored.find("model")
    with pytest.raises(ConfigError, match="is quantised already"):
        stored.of_layer(key.removesuffix(".weight"))
    with pytest.raises(ConfigError, match=r"hold no model.layers.0.self_attn.k_proj.weight"):
        stored.of_layer("model.layers.0.self_attn.k_proj")


@pytest.mark.filterwarnings("ignore:.*quantization.*:UserWarning")
def test_loftq_reads_sharded_files(wide_model: Path, tmp_path: Path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    whole = AutoModelForCausalLM.from_pretrained(wide_model)
    whole.save_pretrained(tmp_path / "sharded", max_shard_size="50KB")
    AutoTokenizer.from_pretrained(wide_model).save_pretrained(tmp_path / "sharded")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    starts = [
        factors(started(trainer_for(preset(str(f), init="loftq", method="qlora"), tmp_path, 1)).model, "A")
        for f in (wide_model, tmp_path / "sharded")
    ]
    assert all(torch.equal(a, starts[1][name]) for name, a in starts[0].items())


def test_a_start_in_a_lora_config_of_one_s_own_is_given_too(wide_model: Path, tmp_path: Path):
    from peft import EvaConfig, LoraConfig

    own = LoraConfig(r=4, init_lora_weights="eva", eva_config=EvaConfig(), target_modules=["q_proj"])
    p = preset(str(wide_model), lora_config=own)
    assert p.init == "eva"
    assert [type(c).__name__ for c in p.callbacks()] == ["EvaCallback"]
    (a,) = {tuple(w.shape) for w in factors(started(trainer_for(p, tmp_path, 1)).model, "A").values()}
    assert a == (4, 64)
    with pytest.raises(ConfigError, match="init and lora_config were both given"):
        preset(str(wide_model), init="eva", lora_config=LoraConfig())


@pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")  # peft counts gradients with it
@pytest.mark.parametrize("init", ["corda", "lora_ga"])
def test_what_the_refusals_recommend_works(init: str, wide_model: Path, tmp_path: Path):
    from datasets import Dataset
    from peft import LoraConfig, LoraGAConfig, PeftConfig, get_peft_model
    from peft.tuners.lora.config import CordaConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTTrainer

    from hf_lora_ext.callbacks import PlainAdapterCallback

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # CorDA's module imports attr
        from peft.tuners.lora import preprocess_loraga
        from peft.tuners.lora.corda import preprocess_corda
    model = AutoModelForCausalLM.from_pretrained(wide_model)
    tokenizer = AutoTokenizer.from_pretrained(wide_model)
    rows = [tokenizer(row["prompt"] + row["completion"], return_tensors="pt")["input_ids"] for row in EIGHT]
    own = {"corda_config": CordaConfig(corda_method="kpm")} if init == "corda" else {"lora_ga_config": LoraGAConfig()}
    config = LoraConfig(
        r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM", init_lora_weights=init, **own
    )
    before = logits(model)
    if init == "corda":
        preprocess_corda(model, config, run_model=lambda: [model(row) for row in rows])
    else:
        preprocess_loraga(model, config, lambda: [model(row, labels=row).loss.backward() for row in rows])
    model = get_peft_model(model, config)
    assert (logits(model) - before).abs().max() < 1e-2
    p = preset(str(wide_model))
    args = p.sft_config(str(tmp_path), max_steps=10, learning_rate=5e-3, report_to="none", save_strategy="no")
    args.model_init_kwargs = None
    trainer = SFTTrainer(
        model=model, args=args, train_dataset=Dataset.from_list(EIGHT), processing_class=tokenizer,
        callbacks=[PlainAdapterCallback()],
    )  # fmt: skip
    trainer.train()
    assert (logits(model) - before).abs().max() > 0.1
    assert PeftConfig.from_pretrained(tmp_path / "plain_adapter").r == 8
    assert (logits(model) - logits(reloaded(p, tmp_path / "plain_adapter"))).abs().max() < 1e-3


@pytest.mark.filterwarnings("ignore:`init_lora_weights` is '(eva|corda)' but:UserWarning")
@pytest.mark.parametrize("init", INITS)
def test_the_table_says_which_stored_starts_make_peft_change_the_base(
    init: str, saved_lora: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    # peft's own rounding, and its configuration, need scipy.
    def rounded(weight, reduced_rank, **_):
        return weight.round(), torch.zeros(reduced_rank, weight.shape[1]), torch.zeros(weight.shape[0], reduced_rank)

    monkeypatch.setattr("peft.tuners.lora.layer.loftq_init", rounded)
    scipy = types.ModuleType("scipy")
    scipy.__spec__ = ModuleSpec("scipy", None)
    monkeypatch.setitem(sys.modules, "scipy", scipy)
    adapter = shutil.copytree(saved_lora, tmp_path / "adapter")
    config = json.loads((adapter / "adapter_config.json").read_text())
    own = {"loftq_config": {"loftq_bits": 4, "loftq_iter": 1}} if init == "loftq" else {}
    config |= own | {"init_lora_weights": True if init == "default" else init}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    before = {name: weight.clone() for name, weight in base.named_parameters()}
    if init == "corda":
        with pytest.raises(ValueError, match="run `preprocess_corda` first"):
            PeftModel.from_pretrained(base, adapter)
        return
    loaded = PeftModel.from_pretrained(base, adapter).get_base_model().named_parameters()
    after = {name.replace(".base_layer", ""): weight for name, weight in loaded if "lora_" not in name}
    assert after.keys() == before.keys()
    changed = any(not torch.equal(before[name], after[name]) for name in before)
    assert changed == INITS[init].changes_base_on_load
