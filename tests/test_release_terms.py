"""What a base's licence asks of an adapter, and that each missing thing is named."""

import pytest

from hf_lora_ext import ConfigError
from hf_lora_ext.cards.licences import LICENCE_TERMS
from hf_lora_ext.push.release_terms import HUB_LICENCES, Terms, find_missing, licence_of_text, notice_for


@pytest.mark.parametrize("license", ["apache-2.0", "mit", "cc-by-4.0", "bigcode-openrail-m"])
def test_most_licences_ask_for_no_more_than_their_name(license: str):
    assert notice_for(license) is None
    assert find_missing(license, "anything", [], "", "") == []


@pytest.mark.parametrize(
    ("license", "named"),
    [("llama3", "Llama-3-sql"), ("llama3.1", "Llama-sql"), ("llama3.2", "llama-3.2-sql"), ("llama3.3", "Llama_sql"),
     ("llama4", "Llama-4-sql"), ("llama2", "sql"), ("gemma", "sql")],
)  # fmt: skip
def test_each_duty_that_is_not_done_is_named_and_none_once_all_are(license: str, named: str):
    asked = LICENCE_TERMS[license]
    shown = asked.built_with or (asked.policy if license == "gemma" else "")
    assert len(find_missing(license, "sql", ["README.md"], "", "")) == 2 + bool(shown) + bool(asked.name_prefix)
    files = ["README.md", "LICENSE.txt", "NOTICE"]
    assert find_missing(license, named, files, f"## Licence\n{shown}", notice_for(license)) == []


def test_a_name_that_only_contains_llama_does_not_begin_with_it():
    missing = find_missing("llama3.1", "my-llama", ["LICENSE"], "Built with Llama", notice_for("llama3.1"))
    assert missing == ["a name that begins with Llama ('my-llama' does not): push to Llama-my-llama"]


def test_the_notice_is_the_line_that_the_agreement_gives():
    assert notice_for("llama3.1") == (
        "Llama 3.1 is licensed under the Llama 3.1 Community License, Copyright © Meta Platforms, Inc. All Rights "
        "Reserved.\n"
    )


def test_other_needs_name_and_link():
    with pytest.raises(ConfigError, match="license_name= and license_link="):
        Terms(id="other", name="mine")
    terms = Terms(id="other", name="mine", link="https://example.org/licence")
    assert terms.metadata() == {
        "license": "other", "license_name": "mine", "license_link": "https://example.org/licence",
    }  # fmt: skip


def test_an_unknown_identifier_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match=r"did you mean `apache-2.0`"):
        Terms(id="apache2.0")


@pytest.mark.parametrize(
    ("text", "license"),
    [("LLAMA 3.1 COMMUNITY LICENSE AGREEMENT\nLlama 3.1 Version", "llama3.1"),
     ("META LLAMA 3 COMMUNITY LICENSE AGREEMENT", "llama3"), ("Gemma Terms of Use\nLast modified", "gemma"),
     ("                Apache License\n           Version 2.0, January 2004", "apache-2.0"),
     ("MIT License\n\nCopyright (c)", "mit"), ("All rights reserved", None)],
)  # fmt: skip
def test_a_licence_is_known_by_its_title(text: str, license: str | None):
    assert licence_of_text(text) == license
    assert license is None or license in HUB_LICENCES
