"""A preset for a GPU: what it plans for fits, what it gave up is said, and what the user fixed stays."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_lora_ext import ConfigError, DoesNotFit, preset
from hf_lora_ext.choices.adapter import LoraWishes
from hf_lora_ext.choices.methods import METHOD_FACTS, METHODS
from hf_lora_ext.choices.run import RunWishes
from hf_lora_ext.hardware import Hardware
from hf_lora_ext.memory.peaks import estimate_memory
from hf_lora_ext.memory.preset_plans import PlanRequest
from hf_lora_ext.models.sizes import ModelShape

GIB = 2**30
LLAMA_2 = "meta-llama/Llama-2-7b-hf"
PLANNED = [None, *(method for method in METHODS if method != "prefix")]


@pytest.mark.parametrize(
    ("stored", "method", "base"),
    [
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "lora", "gptq"),
        ({"quant_method": "awq", "bits": 4}, "lora", "gptq"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "qlora", "nf4"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "qlora8", "int8"),
    ],
)
def test_a_checkpoint_that_is_packed_already_is_planned_as_it_is(stored: dict, method: str, base: str):
    config = {"model_type": "llama", "quantization_config": stored}
    p = preset(config, gpu_memory_gib=16)
    assert (p.method, p.found.plan.base) == (method, base)
    assert p.shape.parameters == preset({"model_type": "llama"}, gpu_memory_gib=80).shape.parameters
    assert f"packed already, as {base}" in p.explain()
    whole = preset({"model_type": "llama"}, method="lora", gpu_memory_gib=80)
    assert p.found.estimate.weights < 0.6 * whole.found.estimate.weights


def test_a_packed_checkpoint_is_not_packed_again():
    config = {"model_type": "llama", "quantization_config": {"quant_method": "gptq", "bits": 4}}
    with pytest.raises(ConfigError, match=r"packed already, as gptq.*use method lora"):
        preset(config, method="qlora")
    with pytest.raises(DoesNotFit) as caught:
        preset(config, gpu_memory_gib=4)
    assert caught.value.remedies
    assert not any("qlora" in str(remedy) for remedy in caught.value.remedies)
    with pytest.raises(ConfigError, match="init pissa does not work with 4-bit"):
        preset({**config, "quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}, init="pissa")


def test_a_preset_for_a_card_fits_it_and_says_what_it_gave_up():
    p = preset("7B", gpu_memory_gib=24)
    assert (p.method, p.sharding) == ("lora", "none")
    assert 0 < p.memory_gib <= 24
    why = next(choice.why for choice in p.choices if choice.name == "memory_gib")
    assert "of 24 GiB" in why
    assert "gave up" in why
    assert "GiB of host memory" in why


def test_without_a_named_method_a_small_card_gets_four_bits_and_with_one_it_stays():
    assert preset("7B", gpu_memory_gib=10).method == "qlora"
    with pytest.raises(ConfigError, match=r"10 GiB is there; what would fit: method qlora .* a card of 24 GiB"):
        preset("7B", method="lora", gpu_memory_gib=10)


def test_seventy_billion_on_two_cards_is_fsdp_qlora_as_peft_documents_it():
    p = preset("70B", gpu_memory_gib=24, gpus=2)
    assert (p.method, p.sharding, p.reentrant) == ("qlora", "fsdp", True)
    assert p.accelerate_config()["fsdp_config"]["fsdp_offload_params"] is True


def test_a_method_named_or_found_by_the_planner_is_the_same_preset():
    found, named = preset("70B", gpu_memory_gib=24, gpus=2), preset("70B", gpu_memory_gib=24, gpus=2, method="qlora")
    assert found.found.plan == named.found.plan
    assert found.found.estimate == named.found.estimate


def test_a_fixed_sharding_stays_and_is_said_to_be_the_user_s():
    p = preset("7B", gpu_memory_gib=80, gpus=4, sharding="zero3")
    assert p.sharding == "zero3"
    assert next(c.source for c in p.choices if c.name == "sharding") == "sharding="
    assert preset("7B", gpu_memory_gib=80, gpus=4).sharding == "ddp"
    alone = preset("7B", gpu_memory_gib=80, gpus=4, sharding="none")
    assert (alone.sharding, alone.hardware.devices, alone.accelerate_config()["num_processes"]) == ("none", 1, 1)


@pytest.mark.parametrize(("method", "given"), [("adalora", {}), ("lora", {"init": "pissa"}), ("qlora8", {})])
def test_only_ways_to_share_are_planned_that_the_method_works_with(method, given):
    """Sharded, these would fit two small cards, but they cannot be sharded."""
    with pytest.raises(ConfigError, match="what would fit"):
        preset("13B", method=method, gpu_memory_gib=12, gpus=2, **given)
    assert preset("7B", method=method, gpu_memory_gib=80, gpus=2, **given).sharding == "ddp"


def test_packed_weights_under_zero3_are_loaded_whole_on_each_device():
    packed, plain = (
        PlanRequest(shape=ModelShape(parameters=7 * 10**9, source="test"), method=m, run=RunWishes(sharding="zero3"))
        for m in ("qlora", "lora")
    )
    hardware = Hardware(kind="cuda", devices=4, memory_gib=80, has_bfloat16=True)
    assert [plan.loads_whole for plan in packed.wishes(hardware)] == [True]
    assert [plan.loads_whole for plan in plain.wishes(hardware)] == [False]


def test_a_prefix_and_an_unknown_memory_are_not_planned():
    assert preset("7B", method="prefix", gpu_memory_gib=24).memory_gib is None
    assert preset("7B", gpus=2).memory_gib is None
    assert preset("7B", gpus=2).found is None


sizes = st.integers(10**8, 10**11)
wishes = st.fixed_dictionaries(
    {},
    optional={
        "rank": st.integers(1, 256),
        "dropout": st.sampled_from([0.0, 0.1]),
        "targets": st.just(["q_proj", "v_proj"]),
        "optimizer": st.sampled_from(["adamw", "paged_adamw_8bit", "loraplus"]),
        "attention": st.sampled_from(["sdpa", "eager", "flash_attention_2"]),
        "sharding": st.sampled_from(["ddp", "fsdp", "zero3"]),
        "max_length": st.integers(16, 8192),
        "host_gib": st.integers(8, 1024),
        "machines": st.integers(1, 3),
    },
)


@given(sizes, st.integers(4, 192), st.integers(1, 8), st.sampled_from(PLANNED), wishes)
@settings(max_examples=50)
def test_a_preset_s_values_are_those_of_the_plan_that_fits(parameters, memory, devices, method, given_):
    try:
        p = preset(f"{parameters}K".replace("000K", "M"), method=method, gpu_memory_gib=memory, gpus=devices, **given_)
    except ConfigError:
        return  # what is refused is tested elsewhere
    plan = p.found.plan
    assert estimate_memory(p.shape, plan).needed <= memory * GIB
    assert (plan.micro_batch, plan.accumulation, plan.sequence) == (p.micro_batch, p.accumulation, p.max_length)
    assert (plan.checkpointing, plan.offload) == (p.activation_checkpointing, p.offload and plan.devices > 1)
    assert plan.devices == p.hardware.devices
    assert plan.devices == 1 or plan.sharding == p.sharding
    assert plan.adapter == p.adapter_dtype
    assert (plan.optimizer == "paged_adamw_8bit") == (p.optimizer == "paged_adamw_8bit")
    assert plan.dropout == (p.dropout > 0)
    bits = METHOD_FACTS[p.method].bits
    assert plan.base == {None: p.dtype, 4: "nf4", 8: "int8"}[bits]
    assert method in (None, p.method)
    assert p.memory_gib == round(p.found.estimate.needed / GIB, 1)


def test_a_lora_config_of_the_users_own_is_planned_with_its_rank_and_targets():
    from peft import LoraConfig

    narrow = preset(LLAMA_2, lora_config=LoraConfig(r=4, target_modules=["q_proj", "v_proj"]), gpu_memory_gib=24)
    wide = preset(LLAMA_2, lora_config=LoraConfig(r=512, target_modules="all-linear"), gpu_memory_gib=48)
    magnitudes = preset(LLAMA_2, lora_config=LoraConfig(r=8, use_dora=True), gpu_memory_gib=48)
    assert narrow.memory_gib <= 24
    assert wide.memory_gib > preset(LLAMA_2, gpu_memory_gib=24).memory_gib
    assert magnitudes.found.plan.method == "dora"


def test_a_longer_sequence_is_what_is_planned_trained_and_explained():
    p = preset("7B", gpu_memory_gib=24, max_length=4096)
    assert (p.max_length, p.found.plan.sequence) == (4096, 4096)
    assert preset("7B", max_length=64).max_length == 64
    with pytest.raises(ConfigError, match="max_length=0 must be a whole number from 1"):
        preset("7B", max_length=0)


def test_an_advised_rank_is_what_is_planned():
    p = preset("7B", rank="auto", task="code", examples=50_000, tokens=10**8, gpu_memory_gib=80)
    assert p.found.plan.rank == p.rank != preset("7B", gpu_memory_gib=80).rank


def test_wishes_that_work_with_no_sharding_leave_no_plan():
    request = PlanRequest(
        shape=ModelShape(parameters=7 * 10**9, source="test"),
        method="adalora",
        adapter=LoraWishes(rank=8),
        run=RunWishes(sharding="fsdp"),
    )
    assert request.wishes(Hardware(kind="cuda", devices=2, memory_gib=80, has_bfloat16=True)) == ()
