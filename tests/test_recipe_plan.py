"""A recipe's declared hardware: checked strictly, told where this machine has less, and no part of what a run is."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_lora_ext import ConfigError, load_recipe, run_recipe
from hf_lora_ext.hardware import Hardware
from hf_lora_ext.runs.declared import HardwareChoice, shortfall
from hf_lora_ext.runs.recipe import Recipe, parse_recipe, validate
from hf_lora_ext.runs.recipe_plan import declared_preset, memory_need, preset_here

SEVEN = {"model": "meta-llama/Llama-2-7b-hf", "output_dir": "out/x", "data": {"source": "x.jsonl"}}
ONE_24 = {"gpus": 1, "gpu_memory_gib": 24}
CARD = Hardware(kind="cuda", memory_gib=23.5, host_memory_gib=64, has_bfloat16=True, name="a card")


def recipe_with(**changes) -> Recipe:
    return parse_recipe(SEVEN | changes)


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch):
    """Let the machine be another."""

    def put(hardware: Hardware) -> None:
        for place in ("hf_lora_ext.machine", "hf_lora_ext.runs.recipe_plan"):
            monkeypatch.setattr(f"{place}.find_hardware", lambda: hardware)
        monkeypatch.setattr("hf_lora_ext.models.base_models._shape_on_hub", popular)

    return put


def popular(name: str):
    from hf_lora_ext.models.base_models import _shipped_shape

    return _shipped_shape(name)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"gpu": 2}, "hardware.gpu: unknown key; did you mean"),
        ({"gpus": 0, "gpu_memory_gib": 24}, "hardware.gpus: found 0, needed a whole number from 1"),
        ({"gpus": 2}, "hardware.gpus: says nothing without gpu_memory_gib"),
        ({"machines": 2, "host_gib": 4}, "hardware.machines: says nothing without gpu_memory_gib"),
        ({}, "hardware: found nothing in it, needed gpu_memory_gib, or host_gib"),
        ("2x24", "hardware: found '2x24', needed a mapping"),
    ],
)
def test_a_wrong_section_is_named(section, message):
    assert [problem for problem in validate(SEVEN | {"hardware": section}) if message in problem]


def test_the_section_may_be_left_out_by_an_override(tmp_path: Path):
    file = tmp_path / "r.yaml"
    file.write_text("model: m/m\noutput_dir: o\ndata: {source: x.jsonl}\nhardware: {host_gib: 4}\n")
    assert load_recipe(file).hardware == HardwareChoice(host_gib=4)
    assert load_recipe(file, ["hardware=null"]).hardware is None


machines = st.builds(
    Hardware,
    kind=st.just("cuda"),
    devices=st.integers(1, 16),
    memory_gib=st.floats(1, 200),
    host_memory_gib=st.none() | st.floats(1, 2000),
)
choices = st.builds(
    HardwareChoice, gpus=st.integers(1, 8), gpu_memory_gib=st.floats(1, 200), host_gib=st.none() | st.floats(1, 2000)
)


@given(choices, machines)
def test_more_of_everything_never_lacks_more(declared: HardwareChoice, here: Hardware):
    assert isinstance(declared.gpu_memory_gib, float)
    lacks = shortfall(declared, here)
    more = replace(here, devices=here.devices + 1, memory_gib=here.memory_gib * 2, host_memory_gib=None)
    assert len(shortfall(declared, more)) <= len(lacks)
    as_declared = Hardware(
        kind="cuda", devices=declared.gpus, memory_gib=declared.gpu_memory_gib, host_memory_gib=declared.host_gib
    )
    assert shortfall(declared, as_declared) == ()
    assert bool(lacks) == (
        here.devices < declared.gpus
        or here.memory_gib < 0.95 * declared.gpu_memory_gib
        or (None not in (declared.host_gib, here.host_memory_gib) and here.host_memory_gib < 0.95 * declared.host_gib)
    )


def test_a_machine_with_as_much_is_not_spoken_of(found):
    found(CARD)
    chosen, note = preset_here(recipe_with(hardware=ONE_24), SEVEN["model"], 100)
    assert (chosen.hardware.kind, note) == ("cuda", "")


def test_a_smaller_card_on_which_the_plan_fits_is_told_and_runs(found):
    found(replace(CARD, memory_gib=16))
    chosen, note = preset_here(recipe_with(hardware=ONE_24, method="qlora"), SEVEN["model"], 100)
    assert chosen.found is not None
    assert note == (
        "the recipe is written for a GPU of 24 GiB, and here is 16 of 24 GiB on each GPU; it fits by our estimate"
    )


def test_a_card_on_which_nothing_fits_is_refused_with_both_machines_and_what_would_fit(found):
    found(replace(CARD, memory_gib=8))
    with pytest.raises(ConfigError, match=r"written for a GPU of 24 GiB, and here is 8 of 24 GiB .*what would fit"):
        preset_here(recipe_with(hardware=ONE_24), SEVEN["model"], 100)


def test_a_batch_of_one_s_own_that_does_not_fit_the_smaller_card_is_refused_unless_the_question_is_left_out(found):
    found(replace(CARD, memory_gib=16))
    greedy = {"method": "qlora", "training": {"per_device_train_batch_size": 64, "activation_checkpointing": False}}
    with pytest.raises(ConfigError, match=r"it needs \d+\.\d GiB of 16; .*hardware=null"):
        preset_here(recipe_with(hardware=ONE_24, **greedy), SEVEN["model"], 100)
    assert preset_here(recipe_with(**greedy), SEVEN["model"], 100)[1] == ""


def test_without_a_gpu_a_base_that_the_host_cannot_hold_is_refused(found):
    found(Hardware(kind="cpu", host_memory_gib=12))
    with pytest.raises(ConfigError, match=r"here is no GPU: it needs at least .* GiB for base and adapter; .*null"):
        preset_here(recipe_with(hardware=ONE_24), SEVEN["model"], 100)


def test_a_process_has_one_gpu_of_those_that_are_here(found):
    found(replace(CARD, devices=4, memory_gib=80))
    assert preset_here(recipe_with(), SEVEN["model"], 100)[0].hardware.devices == 1
    assert preset_here(recipe_with(), SEVEN["model"], 100, gpus=4, machines=2)[0].hardware.devices == 8


def test_the_declared_hardware_is_planned_on_any_machine(found):
    found(Hardware(kind="cpu", host_memory_gib=1))
    recipe = recipe_with(hardware=ONE_24)
    chosen = declared_preset(recipe)
    need = memory_need(chosen, recipe)
    assert (chosen.hardware.memory_gib, need.available_gib) == (24, 24)
    assert 13 < need.needed_gib < 24
    found(CARD)
    on_host = declared_preset(recipe_with(hardware={"host_gib": 40}))
    assert (on_host.hardware.kind, memory_need(on_host, recipe).is_lower_bound) == ("cpu", True)


def test_a_run_here_says_what_it_was_written_for_and_goes_on_with_another_declaration(tiny_recipe: Path):
    recipe = load_recipe(tiny_recipe, ["hardware.gpus=2", "hardware.gpu_memory_gib=24", "training.max_steps=2"])
    lines: list[str] = []
    assert run_recipe(recipe, lines.append).status == "trained"
    assert [line for line in lines if line.startswith("hardware the recipe is written for 2 GPUs of 24 GiB each, and")]
    again = run_recipe(replace(recipe, hardware=None), lines.append)
    assert again.status == "already finished"


def test_a_batch_of_pairs_takes_what_twice_as_many_texts_take():
    texts = recipe_with(method="qlora", hardware=ONE_24, training={"per_device_train_batch_size": 4})
    pairs = recipe_with(method="qlora", hardware=ONE_24, trainer="dpo", training={"per_device_train_batch_size": 2})
    needs = [memory_need(declared_preset(recipe), recipe) for recipe in (texts, pairs)]
    assert needs[0] == needs[1]
    assert needs[0].needed_gib > memory_need(declared_preset(pairs), replace(pairs, trainer="sft")).needed_gib
