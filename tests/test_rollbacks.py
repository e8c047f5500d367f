"""A rollback puts every file of an earlier version back, in one commit, without an upload."""

from pathlib import Path

import pytest
from git_hub_state import Hub
from push_runs import COMMITS, REPO, push, pushing_to, saved_adapter

from hf_lora_ext import PushError, rollback, verify_push


@pytest.fixture
def hub(git_hub: Hub, tiny_model: Path, tmp_path: Path):
    """A Hub with two versions: v1, and one with another adapter and a file more."""
    with pushing_to(git_hub):
        push(saved_adapter(tmp_path / "a", tiny_model), tag="v1")
        second = saved_adapter(tmp_path / "b", tiny_model, r=4)
        (second / "LICENSE").write_text("MIT License\n")
        push(second, tag="v2")
        yield git_hub


def test_the_earlier_files_are_in_force_again_and_the_history_stays(hub: Hub):
    uploads = hub.faults.count("preupload")
    done = rollback(REPO, "v1")
    assert done.status == "rolled back"
    assert done.deleted == ("LICENSE",)
    assert hub.files(REPO) == hub.files(REPO, "v1")
    assert hub.history(REPO) == ["Roll back to v1", "Push adapter", *COMMITS]
    assert hub.faults.count("lfs-put") == hub.faults.count("lfs-part") == 0
    assert hub.faults.count("preupload") <= uploads + 1
    assert verify_push(REPO).files == verify_push(REPO, "v1").files
    assert rollback(REPO, "v1").status == "already there"
    assert rollback(REPO, "v2").status == "rolled back"
    assert hub.files(REPO) == hub.files(REPO, "v2")


def test_a_dry_run_writes_nothing(hub: Hub):
    before = hub.head(REPO)
    planned = rollback(REPO, "v1", dry_run=True)
    assert (planned.status, planned.deleted, hub.head(REPO)) == ("dry run", ("LICENSE",), before)


@pytest.mark.parametrize(("when", "what"), [("before", 503), ("before", "drop"), ("after", "drop"), ("after", "html")])
def test_a_lost_answer_makes_no_second_commit(hub: Hub, when: str, what: object):
    hub.faults.add("commit", when, what)
    assert rollback(REPO, "v1").commit == hub.head(REPO)
    assert hub.history(REPO) == ["Roll back to v1", "Push adapter", *COMMITS]


def test_somebody_elses_commit_meanwhile_is_not_overwritten(hub: Hub):
    hub.faults.add("commit", "before", lambda: hub.push(REPO, {"theirs.txt": b"x"}))
    with pytest.raises(PushError, match="somebody committed"):
        rollback(REPO, "v1")
    assert "theirs.txt" in hub.files(REPO)


def test_an_unknown_version_is_named(hub: Hub):
    with pytest.raises(PushError, match="there is no me/sums at v9"):
        rollback(REPO, "v9")
