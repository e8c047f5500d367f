"""The table of trainers: its names are the libraries' own, and a recipe is checked against the right row."""

from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_lora_ext import ConfigError, preset
from hf_lora_ext.choices.methods import CONFLICTS
from hf_lora_ext.choices.run import LORA_RATE
from hf_lora_ext.data.forms import FORMS
from hf_lora_ext.runs.recipe import dump_recipe, parse_recipe, validate
from hf_lora_ext.runs.trainer_kinds import COMMON_FIELDS, TRAINER_KINDS, TRAINERS, kind_arguments
from hf_lora_ext.strict_yaml import read_yaml

MINIMAL = {"model": "me/model", "output_dir": "out/x", "data": {"source": "data.jsonl"}}
LENGTH = [{"reward": "length", "characters": 60}]


def recipe(trainer: str, **changes) -> dict:
    rewards = {"rewards": LENGTH} if TRAINER_KINDS[trainer].has_rewards else {}
    return {**MINIMAL, "trainer": trainer, **rewards, **changes}


@pytest.mark.parametrize("name", TRAINERS)
def test_its_classes_and_fields_are_those_of_the_library(name: str):
    import transformers
    import trl

    kind = TRAINER_KINDS[name]
    library = trl if kind.is_trl else transformers
    assert callable(getattr(library, kind.trainer))
    assert callable(getattr(transformers, kind.model))
    known = {field.name for field in fields(getattr(library, kind.config))}
    # transformers renamed it after 5.22, and either name is taken; for plain trainers we make the tokens.
    ours = {"activation_checkpointing"} | (set() if kind.is_trl else {"max_length"})
    assert {*COMMON_FIELDS, *kind.fields} - known <= ours


def test_the_table_is_whole():
    assert set(TRAINER_KINDS) == set(TRAINERS)
    assert {form for kind in TRAINER_KINDS.values() for form in kind.forms} == set(FORMS)
    assert all(kind.source for kind in TRAINER_KINDS.values() if kind.learning_rate is not None)
    told = {word for row in CONFLICTS for word in (row.one, row.other) if word.startswith("trainer ")}
    assert told <= {f"trainer {name}" for name in TRAINERS}


@pytest.mark.parametrize("name", TRAINERS)
def test_every_trainer_has_a_recipe_that_is_right_and_loads_back(name: str):
    assert validate(recipe(name)) == []
    parsed = parse_recipe(recipe(name))
    assert parsed.trainer == name
    assert parse_recipe(read_yaml(dump_recipe(parsed), "dumped")) == parsed


def test_a_recipe_that_names_no_trainer_is_sft():
    assert parse_recipe(MINIMAL).trainer == "sft"


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        (MINIMAL | {"trainer": "ppo"}, "trainer: found 'ppo', needed sft or dpo or "),
        (recipe("dpo", training={"packing": True}), "training.packing: is for trainer sft, not dpo; leave it out"),
        (recipe("sft", training={"beta": 0.1}), "training.beta: is for trainer dpo, kto, grpo, rloo, not sft"),
        (recipe("grpo", training={"num_generation": 4}), "unknown key; did you mean `num_generations`?"),
        (recipe("dpo", training={"num_generation": 4}), "unknown key; valid: "),
        (recipe("kto", training={"per_device_train_batch_size": 1}), "found 1, needed a whole number from 2"),
        (MINIMAL | {"trainer": "grpo"}, "rewards: missing; trainer grpo needed a list"),
        (recipe("dpo", rewards=LENGTH), "rewards: are for trainer grpo, rloo, not dpo"),
        (recipe("rloo", rewards=[]), "rewards: found [], needed a list of rewards"),
        (recipe("grpo", rewards=[{"reward": "lenth"}]), "rewards[1]: found 'lenth'"),
        (recipe("grpo", rewards=[*LENGTH, {"reward": "regex", "pattern": "("}]), "rewards[2].pattern: found '('"),
        (recipe("grpo", rewards=[{"reward": "format"}]), "rewards[1].tags: missing; needed: a list of tag names"),
        (
            recipe("grpo", rewards=[{**LENGTH[0], "weigth": 2}]),
            "rewards[1].weigth: unknown key; did you mean `weight`?",
        ),
        (recipe("grpo", adaptive_rank=True), "trainer grpo does not work with adaptive rank"),
        (recipe("rloo", method="adalora"), "trainer rloo does not work with adalora"),
        (recipe("dpo", init="pissa"), "trainer dpo does not work with init pissa"),
        (recipe("kto", init="loftq", method="qlora"), "trainer kto does not work with init loftq"),
        (recipe("reward", init="eva"), "trainer reward does not work with init eva"),
        (recipe("reward", method="prefix"), "trainer reward does not work with prefix"),
        (recipe("rloo", overfitting="best"), "overfitting: watches the held-out loss, which says nothing under"),
        (recipe("dpo", evaluate={"metrics": ["loss"]}), "run `hf-lora evaluate` on the folder then, with --data"),
        (recipe("classification", evaluate={"metrics": ["loss"]}), "run `hf-lora evaluate` on the folder then"),
        (recipe("seq2seq", evaluate={"metrics": ["loss"]}), "and not what seq2seq did; leave it out"),
        (recipe("kto", training={"report_to": "tensorbord"}), "training.report_to: found 'tensorbord'"),
    ],
)
def test_what_does_not_go_with_a_trainer_is_told_with_what_does(raw: dict, problem: str):
    assert any(problem in told for told in validate(raw)), validate(raw)


def test_all_problems_of_trainer_and_rewards_are_told_at_once():
    training = {"packing": True, "num_generation": 4, "max_steps": 2, "num_train_epochs": 1}
    problems = validate(recipe("grpo", training=training, rewards=[{"reward": "x"}, {"reward": "regex"}], sede=1))
    assert len(problems) == 6


@given(st.sampled_from(TRAINERS), st.floats(1e-6, 1e-2))
def test_a_method_s_learning_rate_keeps_its_ratio_to_lora_s(name: str, rate: float):
    kind = TRAINER_KINDS[name]
    fitted = kind.fitted_rate(rate, LORA_RATE)
    plain = kind.fitted_rate(LORA_RATE, LORA_RATE)
    assert plain == (kind.learning_rate or LORA_RATE)
    assert fitted / plain == pytest.approx(rate / LORA_RATE, rel=1e-3)


@given(st.sampled_from(TRAINERS), st.integers(1, 64), st.integers(1, 16), st.integers(2, 12) | st.none())
def test_a_step_sees_as_many_examples_and_no_pass_more_sequences_than_planned(
    name: str, micro: int, accumulation: int, generations: int | None
):
    kind = TRAINER_KINDS[name]
    of_sft = {"learning_rate": 2e-4, "per_device_train_batch_size": micro, "gradient_accumulation_steps": accumulation}
    overrides = {"num_generations": generations} if generations else {}
    given = kind_arguments(name, of_sft, overrides)
    fitted, passes = given["per_device_train_batch_size"], given["gradient_accumulation_steps"]
    assert fitted * passes <= max(micro * accumulation, fitted)
    assert fitted * passes > micro * accumulation - fitted
    assert fitted * kind.rows <= max(micro, kind.rows) or name == "kto"
    assert name != "kto" or fitted >= 2
    if kind.generations:
        assert given["per_device_eval_batch_size"] % (generations or kind.generations) == 0
    assert name != "sft" or given == {**of_sft, "per_device_eval_batch_size": micro}


@pytest.mark.parametrize("name", [name for name, kind in TRAINER_KINDS.items() if kind.generations])
def test_completions_of_a_prompt_are_as_many_as_trl_makes_by_default(name: str):
    import trl

    (field,) = (f for f in fields(getattr(trl, TRAINER_KINDS[name].config)) if f.name == "num_generations")
    assert field.default == TRAINER_KINDS[name].generations


@pytest.mark.parametrize("name", TRAINERS)
def test_a_preset_gives_every_trainer_its_configuration(name: str, tmp_path):
    kind, p = TRAINER_KINDS[name], preset("7B")
    args = p.training_config(name, str(tmp_path), weight_decay=0.25)
    assert type(args).__name__ == kind.config
    assert (args.weight_decay, args.learning_rate) == (0.25, kind.learning_rate or p.learning_rate)
    assert p.adapter_config(name).task_type == kind.task_type
    with pytest.raises(ConfigError, match=f"'weight_deca' is not a field of {kind.config}; did you mean"):
        p.training_config(name, str(tmp_path), weight_deca=1)


def test_a_trainer_that_is_not_known_is_refused_with_the_nearest(tmp_path):
    with pytest.raises(ConfigError, match=r"trainer 'gpro' is not known; did you mean `grpo`\?"):
        preset("7B").training_config("gpro", str(tmp_path))
    with pytest.raises(ConfigError, match="trainer dpo does not work with init pissa"):
        preset("7B", init="pissa").training_config("dpo", str(tmp_path))
