"""Whose a card is: nobody's words are lost, and only cards that a program alone wrote are replaced in silence."""

from dataclasses import replace
from pathlib import Path

import pytest
from conftest import outcome
from test_cards import FULL

from hf_lora_ext import ConfigError, write_card
from hf_lora_ext.cards.card import refresh_card, render_card
from hf_lora_ext.cards.facts import read_facts
from hf_lora_ext.cards.ownership import BEGIN, END, is_machine_made, sealed, text_block, your_text

MINE = "## My story\n\nIt *worked*.\n\n<b>Really</b>"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "facts.json").write_text(FULL.to_json(), encoding="utf8")
    write_card(tmp_path)
    return tmp_path


def edit(folder: Path, old: str, new: str) -> str:
    card = folder / "README.md"
    text = card.read_text(encoding="utf8")
    assert old in text
    card.write_text(text.replace(old, new, 1), encoding="utf8")
    return card.read_text(encoding="utf8")


def train_longer(folder: Path) -> None:
    (folder / "facts.json").write_text(replace(FULL, run={**FULL.run, "steps": 999}).to_json(), encoding="utf8")


@pytest.fixture(scope="module")
def small_adapter():
    """Any adapted model, which writes peft's card."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = LlamaConfig(vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    return get_peft_model(LlamaForCausalLM(shape), LoraConfig(task_type="CAUSAL_LM"))


def test_your_text_is_carried_from_card_to_card(folder: Path):
    edit(folder, f"{BEGIN}\n{END}", f"{BEGIN}\n\n{MINE}\n{END}")
    train_longer(folder)
    written = refresh_card(folder)
    card = written.path.read_text(encoding="utf8")
    assert (written.changed, written.kept) == (True, None)
    assert "999 steps" in card
    assert your_text(card) == MINE
    assert refresh_card(folder).changed is False


def test_your_text_moves_into_a_template_of_your_own(folder: Path, tmp_path: Path):
    edit(folder, f"{BEGIN}\n{END}", f"{BEGIN}\n{MINE}\n{END}")
    own = tmp_path / "own.jinja"
    own.write_text("# {{ title | inline }}\n", encoding="utf8")
    assert your_text(write_card(folder, template=own).read_text(encoding="utf8")) == MINE


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("## Evaluation", "## Evaluation\n\nI doubt it."),
        ("license: mit", "license: apache-2.0"),
        ("- lora\n", "- lora\n- mine\n"),
        ("<!-- hf_lora_ext: made from", "Bye.\n\n<!-- hf_lora_ext: made from"),
        (f"{END}\n", "no end\n"),
    ],
)
def test_a_card_edited_elsewhere_is_kept_beside_the_new_one(folder: Path, caplog, old: str, new: str):
    edited = edit(folder, old, new)
    card = write_card(folder)
    assert card.read_text(encoding="utf8") == render_card(FULL)
    assert (folder / "README.kept.md").read_text(encoding="utf8") == edited
    assert "README.kept.md" in caplog.text


def test_text_after_the_seal_is_kept_too(folder: Path):
    card = folder / "README.md"
    card.write_text(card.read_text(encoding="utf8") + "\nAn afterthought.\n", encoding="utf8")
    assert refresh_card(folder).kept == folder / "README.kept.md"


def test_a_card_written_by_hand_is_kept_and_one_kept_before_is_not_lost(folder: Path):
    card = folder / "README.md"
    for text in ("# First\n", "# Second\n", "# Second\n"):
        card.write_text(text, encoding="utf8")
        refresh_card(folder)
    kept = {path.name: path.read_text(encoding="utf8") for path in folder.glob("README.kept*")}
    assert kept == {"README.kept.md": "# First\n", "README.kept-2.md": "# Second\n"}


def test_line_ends_of_another_system_are_no_edit(folder: Path):
    card = folder / "README.md"
    card.write_bytes(card.read_bytes().replace(b"\n", b"\r\n"))
    train_longer(folder)
    assert refresh_card(folder).kept is None


def test_peft_s_own_card_is_replaced_and_one_that_somebody_filled_in_is_kept(folder: Path, small_adapter):
    (folder / "README.md").unlink()
    small_adapter.save_pretrained(folder)
    assert "More Information Needed" in (folder / "README.md").read_text(encoding="utf8")
    assert is_machine_made((folder / "README.md").read_text(encoding="utf8"))
    edit(folder, "[More Information Needed]", "Jo Doe")
    assert not is_machine_made((folder / "README.md").read_text(encoding="utf8"))


def test_what_peft_does_to_our_card_when_it_saves_again_is_no_edit(folder: Path, small_adapter):
    small_adapter.save_pretrained(folder)
    touched = (folder / "README.md").read_text(encoding="utf8")
    assert touched != render_card(FULL)
    assert is_machine_made(touched)
    assert not is_machine_made(touched.replace("license: mit", "license: apache-2.0"))
    assert not is_machine_made(touched.replace("## Evaluation", "## Evaluation\n\nI doubt it."))
    assert refresh_card(folder).kept is None
    assert (folder / "README.md").read_text(encoding="utf8") == render_card(FULL)


def test_trl_s_own_card_is_replaced_and_one_that_somebody_added_to_is_kept(folder: Path, small_adapter):
    from trl.trainer.utils import generate_model_card

    generated = str(
        generate_model_card("a/b", "run", "me/run", "d/s", ["trl", "sft"], None, None, "SFT", "@x{a,\n b = 1}")
    )
    (folder / "README.md").write_text(generated, encoding="utf8")
    assert is_machine_made(generated)
    small_adapter.save_pretrained(folder)
    assert is_machine_made((folder / "README.md").read_text(encoding="utf8"))
    assert not is_machine_made(generated.replace("## Quick start", "I made this.\n\n## Quick start"))


@pytest.mark.parametrize("card", ["", "---\n: [\n---\n", f"{BEGIN}\nno end", "---\n"])
def test_any_text_can_be_judged(card: str):
    assert is_machine_made(card) is False
    assert your_text(card) == ""


def test_a_seal_is_of_its_own_text_alone():
    card = sealed(f"# A\n\n{text_block('')}\n")
    assert is_machine_made(card)
    assert is_machine_made(card.replace(f"{BEGIN}\n", f"{BEGIN}\nmine\n"))
    assert not is_machine_made(card.replace("# A", "# B"))


def test_what_the_author_says_is_kept_in_the_facts(folder: Path):
    write_card(folder, language="deu", intended_use="Poems.\n\nAnd prose.")
    stated = read_facts(folder / "facts.json").stated
    assert (stated.language, stated.intended_use, stated.limitations) == (
        ("deu",),
        "Poems.\n\nAnd prose.",
        "Not for poems.",
    )
    card = (folder / "README.md").read_text(encoding="utf8")
    assert "language:\n- deu\n" in card
    assert "Poems.\n\nAnd prose.\n" in card


def test_what_the_author_says_names_no_folder_of_theirs(folder: Path):
    write_card(folder, limitations=f"See {Path.home()}/notes/limits.txt first.")
    assert read_facts(folder / "facts.json").stated.limitations == "See limits.txt first."


@pytest.mark.parametrize("language", ["english", "EN", "e", ""])
def test_a_language_that_the_hub_does_not_know_is_refused_and_nothing_is_written(folder: Path, language: str):
    before = (folder / "README.md").read_bytes(), (folder / "facts.json").read_bytes()
    with pytest.raises(ConfigError, match="ISO 639"):
        write_card(folder, language=[language], limitations="x")
    assert ((folder / "README.md").read_bytes(), (folder / "facts.json").read_bytes()) == before


def test_a_folder_without_facts_keeps_its_card(tmp_path):
    (tmp_path / "README.md").write_text("theirs")
    with pytest.raises(ConfigError, match=r"no facts\.json"):
        write_card(tmp_path)
    assert (tmp_path / "README.md").read_text() == "theirs"


def test_a_card_that_is_no_text_is_refused_and_kept(folder: Path):
    (folder / "README.md").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="UTF-8"):
        write_card(folder)
    assert (folder / "README.md").read_bytes() == b"\xff\xfe"


def test_the_command_writes_says_and_says_when_there_is_nothing_to_do(folder: Path, capsys):
    train_longer(folder)
    assert outcome(capsys, "card", folder) == (0, f"{folder / 'README.md'} written\n", "")
    code, out, _ = outcome(capsys, "card", folder)
    assert (code, "nothing to do" in out) == (0, True)
    (folder / "README.md").write_text("mine", encoding="utf8")
    assert str(folder / "README.kept.md") in outcome(capsys, "card", folder)[1]


def test_the_command_answers_in_json_and_keeps_what_is_stated(folder: Path, capsys):
    import json

    code, out, err = outcome(capsys, "card", folder, "--language", "en", "--language", "fr", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == {"card": str(folder / "README.md"), "changed": True, "kept": None}
    assert read_facts(folder / "facts.json").stated.language == ("en", "fr")


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--template", "none.jinja"], "none.jinja"), (["--language", "klingon"], "ISO 639")],
)
def test_the_command_says_in_one_line_what_is_wrong(folder: Path, capsys, options, message):
    code, out, err = outcome(capsys, "card", folder, *options)
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.strip().splitlines()) == 1


def test_the_command_needs_facts(tmp_path: Path, capsys):
    code, _, err = outcome(capsys, "card", tmp_path)
    assert code == 2
    assert "no facts.json" in err
