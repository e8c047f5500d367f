"""`hf-lora train --dry-run`: what a run would do, and it does that; nothing is written and no weight is loaded."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import outcome, write_jsonl
from transformers import TrainerCallback

from hf_lora_ext import ConfigError, Recipe, load_recipe, run_recipe
from hf_lora_ext.runs.dry_run import dry_run


class FirstBatch(TrainerCallback):
    """Keeps the first batch that a trainer's data loader gives, without drawing from it twice."""

    def on_train_begin(self, args, state, control, *, train_dataloader, model, **kwargs):
        forward = model.forward
        self.seen = None

        def watching(*given, **named):
            if model.training and self.seen is None:
                self.seen = named
            return forward(*given, **named)

        model.forward = watching


@pytest.fixture
def recipe(tiny_recipe: Path) -> Recipe:
    return load_recipe(tiny_recipe, ["samples=0"])


def chat(n: int) -> dict:
    return {"messages": [{"role": "user", "content": f"{n}+1?"}, {"role": "assistant", "content": f"{n + 1}"}]}


ROWS = {
    "prompt-completion": lambda n: {"prompt": f"What is {n} plus one?\n", "completion": f"It is {n + 1}."},
    "messages": chat,
    "text": lambda n: {"text": f"{n} and one make {n + 1}."},
}


@pytest.mark.parametrize("form", ROWS)
@pytest.mark.parametrize("seed", [0, 7])
def test_the_batch_that_is_shown_is_the_first_one_that_trains(recipe: Recipe, tmp_path: Path, form: str, seed: int):
    file = write_jsonl(tmp_path / "rows.jsonl", [ROWS[form](n) for n in range(30)])
    recipe = replace(recipe, data=replace(recipe.data, source=str(file)), seed=seed)
    made = dry_run(recipe)
    watch = FirstBatch()
    run_recipe(recipe, lambda line: None, [watch])
    assert made.form == form
    trained = []
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(recipe.model)
    for ids, labels in zip(watch.seen["input_ids"].tolist(), watch.seen["labels"].tolist(), strict=True):
        targets = [False, *(label != -100 for label in labels[1:])]
        counted = tokenizer.decode([token for token, counts in zip(ids, targets, strict=True) if counts])
        trained.append((tokenizer.decode([token for token in ids if token != tokenizer.pad_token_id]), counted))
    shown = [
        ("".join(piece.text for piece in example), "".join(piece.text for piece in example if piece.counted))
        for example in made.batch
    ]
    assert shown == trained


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"method": "dora", "rank": 4},
        {"method": "qlora"},
        {"method": "prefix"},
        {"init": "pissa"},
        {"targets": ("q_proj",)},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:.*quantization.*:UserWarning")
def test_what_is_foretold_is_what_trains(recipe: Recipe, changes: dict):
    recipe = replace(recipe, **changes)
    made = dry_run(recipe)
    done = run_recipe(recipe, lambda line: None).facts
    assert made.trained_parameters == made.trained_at_start == done.adapter["trainable_parameters"]
    assert (made.steps, made.examples_per_step) == (done.run["steps"], done.run["examples_per_step"])
    assert made.train_examples == done.data.train_examples


def test_epochs_and_tokens_are_those_of_the_run(recipe: Recipe):
    training = {key: value for key, value in recipe.training.items() if key != "max_steps"}
    recipe = replace(recipe, training=training | {"num_train_epochs": 2, "gradient_accumulation_steps": 3})
    made, done = dry_run(recipe), run_recipe(recipe, lambda line: None).facts
    assert made.steps == done.run["steps"]
    # The trainer counts the padding too, so that it has more tokens.
    assert 2 * made.counted_tokens < 2 * made.tokens <= done.run["tokens"] <= 2.4 * made.tokens


def test_several_processes_take_fewer_steps_and_adaptive_rank_starts_wider(recipe: Recipe):
    training = {key: value for key, value in recipe.training.items() if key != "max_steps"}
    recipe = replace(recipe, training=training | {"num_train_epochs": 1})
    one, two = dry_run(recipe), dry_run(recipe, processes=2)
    assert (one.steps, two.steps) == (-(-one.train_examples // 2), -(-one.train_examples // 4))
    adaptive = dry_run(replace(recipe, rank=2, adaptive_rank=True))
    assert adaptive.trained_at_start == adaptive.preset.start_factor * adaptive.trained_parameters


def test_whole_groups_of_completions_are_counted_over_all_processes(tiny_recipe: Path, capsys):
    groups = ["trainer=grpo", "rewards=[{reward: length, characters: 4}]", "training.num_generations=4"]
    command = ["train", tiny_recipe, "--dry-run", *groups]
    code, _, err = outcome(capsys, *command)
    assert code == 2
    assert "GRPOConfig refuses these settings" in err
    code, out, err = outcome(capsys, *command, "--launch", "ddp2")
    assert code == 0, err
    assert "steps      6 of 1 examples" in out
    assert outcome(capsys, *command, "training.num_generations=3", "--launch", "ddp2")[0] == 2


def test_many_examples_are_counted_in_part_and_said_to_be(recipe: Recipe, tmp_path: Path, monkeypatch):
    file = write_jsonl(tmp_path / "rows.jsonl", [{"text": f"{n:04d} is a number"} for n in range(200)])
    recipe = replace(recipe, data=replace(recipe.data, source=str(file)))
    whole = dry_run(recipe)
    monkeypatch.setattr("hf_lora_ext.runs.dry_run.MOST_ROWS", 50)
    part = dry_run(recipe)
    assert (whole.is_estimated, part.is_estimated) == (False, True)
    assert (part.tokens, part.batch) == (whole.tokens, whole.batch)  # rows of one length
    assert (whole.batch_note, part.batch_note) == ("", "if no example is so long that nothing counted is left of it")
    packed = replace(recipe, training={**recipe.training, "packing": True})
    assert dry_run(packed).batch_note == "before packing puts several examples into a row"


def test_it_writes_nothing_loads_no_weights_and_marks_what_counts(
    tiny_recipe: Path, tmp_path: Path, capsys, monkeypatch
):
    def fail(*args, **kwargs):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", fail)
    before = sorted(tmp_path.rglob("*"))
    code, out, _ = outcome(capsys, "train", tiny_recipe, "--dry-run")
    assert code == 0
    assert sorted(tmp_path.rglob("*")) == before
    for said in ("model      ", "memory     at least", "trains     ", "steps      6 of 2 examples", "tokens     "):
        assert said in out
    assert "plus one?\n«It is" in out
    assert out.partition("[1 of 2]")[2].count("«") == out.partition("[1 of 2]")[2].count("»") == 2
    told = json.loads(outcome(capsys, "train", tiny_recipe, "--dry-run", "--json")[1])
    assert told["steps"] == 6
    assert [piece["counted"] for piece in told["first_batch"][0]] == [False, True]


def test_what_the_preset_warns_of_is_shown(tiny_recipe: Path, capsys):
    assert "look out   rank too high (33): " in outcome(capsys, "train", tiny_recipe, "--dry-run", "rank=33")[1]
    assert "look out" not in outcome(capsys, "train", tiny_recipe, "--dry-run", "rank=32")[1]


def test_on_a_terminal_what_counts_is_in_colour(tiny_recipe: Path, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    out = outcome(capsys, "train", tiny_recipe, "--dry-run")[1]
    assert "\x1b[32mIt is" in out
    assert "«" not in out.partition("[1 of 2]")[2]


def test_what_would_stop_the_run_stops_it_too(tiny_recipe: Path, capsys):
    assert outcome(capsys, "train", tiny_recipe, "--dry-run", "data.source=none.jsonl")[0] == 2
    assert outcome(capsys, "train", tiny_recipe, "--dry-run", "targets=[q_prj]")[0] == 2


def test_a_run_that_does_not_fit_here_is_shown_for_the_hardware_that_it_declares(recipe: Recipe, monkeypatch):
    from hf_lora_ext.hardware import Hardware
    from hf_lora_ext.runs.declared import HardwareChoice

    tiny = Hardware(kind="cpu", host_memory_gib=1e-5)
    for place in ("hf_lora_ext.machine", "hf_lora_ext.runs.recipe_plan"):
        monkeypatch.setattr(f"{place}.find_hardware", lambda: tiny)
    declared = replace(recipe, hardware=HardwareChoice(gpus=4, gpu_memory_gib=24))
    with pytest.raises(ConfigError, match="is written for 4 GPUs"):
        run_recipe(declared, lambda line: None)
    made = dry_run(declared)
    assert "here is no GPU" in made.note
    assert made.note.endswith("What follows is for the declared hardware")
    assert (made.need.available_gib, made.examples_per_step) == (24, 4 * recipe.training["per_device_train_batch_size"])
