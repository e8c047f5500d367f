"""What a base's licence asks of an adapter, and that each missing thing is named."""

import pytest

from hf_lora_ext import ConfigError
from hf_lora_ext.cards.licences import LICENCE_TERMS
from hf_lora_ext.push.release_terms import HUB_LICENCES, Terms, find_doubts, find_missing, licence_of_text, notice_for


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
    with pytest.raises(ConfigError, match=r"license_name= \(--license-name\) and license_link= \(--license-link\)"):
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


@pytest.mark.parametrize(
    ("license", "words"),
    [
        ("llama2", "Copyright (c) Meta Platforms, Inc."),
        ("llama3", "Meta Llama 3 is licensed under the Meta Llama 3 Community License, Copyright © Meta"),
        ("llama3.2", "Llama 3.2 is licensed under the Llama 3.2 Community License, Copyright © Meta"),
        ("llama4", "Llama 4 is licensed under the Llama 4 Community License, Copyright © Meta"),
        ("gemma", "found at ai.google.dev/gemma/terms"),
    ],
)
def test_the_attribution_is_the_agreements_own_words(license: str, words: str):
    assert words in LICENCE_TERMS[license].attribution


def test_a_notice_that_was_wrapped_or_writes_the_copyright_sign_otherwise_is_the_same():
    line = LICENCE_TERMS["llama2"].attribution
    for written in (line, line.replace("(c)", "©"), line.replace(" License,", "\nLicense,")):
        assert find_missing("llama2", "x", ["LICENSE"], "", written) == []
    assert find_missing("llama2", "x", ["LICENSE"], "", line.replace("LLAMA 2", "LLAMA 3"))


@pytest.mark.parametrize(
    ("license", "own", "said"),
    [
        (None, "mit", "what it asks of an adapter was not checked"),
        ("other", "other", "what it asks of an adapter was not checked"),
        ("bigcode-openrail-m", "bigcode-openrail-m", "forbids uses and asks to pass that on"),
        ("cc-by-nc-4.0", "mit", "lab/base is under cc-by-nc-4.0 and the adapter goes under mit: whether it may"),
        ("gpl-3.0", "apache-2.0", "whether it may was not checked"),
        ("cc-by-nc-4.0", "cc-by-nc-4.0", None),
        ("apache-2.0", "mit", None),
        ("llama3.1", "mit", None),
        ("gemma", "gemma", None),
    ],
)
def test_what_nobody_checked_of_a_licence_is_said(license: str | None, own: str, said: str | None):
    more = {"name": "mine", "link": "https://x.y"} if own == "other" else {}
    doubts = find_doubts("lab/base", license, Terms(id=own, **more))
    assert [said in doubt for doubt in doubts] == ([] if said is None else [True])
