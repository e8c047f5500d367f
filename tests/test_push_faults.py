"""Whatever fails, wherever, before or after the Hub acted: one commit or none, and the truth about it.

One fault is outlived; the same fault every time ends in an error that says what the Hub holds.
"""

from dataclasses import replace
from pathlib import Path

import fault_cells
import fault_matrix
import pytest
from fault_cells import CELLS, ENDPOINTS, KINDS, MOMENTS, Cell, Outcome, chosen, outcome, totals
from git_hub_state import Hub
from push_runs import COMMITS, REPO, push, pushing_to

from hf_lora_ext import PushError

DEFAULT = chosen()


def test_what_every_run_tries_has_every_endpoint_moment_and_kind():
    assert {cell.where for cell in DEFAULT} == set(ENDPOINTS)
    assert {cell.what for cell in DEFAULT if cell.where != "commit"} == set(KINDS)
    assert len({(cell.when, cell.stays) for cell in DEFAULT}) == len(MOMENTS) * 2
    assert len(CELLS) == len(ENDPOINTS) * len(MOMENTS) * len(KINDS) * 2


@pytest.mark.parametrize(
    "cell", [pytest.param(cell, id=str(cell), marks=[] if cell in DEFAULT else pytest.mark.slow) for cell in CELLS]
)
def test_a_fault_ends_in_one_whole_commit_or_none_and_in_the_truth(cell: Cell, saved_lora: Path, tmp_path: Path):
    found = outcome(cell, saved_lora, tmp_path / "hub")
    assert found.struck
    assert (found.torn, found.twice, found.untrue) == (False, False, False), found
    if not cell.stays and cell.what != 403:
        assert found.ended == "landed"


def test_what_must_not_be_is_counted(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    good = Outcome(ended="landed", said="", struck=True, commits=1, torn=False, finally_commits=1)
    lost = "x\nagain: `hf-lora push a me/sums`"
    assert not good.untrue
    assert replace(good, commits=2, finally_commits=2).twice
    assert replace(good, commits=0).untrue
    assert replace(good, ended="gave up", said=lost).untrue
    assert not replace(good, ended="gave up", said=lost, commits=0).untrue
    assert not replace(good, ended="gave up", said="holds commit" + lost).untrue
    assert replace(good, finally_commits=0).untrue
    assert totals([good, replace(good, torn=True)]) == "2 cells, 1 torn, 0 twice, 0 untrue"
    monkeypatch.setattr(fault_matrix, "outcome", lambda cell, adapter, root: replace(good, torn=cell.what == 429))
    assert fault_matrix.main(["--endpoints", "tag"]) == 1
    assert "24 cells, 4 torn, 0 twice, 0 untrue" in capsys.readouterr().out


def test_a_torn_commit_and_a_second_one_are_seen(git_hub: Hub, adapter: Path):
    wanted = {"adapter_model.safetensors": (adapter / "adapter_model.safetensors").read_bytes()}
    git_hub.create(REPO)
    assert fault_cells._landed(git_hub, "xet", wanted) == (0, False)
    git_hub.push(REPO, {"adapter_config.json": b"{}"}, message="Push adapter")
    assert fault_cells._landed(git_hub, "xet", wanted) == (1, True)
    git_hub.push(REPO, wanted, message="Push adapter")
    assert fault_cells._landed(git_hub, "xet", wanted) == (2, False)


@pytest.mark.parametrize("where", ["whoami", "commit"])
def test_the_server_is_waited_for_as_long_as_it_asks(git_hub: Hub, adapter: Path, where: str):
    git_hub.faults.add(where, "before", 429, retry_after=7)
    with pushing_to(git_hub) as pauses:
        push(adapter, verify=False)
    assert 7 in pauses


@pytest.mark.parametrize(
    ("where", "when", "what", "titles", "said"),
    [
        ("whoami", "before", "drop", None, "asking the Hub who you are: the Hub is out of reach"),
        ("create", "before", 503, None, "making me/sums: the Hub answered 503"),
        ("validate-yaml", "before", "html", COMMITS[1:], "no JSON; no commit was made"),
        ("preupload", "before", 503, COMMITS[1:], "503; no commit was made"),
        (
            "xet-token",
            "before",
            503,
            COMMITS[1:],
            "to write large files of me/sums: the Hub answered 503; no commit was",
        ),
        ("xet-token", "before", "drop", COMMITS[1:], "out of reach .*; no commit was made"),
        ("xet-token", "before", 403, COMMITS[1:], r"the Hub refuses \(403\): .*; no commit was made"),
        ("commit", "before", 503, COMMITS[1:], "503; no commit was made"),
        ("commit", "before", 429, COMMITS[1:], "rate limit for you; no commit was made"),
        ("commit", "before", "drop", COMMITS[1:], "no commit was made"),
        ("commits", "before", 503, COMMITS, "whether the commit landed is not known: run the same again"),
        ("resolve", "before", 503, COMMITS, "which is not verified"),
        ("tag", "before", 503, COMMITS, "verified; its tag is not certain"),
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


def test_a_try_that_failed_is_told_with_what_is_waited_for(git_hub: Hub, adapter: Path):
    git_hub.faults.add("commit", "before", 503, times=2)
    lines: list[str] = []
    with pushing_to(git_hub):
        push(adapter, verify=False, say=lines.append)
    assert [line for line in lines if line.startswith("try")] == [
        "try 1 of 5 failed: the Hub answered 503; the next in 1 s",
        "try 2 of 5 failed: the Hub answered 503; the next in 2 s",
    ]


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
