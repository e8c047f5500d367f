"""Whether a commit landed is decided from what the repository holds."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_lora_ext.hub.landing import (
    LONGEST_WAIT_SECONDS,
    TRIES,
    RemoteFile,
    differing,
    first_after,
    judge,
    wait_seconds,
)

COMMITS = st.lists(st.text("0123456789abcdef", min_size=4, max_size=4), min_size=1, max_size=8, unique=True)


@given(COMMITS, st.booleans())
def test_a_head_that_has_not_moved_means_that_nothing_landed(history: list[str], is_ours: bool):
    assert judge(history[0], history, is_ours).state == "not there"


@given(COMMITS, st.data())
def test_only_the_first_commit_after_the_parent_can_be_ours(history: list[str], data: st.DataObject):
    parent = data.draw(st.sampled_from(history))
    after = first_after(parent, history)
    assert (after is None) == (parent == history[0])
    if after is not None:
        assert history.index(after) == history.index(parent) - 1
        assert judge(parent, history, True) == judge(parent, history, True)
        assert judge(parent, history, True).commit == judge(parent, history, False).commit == after
        assert judge(parent, history, False).state == "conflict"


def test_a_rewritten_history_is_a_conflict_that_names_the_head():
    landing = judge("gone", ["new", "older"], False)
    assert (landing.state, landing.commit) == ("conflict", "new")


def test_a_branch_that_shows_no_commits_is_a_conflict_that_names_none():
    landing = judge("gone", [], False)
    assert (landing.state, landing.commit) == ("conflict", None)
    assert landing.in_its_way("gone", "main") == "main shows no commit any more, and its head was gone"


def test_large_files_agree_by_content_and_small_ones_by_blob():
    ours = RemoteFile("sha1-of-content", "sha256-of-content")
    assert RemoteFile("sha1-of-pointer", "sha256-of-content").has_content_of(ours)
    assert RemoteFile("sha1-of-content").has_content_of(ours)
    assert not RemoteFile("sha1-of-content", "another").has_content_of(ours)
    assert not RemoteFile("another").has_content_of(ours)


def test_a_file_that_must_be_gone_differs_while_it_is_there():
    there = {"old": RemoteFile("1"), "kept": RemoteFile("2")}
    assert differing({"old": None, "kept": RemoteFile("2"), "never": None}, there) == ["old"]
    assert differing({"new": RemoteFile("3")}, there) == ["new"]


@given(st.integers(1, TRIES + 3), st.one_of(st.none(), st.floats(0, 1000)))
def test_waiting_honours_the_server_and_ends(attempt: int, asked: float | None):
    pause = wait_seconds(attempt, asked)
    if attempt >= TRIES or (asked or 0) > LONGEST_WAIT_SECONDS:
        assert pause is None
    else:
        assert pause == (asked if asked is not None else 2 ** (attempt - 1))


def test_all_waiting_together_is_bounded():
    assert sum(filter(None, (wait_seconds(attempt, None) for attempt in range(1, 20)))) == pytest.approx(15)
