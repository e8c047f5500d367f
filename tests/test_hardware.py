"""Hardware: a plain value that the user's declaration replaces."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_lora_ext.errors import ConfigError
from hf_lora_ext.hardware import Hardware, declared_hardware

CPU = Hardware(kind="cpu")
OLD_CARDS = Hardware(kind="cuda", devices=4, memory_gib=16, name="Tesla T4")


@pytest.mark.parametrize("found", [CPU, OLD_CARDS])
def test_without_a_declaration_the_hardware_is_what_was_found(found):
    assert declared_hardware(found, None, None) is found


def test_a_declared_gpu_on_a_cpu_machine_is_one_modern_card():
    declared = declared_hardware(CPU, 24, None)
    assert declared == Hardware(
        kind="cuda", devices=1, memory_gib=24, has_bfloat16=True, name="NVIDIA GPU", declared=True
    )


def test_a_declared_count_alone_leaves_unknown_memory_unknown():
    assert declared_hardware(CPU, None, 2).memory_gib is None


def test_a_declaration_beside_a_card_keeps_what_is_known_of_it():
    declared = declared_hardware(OLD_CARDS, None, 2)
    assert (declared.devices, declared.memory_gib, declared.has_bfloat16) == (2, 16, False)
    assert declared.name == "Tesla T4"


@given(memory=st.floats(min_value=0.1, max_value=1e4), gpus=st.integers(1, 64))
def test_declared_numbers_are_taken_as_given(memory, gpus):
    declared = declared_hardware(OLD_CARDS, memory, gpus)
    assert (declared.memory_gib, declared.devices, declared.declared) == (memory, gpus, True)


@pytest.mark.parametrize("memory", [0, -1, float("nan"), "24"])
def test_memory_that_cannot_be_is_refused_with_an_example(memory):
    with pytest.raises(ConfigError, match=r"gpu_memory_gib=.* must be .*e\.g\. 24"):
        declared_hardware(CPU, memory, None)


@pytest.mark.parametrize("gpus", [0, -1, 1.5, "2", True])
def test_a_gpu_count_that_cannot_be_is_refused(gpus):
    with pytest.raises(ConfigError, match=r"gpus=.* must be a whole number from 1; leave it out"):
        declared_hardware(CPU, None, gpus)


@pytest.mark.parametrize(
    ("hardware", "text"),
    [
        (CPU, "CPU (found)"),
        (OLD_CARDS, "4× Tesla T4, 16 GiB each (found)"),
        (declared_hardware(CPU, 79.5, 2), "2× NVIDIA GPU, 79.5 GiB each (declared)"),
        (declared_hardware(CPU, None, 1), "1× NVIDIA GPU (declared)"),
    ],
)
def test_hardware_reads_as_one_line(hardware, text):
    assert str(hardware) == text
