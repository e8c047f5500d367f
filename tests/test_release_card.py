"""The card that goes with a release says whose the base is, never where it lay."""

import pytest

from hf_lora_ext import ConfigError, Facts, render_card
from hf_lora_ext.cards.facts import BaseModelFacts
from hf_lora_ext.cards.ownership import is_machine_made
from hf_lora_ext.push.release_card import (
    base_metadata,
    card_for,
    card_metadata_of,
    card_problems,
    tags_without_paths,
    with_metadata,
)

BASE = BaseModelFacts(name="me/base", on_hub=True, license="mit")
KNOWN = Facts(base_model=BASE, adapter={"kind": "LORA", "rank": 2})
RUN = Facts(base_model=BASE, adapter={"kind": "LORA", "rank": 2}, run={"steps": 7})


def test_a_card_written_by_hand_is_kept_as_it_is():
    own = "---\nlicense: mit\n---\n# Mine\n"
    assert card_for(own, RUN, is_of_a_run=True) == (own, "the folder's own README.md")


def test_a_card_of_ours_is_rendered_anew_and_keeps_its_users_text():
    own = render_card(KNOWN, your_text="My words.")
    card, origin = card_for(own, RUN, is_of_a_run=True)
    assert (card, origin) == (render_card(RUN, your_text="My words."), "facts.json")


def test_without_a_card_there_is_one_of_what_is_known():
    card, origin = card_for(None, KNOWN, is_of_a_run=False)
    assert card == render_card(KNOWN)
    assert "config alone" in origin


def test_a_card_of_ours_stays_one_when_its_metadata_is_set():
    card, keys = with_metadata(render_card(RUN), {"license": "cc0-1.0"})
    assert keys == ["license"]
    assert is_machine_made(card)


def test_metadata_that_agrees_leaves_every_byte():
    card = "---\r\nlicense:   mit\r\n---\r\nText\r\n"
    assert with_metadata(card, {"license": "mit"}) == (card, [])


def test_metadata_is_set_and_taken_away_and_the_text_stays():
    card = "---\nlicense: llama2\nbase_model: /home/ann/base\ntags: [a]\n---\n# Text\n---\nmore\n"
    changed, keys = with_metadata(card, {"license": "mit", "base_model": None})
    assert keys == ["base_model", "license"]
    assert card_metadata_of(changed) == {"license": "mit", "tags": ["a"]}
    assert changed.endswith("---\n# Text\n---\nmore\n")


def test_a_card_without_metadata_gets_them():
    changed, _ = with_metadata("# Text\n", {"license": "mit"})
    assert changed == "---\nlicense: mit\n---\n\n# Text\n"


def test_metadata_after_an_empty_line_are_metadata_as_the_hub_reads_them():
    assert card_metadata_of("\n---\nlicense: mit\n---\n# Text\n") == {"license": "mit"}


def test_a_base_that_is_no_hub_id_is_not_named():
    assert base_metadata(BASE) == {"base_model": "me/base", "base_model_relation": "adapter"}
    assert base_metadata(BaseModelFacts(name="base", on_hub=False)) == {"base_model": None, "base_model_relation": None}


@pytest.mark.parametrize(
    ("card", "said"),
    [("---\nbase_model: /srv/models/x\n---\n", "no Hub id"), ("---\nlicence: mit\n---\n", "reads license"),
     ("---\nlicense: mit\n---\n[More Information Needed]", "placeholders")],
)  # fmt: skip
def test_what_the_hub_would_refuse_is_said(card: str, said: str):
    assert said in " ".join(card_problems(card))
    assert card_problems(render_card(RUN)) == []


def test_malformed_metadata_is_named():
    with pytest.raises(ConfigError, match="metadata is not valid YAML"):
        card_metadata_of("---\na: [1\n---\n")
    with pytest.raises(ConfigError, match="no mapping"):
        card_metadata_of("---\n- a\n---\n")


@pytest.mark.parametrize(
    ("tags", "kept"),
    [
        (["lora", "base_model:adapter:/srv/models/x"], ["lora"]),
        (["base_model:adapter:C:\\models\\x"], None),
        (["lora", "base_model:adapter:me/x", "base_model:me/x"], {}),
        (["lora", "transformers"], {}),
    ],
)
def test_a_path_that_peft_puts_into_a_tag_goes_and_other_tags_stay(tags: list[str], kept: object):
    card, _ = with_metadata("# Mine\n", {"tags": tags})
    assert tags_without_paths(card) == (kept if kept == {} else {"tags": kept})


def test_tags_that_are_no_list_are_left_alone():
    assert tags_without_paths("---\ntags: lora\n---\n") == {}
    assert tags_without_paths("# Mine\n") == {}
