"""A refusal: what is needed, what is there, and the nearest changes, each of which fits when it is tried."""

import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_fitting import LLAMA_7B, LLAMA_70B, cards, hosts, requests

from hf_lora_ext import preset
from hf_lora_ext.choices.adapter import LoraWishes
from hf_lora_ext.choices.run import RunWishes
from hf_lora_ext.errors import ConfigError
from hf_lora_ext.hardware import Hardware
from hf_lora_ext.memory.preset_plans import PlanRequest
from hf_lora_ext.memory.remedies import DoesNotFit, nearest_remedies, plan_run
from hf_lora_ext.models.families import shape_from_config
from hf_lora_ext.models.popular_models import popular_config
from hf_lora_ext.models.sizes import ModelShape

GIB = 2**30
shardings = st.sampled_from([None, None, "ddp", "fsdp", "zero3", "none"])


def refused_or_none(request: PlanRequest, hardware: Hardware) -> DoesNotFit | None:
    try:
        plan_run(request, hardware)
    except DoesNotFit as refused:
        return refused
    except ConfigError:
        return None  # wishes that do not work together
    return None


def refusal(request: PlanRequest, hardware: Hardware) -> DoesNotFit:
    with pytest.raises(DoesNotFit) as caught:
        plan_run(request, hardware)
    return caught.value


@given(requests, st.integers(1, 96), st.sampled_from([1, 2, 3, 4, 8]), hosts, shardings)
@settings(max_examples=40)
def test_each_remedy_fits_when_it_is_tried_and_there_are_three(request_, memory, devices, host, sharding):
    request_ = replace(request_, run=replace(request_.run, sharding=sharding))
    hardware = cards(memory, devices, host)
    if (refused := refused_or_none(request_, hardware)) is None:
        return
    assert len(refused.remedies) >= 3
    assert len({remedy.words for remedy in refused.remedies}) == len(refused.remedies)
    for remedy in refused.remedies:
        found = plan_run(remedy.request, remedy.hardware)
        assert found == remedy.found
        assert found.estimate.needed <= remedy.hardware.memory_gib * GIB
        assert host is None or found.plan.shards == 1 or found.host <= remedy.hardware.host_memory_gib * GIB
        assert (remedy.request, remedy.hardware) != (request_, hardware)
        assert str(remedy) in str(refused)


def test_a_remedy_names_gib_on_the_device_and_on_the_host():
    message = str(refusal(PlanRequest(shape=LLAMA_70B), cards(24)))
    assert re.search(r"24 GiB is there; what would fit: a card of \d+ GiB \(base in nf4, micro-batch", message)
    assert re.search(r"2 such cards \(base in nf4, .*, checkpointing, fsdp with offload: \d+\.\d GiB each, 1", message)
    assert message.count("GiB of host memory)") >= 3
    assert "\n" not in message


def test_a_host_too_small_for_offload_is_what_the_refusal_names():
    refused = refusal(PlanRequest(shape=LLAMA_70B), cards(24, 2, host=32))
    assert re.search(r"needs 1\d\d\.\d GiB of host memory and 32 GiB is there", str(refused))
    assert any(remedy.hardware.host_memory_gib > 107 for remedy in refused.remedies)


def test_four_bits_are_offered_where_the_method_is_fixed():
    assert refusal(PlanRequest(shape=LLAMA_7B, method="dora"), cards(12)).remedies[0].words == "method qdora"
    assert refusal(PlanRequest(shape=LLAMA_7B, method="full"), cards(24)).remedies[0].words == "method lora"
    assert refusal(PlanRequest(shape=LLAMA_7B, method="full"), cards(12)).remedies[0].words == "method qlora"


def test_a_rank_that_was_given_may_be_lowered_and_the_sequence_cut():
    wide = refusal(PlanRequest(shape=LLAMA_7B, adapter=LoraWishes(rank=8192)), cards(24))
    assert wide.remedies[0].words.endswith("instead of 8192")
    long = refusal(PlanRequest(shape=LLAMA_7B, run=RunWishes(max_length=100_000)), cards(24))
    assert "tokens instead of 100000" in long.remedies[0].words


def test_a_sharding_that_was_given_may_be_left_free():
    request_ = PlanRequest(shape=LLAMA_7B, method="lora", run=RunWishes(sharding="ddp"))
    words = [remedy.words for remedy in refusal(request_, cards(16, 2)).remedies]
    assert "another sharding than ddp" in words


def test_what_nothing_holds_is_refused_without_remedies():
    refused = refusal(PlanRequest(shape=ModelShape(parameters=10**18, source="test")), cards(24))
    assert refused.remedies == ()
    assert "nothing near it fits" in str(refused)


def test_remedies_for_what_fits_are_changes_too():
    assert nearest_remedies(PlanRequest(shape=LLAMA_7B), cards(24))


def test_unknown_memory_is_refused():
    with pytest.raises(ConfigError, match="gpu_memory_gib"):
        plan_run(PlanRequest(shape=LLAMA_7B), Hardware(kind="cuda"))


def test_a_preset_refuses_with_the_same_words():
    with pytest.raises(DoesNotFit, match="what would fit: method qlora"):
        preset("7B", method="lora", gpu_memory_gib=12)
    with pytest.raises(DoesNotFit, match="GiB of host memory and 32 GiB is there"):
        preset("70B", gpu_memory_gib=24, gpus=2, host_gib=32)


def test_a_mixture_of_experts_is_told_that_four_bits_leave_its_experts():
    mixture = shape_from_config(popular_config("mistralai/Mixtral-8x7B-v0.1"))
    message = str(refusal(PlanRequest(shape=mixture, method="qlora"), cards(48)))
    assert "(4 bits leave the experts, 45.1B parameters, as they are)" in message
    assert "4 bits leave" not in str(refusal(PlanRequest(shape=mixture, method="lora"), cards(48)))
