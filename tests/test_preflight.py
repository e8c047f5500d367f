"""What is found out before the Hub is written to: what may be allowed, what is added, and what nobody knows is said."""

import getpass
import json
from dataclasses import replace
from pathlib import Path

import pytest
from git_hub_access import WRITE_TOKEN
from git_hub_state import Hub
from peft import PeftConfig
from planted_secrets import SECRETS
from push_runs import REPO, lora_model, push, pushing_to

from hf_lora_ext import ConfigError, Facts, PushError, push_adapter
from hf_lora_ext.cards.facts import BaseModelFacts
from hf_lora_ext.errors import UnfitError
from hf_lora_ext.push.release import CARD, CONFIG

LOGIN, COMMIT = "annabelle-w", "0123456789" * 4


@pytest.fixture
def hub(git_hub: Hub, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(getpass, "getuser", lambda: LOGIN)
    with pushing_to(git_hub):
        yield git_hub


def on_base(adapter: Path, name: str, **more: object) -> Path:
    """Let the adapter's config name another base."""
    config = json.loads((adapter / CONFIG).read_text())
    (adapter / CONFIG).write_text(json.dumps(config | {"base_model_name_or_path": name} | more))
    return adapter


def test_a_name_that_its_owner_allows_goes_and_is_told(hub: Hub, adapter: Path):
    (adapter / CARD).write_text(f"---\nlicense: mit\n---\n# By {LOGIN}\nData in /data/sums/train.json.\n")
    with pytest.raises(UnfitError, match=r"allow= \(--allow\)") as refusal:
        push(adapter)
    assert "2 more" not in str(refusal.value)
    with pytest.raises(UnfitError, match=r"README.md:5: a local path\n.*\n?.*--allow annabelle-w"):
        push(adapter, allow=[LOGIN])
    result = push(adapter, allow=[LOGIN, "/data/sums/train.json"])
    assert f"allowed\n  {LOGIN}\n  /data/sums/train.json" in result.plan.explain()
    assert LOGIN.encode() in hub.files(REPO)[CARD]


def test_an_allowed_login_stays_in_what_a_library_wrote(hub: Hub, adapter: Path):
    facts = Facts(adapter={"kind": "LORA"}, run={f"by {LOGIN}": LOGIN})
    (adapter / "facts.json").write_text(facts.to_json())
    push(adapter, verify=False)
    assert LOGIN.encode() not in hub.files(REPO)["facts.json"]
    push(adapter, allow=[LOGIN], verify=False)
    assert json.loads(hub.files(REPO)["facts.json"])["run"] == {f"by {LOGIN}": LOGIN}


def test_a_secret_cannot_be_allowed(hub: Hub, adapter: Path):
    secret = SECRETS["hugging face"]
    (adapter / CARD).write_text(f"# Mine\n{secret}\n")
    with pytest.raises(UnfitError, match=r"README.md:2: a Hugging Face token") as refusal:
        push(adapter, allow=[secret])
    assert "--allow)" not in str(refusal.value)


@pytest.mark.parametrize("message", ["key " + SECRETS["hugging face"], f"by {LOGIN}", "from /home/ann/out"])
def test_the_commits_title_is_searched_too(hub: Hub, adapter: Path, message: str):
    with pytest.raises(UnfitError, match="the commit's message:1: "):
        push(adapter, message=message)
    assert not hub.exists("model", REPO)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "latin-1"])
@pytest.mark.parametrize("file", [CARD, "LICENSE"])
def test_a_text_that_could_not_be_searched_is_refused(hub: Hub, adapter: Path, encoding: str, file: str):
    (adapter / file).write_bytes(f"# Müller\n{SECRETS['hugging face']}\n".encode(encoding))
    with pytest.raises(ConfigError, match=f"{file} .*save it as UTF-8"):
        push(adapter)
    assert not hub.exists("model", REPO)


def test_a_licence_that_nobody_knows_of_the_base_is_said(hub: Hub, adapter: Path):
    doubt = "the licence of tiny-llama: what it asks of an adapter was not checked"
    assert push(adapter, dry_run=True).plan.doubts == (doubt,)
    hub.create("lab/silent", {"README.md": b"# No licence here\n"})
    result = push(on_base(adapter, "lab/silent"), dry_run=True)
    assert "unknown\n  the licence of lab/silent" in result.plan.explain()
    hub.push("lab/silent", {"README.md": b"---\nlicense: apache-2.0\n---\n"})
    assert push(adapter, dry_run=True).plan.doubts == ()


@pytest.mark.parametrize("private", [None, False])
def test_a_private_base_stops_a_push_to_where_everybody_reads(hub: Hub, adapter: Path, private: bool | None):
    hub.create("lab/secret", {"README.md": b"---\nlicense: mit\n---\n"}, private=True)
    on_base(adapter, "lab/secret")
    with pytest.raises(
        UnfitError, match=r"the base lab/secret is private and me/sums is public.* \(--allow\) lab/secret"
    ):
        push(adapter, private=private, allow=["lab"])
    assert not hub.exists("model", REPO)
    result = push(adapter, private=private, allow=["lab/secret"])
    assert (result.plan.allowed, result.status) == (("lab/secret",), "pushed")


def test_a_private_base_may_be_named_where_only_its_readers_read(hub: Hub, adapter: Path):
    hub.create("lab/secret", {"README.md": b"---\nlicense: mit\n---\n"}, private=True)
    on_base(adapter, "lab/secret")
    assert push(adapter, private=True, verify=False).status == "pushed"
    assert push(adapter, verify=False).status == "already there"
    hub.change(REPO, private=False)
    with pytest.raises(UnfitError, match="lab/secret is private and me/sums is public: "):
        push(adapter)


def test_a_base_that_the_token_cannot_see_goes_once_its_name_is_allowed(hub: Hub, adapter: Path):
    on_base(adapter, "you/deleted")
    with pytest.raises(ConfigError, match=r"you/deleted is not on the Hub, or is private.* \(--allow\) you/deleted$"):
        push(adapter)
    doubt = "the Hub did not show you/deleted: whether everybody may know of it was not checked"
    assert doubt in push(adapter, allow=["you/deleted"], dry_run=True).plan.doubts


def test_a_gated_base_is_told_and_stops_nothing(hub: Hub, adapter: Path):
    hub.create("you/gated", {"README.md": b"---\nlicense: mit\n---\n"}, gated="manual")
    result = push(on_base(adapter, "you/gated"), dry_run=True)
    assert result.plan.base == "you/gated, revision not recorded, gated: its owner decides who may load it"


def test_a_licence_look_up_that_fails_is_no_licence(hub: Hub, adapter: Path):
    hub.create("lab/Llama-3.1-8B", {"README.md": b"---\nlicense: llama3.1\n---\n"})
    on_base(adapter, "lab/Llama-3.1-8B")
    hub.faults.add("info", "before", 503, skip=1)  # the first asks whether the repository is there
    assert push(adapter, dry_run=True).plan.doubts == (
        "the Hub did not show lab/Llama-3.1-8B: whether everybody may know of it was not checked",
        "the licence of lab/Llama-3.1-8B: what it asks of an adapter was not checked",
    )
    facts = Facts(base_model=BaseModelFacts(name="lab/Llama-3.1-8B", on_hub=True, license="llama3.1"))
    (adapter / "facts.json").write_text(replace(facts, adapter={"kind": "LORA"}).to_json())
    hub.faults.add("info", "before", 503, skip=1)
    with pytest.raises(UnfitError, match=r"licence llama3.1 asks for"):
        push(adapter, dry_run=True)


def test_the_commit_that_the_base_was_trained_at_goes_with_the_config(hub: Hub, adapter: Path):
    hub.create("lab/base", {"README.md": b"---\nlicense: mit\n---\n"})
    trained_at = hub.head("lab/base")
    hub.push("lab/base", {"note.txt": b"a later commit"})
    facts = Facts(
        adapter={"kind": "LORA"}, base_model=BaseModelFacts(name="lab/base", on_hub=True, revision=trained_at)
    )
    (on_base(adapter, "lab/base") / "facts.json").write_text(facts.to_json())
    result = push(adapter)
    assert PeftConfig.from_pretrained(REPO).revision == trained_at
    assert result.plan.base == f"lab/base at {trained_at}"
    assert f"{CONFIG}: the base's revision, {trained_at}, added" in result.plan.changes


def test_a_commit_that_nobody_recorded_is_not_made_up(hub: Hub, adapter: Path):
    hub.create("lab/base", {"README.md": b"---\nlicense: mit\n---\n"})
    push(on_base(adapter, "lab/base"))
    assert json.loads(hub.files(REPO)[CONFIG])["revision"] is None
    assert hub.head("lab/base").encode() not in b"".join(hub.files(REPO).values())


def test_a_revision_that_the_config_has_already_stays(hub: Hub, adapter: Path):
    hub.create("lab/base", {"README.md": b"---\nlicense: mit\n---\n"})
    push(on_base(adapter, "lab/base", revision="main"))
    assert json.loads(hub.files(REPO)[CONFIG])["revision"] == "main"


def test_the_commit_of_a_base_in_memory_is_noted(hub: Hub, tiny_model: Path):
    model = lora_model(tiny_model)
    model.config._commit_hash = COMMIT
    push(model)
    assert json.loads(hub.files(REPO)[CONFIG])["revision"] == COMMIT


def test_the_token_of_the_push_is_the_one_that_asks_for_the_base(git_hub: Hub, adapter: Path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(adapter / "no-token"))
    agreement = b"LLAMA 3.1 COMMUNITY LICENSE AGREEMENT\n"
    git_hub.create("me/base", {"README.md": b"---\nlicense: llama3.1\n---\n", "LICENSE": agreement}, private=True)
    with pushing_to(git_hub, None):
        with pytest.raises((ConfigError, PushError)):
            push_adapter(on_base(adapter, "me/base"), "me/Llama-sums")
        push_adapter(adapter, "me/Llama-sums", token=WRITE_TOKEN, private=True)
    assert git_hub.files("me/Llama-sums")["LICENSE"] == agreement
