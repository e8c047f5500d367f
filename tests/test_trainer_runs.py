"""Every trainer from a recipe to a folder that explains itself, on a tiny model; stopped, it ends in the same bytes."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import write_jsonl
from safetensors.torch import load_file
from test_runner import Stopped, stopping_at, weights
from trainer_rows import TOPICS, rows_for
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from hf_lora_ext import ConfigError, Recipe, evaluate_adapter, load_recipe, render_card, run_recipe
from hf_lora_ext.analysis.subject import find_subject
from hf_lora_ext.runs.dry_run import dry_run
from hf_lora_ext.runs.trainer_kinds import TRAINER_KINDS, TRAINERS

REWARDS = ({"reward": "length", "characters": 4}, {"reward": "exact_match", "column": "completion", "weight": 2.0})


@pytest.fixture
def recipe_of(tiny_recipe: Path, tiny_model: Path, tiny_t5: Path, tmp_path: Path):
    """A recipe of six steps for any trainer."""

    def recipe_of(trainer: str) -> Recipe:
        kind = TRAINER_KINDS[trainer]
        file = write_jsonl(tmp_path / f"{trainer}.jsonl", rows_for(trainer))
        sampled = {"num_generations": 2, "max_completion_length": 6} if kind.has_rewards else {}
        given = load_recipe(tiny_recipe)
        return replace(
            given,
            trainer=trainer,
            rewards=REWARDS if kind.has_rewards else None,
            model=str(tiny_t5 if trainer == "seq2seq" else tiny_model),
            data=replace(given.data, source=str(file), eval_fraction=0.3),
            training={**given.training, "per_device_eval_batch_size": 2, **sampled},
            samples=2,
        )

    return recipe_of


@pytest.mark.parametrize("trainer", TRAINERS)
def test_a_run_leaves_adapter_facts_and_card_of_its_trainer(trainer: str, recipe_of):
    kind, recipe = TRAINER_KINDS[trainer], recipe_of(trainer)
    lines: list[str] = []
    result = run_recipe(recipe, lines.append)
    facts = result.facts
    assert f"trainer  {kind.trainer}" in lines
    assert facts.run["method"] == trainer
    assert facts.adapter["task_type"] == kind.task_type
    assert facts.data.form == kind.forms[0]
    assert set(kind.measured) <= set(facts.evaluation["adapter"])
    assert not set(kind.untold) & set(facts.evaluation["adapter"])
    assert len(facts.samples) == (2 if kind.answers else 0)
    assert any(f"held-out {kind.measured[0]} " in line for line in lines)
    assert facts.loss_history
    card = (result.folder / "README.md").read_text()
    assert card == render_card(facts)
    assert ("- trl\n" in card) == kind.is_trl
    assert facts.adapter.get("labels") == (sorted(TOPICS) if trainer == "classification" else None)
    config = json.loads((result.folder / "adapter_config.json").read_text())
    assert config["task_type"] == kind.task_type
    assert config["base_model_name_or_path"] == recipe.model


@pytest.mark.parametrize("trainer", [name for name in TRAINERS if name != "sft"])  # sft: test_runner.py
def test_a_stopped_run_of_any_trainer_goes_on_to_the_same_bytes(trainer: str, recipe_of, tmp_path: Path):
    recipe = replace(recipe_of(trainer), samples=0)
    whole = run_recipe(replace(recipe, output_dir=str(tmp_path / "whole")), lambda line: None)
    with pytest.raises(Stopped):
        run_recipe(recipe, stopping_at(5))
    resumed = run_recipe(recipe, lambda line: None)
    assert resumed.status == "resumed"
    assert weights(resumed.folder) == weights(whole.folder)
    assert resumed.facts.loss_history == whole.facts.loss_history
    assert resumed.facts.evaluation == whole.facts.evaluation


def test_a_model_that_the_trainer_does_not_train_is_refused_before_it_is_loaded(recipe_of, tiny_t5: Path, tiny_model):
    for trainer, model, words in (
        ("sft", tiny_t5, "trainer sft does not train a t5 like this, an encoder-decoder; use trainer: seq2seq"),
        (
            "seq2seq",
            tiny_model,
            "trainer seq2seq does not train a llama like this, no encoder-decoder; use trainer: sft",
        ),
    ):
        with pytest.raises(ConfigError, match=words):
            run_recipe(replace(recipe_of(trainer), model=str(model)), lambda line: None)


def test_the_reference_of_preferences_is_the_base_with_the_adapter_off(recipe_of):
    result = run_recipe(recipe_of("dpo"), lambda line: None)
    before, after = (result.facts.evaluation[who] for who in ("base", "adapter"))
    assert before["rewards/margins"] == 0
    assert before["loss"] == pytest.approx(0.693147, abs=1e-5)
    assert after["rewards/margins"] != 0, "the reference did not move with the policy"


@pytest.mark.parametrize("init", ["default", "pissa"])
def test_a_head_that_is_trained_is_saved_whatever_the_adapter_starts_from(init: str, recipe_of):
    result = run_recipe(replace(recipe_of("reward"), init=init), lambda line: None)
    saved = load_file(result.folder / "adapter_model.safetensors")
    assert [tuple(saved[name].shape) for name in saved if "score" in name] == [(1, 32)]


def test_completions_are_rewarded_by_a_reward_model_in_a_folder_whose_place_is_not_told(recipe_of, tiny_model: Path):
    judge = Path(recipe_of("grpo").output_dir).parent / "judge"
    AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=1, pad_token_id=0).save_pretrained(judge)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(judge)
    rewards = (*REWARDS, {"reward": "model", "model": str(judge), "weight": 0.5})
    facts = run_recipe(replace(recipe_of("grpo"), rewards=rewards), lambda line: None).facts
    told = facts.evaluation["adapter"]
    parts = told["rewards/length/mean"] + 2 * told["rewards/exact_match/mean"] + 0.5 * told["rewards/judge/mean"]
    assert told["reward"] == pytest.approx(parts, abs=1e-4)
    assert "model: judge" in facts.recipe
    assert str(judge) not in facts.to_json()


@pytest.mark.parametrize("trainer", TRAINERS)
def test_what_a_dry_run_foretells_is_what_trains(trainer: str, recipe_of):
    kind, recipe = TRAINER_KINDS[trainer], recipe_of(trainer)
    passes = {key: value for key, value in recipe.training.items() if key != "max_steps"} | {"num_train_epochs": 1}
    recipe = replace(recipe, training=passes | {"gradient_accumulation_steps": 3}, samples=0)
    made, done = dry_run(recipe), run_recipe(recipe, lambda line: None).facts
    assert made.trained_parameters == made.trained_at_start == done.adapter["trainable_parameters"]
    assert (made.steps, made.examples_per_step) == (done.run["steps"], done.run["examples_per_step"])
    assert (made.form, made.train_examples) == (done.data.form, done.data.train_examples)
    assert any("score" in name for name in made.trained) == (kind.task_type == "SEQ_CLS")
    assert bool(made.batch) == bool(made.tokens) == (trainer == "sft")
    assert trainer == "sft" or made.batch_note == f"not shown: tokens are known here for trainer sft, not {trainer}"


@pytest.mark.parametrize("trainer", TRAINERS)
def test_few_examples_are_watched_for_overfitting_where_the_loss_says_something(trainer: str, recipe_of):
    result = run_recipe(replace(recipe_of(trainer), samples=0), lambda line: None)
    watched = any(result.folder.rglob("overfit_progress.json"))
    assert watched == ("loss" not in TRAINER_KINDS[trainer].untold)


def test_a_classifier_is_evaluated_on_what_its_run_held_out_and_is_no_subject_of_a_curve(recipe_of, tmp_path: Path):
    done = run_recipe(recipe_of("classification"), lambda line: None)
    found = evaluate_adapter(done.folder).comparison
    measured = {row.metric: row.adapter for row in found.measured}
    assert measured["accuracy"] == pytest.approx(done.facts.evaluation["adapter"]["accuracy"])
    assert measured["loss"] == pytest.approx(done.facts.evaluation["adapter"]["loss"], rel=1e-4)
    assert (found.held_out, found.examples, found.trained_on) == (True, done.facts.data.eval_examples, 0)
    given = evaluate_adapter(done.folder, data=str(tmp_path / "classification.jsonl")).comparison
    assert (given.examples, given.trained_on) == (30, done.facts.data.train_examples), "names are the run's numbers"
    with pytest.raises(ConfigError, match="the adapter of a classifier, and what is measured here is of a model that"):
        find_subject(done.folder)


def test_labels_that_are_numbers_keep_their_meaning_when_they_are_numbered_anew(recipe_of, tmp_path: Path):
    rows = [{"text": f"A {TOPICS[n % 3]} {n}", "label": n % 3 + 1} for n in range(30)]
    recipe = recipe_of("classification")
    file = write_jsonl(tmp_path / "classification.jsonl", rows)
    done = run_recipe(recipe, lambda line: None)
    assert done.facts.adapter["labels"] == ["1", "2", "3"]
    own = {row.metric: row.adapter for row in evaluate_adapter(done.folder).comparison.measured}
    assert own["accuracy"] == pytest.approx(done.facts.evaluation["adapter"]["accuracy"])
    given = evaluate_adapter(done.folder, data=str(file)).comparison
    assert given.trained_on == done.facts.data.train_examples


@pytest.mark.parametrize("trainer", ["dpo", "reward", "seq2seq"])
def test_an_adapter_whose_rows_are_no_texts_is_evaluated_on_given_ones_or_refused(
    trainer: str, recipe_of, tmp_path: Path
):
    done = run_recipe(replace(recipe_of(trainer), samples=0), lambda line: None)
    texts = write_jsonl(tmp_path / "texts.jsonl", rows_for("sft"))
    if trainer == "dpo":
        with pytest.raises(ConfigError, match="tells no rows that it held out: give held-out rows with data="):
            evaluate_adapter(done.folder)
        found = evaluate_adapter(done.folder, data=str(texts)).comparison
        assert found.trained_on is None
        assert {row.metric for row in found.measured} == {"loss", "perplexity", "token_accuracy"}
        return
    what = {"reward": "a reward model", "seq2seq": "a SEQ_2_SEQ_LM model"}[trainer]
    with pytest.raises(ConfigError, match=f"holds the adapter of {what}, and what is measured here is of"):
        evaluate_adapter(done.folder, data=str(texts))
