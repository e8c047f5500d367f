"""Sweep files: read strictly, every problem at once, before anything is spent."""

from pathlib import Path

import pytest

from hf_lora_ext import ConfigError, Sweep, load_sweep
from hf_lora_ext.resources import shipped_folder
from hf_lora_ext.sweep.settings import dump_sweep, full_recipe, planned, recipe_at
from hf_lora_ext.sweep.space import Choices, Range, grid

BASE = """
model: some/model
output_dir: out/unused
method: lora
rank: 4
data: {source: builtin:python-docstrings}
training: {max_steps: 6, learning_rate: 1e-3}
seed: 7
push: {repo: me/it}
"""
SWEEP = """
base: base.yaml
output_dir: out/sweep
space:
  rank: [1, 8]
  training.learning_rate: {low: 1e-4, high: 1e-2, log: true, steps: 3}
  targets: [all-linear, [q_proj, v_proj]]
fixed: {training.weight_decay: 0.1, samples: 0}
full_learning_rates: [1e-5]
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "base.yaml").write_text(BASE, encoding="utf8")
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text(SWEEP, encoding="utf8")
    return sweep


def test_a_sweep_is_read_with_its_base_beside_it(file: Path):
    sweep = load_sweep(file)
    assert sweep.space["rank"] == Choices((1, 8))
    assert sweep.space["training.learning_rate"] == Range(low=1e-4, high=1e-2, log=True, steps=3)
    assert sweep.space["targets"].values == ("all-linear", ("q_proj", "v_proj"))
    assert (sweep.strategy, sweep.points, sweep.seeds, sweep.first_seed) == ("grid", 12, 3, 7)
    assert sweep.full_learning_rates == (1e-5,)
    assert sweep.base["training"] == {"max_steps": 6, "learning_rate": 1e-3, "weight_decay": 0.1}


@pytest.mark.parametrize("strategy", [[], ["strategy=random", "trials=5", "space.training.learning_rate=[1e-3]"]])
def test_what_is_written_is_read_back_equal_from_anywhere(file: Path, strategy: list[str], tmp_path: Path):
    sweep = load_sweep(file, strategy)
    again = tmp_path / "elsewhere" / "sweep.yaml"
    again.parent.mkdir()
    again.write_text(dump_sweep(sweep), encoding="utf8")
    assert load_sweep(again) == sweep


def test_a_sweep_by_chance_has_no_more_points_than_its_space(file: Path):
    small = ["strategy=random", "trials=50", "space.training.learning_rate=[1e-3, 1e-4]"]
    sweep = load_sweep(file, small)
    assert sweep.points == len(planned(sweep)) == 8
    assert load_sweep(file, [*small, "trials=5"]).points == 5
    assert planned(load_sweep(file, [*small, "strategy=bayesian"])) is None


def test_the_shipped_sweep_is_read():
    assert load_sweep(shipped_folder("recipes") / "sweep_rank.yaml").points == 12


def test_a_run_is_the_base_with_a_point_its_seed_and_folder_and_never_a_push(file: Path):
    sweep = load_sweep(file)
    point = list(grid(sweep.space))[-1]
    recipe = recipe_at(sweep, point, 9, "there")
    assert (recipe.rank, recipe.targets, recipe.seed, recipe.output_dir) == (8, ("q_proj", "v_proj"), 9, "there")
    assert recipe.training == {"max_steps": 6, "learning_rate": 1e-2, "weight_decay": 0.1}
    assert recipe.push is None
    assert sweep.base["rank"] == 4


def test_a_reference_has_nothing_of_an_adapter(file: Path):
    recipe = full_recipe(load_sweep(file, ["base.dropout=0.1", "base.init=pissa"]), 1e-5, 0, "there")
    assert (recipe.method, recipe.rank, recipe.dropout, recipe.init, recipe.push) == ("lora", None, None, None, None)
    assert recipe.training["learning_rate"] == 1e-5


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("space.rnk=[1]", "space.rnk: unknown key; did you mean `rank`?"),
        ("space.lr=[1e-4]", "space.lr: unknown key; did you mean `training.learning_rate`?"),
        ("space.training.lr=[1e-4]", "space.training.lr: unknown key; did you mean `training.learning_rate`?"),
        ("space.rank=[0, 8]", "space.rank: found 0, needed a whole number from 1"),
        ("space.rank=[]", "space.rank: found an empty list"),
        ("space.rank=[1, 1]", "space.rank: a value appears twice"),
        ("space.rank=8", "space.rank: found 8, needed a list of values, or {low: …, high: …}"),
        ("space.rank={low: 8, high: 1, steps: 2}", "space.rank: low 8 is not below high 1"),
        ("space.rank={low: 1, hihg: 8, steps: 2}", "space.rank.hihg: unknown key; did you mean `high`?"),
        ("space.rank={low: 1, high: 8}", "space.rank.steps: is missing; a grid needed: how many values"),
        ("space.dropout={low: 0, high: 0.1, log: true, steps: 2}", "needed a number above 0 with log"),
        ("space.data.source=[a.jsonl]", "space.data.source: trials that differ in it cannot be compared"),
        ("space.seed=[1, 2]", "space.seed: each run gets its own; use `seeds`"),
        ("space.method=[lora, dor]", "space.method: found 'dor', needed lora or"),
        ("space=[1]", "space: found [1], needed a mapping"),
        ("strategy=annealing", "strategy: found 'annealing', needed grid or random or bayesian"),
        ("strategy=bayesian", "trials: missing; strategy bayesian needed"),
        ("trials=5", "trials: a grid has its own number of trials"),
        ("seeds=0", "seeds: found 0"),
        ("seed=0", "seed: unknown key; did you mean `seeds`?"),
        ("fixed.training.max_stps=3", "base.training.max_stps: unknown key; did you mean `max_steps`?"),
        ("fixed={model.name: x}", "fixed: model holds text, so it has no key 'name'"),
        ("base.rank=none", "base.rank: found 'none'"),
        ("base=3", "base: found 3"),
        ("full_learning_rates=[0]", "full_learning_rates: found [0]"),
        ("time_limit_minutes=0", "time_limit_minutes: found 0"),
        ("space.training.weight_decay={low: 0, high: 1, steps: 200}", "a grid of 2,400 trials is more than 1,000"),
    ],
)
def test_what_is_wrong_is_named_with_what_is_right(file: Path, override: str, message: str):
    with pytest.raises(ConfigError) as raised:
        load_sweep(file, [override])
    assert message in str(raised.value)


def test_all_problems_are_named_at_once(file: Path):
    with pytest.raises(ConfigError) as raised:
        load_sweep(file, ["space.rank=[0]", "space.alpa=[1]", "seeds=none", "strateg=grid"])
    assert "4 problems" in str(raised.value)


def test_values_that_do_not_work_together_are_named_with_the_point(file: Path):
    with pytest.raises(ConfigError, match=r"space, at .*method adalora, init pissa: init pissa does not work"):
        load_sweep(file, ["space.method=[lora, adalora]", "space.init=[null, pissa]"])


def test_a_missing_base_or_sweep_says_what_to_give(file: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match=r"no such file; give a .yaml file, e\.g\. recipes/sweep_rank.yaml"):
        load_sweep(tmp_path / "none.yaml")
    (tmp_path / "base.yaml").unlink()
    with pytest.raises(ConfigError, match=r"base recipe .*base.yaml: no such file"):
        load_sweep(file)


def test_a_sweep_may_hold_its_base_itself(tmp_path: Path):
    base = "\n".join(f"  {line}" for line in BASE.strip().splitlines())
    whole = tmp_path / "whole.yaml"
    whole.write_text(f"base:\n{base}\noutput_dir: out\nspace: {{rank: [1, 2]}}\nseeds: 1\n", encoding="utf8")
    sweep: Sweep = load_sweep(whole)
    assert (sweep.points, sweep.seeds, sweep.base["rank"]) == (2, 1, 4)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (
            "{trainer: grpo, rewards: [{reward: length, characters: 9}]}",
            "base.trainer: found grpo, whose loss says noth",
        ),
        ("{trainer: dpo}", "full_learning_rates: are for trainer sft, not dpo; leave them out"),
    ],
)
def test_trials_are_compared_only_where_a_loss_compares_them(file: Path, line: str, problem: str):
    text = file.read_text(encoding="utf8").replace("fixed: {", f"fixed: {{{line[1:-1]}, ")
    file.write_text(text, encoding="utf8")
    with pytest.raises(ConfigError, match=problem):
        load_sweep(file)
