"""Chat data: the loss counts the assistant's turns alone where they can be told, and says so where they cannot."""

from pathlib import Path

import pytest
from conftest import write_jsonl

from hf_lora_ext import ConfigError, load_recipe, run_recipe
from hf_lora_ext.runs.training import counts_assistant_only, marks_assistant

PLAIN = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}<eos>{% endfor %}"
MARKED = (
    "{% for m in messages %}{{ m['role'] }}: {% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}<eos>"
    "{% endgeneration %}{% else %}{{ m['content'] }}<eos>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
ENDLESS = MARKED.replace("{{ m['content'] }}<eos>{% endgeneration %}", "{{ m['content'] }}{% endgeneration %}<eos>")
CHATS = [
    {"messages": [{"role": "user", "content": f"Hi {i}"}, {"role": "assistant", "content": f"Hello {i}"}]}
    for i in range(12)
]


def tokenizer_with(template: str | None, tiny_model: Path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = template
    return tokenizer


def known_template() -> str:
    from trl import chat_template_utils

    return chat_template_utils.llama3_chat_template


@pytest.mark.parametrize(
    ("template", "marks"), [(MARKED, True), (PLAIN, False), (ENDLESS, False), (None, False), ("llama3", True)]
)
def test_assistant_turns_are_told_where_template_or_trl_marks_them_with_their_end(template, marks, tiny_model: Path):
    tokenizer = tokenizer_with(known_template() if template == "llama3" else template, tiny_model)
    if template == "llama3":
        tokenizer.add_tokens(["<|eot_id|>"], special_tokens=True)
        tokenizer.eos_token = "<|eot_id|>"
    assert marks_assistant(tokenizer) == marks


def test_only_messages_ask_for_it_and_the_user_may_refuse_it(tiny_model: Path):
    marked, plain = tokenizer_with(MARKED, tiny_model), tokenizer_with(PLAIN, tiny_model)
    assert counts_assistant_only(marked, "messages", None)
    assert not counts_assistant_only(marked, "messages", False)
    assert not counts_assistant_only(plain, "messages", None)
    assert not counts_assistant_only(marked, "prompt-completion", None)
    with pytest.raises(ConfigError, match="the data is text, not messages; leave it out"):
        counts_assistant_only(marked, "text", True)


@pytest.mark.parametrize(("template", "counted"), [(MARKED, ["Hello"]), (PLAIN, ["user", "Hi", "assistant", "Hello"])])
def test_a_recipe_on_messages_counts_the_answers_where_it_can_and_says_what_it_counts(
    template: str, counted: list[str], tiny_model: Path, tiny_recipe: Path, tmp_path: Path, monkeypatch
):
    import shutil

    from hf_lora_ext.runs import building

    folder = tmp_path / "chat-model"
    shutil.copytree(tiny_model, folder)
    tokenizer_with(template, tiny_model).save_pretrained(folder)
    data = write_jsonl(tmp_path / "chats.jsonl", CHATS)
    built = []
    build = building.build_trainer
    monkeypatch.setattr(building, "build_trainer", lambda *a, **k: built.append(build(*a, **k)) or built[-1])
    lines: list[str] = []
    recipe = load_recipe(tiny_recipe, [f"model={folder}", f"data.source={data}", "data.eval_fraction=0.3", "samples=0"])
    result = run_recipe(recipe, lines.append)
    assert f"loss     on {'the assistant turns alone' if template == MARKED else 'all turns'}" in lines
    assert result.facts.hyperparameters["assistant_only_loss"] == (template == MARKED)
    (trainer,) = built
    row = trainer.train_dataset[0]
    told = trainer.processing_class.decode([label for label in row["labels"] if label != -100])
    assert [word for word in ("user", "Hi", "assistant", "Hello") if word in told] == counted
    assert told.endswith("<eos>")


def test_asking_for_what_the_template_cannot_tell_is_refused_before_the_model_loads(
    tiny_model: Path, tiny_recipe: Path, tmp_path: Path, monkeypatch
):
    import transformers

    data = write_jsonl(tmp_path / "chats.jsonl", CHATS)
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", lambda *a, **k: pytest.fail("loaded"))
    settings = [f"data.source={data}", "data.eval_fraction=0.3", "training.assistant_only_loss=true"]
    with pytest.raises(ConfigError, match=r"does not mark the assistant's turns .*; leave it out"):
        run_recipe(load_recipe(tiny_recipe, settings), say=lambda line: None)
