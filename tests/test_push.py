"""An adapter goes to the Hub whole and once, over the real wire with the real client; what must not go does not."""

import errno
import json
import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from git_hub_access import FINE_TOKEN, READ_TOKEN, STRANGER_TOKEN, WRITE_TOKEN, Account
from git_hub_state import Hub
from push_runs import COMMITS, REPO, lora_model, push, pushing_to, saved_adapter
from safetensors.torch import load_file

from hf_lora_ext import AdapterError, ConfigError, Facts, PushError, push_adapter
from hf_lora_ext.push.release import CARD, CONFIG, WEIGHTS


@pytest.fixture
def hub(git_hub: Hub):
    with pushing_to(git_hub):
        yield git_hub


@pytest.fixture(params=["xet", "lfs"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Send large files by Xet, or with Xet turned off by LFS."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", request.param == "lfs")
    return request.param


def wrote(hub: Hub) -> set[str]:
    """Endpoints that change something and were called."""
    return {r.where for r in hub.faults.log} & {"create", "commit", "preupload", "lfs-batch", "tag", "branch"}


def test_what_lands_is_what_the_folder_has(hub: Hub, adapter: Path, way: str):
    steps: list[str] = []
    result = push(adapter, tag="v1", say=steps.append)
    files = hub.files(REPO)
    assert files[WEIGHTS] == (adapter / WEIGHTS).read_bytes()
    assert set(files) == {CARD, CONFIG, WEIGHTS, ".gitattributes"}
    assert (result.status, result.is_verified, result.tag) == ("pushed", True, "v1")
    assert result.commit == hub.head(REPO) == hub.head(REPO, "v1")
    assert hub.history(REPO) == COMMITS
    assert [step.split()[0] for step in steps] == ["gather", "check", "show", "commit", "verify", "tag", "done"]


def test_the_config_names_no_folder_and_the_folder_itself_is_left_alone(hub: Hub, adapter: Path, tiny_model: Path):
    before = {file.name: file.read_bytes() for file in adapter.iterdir()}
    result = push(adapter)
    assert json.loads(hub.files(REPO)[CONFIG])["base_model_name_or_path"] == tiny_model.name
    assert str(tiny_model.parent).encode() not in b"".join(hub.files(REPO).values())
    assert any("base_model_name_or_path" in change for change in result.plan.changes)
    assert {file.name: file.read_bytes() for file in adapter.iterdir()} == before


def test_a_dry_run_tells_everything_and_writes_nothing(hub: Hub, adapter: Path):
    (adapter / "training_args.bin").write_bytes(b"x")
    (adapter / "checkpoint-5").mkdir()
    result = push(adapter, dry_run=True, private=True, tag="v1")
    text = result.plan.explain()
    assert result.status == "dry run"
    assert wrote(hub) == set()
    told = [
        "me/sums (new, private), main",
        "licence  mit",
        WEIGHTS,
        "training_args.bin: can hold code",
        "checkpoint-5/",
    ]
    for said in [*told, "became tiny-llama", "v1"]:
        assert said in text
    assert json.dumps(result.to_dict())


def test_a_dry_run_without_a_token_tells_what_can_be_told_here(
    git_hub: Hub, adapter: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
    with pushing_to(git_hub, token=None):
        result = push(adapter, dry_run=True, tag="v1")
        with pytest.raises(PushError, match="no token was found; log in with"):
            push(adapter)
    with pushing_to(git_hub):
        known = push(adapter, dry_run=True, tag="v1")
    assert result.plan.files == known.plan.files
    assert (result.plan.is_new, known.plan.is_new, known.plan.unasked) == (None, True, None)
    text = result.plan.explain()
    for said in ("me/sums (not looked at), main", "licence  mit", WEIGHTS, "not checked, because no token was found"):
        assert said in text
    assert "whether me/sums is there, who sees it, and whether you may write to it" in text
    assert wrote(git_hub) == set()
    assert json.loads(json.dumps(result.to_dict()))["plan"]["unasked"]
    (adapter / CARD).write_text("# Mine\nkey: " + "hf_" + "a1B2" * 9)
    with pushing_to(git_hub, token=None), pytest.raises(PushError, match=r"README\.md:2: a Hugging Face token"):
        push(adapter, dry_run=True)


def test_a_dry_run_while_the_hub_is_away_leaves_open_what_only_it_can_tell(
    git_hub: Hub, adapter: Path, monkeypatch: pytest.MonkeyPatch
):
    config = json.loads((adapter / CONFIG).read_text())
    (adapter / CONFIG).write_text(json.dumps(config | {"base_model_name_or_path": "lab/base"}))
    (adapter / CARD).write_text("---\ndatasets: [lab/rows]\n---\n# Mine\n")
    monkeypatch.setattr(git_hub, "endpoint", "http://127.0.0.1:9")
    with pushing_to(git_hub):
        plan = push_adapter(adapter, REPO, dry_run=True).plan
        assert plan.license == "unknown"
        assert push(adapter, dry_run=True).plan.license == "mit"
    assert "out of reach" in plan.unasked
    text = plan.explain()
    doubt = "the Hub did not tell whether everybody may know of the dataset lab/rows"
    assert doubt in text
    with pushing_to(git_hub, token=None):
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(adapter / "no-token"))
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        assert doubt in push(adapter, dry_run=True).plan.doubts
    assert "nothing here says what licence the base has; a push that finds none asks for license=" in text
    assert "the licence of lab/base: what it asks of an adapter was not checked" in text


def test_who_declines_writes_nothing(hub: Hub, adapter: Path):
    assert push(adapter, confirm=lambda plan: False).status == "declined"
    assert wrote(hub) == set()


def test_the_same_again_makes_no_second_commit(hub: Hub, adapter: Path):
    first = push(adapter, tag="v1")
    again = push(adapter, tag="v1")
    assert (again.status, again.commit) == ("already there", first.commit)
    assert again.plan.unchanged == tuple(again.plan.files)
    assert hub.history(REPO) == COMMITS
    steps: list[str] = []
    push(adapter, tag="v1", say=steps.append)
    assert "commit nothing: the Hub holds the same bytes" in steps


def test_a_changed_adapter_is_a_second_commit_and_foreign_files_stay(hub: Hub, adapter: Path, tiny_model: Path):
    push(adapter)
    hub.push(REPO, {"notes.txt": b"theirs"})
    saved_adapter(adapter, tiny_model, r=4)
    push(adapter, message="Rank 4")
    assert hub.history(REPO) == ["Rank 4", "A push from elsewhere", *COMMITS]
    assert hub.files(REPO)["notes.txt"] == b"theirs"


def test_what_an_earlier_version_left_is_deleted_with_the_same_commit(hub: Hub, adapter: Path, tiny_model: Path):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_model / name, adapter / name)
    push(adapter, tag="v1")
    hub.push(REPO, {"LICENSE": b"theirs", "vocab.json": b"{}", "notes.txt": b"theirs"})
    (adapter / "tokenizer.json").unlink()
    result = push(adapter)
    assert result.plan.outdated == ("tokenizer.json", "vocab.json")
    assert "deleted\n  tokenizer.json: of an earlier version" in result.plan.explain()
    assert set(hub.files(REPO)) == {
        CARD, CONFIG, WEIGHTS, ".gitattributes", "LICENSE", "notes.txt", "tokenizer_config.json",
    }  # fmt: skip
    assert hub.history(REPO) == ["Push adapter", "A push from elsewhere", *COMMITS]
    assert push(adapter).status == "already there"
    assert "tokenizer.json" in hub.files(REPO, "v1")


def test_a_new_branch_keeps_nothing_outdated_of_main(hub: Hub, adapter: Path, tiny_model: Path):
    shutil.copy(tiny_model / "tokenizer.json", adapter / "tokenizer.json")
    push(adapter)
    (adapter / "tokenizer.json").unlink()
    result = push(adapter, revision="trial")
    assert result.plan.outdated == ("tokenizer.json",)
    assert set(result.plan.unchanged) == {CARD, CONFIG, WEIGHTS}
    assert "tokenizer.json" not in hub.files(REPO, "trial")
    assert "tokenizer.json" in hub.files(REPO)


def test_a_repository_that_somebody_makes_public_meanwhile_gets_nothing(hub: Hub, adapter: Path):
    hub.faults.add("create", "before", lambda: hub.create(REPO, private=False))
    with pytest.raises(PushError, match="was made meanwhile, by somebody else, and is public; nothing was sent"):
        push(adapter, private=True)
    assert hub.history(REPO) == ["initial commit"]


def test_what_has_a_leak_is_not_kept_on_disk(hub: Hub, tiny_model: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "home"))
    with pytest.raises(PushError, match=r"again: push the same object again$"):
        push(lora_model(tiny_model), message="hf_" + "a1B2" * 9)
    assert not (tmp_path / "home").exists()


def test_a_model_in_memory_is_saved_pushed_and_answers_the_same(hub: Hub, tiny_model: Path):
    model = lora_model(tiny_model).train()
    result = push(model, "sums")
    assert (result.repo_id, result.is_verified) == (REPO, True)
    assert model.training
    again = push(lora_model(tiny_model))
    assert again.status == "already there"


def test_a_model_that_changed_while_it_was_pushed_is_told(hub: Hub, tiny_model: Path):
    import torch

    model = lora_model(tiny_model)

    def change() -> None:
        with torch.no_grad():
            next(p for name, p in model.named_parameters() if "lora_B" in name).add_(1.0)

    hub.faults.add("commit", "after", change)
    with pytest.raises(PushError, match=r"not verified: .*differs from the model in memory"):
        push(model)


def test_a_failed_push_of_a_model_keeps_it_and_says_how_to_go_on(hub: Hub, tiny_model: Path, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "home"))
    hub.faults.add("commit", "before", 403)
    with pytest.raises(PushError, match=r"again: `hf-lora push .* me/sums --tag v1 --license mit`") as failure:
        push(lora_model(tiny_model), tag="v1")
    kept = Path(str(failure.value).split("hf-lora push ")[1].split()[0])
    assert push(kept, tag="v1").status == "pushed"


def test_a_trainer_is_pushed_with_its_tokenizer_and_facts(hub: Hub, tiny_model: Path, tmp_path: Path):
    from small_runs import trainer_for

    from hf_lora_ext import FactsCallback, preset

    p = preset(str(tiny_model), rank=2)
    trainer = trainer_for(p, tmp_path / "out", 2)
    trainer.add_callback(FactsCallback(name="eight sums"))
    trainer.train()
    trainer.save_model()
    push(trainer)
    files = hub.files(REPO)
    assert {WEIGHTS, CONFIG, CARD, "facts.json", "tokenizer.json", "tokenizer_config.json"} <= set(files)
    assert "training_args.bin" not in files
    assert json.loads(files["facts.json"])["run"]["steps"] == 2
    assert b"steps" in files[CARD]
    assert str(tmp_path).encode() not in b"".join(files.values())


def test_a_folder_of_checkpoints_names_the_one_with_an_adapter(hub: Hub, adapter: Path, tmp_path: Path):
    out = tmp_path / "out"
    (out / "checkpoint-3").mkdir(parents=True)
    for name in (CONFIG, WEIGHTS):
        (adapter / name).rename(out / "checkpoint-3" / name)
    (out / "checkpoint-3" / "trainer_state.json").write_text("{}")
    with pytest.raises(AdapterError, match=r"checkpoint-3 has one"):
        push(out)
    with pytest.raises(ConfigError, match="is no folder"):
        push(tmp_path / "nowhere")
    assert not hub.faults.log


def test_a_run_folder_goes_once_its_run_is_finished(hub: Hub, adapter: Path, tmp_path: Path):
    (adapter / "recipe.yaml").write_text("model: x\n")
    with pytest.raises(ConfigError, match="is not finished; `hf-lora train"):
        push(adapter)
    (adapter / "checkpoints").mkdir()
    (adapter / "facts.json").write_text(Facts(adapter={"kind": "LORA"}, run={"steps": 7, "finished": True}).to_json())
    result = push(adapter)
    assert {left.path for left in result.plan.left_out} == {"recipe.yaml", "checkpoints/"}
    assert any(change.startswith("README.md: facts.json") for change in result.plan.changes)
    assert json.loads(hub.files(REPO)["facts.json"])["repo_id"] == REPO


def test_two_pushes_of_one_adapter_at_once_make_one_commit(hub: Hub, adapter: Path):
    hub.create(REPO)
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda _: push(adapter), range(2)))
    assert {result.commit for result in results} == {hub.head(REPO)}
    assert hub.history(REPO) == COMMITS


def test_of_two_adapters_at_once_one_wins_and_the_other_is_told(
    hub: Hub, adapter: Path, tiny_model: Path, tmp_path: Path
):
    other = saved_adapter(tmp_path / "other", tiny_model, r=4)
    hub.create(REPO)
    both = threading.Barrier(2, timeout=30)
    hub.faults.add("preupload", "before", both.wait, times=2)

    def outcome(folder: Path) -> str:
        try:
            return push(folder).status
        except PushError as error:
            return str(error)

    with ThreadPoolExecutor(2) as pool:
        said = sorted(pool.map(outcome, (adapter, other)), key=len)
    assert said[0] == "pushed"
    assert hub.head(REPO) in said[1]
    assert "somebody committed" in said[1]
    assert hub.history(REPO) == COMMITS


def test_a_commit_from_elsewhere_between_look_and_commit_is_a_conflict_that_loses_nothing(hub: Hub, adapter: Path):
    hub.create(REPO)
    hub.faults.add("preupload", "before", lambda: hub.push(REPO, {"theirs.txt": b"x"}))
    with pytest.raises(PushError, match="somebody committed") as conflict:
        push(adapter)
    assert hub.head(REPO) in str(conflict.value)
    assert set(hub.files(REPO)) == {".gitattributes", "theirs.txt"}
    assert push(adapter).status == "pushed"
    assert set(hub.files(REPO)) >= {"theirs.txt", WEIGHTS}


def test_a_commit_from_elsewhere_right_after_ours_hides_it_from_nobody(hub: Hub, adapter: Path):
    hub.create(REPO)
    hub.faults.add("commit", "after", lambda: hub.push(REPO, {"theirs.txt": b"x"}))
    hub.faults.add("commit", "after", "drop")
    result = push(adapter)
    assert hub.history(REPO) == ["A push from elsewhere", *COMMITS]
    assert result.commit != hub.head(REPO)


def test_a_pull_request_is_made_once_and_main_stays(hub: Hub, adapter: Path):
    hub.create(REPO)
    first = push(adapter, create_pr=True)
    again = push(adapter, create_pr=True)
    assert first.pull_request.endswith("/discussions/1")
    assert (again.status, again.commit, again.pull_request) == ("already there", first.commit, first.pull_request)
    assert hub.history(REPO) == ["initial commit"]


@pytest.mark.parametrize("what", [503, "drop"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_pull_request_whose_answer_is_lost_is_not_made_twice(hub: Hub, adapter: Path, when: str, what: object):
    hub.create(REPO)
    hub.faults.add("commit", when, what)
    push(adapter, create_pr=True)
    assert push(adapter, create_pr=True).pull_request.endswith("/1")


def test_a_branch_is_made_and_main_stays(hub: Hub, adapter: Path):
    push(adapter, revision="trial")
    assert hub.history(REPO) == ["initial commit"]
    assert hub.history(REPO, "trial") == COMMITS


def test_a_tag_of_another_commit_is_refused_before_anything_is_written(hub: Hub, adapter: Path, tiny_model: Path):
    push(adapter, tag="v1")
    saved_adapter(adapter, tiny_model, r=4)
    with pytest.raises(PushError, match="tag v1 of me/sums is taken"):
        push(adapter, tag="v1")
    assert hub.history(REPO) == COMMITS


def test_visibility_is_as_asked_or_refused(hub: Hub, adapter: Path):
    assert push(adapter, private=True).plan.is_private
    with pytest.raises(PushError, match="me/sums is private, you asked for public"):
        push(adapter, private=False)
    assert push(adapter).plan.is_private


@pytest.mark.parametrize(
    ("token", "repo", "said"),
    [
        (None, REPO, "no token was found; log in with `hf auth login`"),
        ("hf_nobodys", REPO, "does not accept the token"),
        (READ_TOKEN, REPO, "the token of me only reads"),
        (STRANGER_TOKEN, REPO, r"me is neither you \(you\) nor one of your organisations \(none\); push to you/sums"),
        (FINE_TOKEN, "me/other", r"the fine-grained token of me lacks repo.write for me \(has nothing there\); tick"),
        (WRITE_TOKEN, "library/sums", "me only reads in library, .*; ask an admin of library .*, or push to me/sums"),
    ],
)
def test_who_may_not_write_is_told_in_one_line(
    git_hub: Hub, adapter: Path, token: str | None, repo: str, said: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(adapter / "no-token"))
    with pushing_to(git_hub, token), pytest.raises(PushError, match=said) as refusal:
        push(adapter, repo)
    assert len(str(refusal.value).splitlines()) == 2  # what, and how to go on
    assert "hf_" not in str(refusal.value).replace("hf_lora", "")
    assert not git_hub.exists("model", repo)


def test_a_fine_grained_token_writes_where_it_may(git_hub: Hub, adapter: Path):
    git_hub.create("me/allowed")
    with pushing_to(git_hub, FINE_TOKEN):
        assert push(adapter, "me/allowed").status == "pushed"
        assert push(adapter, "me/allowed", revision="trial").status == "already there"


@pytest.mark.parametrize(
    ("scopes", "everywhere", "create_pr", "lack"),
    [
        ({"me": ("repo.content.read",)}, (), False, "repo.write for me"),
        ({"me": ("repo.content.read",)}, (), True, "discussion.write for me/sums"),
        ({"lab": ("repo.write",)}, (), False, "repo.write for me"),
        ({"me": ("repo.write",)}, (), False, None),
        ({"me": ("repo.content.read",)}, ("discussion.write",), True, None),
    ],
)
def test_what_a_fine_grained_token_lacks_is_named_before_anything_is_sent(
    git_hub: Hub, adapter: Path, scopes: dict, everywhere: tuple, create_pr: bool, lack: str | None
):
    git_hub.create(REPO)
    token = "hf_fine_grained_token_of_mine"
    git_hub.accounts[token] = Account("me", "fineGrained", {"lab": "write"}, scopes, everywhere)
    with pushing_to(git_hub, token):
        if lack is None:
            assert push(adapter, create_pr=create_pr).status == "pushed"
            return
        with pytest.raises(PushError, match=rf"token of me lacks {lack} .*; tick .* at huggingface.co/settings/tokens"):
            push(adapter, create_pr=create_pr)
    assert wrote(git_hub) == set()


def test_somebody_elses_repository_is_named(hub: Hub, adapter: Path):
    hub.create("you/theirs")
    with pytest.raises(PushError, match=r"403.*`hf-lora push --create-pr`"):
        push(adapter, "you/theirs")
    assert push(adapter, "you/theirs", create_pr=True).pull_request


@pytest.mark.parametrize(
    "repo",
    [
        "me/a--b", "me/a..b", "me/a.", "me/-a", "me/aünï", "me/a b", "me/a/b", "me/", "https://huggingface.co/me/a",
        "..", "me/a.git", "me/a\x00b", "../a",
    ],
)  # fmt: skip
def test_an_id_that_no_repository_can_have_is_refused_before_it_is_asked_for(hub: Hub, adapter: Path, repo: str):
    with pytest.raises(ConfigError, match="is no repository's id; give owner/name"):
        push(adapter, repo)
    assert not hub.faults.log


@pytest.mark.parametrize("repo", ["me/a", "me/_a-b.c_d", "me/9.0", "a"])
def test_every_id_that_a_repository_can_have_goes(hub: Hub, adapter: Path, repo: str):
    assert push(adapter, repo, dry_run=True).plan.is_new


@pytest.mark.parametrize(
    ("code", "remedy"),
    [(errno.ENOSPC, "No space left on device.*; free some space, or let TMPDIR"), (errno.EACCES, "may read it")],
)
def test_a_copy_that_cannot_be_made_is_told_with_what_helps(
    hub: Hub, adapter: Path, monkeypatch: pytest.MonkeyPatch, code: int, remedy: str
):
    def fail(source: Path, target: Path) -> None:
        raise OSError(code, os.strerror(code), str(target))

    monkeypatch.setattr(shutil, "copyfile", fail)
    with pytest.raises(PushError, match=rf"nothing was pushed: copying {adapter}/.* failed \(.*{remedy}"):
        push(adapter)
    assert wrote(hub) == set()


def test_a_disk_that_is_full_while_a_model_is_saved_is_told(hub: Hub, tiny_model: Path, monkeypatch):
    from safetensors import SafetensorError

    def fail(*args: object, **kwargs: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    model = lora_model(tiny_model)
    monkeypatch.setattr(model, "save_pretrained", fail)
    with pytest.raises(PushError, match=r"saving the adapter to .* failed .*; free some space"):
        push(model)


def test_names_that_are_not_ascii_and_links_go_as_what_they_are(hub: Hub, adapter: Path, tmp_path: Path):
    (adapter / ".eval_results").mkdir()
    (adapter / ".eval_results" / "größe_数.yaml").write_text("[]\n")
    (adapter / WEIGHTS).rename(tmp_path / "elsewhere")
    (adapter / WEIGHTS).symlink_to(tmp_path / "elsewhere")
    (adapter / "LICENSE").symlink_to(tmp_path / "nowhere")
    result = push(adapter)
    assert result.is_verified
    assert hub.files(REPO)[".eval_results/größe_数.yaml"] == b"[]\n"
    assert hub.files(REPO)[WEIGHTS] == (tmp_path / "elsewhere").read_bytes()
    assert "LICENSE" not in hub.files(REPO)


def test_a_folder_above_the_adapters_names_it(hub: Hub, adapter: Path):
    with pytest.raises(AdapterError, match=rf"; {adapter} has one$"):
        push(adapter.parent)


def test_a_full_quota_is_the_hubs_own_words(hub: Hub, adapter: Path):
    hub.private_quota_bytes = 100
    with pytest.raises(PushError, match="storage limit reached"):
        push(adapter, private=True)
    assert hub.history(REPO) == ["initial commit"]


def test_offline_is_one_line_and_the_command_to_repeat(adapter: Path, git_hub: Hub, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(git_hub, "endpoint", "http://127.0.0.1:9")
    with pushing_to(git_hub), pytest.raises(PushError, match=r"out of reach.*\nagain: `hf-lora push") as refusal:
        push(adapter)
    assert (adapter / WEIGHTS).is_file()
    assert len(str(refusal.value).splitlines()) == 2


def test_the_licence_comes_from_the_bases_card(hub: Hub, tiny_model: Path, adapter: Path):
    hub.create("lab/base", {"README.md": b"---\nlicense: cc-by-4.0\n---\n"})
    config = json.loads((adapter / CONFIG).read_text())
    (adapter / CONFIG).write_text(json.dumps(config | {"base_model_name_or_path": "lab/base"}))
    result = push_adapter(adapter, REPO)
    assert result.plan.license == "cc-by-4.0"
    assert result.plan.base == "lab/base, revision not recorded"
    assert result.plan.doubts == ()
    assert b"base_model: lab/base" in hub.files(REPO)[CARD]


def test_a_base_that_nobody_may_see_is_named(hub: Hub, adapter: Path):
    config = json.loads((adapter / CONFIG).read_text())
    (adapter / CONFIG).write_text(json.dumps(config | {"base_model_name_or_path": "lab/secret"}))
    with pytest.raises(ConfigError, match="model lab/secret is not on the Hub, or is private"):
        push(adapter)
    assert wrote(hub) == set()


def test_without_a_licence_it_is_asked_for(hub: Hub, adapter: Path):
    with pytest.raises(ConfigError, match=r"nothing says what licence tiny-llama has; give license= \(--license\)"):
        push_adapter(adapter, REPO)
    assert wrote(hub) == set()


def test_a_llama_base_asks_for_name_agreement_and_what_is_shown(hub: Hub, adapter: Path):
    agreement = b"LLAMA 3.1 COMMUNITY LICENSE AGREEMENT\n"
    hub.create("lab/Llama-3.1-8B", {"README.md": b"---\nlicense: llama3.1\n---\n", "LICENSE": agreement})
    config = json.loads((adapter / CONFIG).read_text())
    (adapter / CONFIG).write_text(json.dumps(config | {"base_model_name_or_path": "lab/Llama-3.1-8B"}))
    with pytest.raises(PushError, match=r"begins with Llama .*push to Llama-sums"):
        push(adapter)
    assert wrote(hub) == set()
    result = push_adapter(adapter, "me/Llama-sums")
    files = hub.files("me/Llama-sums")
    assert files["LICENSE"] == agreement
    assert b"Llama 3.1 is licensed under" in files["NOTICE"]
    assert b"Built with Llama" in files[CARD]
    assert result.plan.license == "llama3.1"


def test_a_card_written_by_hand_goes_as_it_is_but_for_its_metadata(hub: Hub, adapter: Path):
    (adapter / CARD).write_text("---\nlicense: mit\nbase_model: /srv/models/x\n---\n# By hand\n")
    push(adapter)
    card = hub.files(REPO)[CARD].decode()
    assert card.endswith("---\n# By hand\n")
    assert "/srv" not in card
    assert "library_name: peft" in card


def test_bytes_that_come_back_otherwise_are_told_and_not_tagged(hub: Hub, adapter: Path, monkeypatch):
    def corrupt() -> None:
        large = next(
            f for f in hub.root.rglob("*") if f.is_file() and f.read_bytes() == (adapter / WEIGHTS).read_bytes()
        )
        large.write_bytes(large.read_bytes()[:-1] + b"\x01")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    hub.faults.add("commit", "after", corrupt)
    with pytest.raises(PushError, match=r"holds commit .*, which is not verified"):
        push(adapter, tag="v1")
    assert hub.faults.count("tag") == 0


def test_diverged_weights_never_leave(hub: Hub, adapter: Path):
    from safetensors.torch import save_file

    tensors = load_file(adapter / WEIGHTS)
    next(iter(tensors.values())).view(-1)[0] = float("nan")
    save_file(tensors, adapter / WEIGHTS)
    with pytest.raises(AdapterError, match="has a NaN or an infinity"):
        push(adapter)
    assert wrote(hub) == set()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"create_pr": True, "tag": "v1"}, "create_pr goes to main"),
        ({"tag": "a b"}, "is no name of a tag"),
        ({"revision": "a b"}, "is no name of a branch"),
        ({"revision": "a..b"}, "is no name of a branch"),
        ({"revision": "a.lock"}, "is no name of a branch"),
        ({"tag": "v1", "verify": False}, "verified"),
        ({"license": "apache"}, "no identifier of the Hub"),
        ({"license": "other"}, "license_name="),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_written(hub: Hub, adapter: Path, arguments: dict, said: str):
    with pytest.raises(ConfigError, match=said):
        push(adapter, **arguments)
    assert wrote(hub) == set()


def test_a_push_from_a_thread_beside_the_main_one_works(hub: Hub, adapter: Path):
    results: list[str] = []
    thread = threading.Thread(target=lambda: results.append(push(adapter).status))
    thread.start()
    thread.join(60)
    assert results == ["pushed"]
