"""The planner: what it chooses fits, nothing faster would, and more room or more devices never make it slower."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_lora_ext.choices.run import RunWishes
from hf_lora_ext.hardware import Hardware
from hf_lora_ext.memory.fitting import find_fit, least_needed, may_fit, relative_speed
from hf_lora_ext.memory.peaks import estimate_memory
from hf_lora_ext.memory.plans import Plan
from hf_lora_ext.memory.preset_plans import PlanRequest
from hf_lora_ext.models.families import shape_from_config
from hf_lora_ext.models.popular_models import popular_config
from hf_lora_ext.models.sizes import ModelShape

GIB = 2**30
LLAMA_7B = shape_from_config(popular_config("meta-llama/Llama-2-7b-hf"))
LLAMA_70B = shape_from_config(popular_config("meta-llama/Llama-2-70b-hf"))
METHODS = [None, "lora", "rslora", "dora", "qlora", "qlora8", "qdora", "adalora", "full"]


def cards(gib: float, devices: int = 1, host: float | None = None, machines: int = 1) -> Hardware:
    return Hardware(
        kind="cuda", devices=devices, machines=machines, memory_gib=gib, host_memory_gib=host, has_bfloat16=True,
        name="GPU",
    )  # fmt: skip


def fastest(request: PlanRequest, hardware: Hardware):
    return find_fit(request.shape, hardware, request.wishes(hardware))


def speed(request: PlanRequest, hardware: Hardware) -> float:
    """The speed of the plan that fits, 0 where none does."""
    found = fastest(request, hardware)
    return relative_speed(found.plan) if found else 0.0


requests = st.builds(
    PlanRequest,
    shape=st.sampled_from([LLAMA_7B, LLAMA_70B]) | st.builds(
        ModelShape, parameters=st.integers(10**8, 10**11), source=st.just("test")
    ),
    method=st.sampled_from(METHODS),
    run=st.builds(RunWishes, max_length=st.none() | st.integers(16, 8192)),
)  # fmt: skip
memories = st.integers(4, 192)
hosts = st.none() | st.integers(4, 512)


@given(requests, memories, st.sampled_from([1, 2, 3, 5, 8, 16]), hosts)
@settings(max_examples=80)
def test_what_is_chosen_fits_devices_host_and_loading(request_, memory, devices, host):
    found = fastest(request_, cards(memory, devices, host))
    if found is None:
        return
    assert found.available >= found.estimate.needed
    assert found.estimate.needed >= found.estimate.loading + found.estimate.context
    assert host is None or found.plan.shards == 1 or found.host <= host * GIB
    assert found.estimate == estimate_memory(request_.shape, found.plan)
    assert found.plan.devices == found.hardware.devices
    assert found.plan.micro_batch * found.plan.accumulation * found.plan.devices < 2 * max(16, devices)


@given(requests, memories, memories, st.integers(1, 17), hosts)
@settings(max_examples=80)
def test_more_memory_is_never_slower(request_, memory, more, devices, host):
    small, large = sorted((memory, more))
    assert speed(request_, cards(small, devices, host)) <= speed(request_, cards(large, devices, host))


@given(requests, memories, st.integers(1, 33), st.integers(1, 33))
@settings(max_examples=80)
def test_more_devices_are_never_slower(request_, memory, devices, more):
    few, many = sorted((devices, more))
    assert speed(request_, cards(memory, few)) <= speed(request_, cards(memory, many)) * (1 + 1e-12)


@given(requests, memories, st.integers(1, 8), st.integers(4, 512), st.integers(0, 512))
@settings(max_examples=60)
def test_more_host_memory_is_never_slower(request_, memory, devices, host, more):
    slower = speed(request_, cards(memory, devices, host))
    assert slower <= speed(request_, cards(memory, devices, host + more)) <= speed(request_, cards(memory, devices))


@given(requests, memories, st.sampled_from([1, 2, 4]), hosts)
@settings(max_examples=60)
def test_what_may_not_fit_at_its_smallest_does_not_fit(request_, memory, devices, host):
    hardware = cards(memory, devices, host)
    assert may_fit(request_.shape, hardware, request_.wishes(hardware)) == (fastest(request_, hardware) is not None)


def test_a_small_card_gets_a_packed_base_and_is_told():
    found = fastest(PlanRequest(shape=LLAMA_7B), cards(12))
    assert (found.plan.base, found.plan.adapter) == ("nf4", "bfloat16")
    assert "nf4 instead of bfloat16" in found.gave_up[0]


def test_two_cards_of_24_gib_hold_70b_in_nf4_by_sharding_if_the_host_can_take_it():
    request_ = PlanRequest(shape=LLAMA_70B)
    found = fastest(request_, cards(24, 2))
    assert (found.plan.base, found.plan.sharding, found.plan.offload) == ("nf4", "fsdp", True)
    assert found.host > 107 * GIB
    assert fastest(request_, cards(24, 2, host=32)) is None
    assert fastest(request_, cards(24, 2, host=256)).plan == found.plan


def test_a_second_card_that_leaves_too_little_room_is_left_out_and_it_is_said():
    wish = Plan(sequence=1024, rank=8, loss="chunked")
    alone, _ = least_needed(LLAMA_7B, cards(24), [wish])
    found = find_fit(LLAMA_7B, cards(alone / GIB, 2), [replace(wish, sharding="ddp", devices=2), wish])
    assert (found.plan.devices, found.hardware.devices) == (1, 1)
    assert "1 of 2 devices" in found.gave_up[0]


@pytest.mark.parametrize("machines", [1, 2, 4])
def test_zero3_needs_on_each_host_what_its_own_processes_load(machines):
    hardware = cards(80, 8, machines=machines)
    wish = Plan(sharding="zero3", devices=8, rank=8, sequence=256)
    found = find_fit(LLAMA_7B, hardware, [wish])
    assert found.host == estimate_memory(LLAMA_7B, found.plan).host // machines


def test_examples_beyond_the_wished_batch_count_for_nothing():
    whole, doubled = (Plan(micro_batch=size, sequence=1024, checkpointing=False) for size in (16, 32))
    assert relative_speed(doubled) < relative_speed(whole)
