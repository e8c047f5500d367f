"""Secrets and private names are found where they stand, never printed, and cut out of what libraries wrote."""

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from planted_secrets import PATHS, SECRETS

from hf_lora_ext.push.leaks import PrivateNames, find_private_names, find_secrets, redacted_json

OWN = "correct-horse-battery"
PRIVATE = PrivateNames(
    secrets={OWN: "the value of MY_TOKEN"}, folders=("/opt2/people/ann",), people=("annabel", "workstation7"),
    datasets=("ann/diary",),
)  # fmt: skip
PROSE = (
    """# An adapter
It maps sk-learn pipelines to text; loss 0.31 at step 1200, see https://huggingface.co/me/base and hf_lora_ext.
Use /v1/chat/completions, and/or the tokens <|im_start|> and </s>. SHA-256 """
    + "0123456789abcdef" * 4
    + """
token: none. max_new_tokens: 128. api_key="YOUR_API_KEY". password: $PASSWORD. secret_key = os.environ["KEY_1234567890"]
Ratio 3/4, dates 2026/11/22, path ./out/run-1, a commit 0123456789abcdef0123456789abcdef01234567, tokenizer_class: X.
"""
)


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_is_found_with_its_line_and_never_shown(name: str):
    text = f"first line\nsecond {SECRETS[name]} line\n"
    leaks = find_secrets("README.md", text, PRIVATE)
    assert leaks
    assert {leak.line for leak in leaks} == {2}
    assert all(SECRETS[name][-12:] not in str(leak) for leak in leaks)


@pytest.mark.parametrize("name", PATHS)
def test_a_path_of_somebodys_machine_is_found(name: str):
    for text in (PATHS[name], f"a ({PATHS[name]}) b", f"x\n`{PATHS[name]}`", f'{{"p": "{PATHS[name]}"}}'):
        assert find_private_names("facts.json", text, PRIVATE), text


@pytest.mark.parametrize("name", [OWN, "/opt2/people/ann/x", "annabel", "workstation7", "ann/diary"])
def test_this_machines_own_names_are_found_as_words(name: str):
    found = [*find_secrets("f", f"a {name}, b", PRIVATE), *find_private_names("f", f"a {name}, b", PRIVATE)]
    assert len(found) == 1
    assert name not in str(found[0])


def test_ordinary_prose_and_hashes_are_no_leaks():
    assert [*find_secrets("f", PROSE, PRIVATE), *find_private_names("f", PROSE, PRIVATE)] == []


def test_a_part_of_a_word_is_no_name():
    assert find_private_names("f", "annabelle and annabel-lee, pan/diary, ann/diary2", PRIVATE) == []


def test_common_logins_name_nobody():
    private = PrivateNames(secrets={}, people=("root", "ubuntu", "user", "ann", "ip-10-0-0-1", "localhost"))
    assert find_private_names("f", "root ubuntu user ann ip-10-0-0-1 localhost", private) == []


def test_a_megabyte_is_searched_in_seconds():
    text = "sk-" + "a-_" * 300_000 + " eyJ" + "b" * 100_000 + " /home" * 10_000
    started = time.perf_counter()
    find_secrets("f", text, PRIVATE)
    find_private_names("f", text, PRIVATE)
    assert time.perf_counter() - started < 20


@pytest.mark.parametrize("name", PATHS)
def test_a_librarys_json_loses_paths_and_names_and_keeps_the_rest(name: str):
    value = {
        "base": PATHS[name],
        "of annabel": 1,
        "note": f"from {PATHS[name]} by annabel on workstation7",
        "r": 8,
        "e": 1e-08,
    }
    text, was_cut = redacted_json(json.dumps(value), PRIVATE)
    assert was_cut
    assert find_private_names("f", text, PRIVATE) == []
    clean = json.loads(text)
    assert (clean["r"], clean["e"]) == (8, 1e-08)
    assert clean["base"] == PATHS[name].replace("\\", "/").split("/")[-1]


@given(
    st.recursive(st.none() | st.booleans() | st.integers() | st.text("abc ./\\~:"), lambda c: st.lists(c, max_size=3))
)
def test_what_was_cut_has_no_path_left(value: object):
    text, was_cut = redacted_json(json.dumps(value), PRIVATE)
    assert was_cut == (json.loads(text) != value)
    assert redacted_json(text, PRIVATE) == (text, False)


def test_clean_json_keeps_its_bytes():
    text = '{"b":1,\n "a": "x"}'
    assert redacted_json(text, PRIVATE) == (text, False)
