"""Rewards: pure, from 0 to 1, and what each of them says it is."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_lora_ext.runs.rewards import (
    REWARDS,
    exact_match,
    length,
    named_rewards,
    passed_as,
    regex,
    reward_columns,
    reward_problems,
    tagged,
    word_f1,
)

texts = st.text(max_size=60)
SETTINGS = {
    "length": {"characters": 20},
    "exact_match": {"column": "answer"},
    "word_f1": {"column": "answer"},
    "regex": {"pattern": r"\d"},
    "format": {"tags": ["think", "answer"]},
}


@given(st.sampled_from(sorted(REWARDS)), st.lists(st.tuples(texts, texts), max_size=4))
def test_every_reward_is_the_same_number_from_0_to_1_for_the_same_texts(name: str, pairs: list[tuple[str, str]]):
    (score,) = named_rewards([{"reward": name, **SETTINGS[name]}])
    said, answers = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    got = score(completions=said, prompts=said, **{passed_as("answer"): answers})
    assert len(got) == len(pairs)
    assert all(0 <= value <= 1 for value in got)
    assert score(completions=said, **{passed_as("answer"): answers}) == got
    chats = [[{"role": "assistant", "content": text}] for text in said]
    assert score(completions=chats, **{passed_as("answer"): answers}) == got


@given(st.integers(1, 50), st.integers(0, 120), st.integers(0, 120))
def test_length_falls_with_the_distance_from_what_is_wanted(wanted: int, one: int, other: int):
    nearer, farther = sorted((one, other), key=lambda n: abs(n - wanted))
    assert length("x" * nearer, wanted) >= length("x" * farther, wanted)
    assert length("x" * wanted, wanted) == 1
    assert length("", wanted) == length("x" * 2 * wanted, wanted) == 0


@given(st.lists(st.from_regex(r"[a-z]{1,6}", fullmatch=True), min_size=1, max_size=5))
def test_exact_match_sees_neither_case_nor_white_space(words: list[str]):
    assert exact_match("  ".join(words).upper() + "\n", " ".join(words)) == 1
    assert exact_match(" ".join([*words, "more"]), " ".join(words)) == 0


@given(st.lists(st.sampled_from("abcdef"), max_size=6), st.lists(st.sampled_from("abcdef"), max_size=6))
def test_word_f1_is_symmetric_and_1_only_for_the_same_words(one: list[str], other: list[str]):
    said, wanted = " ".join(one), " ".join(other)
    assert word_f1(said, wanted) == pytest.approx(word_f1(wanted, said))
    assert (word_f1(said, wanted) == 1) == (sorted(one) == sorted(other) != [])


@given(texts)
def test_regex_is_python_s_own_search(text: str):
    assert regex(text, r"^[A-Z].*\.$") == (re.search(r"^[A-Z].*\.$", text.strip()) is not None)


@given(st.from_regex(r"[a-z .]*[a-z][a-z .]*", fullmatch=True), st.from_regex(r"[ \n]*", fullmatch=True))
def test_format_wants_each_tag_once_in_order_and_nothing_beside_them(text: str, space: str):
    tags = ["think", "answer"]
    assert tagged(f"<think>{text}</think>{space}<answer>{text}</answer>", tags) == 1
    for wrong in (
        f"<answer>{text}</answer><think>{text}</think>",
        f"<think>{text}</think>{text}<answer>{text}</answer>",
        f"<think>{text}</think><answer> </answer>",
        f"<think>{text}</think><answer>{text}</answer><answer>{text}</answer>",
        f"<think>{text}</think>",
    ):
        assert tagged(wrong, tags) == 0, wrong


def test_rewards_have_names_of_their_own_and_a_model_stays_its_id():
    given = [
        {"reward": "regex", "pattern": "a"},
        {"reward": "model", "model": "me/judge"},
        {"reward": "regex", "pattern": "b"},
    ]
    first, model, second = named_rewards(given)
    assert (first.__name__, model, second.__name__) == ("regex", "me/judge", "regex_2")
    assert (first(completions=["b"]), second(completions=["b"])) == ([0.0], [1.0])


def test_the_columns_that_rewards_read_are_named_once():
    given = [{"reward": "word_f1", "column": "answer"}, {"reward": "exact_match", "column": "answer"}]
    assert reward_columns([*given, {"reward": "length", "characters": 3}]) == ("answer",)


def test_every_reward_of_the_table_is_right_with_its_setting_and_wrong_without():
    assert set(SETTINGS) == set(REWARDS)
    for name, setting in SETTINGS.items():
        assert reward_problems([{"reward": name, "weight": 0.5, **setting}]) == []
        assert len(reward_problems([{"reward": name}])) == 1
