"""What an adapter changes: the right figures of the right rows, told where they go, and nothing else touched."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import PAIRS, outcome, write_jsonl
from hub_card_check import card_answer, metadata

from hf_lora_ext import ConfigError, evaluate_adapter
from hf_lora_ext.cards.facts import read_facts
from hf_lora_ext.evaluation.answers import answer_samples, answers_to, questions_in
from hf_lora_ext.runs.evaluate_choice import checked_metrics
from hf_lora_ext.runs.recipe import dump_recipe, load_recipe, parse_recipe, validate
from hf_lora_ext.runs.runner import run_recipe

RECIPE = """
model: {model}
output_dir: {folder}
data: {{source: {source}, eval_fraction: 0.3}}
training: {{max_steps: 3, per_device_train_batch_size: 4, gradient_accumulation_steps: 1, learning_rate: 1e-2}}
samples: 0
evaluate: {{metrics: [loss, exact_match], examples: 6, max_new_tokens: 4}}
"""


@pytest.fixture(scope="module")
def finished(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of three steps, whose recipe asks for an evaluation at the end."""
    root = tmp_path_factory.mktemp("evaluated")
    source = write_jsonl(root / "pairs.jsonl", PAIRS)
    file = root / "recipe.yaml"
    file.write_text(RECIPE.format(model=tiny_model, folder=root / "run", source=source), encoding="utf8")
    said: list[str] = []
    run_recipe(load_recipe(file), say=said.append)
    assert any(line.endswith("exact match: 0 to 0, +0 (+0 to +0), no difference") for line in said)
    return root / "run"


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return shutil.copytree(finished, tmp_path / "run")


@pytest.fixture(scope="module")
def model_and_tokenizer(tiny_model: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(tiny_model).eval(), AutoTokenizer.from_pretrained(tiny_model)


def test_a_recipe_evaluates_at_its_end_and_the_card_tells_it(finished: Path):
    facts = read_facts(finished / "facts.json")
    (found,) = facts.comparisons
    assert [row.metric for row in found.measured] == ["loss", "exact_match"]
    assert (found.held_out, found.examples, found.max_new_tokens, found.trained_on) == (True, 6, 4, 0)
    card = (finished / "README.md").read_text(encoding="utf8")
    assert "## Comparison with the base" in card
    assert "| exact match | 0 | 0 | +0 | +0 to +0 | no difference |" in card
    assert card_answer(card, "model")[0] == 200


def test_the_loss_is_that_of_transformers_weighed_by_tokens(finished: Path, tiny_model: Path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    found = evaluate_adapter(finished, samples=0)
    rows = [row for row in PAIRS if row in _held_out(finished)]
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    base = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), finished).eval()
    models = {"base": base, "adapter": adapted}
    for who, model in models.items():
        nats = right = tokens = 0.0
        for row in rows:
            before = len(tokenizer(row["prompt"]).input_ids)
            ids = torch.tensor([tokenizer(row["prompt"] + row["completion"] + "<eos>").input_ids])
            with torch.no_grad():
                likely = model(ids).logits[0, before - 1 : -1].log_softmax(-1)
            answer = ids[0, before:]
            nats -= float(likely[range(len(answer)), answer].sum())
            right += int((likely.argmax(-1) == answer).sum())
            tokens += len(answer)
        measured = {row.metric: getattr(row, who) for row in found.comparison.measured}
        assert measured["loss"] == pytest.approx(nats / tokens, rel=1e-5)
        assert measured["token_accuracy"] == pytest.approx(right / tokens)
    assert found.comparison.examples == len(rows)
    assert found.comparison.measured[0].verdict == "better"


def _held_out(folder: Path) -> list[dict]:
    from hf_lora_ext.data.examples import load_examples

    return list(load_examples(load_recipe(folder / "recipe.yaml").data).held_out)


def test_nothing_is_written_unless_asked_and_then_nothing_is_lost(run: Path, capsys: pytest.CaptureFixture[str]):
    before = {file.name: file.read_bytes() for file in run.iterdir() if file.is_file()}
    code, out, _ = outcome(capsys, "evaluate", run, "--samples", "1", "--quiet")
    assert (code, {file.name: file.read_bytes() for file in run.iterdir() if file.is_file()}) == (0, before)
    assert "--write puts this into facts.json" in out
    assert "token accuracy" in out
    assert PAIRS[0]["prompt"][:8] in out
    code, out, _ = outcome(capsys, "evaluate", run, "--write", "--quiet", "--plot", run / "change.png")
    assert code == 0, out
    assert (run / "change.png").read_bytes().startswith(b"\x89PNG")
    old, new = json.loads(before["facts.json"]), json.loads((run / "facts.json").read_text(encoding="utf8"))
    assert len(new["comparisons"]) == 2
    assert new["comparisons"][0] == old["comparisons"][0]
    assert {**new, "comparisons": 0, "samples": 0} == {**old, "comparisons": 0, "samples": 0}
    card = (run / "README.md").read_text(encoding="utf8")
    assert card_answer(card, "model") == (200, {"errors": [], "warnings": []})
    names = {m["name"] for result in metadata(card)["model-index"][0]["results"] for m in result["metrics"]}
    assert {"Held-out loss", "Held-out perplexity", "Held-out exact match"} <= names
    outcome(capsys, "evaluate", run, "--write", "--quiet")
    again = json.loads((run / "facts.json").read_text(encoding="utf8"))
    assert again["comparisons"] == new["comparisons"]


def test_rows_that_were_trained_on_are_told(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = write_jsonl(tmp_path / "all.jsonl", PAIRS)
    code, out, err = outcome(capsys, "evaluate", run, "--data", file, "--json", "--samples", "0", "--write")
    assert code == 0
    trained = len(PAIRS) - len(_held_out(run))
    assert f"warning  {trained} of 40 rows were trained on" in err
    told = json.loads(out)
    assert (told["trained_on"], told["held_out"], told["data"]) == (trained, False, "all.jsonl")
    assert "which flatters it" in told["notes"][0]
    card = (run / "README.md").read_text(encoding="utf8")
    assert "which flatters it" in card
    assert "all.jsonl" not in str(metadata(card)["model-index"])


def test_an_adapter_without_a_run_is_measured_on_given_rows(finished: Path, tmp_path: Path, tiny_model: Path):
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(finished / name, bare)
    with pytest.raises(ConfigError, match="give held-out rows"):
        evaluate_adapter(bare, base=str(tiny_model))
    rows = write_jsonl(tmp_path / "rows.jsonl", _held_out(finished))
    found = evaluate_adapter(bare, base=str(tiny_model), data=str(rows), limit=5, full=tiny_model, samples=2).comparison
    assert (found.examples, found.trained_on, found.full) == (5, None, tiny_model.name)
    assert any("is not known" in note for note in found.notes)
    assert any("too narrow" in note for note in found.notes)
    assert all(row.full == pytest.approx(row.base, rel=1e-6) for row in found.measured)
    assert found.measured[0].beside_full is not None


def test_rouge_comes_with_the_answers_that_it_is_of(finished: Path):
    pytest.importorskip("rouge_score", reason="it is in the extra `evaluate`")
    found = evaluate_adapter(finished, metrics=["rouge", "exact_match"], max_new_tokens=3, samples=1, batch_size=5)
    assert [row.metric for row in found.comparison.measured] == ["exact_match", "rouge1", "rouge2", "rougeL"]
    assert found.losses == {}
    assert len(found.samples) == 1
    assert any("cut off" in note for note in found.comparison.notes)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--metrics", "bleu"], "'bleu' is none for a model that writes"),
        (["--metrics", "accuracy"], "'accuracy' is none for a model that writes"),
        (["--full", "nowhere"], "nowhere holds no config.json"),
        (["--plot", "no/where.png"], "there is no folder no"),
        (["--data", "no.jsonl"], "no such file"),
        (["--limit", "1"], "--limit"),
    ],
)
def test_what_is_wrong_ends_in_one_line_and_2(
    finished: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
):
    code, out, err = outcome(capsys, "evaluate", finished, *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.strip().splitlines()) == 1


def test_writing_needs_the_facts_of_a_run_before_anything_is_measured(
    adapter: Path, capsys: pytest.CaptureFixture[str]
):
    code, _, err = outcome(capsys, "evaluate", adapter, "--write", "--data", "no.jsonl")
    assert (code, "no facts.json" in err) == (2, True)


def test_plain_text_asks_nothing_so_that_no_answer_can_be_compared(finished: Path, tmp_path: Path):
    rows = write_jsonl(tmp_path / "text.jsonl", [{"text": f"line {n}"} for n in range(5)])
    with pytest.raises(ConfigError, match="exact_match compare answers, and 0 of 5 rows ask something"):
        evaluate_adapter(finished, data=str(rows), metrics=["loss", "exact_match"])
    found = evaluate_adapter(finished, data=str(rows))
    assert (found.samples, found.comparison.measured[0].examples) == ((), 5)


def test_answers_in_a_batch_are_those_that_each_prompt_gets_alone(model_and_tokenizer: tuple[Any, Any]):
    model, tokenizer = model_and_tokenizer
    rows = [{"prompt": "x" * (n + 1), "completion": "y"} for n in (0, 8, 3, 20, 1)]
    rows.append({"prompt": [{"role": "user", "content": "hello"}], "completion": [{"role": "a", "content": "y"}]})
    asked = questions_in(rows, tokenizer)
    told: list[int] = []
    together = answers_to(model, tokenizer, asked, 6, batch_size=4, tell=told.append)
    assert together == [answers_to(model, tokenizer, [question], 6)[0] for question in asked]
    assert told == [4, 6]
    assert len({answer.text for answer in together}) > 1


def test_an_answer_that_ended_by_itself_is_not_cut(model_and_tokenizer: tuple[Any, Any], monkeypatch):
    model, tokenizer = model_and_tokenizer
    asked = questions_in([{"prompt": "a", "completion": "b"}] * 2, tokenizer)
    ends = torch.tensor([[7, 9, 1], [7, 9, 9]])
    monkeypatch.setattr(model, "generate", lambda input_ids, **_: torch.cat([input_ids, ends], 1))
    assert [answer.is_cut for answer in answers_to(model, tokenizer, asked, 3)] == [False, True]


def test_samples_leave_the_model_in_the_mode_that_it_was_in(finished: Path, tiny_model: Path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), finished).train()
    (sample,) = answer_samples(model, AutoTokenizer.from_pretrained(tiny_model), PAIRS[:1], 5)
    assert (sample.prompt, sample.reference, model.training) == (PAIRS[0]["prompt"], "It is 1.", True)


def test_a_recipe_says_what_is_wrong_with_its_evaluation():
    recipe = {"model": "m", "output_dir": "o", "data": {"source": "s.jsonl"}}
    assert validate(recipe | {"evaluate": {}}) == [
        "evaluate.metrics: missing; needed: a list of loss, perplexity, token_accuracy, exact_match, rouge"
    ]
    (problem,) = validate(recipe | {"evaluate": {"metrics": ["blue"], "examples": 5}})
    assert problem.startswith("evaluate.metrics: found ['blue']")
    (problem,) = validate(recipe | {"init": "pissa", "evaluate": {"metrics": ["loss"]}})
    assert "hf-lora evaluate" in problem
    whole = parse_recipe(recipe | {"evaluate": {"metrics": ["loss", "rouge"], "examples": 9}})
    assert "evaluate:\n  metrics:\n  - loss\n  - rouge\n  examples: 9\n" in dump_recipe(whole)


def test_without_a_wish_nothing_has_to_be_written_by_the_model():
    assert checked_metrics(None, classifies=False) == ("loss", "perplexity", "token_accuracy")
    assert checked_metrics(["f1"], classifies=True) == ("f1",)
