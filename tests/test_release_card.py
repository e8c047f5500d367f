"""The card that goes with a release says whose the base is, never where it lay."""

import pytest

from hf_lora_ext import ConfigError, Facts, render_card
from hf_lora_ext.facts import BaseModelFacts
from hf_lora_ext.release_card import base_metadata, card_for, card_metadata_of, card_problems, is_stock, with_metadata

BASE = BaseModelFacts(name="me/base", on_hub=True, license="mit")
KNOWN = Facts(base_model=BASE, adapter={"kind": "LORA", "rank": 2})
RUN = Facts(base_model=BASE, adapter={"kind": "LORA", "rank": 2}, run={"steps": 7})


def test_a_card_written_by_hand_is_kept_as_it_is():
    own = "---\nlicense: mit\n---\n# Mine\n"
    assert card_for(own, RUN, KNOWN) == (own, "the folder's own README.md")


@pytest.mark.parametrize("own", [None, "# Model Card\n[More Information Needed]", "fine-tuned version of [None](x)"])
def test_a_card_of_placeholders_gives_way_to_one_of_facts(own: str | None):
    assert card_for(own, RUN, KNOWN) == (render_card(RUN), "facts.json")
    text, origin = card_for(own, None, KNOWN)
    assert (text, "config alone" in origin) == (render_card(KNOWN), True)
    assert not is_stock(text)


def test_a_card_of_ours_is_rendered_anew_from_the_facts():
    assert card_for(render_card(KNOWN), RUN, KNOWN)[0] == render_card(RUN)


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
