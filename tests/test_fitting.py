"""The planner: what it chooses fits, nothing faster would, and a refusal names what would fit."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_lora_ext.errors import ConfigError
from hf_lora_ext.families import shape_from_config
from hf_lora_ext.fitting import fit, relative_speed
from hf_lora_ext.hardware import Hardware
from hf_lora_ext.plans import Plan
from hf_lora_ext.popular_models import popular_config


def shape_of(model: str):
    return shape_from_config(popular_config(model))


def cards(gib: float, devices: int = 1) -> Hardware:
    return Hardware(kind="cuda", devices=devices, memory_gib=gib, has_bfloat16=True, name="GPU")


LLAMA_7B, LLAMA_70B = "meta-llama/Llama-2-7b-hf", "meta-llama/Llama-2-70b-hf"


@given(gib=st.sampled_from([12, 16, 24, 48, 80]), devices=st.sampled_from([1, 2, 4, 8]), length=st.integers(64, 4096))
def test_what_is_chosen_fits(gib: int, devices: int, length: int):
    try:
        found = fit(shape_of(LLAMA_7B), cards(gib, devices), Plan(sequence=length))
    except ConfigError:
        return
    assert found.headroom >= 0
    assert found.plan.devices == devices
    assert found.plan.micro_batch * found.plan.accumulation * devices == 16


def test_a_larger_card_is_never_slower():
    speeds = [relative_speed(fit(shape_of(LLAMA_7B), cards(gib), Plan()).plan) for gib in (12, 16, 24, 40, 80)]
    assert speeds == sorted(speeds)


def test_a_small_card_gets_a_packed_base_and_is_told():
    found = fit(shape_of(LLAMA_7B), cards(12), Plan(sequence=1024))
    assert found.plan.base == "nf4"
    assert "nf4 instead of bfloat16" in found.gave_up[0]


def test_two_cards_of_24_gib_hold_70b_in_nf4_by_sharding():
    found = fit(shape_of(LLAMA_70B), cards(24, 2), Plan(sequence=512, adapter="bfloat16", rank=8, loss="chunked"))
    assert (found.plan.base, found.plan.sharding) == ("nf4", "fsdp")


def test_what_is_fixed_stays():
    found = fit(
        shape_of(LLAMA_7B),
        cards(80),
        Plan(checkpointing=True, micro_batch=2),
        fixed=frozenset({"checkpointing", "micro_batch"}),
    )
    assert found.plan.checkpointing
    assert found.plan.micro_batch == 2


def test_a_refusal_names_what_would_fit_and_the_host_memory():
    with pytest.raises(ConfigError) as caught:
        fit(shape_of(LLAMA_70B), cards(24), Plan())
    message = str(caught.value)
    assert "24 GiB is there" in message
    assert "cards of 48 GiB" in message
    assert "such cards" in message
    assert "host memory" in message


def test_unknown_memory_is_refused():
    with pytest.raises(ConfigError, match="gpu_memory_gib"):
        fit(shape_of(LLAMA_7B), Hardware(kind="cuda"), Plan())
