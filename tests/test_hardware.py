"""Hardware: a plain value that the user's declaration replaces."""

from dataclasses import replace
from pathlib import Path

import pytest
from conftest import run_python
from hypothesis import given
from hypothesis import strategies as st

from hf_lora_ext import machine
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


@pytest.mark.parametrize("memory", [0, -1, float("nan"), float("inf"), "24", True])
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
        (
            declared_hardware(CPU, 80, 8, machines=2, host_gib=512),
            "2 machines with 8× NVIDIA GPU, 80 GiB each, 512 GiB of host memory (declared)",
        ),
    ],
)
def test_hardware_reads_as_one_line(hardware, text):
    assert str(hardware) == text


def test_several_machines_count_the_devices_of_all():
    declared = declared_hardware(CPU, 80, 8, machines=2)
    assert (declared.devices, declared.devices_each, declared.machines) == (16, 8, 2)
    assert declared_hardware(OLD_CARDS, None, None, machines=3).devices == 12


def test_host_memory_is_what_was_declared_or_found_but_never_this_machine_s_for_another():
    found = replace(OLD_CARDS, host_memory_gib=32)
    assert declared_hardware(found, None, 2).host_memory_gib == 32
    assert declared_hardware(found, 80, 2).host_memory_gib is None
    assert declared_hardware(found, 80, 2, host_gib=256).host_memory_gib == 256
    assert declared_hardware(found, None, None, host_gib=64) == replace(found, host_memory_gib=64, declared=True)


@pytest.mark.parametrize("name", ["machines", "host_gib"])
@pytest.mark.parametrize("value", [0, -1, "2", True])
def test_machines_and_host_memory_that_cannot_be_are_refused(name, value):
    with pytest.raises(ConfigError, match=rf"{name}=.* must be"):
        declared_hardware(CPU, 24, 1, **{name: value})


def test_the_host_memory_found_here_is_within_the_physical_memory_and_a_container_s_limit(tmp_path, monkeypatch):
    import psutil

    found = machine.find_hardware().host_memory_gib
    assert 0 < found <= round(psutil.virtual_memory().total / 2**30, 1) + 0.1
    for text, gib in (("1073741824\n", 1.0), ("max\n", found)):
        (tmp_path / "limit").write_text(text)
        monkeypatch.setattr(machine, "CONTAINER_LIMITS", [str(tmp_path / "limit"), str(tmp_path / "none")])
        assert machine.find_hardware().host_memory_gib == gib


def test_the_free_memory_is_a_part_of_the_host_s():
    import psutil

    assert 0 < machine.free_memory_bytes() < psutil.virtual_memory().total


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux alone lets a process forget its peak")
def test_the_peak_of_a_process_is_measured_anew_after_a_reset():
    code = (
        "from hf_lora_ext.machine import peak_memory, reset_peak_memory\n"
        "held = bytearray(400 * 2**20); held = None\n"
        "before = peak_memory()['process_gib']; reset_peak_memory()\n"
        "print(before, peak_memory()['process_gib'])"
    )
    before, after = map(float, run_python("-c", code).stdout.split())
    assert before > 0.35
    assert after < before - 0.3
