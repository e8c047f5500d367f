"""Whatever fails, wherever, before or after the Hub acted: one commit or none, and the truth about it.

One fault is outlived; the same fault every time ends in an error that says what the Hub holds.
"""

from itertools import product
from pathlib import Path

import pytest
from git_hub_state import Hub
from push_runs import COMMITS, REPO, push, pushing_to

from hf_lora_ext import PushError
from hf_lora_ext.release import WEIGHTS

WRITES = ("create", "validate-yaml", "preupload", "commit", "tag")
READS = ("whoami", "info", "tree", "commits", "resolve", "refs", "xet-token")
WHATS = (503, 429, "drop", "html", "truncate")
ONCE = [*product(WRITES, ("before", "after"), WHATS), *product(READS, ("before",), WHATS)]
DEFAULT = {("commit", when, what) for when in ("before", "after") for what in WHATS} | {
    ("create", "after", "drop"), ("validate-yaml", "before", "html"), ("validate-yaml", "before", 503),
    ("preupload", "before", 429), ("tag", "after", "drop"), ("tag", "before", 503), ("tree", "before", "html"),
    ("commits", "before", "drop"), ("whoami", "before", 503), ("info", "before", "truncate"),
    ("resolve", "before", "drop"), ("xet-token", "before", 503), ("refs", "before", 429),
}  # fmt: skip


def test_the_faults_that_are_tried_are_many():
    assert len(ONCE) == 85
    assert set(ONCE) >= DEFAULT


def cases(wanted: list) -> list:
    return [pytest.param(*case, marks=[] if case in DEFAULT else pytest.mark.slow) for case in wanted]


@pytest.mark.parametrize(("where", "when", "what"), cases(ONCE))
def test_one_fault_ends_in_exactly_one_commit(git_hub: Hub, adapter: Path, where: str, when: str, what: object):
    git_hub.faults.add(where, when, what, retry_after=7 if what == 429 else None)
    with pushing_to(git_hub) as pauses:
        result = push(adapter, tag="v1")
    assert git_hub.history(REPO) == COMMITS
    assert result.commit == git_hub.head(REPO) == git_hub.head(REPO, "v1")
    assert (result.status, result.is_verified) == ("pushed", True)
    assert git_hub.files(REPO)[WEIGHTS] == (adapter / WEIGHTS).read_bytes()
    assert not [fault for fault in git_hub.faults.pending if fault.times], "the fault never struck"
    if (
        what == 429 and when == "before" and where not in {"commits", "preupload", "resolve", "tree", "xet-token"}
    ):  # those the client itself waits for
        assert 7 in pauses


@pytest.mark.parametrize(
    ("where", "when", "what", "titles", "said"),
    [
        ("whoami", "before", "drop", None, "asking the Hub who you are: the Hub is out of reach"),
        ("create", "before", 503, None, "making me/sums: the Hub answered 503"),
        ("validate-yaml", "before", "html", COMMITS[1:], "no JSON; nothing was changed there"),
        ("preupload", "before", 503, COMMITS[1:], "503; nothing was changed there"),
        ("commit", "before", 503, COMMITS[1:], "503; nothing was changed there"),
        ("commit", "before", 429, COMMITS[1:], "rate limit for you; nothing was changed there"),
        ("commit", "before", "drop", COMMITS[1:], "nothing was changed there"),
        ("commits", "before", 503, COMMITS, "whether the commit landed is not known: run the same again"),
        ("resolve", "before", 503, COMMITS, "which is not verified"),
        ("tag", "before", 503, COMMITS, "verified and without its tag"),
    ],
)
def test_a_fault_that_stays_ends_in_the_truth_and_the_same_again_finishes(
    git_hub: Hub, adapter: Path, where: str, when: str, what: object, titles: list[str] | None, said: str
):
    fault = git_hub.faults.add(where, when, what, times=1000)
    with pushing_to(git_hub):
        with pytest.raises(PushError, match=said) as failure:
            push(adapter, tag="v1")
        assert "again: `hf-lora push" in str(failure.value)
        assert (git_hub.history(REPO) if git_hub.exists("model", REPO) else None) == titles
        fault.times = 0
        again = push(adapter, tag="v1")
    assert git_hub.history(REPO) == COMMITS
    assert again.commit == git_hub.head(REPO, "v1") == git_hub.head(REPO)


@pytest.mark.parametrize("what", ["drop", 503, "html"])
def test_answers_that_are_always_lost_do_not_matter_once_the_commit_is_there(git_hub: Hub, adapter: Path, what: object):
    git_hub.faults.add("commit", "after", what, times=1000)
    with pushing_to(git_hub):
        assert push(adapter).status == "pushed"
    assert git_hub.history(REPO) == COMMITS
    assert git_hub.faults.count("commit") == 1


def test_a_server_that_asks_for_an_hour_is_not_waited_for(git_hub: Hub, adapter: Path):
    git_hub.faults.add("commit", "before", 429, retry_after=3600, times=1000)
    with pushing_to(git_hub) as pauses, pytest.raises(PushError, match="asks to wait 3,600 s"):
        push(adapter)
    assert max(pauses, default=0) <= 60
    assert git_hub.faults.count("commit") == 1
