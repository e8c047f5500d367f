"""Every recipe in `recipes/` is checked strictly, and its two steps train on a tiny model."""

from dataclasses import replace
from pathlib import Path

import pytest
from conftest import PAIRS, write_jsonl

from hf_lora_ext import load_recipe, run_recipe
from hf_lora_ext.resources import shipped_folder

RECIPES = sorted(shipped_folder("recipes").rglob("*.yaml"))


def test_there_are_recipes():
    assert RECIPES


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_its_header_gives_purpose_hardware_and_command(file: Path):
    header = [line for line in file.read_text(encoding="utf8").splitlines() if line.startswith("#")]
    assert any("Hardware:" in line for line in header)
    assert any(f"hf-lora train recipes/{file.name}" in line for line in header)


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_it_trains_two_steps_on_a_tiny_model(file: Path, tiny_model: Path, tmp_path: Path):
    recipe = load_recipe(file)
    data = replace(recipe.data, source=str(write_jsonl(tmp_path / "pairs.jsonl", PAIRS)), group_by=None)
    shortened = {key: value for key, value in recipe.training.items() if key != "num_train_epochs"} | {"max_steps": 2}
    short = replace(recipe, model=str(tiny_model), data=data, training=shortened, output_dir=str(tmp_path / "run"))
    assert run_recipe(short, lambda line: None).facts.run["steps"] == 2
