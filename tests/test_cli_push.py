"""`hf-lora push`, `verify` and `rollback` say what they do, and fail in words."""

import json
from pathlib import Path

import pytest
from conftest import outcome
from git_hub_state import Hub
from push_runs import COMMITS, REPO, pushing_to, saved_adapter

from hf_lora_ext.push.release import WEIGHTS


@pytest.fixture
def hub(git_hub: Hub):
    with pushing_to(git_hub):
        yield git_hub


def test_a_dry_run_shows_the_plan_and_stops(capsys, hub: Hub, adapter: Path):
    code, out, _ = outcome(capsys, "push", adapter, REPO, "--license", "mit", "--dry-run", "--private")
    assert code == 0
    assert "to       me/sums (new, private), main" in out
    assert WEIGHTS in out
    assert not hub.exists("model", REPO)


def test_a_push_shows_plan_and_commit_and_verify_and_rollback_follow(capsys, hub: Hub, adapter: Path, tiny_model: Path):
    code, out, err = outcome(capsys, "push", adapter, REPO, "--license", "mit", "--tag", "v1", "--yes")
    assert code == 0, err
    assert f"pushed  me/sums: {hub.head(REPO)}, verified, tag v1" in out
    assert "goes " in out
    code, out, err = outcome(capsys, "verify", REPO, "--revision", "v1", "--folder", adapter)
    assert (code, "verified  me/sums" in out) == (0, True), err
    saved_adapter(adapter, tiny_model, r=4)
    code, out, _ = outcome(capsys, "push", adapter, REPO, "--license", "mit", "--json")
    assert json.loads(out)["status"] == "pushed"
    code, _, err = outcome(capsys, "verify", REPO, "--revision", "v1", "--folder", adapter)
    assert (code, "two adapters" in " ".join(err.split())) == (2, True)
    code, out, _ = outcome(capsys, "rollback", REPO, "v1", "--json")
    assert (code, json.loads(out)["status"]) == (0, "rolled back")
    assert hub.history(REPO) == ["Roll back to v1", "Push adapter", *COMMITS]
    revisions = ([], ["--revision", "v1"])
    now, then = (json.loads(outcome(capsys, "verify", REPO, "--json", *revision)[1]) for revision in revisions)
    assert now["files"] == then["files"]


def test_what_was_found_is_said_on_standard_error_with_exit_code_2(capsys, hub: Hub, adapter: Path):
    (adapter / "README.md").write_text("# Mine\nkey: " + "hf_" + "a1B2" * 9)
    code, out, err = outcome(capsys, "push", adapter, REPO, "--license", "mit", "--yes")
    assert (code, out) == (2, "")
    assert "README.md:2: a Hugging Face token" in err
    assert "a1B2" not in err
    assert "again: `hf-lora push" in err


def test_a_secret_in_the_title_is_not_told_again(capsys, hub: Hub, adapter: Path):
    secret = "hf_" + "a1B2" * 9
    code, out, err = outcome(capsys, "push", adapter, REPO, "--license", "mit", "--yes", "--message", secret)
    assert (code, "the commit's message:1: a Hugging Face token" in err) == (2, True)
    assert secret not in out + err


def test_a_rollback_to_no_version_names_those_that_there_are(capsys, hub: Hub, adapter: Path):
    outcome(capsys, "push", adapter, REPO, "--license", "mit", "--tag", "v1", "--yes", "--no-verify")
    outcome(capsys, "push", adapter, REPO, "--license", "mit", "--tag", "v1", "--yes")
    code, _, err = outcome(capsys, "rollback", REPO, "v9")
    assert (code, "give a commit or one of its tags: v1" in " ".join(err.split())) == (2, True)


@pytest.mark.parametrize("verb", ["verify", "rollback"])
def test_a_version_that_is_not_there_is_named(capsys, hub: Hub, verb: str):
    arguments = [REPO, "--revision", "v9"] if verb == "verify" else [REPO, "v9"]
    code, _, err = outcome(capsys, verb, *arguments)
    assert code == 2
    assert "there is no me/sums at" in err


def test_who_declines_is_told_that_nothing_was_written(capsys, hub: Hub, adapter: Path, monkeypatch):
    monkeypatch.setattr("hf_lora_ext.cli.push.sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("hf_lora_ext.cli.push.click.confirm", lambda question: False)
    code, _, err = outcome(capsys, "push", adapter, REPO, "--license", "mit")
    assert (code, "declined; nothing was written" in err) == (2, True)
    assert not hub.exists("model", REPO)


def test_what_is_allowed_is_shown_and_said_again(capsys, hub: Hub, adapter: Path):
    (adapter / "README.md").write_text("# Mine\nData in /data/sums/train.json\n")
    code, _, err = outcome(capsys, "push", adapter, REPO, "--license", "mit", "--yes")
    assert (code, "README.md:2: a local path" in err) == (2, True)
    words = ["--allow", "/data/sums/train.json", "--allow", "annabelle-w"]
    code, out, _ = outcome(capsys, "push", adapter, REPO, "--license", "mit", "--dry-run", *words)
    assert (code, "allowed\n  /data/sums/train.json\n  annabelle-w" in out) == (0, True)


@pytest.mark.parametrize("on_terminal", [True, False])
def test_the_clients_progress_is_shown_on_a_terminal_alone(capsys, hub: Hub, adapter: Path, monkeypatch, on_terminal):
    silenced = []
    monkeypatch.setattr("hf_lora_ext.hub.show_no_progress", lambda: silenced.append(True))
    monkeypatch.setattr("hf_lora_ext.cli.push.sys.stderr.isatty", lambda: on_terminal, raising=False)
    assert outcome(capsys, "push", adapter, REPO, "--license", "mit", "--dry-run")[0] == 0
    assert silenced == ([] if on_terminal else [True])
