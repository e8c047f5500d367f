"""Every recipe in `recipes/` is checked strictly and trains two steps on a tiny model; so does every script."""

import runpy
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import PAIRS, write_jsonl
from push_runs import saved_adapter
from trainer_rows import rows_for

from hf_lora_ext import load_recipe, load_sweep, render_card, run_recipe
from hf_lora_ext.cards.facts import read_facts
from hf_lora_ext.resources import shipped_folder
from hf_lora_ext.sweep.forecast import forecast

SWEEPS = sorted(shipped_folder("recipes").rglob("sweep_*.yaml"))
RECIPES = sorted(set(shipped_folder("recipes").rglob("*.yaml")) - set(SWEEPS))
SCRIPTS = sorted(shipped_folder("recipes").rglob("*.py"))


def test_there_are_recipes_sweeps_and_scripts():
    assert {"sft", "dpo", "kto", "reward", "grpo", "classification"} <= {load_recipe(file).trainer for file in RECIPES}
    assert SWEEPS
    assert SCRIPTS


@pytest.mark.parametrize("file", RECIPES + SWEEPS, ids=lambda file: file.stem)
def test_its_header_gives_purpose_hardware_and_command(file: Path):
    header = [line for line in file.read_text(encoding="utf8").splitlines() if line.startswith("#")]
    verb = "sweep" if file in SWEEPS else "train"
    assert any("Hardware:" in line for line in header)
    assert any(f"hf-lora {verb} recipes/{file.name}" in line for line in header)


@pytest.mark.parametrize("file", SWEEPS, ids=lambda file: file.stem)
def test_a_sweep_is_right_and_every_trial_fits_the_declared_machine(file: Path):
    found = forecast(load_sweep(file))
    assert max(made.needed_gib for made in found) < 4
    assert not [made for made in found if made.problem]


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_it_trains_two_steps_on_a_tiny_model(file: Path, tiny_model: Path, tmp_path: Path):
    recipe = load_recipe(file)
    rows = PAIRS if recipe.trainer == "sft" else rows_for(recipe.trainer)
    data = replace(recipe.data, source=str(write_jsonl(tmp_path / "pairs.jsonl", rows)), group_by=None)
    shortened = {key: value for key, value in recipe.training.items() if key != "num_train_epochs"} | {"max_steps": 2}
    short = replace(recipe, model=str(tiny_model), data=data, training=shortened, output_dir=str(tmp_path / "run"))
    assert run_recipe(short, lambda line: None).facts.run["steps"] == 2


@pytest.mark.parametrize("file", SCRIPTS, ids=lambda file: file.stem)
def test_a_script_gives_hardware_and_command(file: Path):
    assert "Hardware:" in file.read_text(encoding="utf8")
    assert f"python recipes/{file.name}" in file.read_text(encoding="utf8")


def test_the_classifier_leaves_adapter_and_card(tiny_model: Path, tmp_path: Path):
    script = runpy.run_path(str(shipped_folder("recipes") / "classify_text.py"))
    script["main"](str(tmp_path), str(tiny_model), steps=2)
    facts = read_facts(tmp_path / "facts.json")
    assert (tmp_path / "adapter_model.safetensors").is_file()
    assert (tmp_path / "README.md").read_text(encoding="utf8") == render_card(facts)
    assert facts.run["steps"] == 2


def test_the_classifier_s_card_tells_labels_accuracy_and_what_its_author_says(tiny_model: Path, tmp_path: Path):
    script = runpy.run_path(str(shipped_folder("recipes") / "classify_text.py"))
    script["main"](str(tmp_path), str(tiny_model), steps=1)
    facts = read_facts(tmp_path / "facts.json")
    assert facts.adapter["labels"] == script["LABELS"]
    assert {"loss", "accuracy"} == set(facts.evaluation["base"]) == set(facts.evaluation["adapter"])
    card = (tmp_path / "README.md").read_text(encoding="utf8")
    assert "pipeline_tag: text-classification" in card
    assert "metrics:\n- accuracy\n" in card
    assert "a head that has learned nothing yet" in card
    assert "## Limits" in card


@pytest.mark.parametrize("ranks", [(), (2, 8, 2)], ids=["its own", "given"])
def test_adapters_of_one_base_answer_alike_switched_and_mixed_in_one_batch(
    ranks: tuple[int, ...], wide_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    given = [
        str(saved_adapter(tmp_path / str(number), wide_model, r=rank, seed=number)) for number, rank in enumerate(ranks)
    ]
    script = runpy.run_path(str(shipped_folder("recipes") / "swap_adapters.py"))
    script["main"](*given, name=str(wide_model), out=str(tmp_path / "swap"), steps=3)
    rows = [line.split(maxsplit=7) for line in capsys.readouterr().out.splitlines()]
    said = {(row[0], row[4]): row[7] for row in rows}
    assert [name for _, name in said] == ["new", "other", "blend", "earlier", "new", "other", "__base__"]
    assert said["mixed", "new"] == said["switched", "new"] != said["mixed", "__base__"]
    assert said["mixed", "other"] == said["switched", "other"] != said["switched", "new"]
    assert said["switched", "earlier"] != said["switched", "new"]
