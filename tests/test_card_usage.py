"""The code on a card runs as pasted: here on a small local base in place of the Hub's."""

import ast
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from test_cards import EXAMPLES, FULL
from test_markdown import ANYTHING

from hf_lora_ext import load_recipe, render_card, run_recipe
from hf_lora_ext.cards.facts import BaseModelFacts, Facts, Sample
from hf_lora_ext.cards.usage import LONGEST_PROMPT, usage_code


def as_pasted(card: str, base: Path) -> str:
    """The card's code with the Hub's id replaced by a folder, which has no revisions."""
    code = re.search(r"```python\n(.*?)```", card, flags=re.DOTALL)[1]
    return re.sub(r', revision="[^"]*"', "", code.replace("me/base", str(base)))


def on_the_hub(facts: Facts) -> Facts:
    return replace(facts, base_model=BaseModelFacts(name="me/base", on_hub=True, revision="abc"))


@pytest.mark.parametrize(
    "changes", [{}, {"samples": 0}, {"method": "qlora"}], ids=["with a sample", "without", "quantised"]
)
@pytest.mark.filterwarnings("ignore:.*quantization.*:UserWarning")
def test_a_language_model_answers(changes: dict, tiny_recipe: Path, tiny_model: Path, monkeypatch, capsys):
    recipe = replace(load_recipe(tiny_recipe), rank=4, **changes)
    result = run_recipe(recipe, lambda line: None)
    monkeypatch.chdir(result.folder)
    code = as_pasted(render_card(on_the_hub(result.facts)), tiny_model)
    assert ("BitsAndBytesConfig" in code) == (recipe.method == "qlora")
    capsys.readouterr()
    namespace: dict = {}
    exec(compile(code, "README.md", "exec"), namespace)
    answer = capsys.readouterr().out.strip()
    if recipe.samples and recipe.method == "lora":
        assert answer == result.facts.samples[0].adapter
    assert namespace["text"] == (result.facts.samples[0].prompt if recipe.samples else "Hello")


def test_a_chat_model_is_asked_in_its_own_template(tiny_model: Path, tmp_path: Path, monkeypatch, capsys):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), LoraConfig(task_type="CAUSAL_LM")).save_pretrained(
        tmp_path
    )
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path)
    facts = on_the_hub(
        replace(FULL, samples=(), quantization={}, repo_id=None, data=replace(FULL.data, form="messages"))
    )
    monkeypatch.chdir(tmp_path)
    namespace: dict = {}
    exec(compile(as_pasted(render_card(facts), tiny_model), "README.md", "exec"), namespace)
    assert namespace["text"] == "user: Hello<eos>assistant: "


def test_a_classifier_names_a_label(tiny_model: Path, tmp_path: Path, monkeypatch, capsys):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    labels = ["down", 'u"p']
    base = AutoModelForSequenceClassification.from_pretrained(tiny_model, id2label=dict(enumerate(labels)))
    get_peft_model(base, LoraConfig(task_type="SEQ_CLS")).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path)
    facts = on_the_hub(Facts(adapter={"task_type": "SEQ_CLS", "labels": labels}))
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    exec(compile(as_pasted(render_card(facts), tiny_model), "README.md", "exec"), {})
    assert capsys.readouterr().out.strip() in labels


def test_a_reward_model_scores_two_answers_to_a_prompt_as_it_was_trained(
    tiny_model: Path, tmp_path: Path, monkeypatch, capsys
):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    base = AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=1)
    judge = get_peft_model(base, LoraConfig(task_type="SEQ_CLS")).eval()
    judge.save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.save_pretrained(tmp_path)
    facts = on_the_hub(Facts(adapter={"task_type": "SEQ_CLS"}, run={"method": "reward"}))
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    exec(compile(as_pasted(render_card(facts), tiny_model), "README.md", "exec"), {})
    said = [line.split("  ") for line in capsys.readouterr().out.splitlines()]
    assert [answer for _, answer in said] == ["Paris.", "A fish."]
    for score, answer in said:
        tokens = tokenizer(f"What is the capital of France?\n{answer}<eos>", return_tensors="pt")
        with torch.no_grad():
            assert float(score) == pytest.approx(judge(**tokens).logits.item(), abs=6e-4)
    assert said[0][0] != said[1][0]


def test_a_published_adapter_is_loaded_by_its_id():
    assert 'adapter = "me/adapter"' in usage_code(FULL)
    assert 'adapter = "."' in usage_code(replace(FULL, repo_id=None))


@pytest.mark.parametrize(
    "facts",
    [
        Facts(),
        replace(FULL, base_model=None),
        replace(FULL, base_model=BaseModelFacts(name="folder", on_hub=False)),
        replace(FULL, adapter={"rank": 8}),
    ],
)
def test_there_is_no_code_where_it_could_not_run(facts: Facts):
    assert usage_code(facts) is None


def test_a_long_example_is_not_the_question():
    assert "Hello" in usage_code(
        replace(FULL, samples=(Sample(prompt="x" * (LONGEST_PROMPT + 1), reference="", base="", adapter=""),))
    )


@given(ANYTHING)
def test_foreign_names_are_texts_in_the_code_and_nothing_more(value):
    facts = replace(
        FULL,
        base_model=replace(FULL.base_model, name=f"me/{value}", revision=f"x{value}"),
        adapter={"task_type": "SEQ_CLS", "labels": [value, "b"]},
        samples=(Sample(prompt=f"x{value}", reference="", base="", adapter=""),),
        quantization={"load_in_4bit": True, "bnb_4bit_quant_type": value},
        repo_id=f"me/{value}",
    )
    tree = ast.parse(usage_code(facts))
    texts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    assert {f"me/{value}", f"x{value}", value} <= texts
    plain = ast.parse(
        usage_code(replace(facts, **{name: getattr(FULL, name) for name in ("base_model", "repo_id", "samples")}))
    )
    assert [type(n) for n in ast.walk(tree)] == [type(n) for n in ast.walk(plain)]


@pytest.mark.parametrize("folder", EXAMPLES, ids=lambda folder: folder.name)
def test_the_examples_code_is_python(folder: Path):
    facts = Facts.from_dict(json.loads((folder / "facts.json").read_text(encoding="utf8")))
    assert "from_pretrained" in ast.unparse(ast.parse(usage_code(facts)))
