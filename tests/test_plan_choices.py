"""A preset for a GPU: what it plans for fits, what it gave up is said, and what the user fixed stays."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_lora_ext import ConfigError, preset
from hf_lora_ext.choices import LoraWishes
from hf_lora_ext.hardware import Hardware
from hf_lora_ext.memory import estimate_memory
from hf_lora_ext.plan_choices import plan_preset
from hf_lora_ext.run_choices import RunWishes
from hf_lora_ext.sizes import ModelShape

GIB = 2**30
LLAMA_2 = "meta-llama/Llama-2-7b-hf"


def test_a_preset_for_a_card_fits_it_and_says_what_it_gave_up():
    p = preset("7B", gpu_memory_gib=24)
    assert (p.method, p.sharding) == ("lora", "none")
    assert 0 < p.memory_gib <= 24
    why = next(choice.why for choice in p.choices if choice.name == "memory_gib")
    assert "of 24 GiB" in why
    assert "gave up" in why


def test_without_a_named_method_a_small_card_gets_four_bits_and_with_one_it_stays():
    assert preset("7B", gpu_memory_gib=10).method == "qlora"
    with pytest.raises(ConfigError, match=r"10 GiB is there; what would fit: cards of 24 GiB"):
        preset("7B", method="lora", gpu_memory_gib=10)


def test_seventy_billion_on_two_cards_is_fsdp_qlora_as_peft_documents_it():
    p = preset("70B", gpu_memory_gib=24, gpus=2)
    assert (p.method, p.sharding, p.reentrant) == ("qlora", "fsdp", True)
    assert p.accelerate_config()["fsdp_config"]["fsdp_offload_params"] is True


def test_what_fits_nowhere_is_refused_before_anything_is_built():
    with pytest.raises(ConfigError, match=r"training needs .* GiB on each device .* what would fit: .*host memory"):
        preset("70B", gpu_memory_gib=16)


def test_a_fixed_sharding_stays():
    assert preset("7B", gpu_memory_gib=80, gpus=4, sharding="zero3").sharding == "zero3"
    assert preset("7B", gpu_memory_gib=80, gpus=4).sharding == "ddp"


def test_a_prefix_and_an_unknown_memory_are_not_planned():
    shape = ModelShape(parameters=7 * 10**9, source="test")
    card = Hardware(kind="cuda", memory_gib=24, has_bfloat16=True)
    assert plan_preset(shape, card, "prefix", LoraWishes(), RunWishes()) is None
    assert plan_preset(shape, Hardware(kind="cuda"), None, LoraWishes(), RunWishes()) is None
    assert plan_preset(shape, Hardware(kind="cpu"), None, LoraWishes(), RunWishes()) is None
    assert preset("7B", method="prefix", gpu_memory_gib=24).memory_gib is None


sizes = st.integers(10**8, 10**11)
methods = st.sampled_from([None, "lora", "qlora", "dora"])


@given(sizes, st.integers(4, 192), st.integers(1, 8), methods)
@settings(deadline=None, max_examples=60)
def test_whatever_is_planned_fits(parameters, memory, devices, method):
    shape = ModelShape(parameters=parameters, source="test")
    card = Hardware(kind="cuda", memory_gib=memory, devices=devices, has_bfloat16=True)
    try:
        found = plan_preset(shape, card, method, LoraWishes(), RunWishes())
    except ConfigError:
        return  # what is refused is tested above
    assert estimate_memory(shape, found.plan).needed <= memory * GIB
    assert found.plan.devices == devices
    assert method is None or (found.plan.base == "nf4") == (method == "qlora")
    assert 1 <= found.plan.micro_batch * found.plan.accumulation * devices <= max(16, devices)


def test_a_lora_config_of_the_users_own_is_planned_with_its_rank_and_targets():
    from peft import LoraConfig

    narrow = preset(LLAMA_2, lora_config=LoraConfig(r=4, target_modules=["q_proj", "v_proj"]), gpu_memory_gib=24)
    wide = preset(LLAMA_2, lora_config=LoraConfig(r=512, target_modules="all-linear"), gpu_memory_gib=48)
    assert narrow.memory_gib <= 24
    assert wide.memory_gib > preset(LLAMA_2, gpu_memory_gib=24).memory_gib
