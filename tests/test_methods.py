"""Methods and initialisations: every one trains, saves and reloads with peft alone; what cannot be is refused early."""

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_runs import logits, losses, reloaded, trainer_for

from hf_lora_ext.choices.adapter import starting_rank
from hf_lora_ext.choices.methods import (
    CONFLICTS,
    INITS,
    METHOD_FACTS,
    METHODS,
    check_features,
    check_method,
    config_features,
)
from hf_lora_ext.choices.run import ATTENTIONS, OPTIMIZERS, SHARDINGS, RunWishes, check_run, run_features
from hf_lora_ext.errors import ConfigError
from hf_lora_ext.hardware import Hardware
from hf_lora_ext.models.sizes import ModelShape
from hf_lora_ext.presets.preset import decide, preset
from hf_lora_ext.runs.trainer_kinds import TRAINERS

TRAINABLE_INITS = [name for name, init in INITS.items() if not init.refusal]
CARD = Hardware(kind="cuda", memory_gib=24, has_bfloat16=True, name="A10G")
TWO_CARDS = Hardware(kind="cuda", devices=2, memory_gib=24, has_bfloat16=True, name="A10G")
SEVEN_BILLION = ModelShape(parameters=7 * 10**9, source="test", family="llama")
runs = st.builds(
    RunWishes,
    init=st.none() | st.sampled_from(list(INITS)),
    optimizer=st.none() | st.sampled_from(OPTIMIZERS),
    attention=st.none() | st.sampled_from(ATTENTIONS),
    packing=st.none() | st.booleans(),
    sharding=st.none() | st.sampled_from(SHARDINGS),
)


RATES = {"rslora": 1e-2, "adalora": 5e-2, "prefix": 5e-2}


@pytest.mark.filterwarnings("ignore:.*quantization.*:UserWarning", "ignore:MatMul8bitLt.*:UserWarning")
@pytest.mark.parametrize("method", METHODS)
def test_a_method_overfits_eight_examples_and_reloads_with_peft_alone(method: str, wide_model: Path, tmp_path: Path):
    p = preset(str(wide_model), method=method)
    trainer = trainer_for(p, tmp_path, steps=80 if method == "prefix" else 40, learning_rate=RATES.get(method, 2e-2))
    trainer.train()
    assert losses(trainer)[-1] < losses(trainer)[0] / 2
    trainer.save_model(str(tmp_path / "adapter"))
    # AdaLoRA's is saved as a plain LoRA of the ranks it found, the same product in another order.
    rounding = 1e-5 if method == "adalora" else 0
    assert (logits(trainer.model) - logits(reloaded(p, tmp_path / "adapter"))).abs().max() <= rounding


@pytest.mark.filterwarnings("ignore:.*quantization.*:UserWarning", "ignore:MatMul8bitLt.*:UserWarning")
@pytest.mark.parametrize(
    "wishes",
    [
        {"optimizer": "loraplus"}, {"init": "pissa"}, {"init": "eva"}, {"method": "dora"}, {"method": "prefix"},
        {"method": "qlora"}, {"method": "qlora8"}, {"method": "qdora"}, {"method": "qlora", "init": "loftq"},
    ],
    ids=lambda wishes: "-".join(wishes.values()),
)  # fmt: skip
def test_a_resumed_run_equals_an_uninterrupted_one(wishes: dict, wide_model: Path, tmp_path: Path):
    import torch

    factors = {} if wishes.get("method") == "prefix" else {"rank": 2, "dropout": 0.0}
    p = preset(str(wide_model), **factors, **wishes)
    common = {"save_strategy": "steps", "save_steps": 3, "learning_rate": 5e-3}
    straight = trainer_for(p, tmp_path, 6, **common)
    straight.train()
    resumed = trainer_for(p, tmp_path, 6, **common)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert torch.equal(logits(straight.model), logits(resumed.model))


def test_loraplus_gives_b_sixteen_times_the_rate_of_a(wide_model: Path, tmp_path: Path):
    p = preset(str(wide_model), optimizer="loraplus")
    trainer = trainer_for(p, tmp_path, 1)
    optimizer = trainer.create_optimizer()
    rates = {id(w): group["lr"] for group in optimizer.param_groups for w in group["params"]}
    named = {name: rates[id(w)] for name, w in trainer.model.named_parameters() if w.requires_grad}
    assert {rate for name, rate in named.items() if "lora_A" in name} == {1e-4}
    assert {rate for name, rate in named.items() if "lora_B" in name} == {16e-4}
    assert len(named) == 28


def test_adapter_precision_is_as_the_preset_says(wide_model: Path, tmp_path: Path):
    for method in ("lora", "qdora"):
        p = preset(str(wide_model), method=method)
        model = trainer_for(p, tmp_path, 1).model
        factors = {str(w.dtype) for name, w in model.named_parameters() if "lora_A" in name or "lora_B" in name}
        assert factors == {f"torch.{p.adapter_dtype}"}
        assert all(w.dtype.itemsize == 4 for name, w in model.named_parameters() if "magnitude" in name)


@pytest.mark.parametrize("method", METHODS)
def test_a_method_is_explained(method: str):
    p = decide(SEVEN_BILLION, CARD, method=method)
    text = " ".join(p.explain().split())
    choice = next(c for c in p.choices if c.name == "method")
    assert choice.value == method
    assert choice.source.split(",")[0] in text
    assert choice.why.split(";")[0].split(",")[0][:20] in text
    assert p.bits == METHOD_FACTS[method].bits


@pytest.mark.parametrize("method", METHODS)
def test_a_method_s_configuration_is_what_it_says(method: str):
    config = preset("7B", method=method, gpu_memory_gib=80).peft_config
    assert config_features(config) - {"dropout"} == METHOD_FACTS[method].features - {"lora", "4-bit", "8-bit"}


def test_adalora_starts_half_as_wide_again_and_keeps_the_scale():
    config = preset("7B", method="adalora").peft_config
    assert (config.init_r, config.target_r, config.lora_alpha) == (12, 8, 24)
    assert config.tinit < config.total_step - config.tfinal


@given(st.integers(1, 1000))
def test_adalora_always_starts_wider_than_it_ends(rank):
    assert rank < starting_rank(rank) <= 2 * rank


def test_quantisation_follows_the_method_and_the_sharding():
    four = preset("7B", method="qlora", gpu_memory_gib=24).quantization_config
    eight = preset("7B", method="qlora8", gpu_memory_gib=24).quantization_config
    split = preset("70B", method="qlora", gpu_memory_gib=24, gpus=2, sharding="fsdp").quantization_config
    assert (four.load_in_4bit, four.bnb_4bit_quant_type, four.bnb_4bit_use_double_quant) == (True, "nf4", True)
    assert eight.load_in_8bit
    assert split.bnb_4bit_quant_storage == split.bnb_4bit_compute_dtype
    assert preset("7B", method="dora").quantization_config is None


def refused(*given) -> str:
    try:
        check_run(*given)
    except ConfigError as error:
        return str(error)
    return ""


@given(st.sampled_from(METHODS), runs, st.sampled_from([CARD, TWO_CARDS]))
def test_a_run_that_is_accepted_holds_no_conflict_and_a_refusal_names_an_alternative(method, run, hardware):
    if refusal := refused(method, run, hardware):
        assert any(word in refusal for word in (" use ", "set ", "valid: ", "yourself"))
        return
    p = decide(SEVEN_BILLION, hardware, method=method, run=run)
    features = run_features(method, run, hardware) | ({"checkpointing"} if p.activation_checkpointing else set())
    check_features(features | ({"packing"} if p.packing else set()) | {p.sharding})
    assert (p.init, p.sharding) == (run.init or "default", run.sharding or ("ddp" if hardware.devices > 1 else "none"))
    assert p.optimizer == (run.optimizer or p.optimizer)
    apart = p.attention.startswith("flash") and method != "prefix"
    assert p.packing == (apart if run.packing is None else run.packing)


def test_the_table_of_conflicts_is_whole():
    known = {"checkpointing", "packing", "target_parameters", "new_tokens", "dropout", "paged", "loraplus", *SHARDINGS}
    known |= {"adaptive rank", *(f"trainer {name}" for name in TRAINERS)}
    known |= {f"init {name}" for name in INITS} | {f for facts in METHOD_FACTS.values() for f in facts.features}
    pairs = [frozenset((c.one, c.other)) for c in CONFLICTS]
    assert set().union(*pairs) <= known
    assert len(set(pairs)) == len(pairs)
    assert all(c.why and c.instead for c in CONFLICTS)


@given(st.sampled_from(CONFLICTS))
def test_each_conflict_is_refused_with_its_reason_and_alternative(conflict):
    with pytest.raises(ConfigError, match="does not work with") as caught:
        check_features({conflict.one, conflict.other})
    assert conflict.instead in str(caught.value)


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        ({"method": "dora", "init": "pissa"}, "init pissa does not work with dora"),
        ({"method": "qlora", "init": "pissa"}, "init pissa does not work with 4-bit: .*; use init gaussian"),
        ({"init": "loftq"}, "init loftq does not work with lora: nothing is quantised .*; use method qlora"),
        ({"method": "qdora", "init": "loftq"}, "init loftq does not work with dora"),
        ({"init": "eva", "sharding": "fsdp"}, "fsdp does not work with init eva: .*; use sharding ddp"),
        ({"init": "corda"}, "init corda needs data"),
        ({"init": "lora_ga"}, "init lora_ga needs gradients"),
        ({"init": "pissa_niter_4"}, "init pissa_niter_4 draws its SVD at random.*use init pissa"),
        ({"init": "pisa"}, "init 'pisa' is not known; did you mean `pissa`"),
        ({"method": "prefix", "rank": 8}, "method prefix has no rank; leave it out, or use method lora"),
        ({"method": "prefix", "init": "gaussian"}, "init gaussian does not work with prefix"),
        ({"method": "adalora", "init": "olora"}, "init olora does not work with adalora"),
        ({"method": "adalora", "optimizer": "loraplus"}, "adalora does not work with loraplus"),
        ({"method": "adalora", "sharding": "fsdp"}, "fsdp does not work with adalora: .*; use sharding ddp"),
        ({"method": "qlora8", "sharding": "fsdp"}, "fsdp does not work with 8-bit"),
        ({"optimizer": "paged_adamw_8bit", "sharding": "fsdp"}, "fsdp does not work with paged"),
        ({"optimizer": "adam"}, "optimizer 'adam' is not known; did you mean `adamw`"),
        ({"sharding": "zero"}, "sharding 'zero' is not known; did you mean `zero3`"),
        ({"attention": "flash"}, "attention 'flash' is not known"),
    ],
)
def test_what_cannot_work_is_refused_before_the_model_is_looked_up(wishes: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        preset("no/such-model-anywhere", **wishes)


def test_a_config_of_one_s_own_is_held_to_the_same_table():
    from peft import LoraConfig

    dora, eva = LoraConfig(use_dora=True), LoraConfig(use_rslora=True, init_lora_weights="pissa")
    with pytest.raises(ConfigError, match="8-bit does not work with dora"):
        preset("7B", method="qlora8", lora_config=dora)
    with pytest.raises(ConfigError, match="init pissa does not work with 4-bit"):
        preset("7B", method="qlora", lora_config=eva)
    with pytest.raises(ConfigError, match="lora_config and method rslora were both given"):
        preset("7B", method="rslora", lora_config=dora)
    assert preset("7B", method="qlora", lora_config=dora).peft_config.use_dora


def test_checkpointing_is_refused_for_a_prefix_and_off_by_itself(tmp_path: Path):
    p = preset("7B", method="prefix", gpu_memory_gib=24)
    assert not p.activation_checkpointing
    with pytest.raises(ConfigError, match="prefix does not work with checkpointing"):
        p.sft_config(str(tmp_path), gradient_checkpointing=True)


def test_the_reentrant_flag_follows_the_sharding():
    flags = {
        (method, sharding): decide(SEVEN_BILLION, CARD, method=method, run=RunWishes(sharding=sharding)).reentrant
        for method, sharding in itertools.product(("lora", "qlora"), SHARDINGS)
    }
    assert {pair for pair, reentrant in flags.items() if reentrant} == {
        ("lora", "zero3"), ("qlora", "zero3"), ("qlora", "fsdp"),
    }  # fmt: skip


def test_paged_8_bit_moments_only_where_they_save_a_gibibyte():
    from hf_lora_ext.models.sizes import LinearLayer

    def wide(billions):
        layer = LinearLayer(name="q_proj", in_features=8192, out_features=8192, count=560)
        return ModelShape(parameters=billions * 10**9, source="test", linear=(layer,))

    assert decide(wide(70), CARD, method="qlora").optimizer == "paged_adamw_8bit"
    assert decide(wide(70), CARD, method="qlora", run=RunWishes(sharding="fsdp")).optimizer == "adamw"
    assert decide(wide(70), Hardware(kind="cpu"), method="qlora").optimizer == "adamw"
    assert decide(wide(7), CARD, method="qlora").optimizer == "adamw"


def test_a_known_method_and_start_are_accepted():
    for method, init in itertools.product(METHODS, TRAINABLE_INITS):
        assert check_method(method, init) is None
