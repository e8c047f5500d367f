"""A preset without a GPU: what base and adapter take of the host, and a warning where it cannot hold them."""

from dataclasses import replace

import pytest

from hf_lora_ext.hardware import Hardware
from hf_lora_ext.models.sizes import ModelShape
from hf_lora_ext.presets.preset import decide

LAPTOP = Hardware(kind="cpu", host_memory_gib=16)
SEVEN_BILLION = ModelShape(parameters=7 * 10**9, source="test")


def memory_line(p) -> str:
    return next(choice.why for choice in p.choices if choice.name == "memory_gib")


def test_seven_billion_parameters_on_a_laptop_are_warned_about_with_what_to_do():
    p = decide(SEVEN_BILLION, LAPTOP)
    (warning,) = p.warnings
    assert (warning.name, warning.value) == ("does not fit", "26.1 GiB")
    assert "16 GiB of this host; take a smaller model, or name the GPU" in warning.why
    assert "26.1 GiB of 16 of host memory" in memory_line(p)
    assert "look out for" in p.explain()


@pytest.mark.parametrize(
    ("shape", "hardware"),
    [
        (replace(SEVEN_BILLION, parameters=10**9), LAPTOP),
        (SEVEN_BILLION, replace(LAPTOP, host_memory_gib=64)),
        (SEVEN_BILLION, replace(LAPTOP, host_memory_gib=None)),
        (SEVEN_BILLION, Hardware(kind="cuda", host_memory_gib=1)),
    ],
)
def test_what_fits_or_is_not_known_is_not_warned_about(shape, hardware):
    assert decide(shape, hardware).warnings == ()


def test_four_bits_take_less_of_the_host():
    assert decide(SEVEN_BILLION, LAPTOP, method="qlora").warnings == ()
    assert "5.5 GiB of 16" in memory_line(decide(SEVEN_BILLION, LAPTOP, method="qlora"))


def test_a_gpu_of_unknown_memory_and_a_prefix_say_why_nothing_is_planned():
    assert "name it: gpu_memory_gib=" in memory_line(decide(SEVEN_BILLION, Hardware(kind="cuda")))
    card = Hardware(kind="cuda", memory_gib=24, has_bfloat16=True)
    assert "the planner does not know" in memory_line(decide(SEVEN_BILLION, card, method="prefix"))
