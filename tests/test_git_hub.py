"""The Hub stand-in takes what the real client sends, and answers as the real Hub does."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import run_python
from git_hub_access import STRANGER_TOKEN, WRITE_TOKEN
from git_hub_state import Hub
from git_hub_storage import Pointer, blob_id, git
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationCopy,
    CommitOperationDelete,
    HfApi,
    snapshot_download,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors.numpy import save

WEIGHTS = save({"a": np.random.default_rng(0).standard_normal((3_000_000,)).astype(np.float32)})  # 12 MB
FEW = save({"a": np.ones((2, 3), np.float32), "b": np.ones(4, np.float16)})
SERVER = Path(__file__).with_name("git_hub.py")

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="the Hub stand-in needs git on the PATH")


def client(hub: Hub, token: str | bool = WRITE_TOKEN) -> HfApi:
    return HfApi(endpoint=hub.endpoint, token=token)


def push(api: HfApi, repo_id: str, files: dict[str, bytes], **more: object):
    operations = [CommitOperationAdd(path, content) for path, content in files.items()]
    return api.create_commit(repo_id, operations, commit_message="Push", **more)


def fetched(hub: Hub, repo_id: str, cache: Path, **more: object) -> dict[str, bytes]:
    """Download a revision into a fresh cache and return its files."""
    folder = Path(snapshot_download(repo_id, cache_dir=cache, endpoint=hub.endpoint, token=WRITE_TOKEN, **more))
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_what_is_pushed_comes_back_byte_for_byte(git_hub: Hub, transfer: str, tmp_path: Path):
    api = client(git_hub)
    assert api.create_repo("me/adapter", private=True).repo_id == "me/adapter"
    before = git_hub.head("me/adapter")
    files = {"adapter_model.safetensors": WEIGHTS, "a/b/note.txt": b"hello\r\n", "empty.bin": b""}
    pushed = push(api, "me/adapter", files, parent_commit=before)
    assert pushed.oid == git_hub.head("me/adapter") != before
    git_hub.push("me/adapter", {"a/b/note.txt": b"a later one"})
    came = fetched(git_hub, "me/adapter", tmp_path / "cache", revision=pushed.oid)
    assert {path: came[path] for path in files} == files
    sent = {request.where for request in git_hub.faults.log}
    assert ("xet-token" in sent, "lfs-part" in sent) == (transfer == "xet", transfer == "lfs")


def test_a_folder_is_uploaded_and_again_without_a_commit(git_hub: Hub, transfer: str, tmp_path: Path):
    api, folder = client(git_hub), tmp_path / "out"
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(FEW)
    (folder / "adapter_config.json").write_text("{}")
    api.create_repo("me/adapter")
    first = api.upload_folder(repo_id="me/adapter", folder_path=folder)
    second = api.upload_folder(repo_id="me/adapter", folder_path=folder)
    assert first.oid == second.oid == git_hub.head("me/adapter")
    assert push(api, "me/adapter", {"adapter_model.safetensors": FEW}).oid == first.oid
    assert len(git_hub.history("me/adapter")) == 2
    assert git_hub.files("me/adapter")["adapter_model.safetensors"] == FEW


def test_a_dataset_is_pushed_and_read(git_hub: Hub, transfer: str, tmp_path: Path):
    api = client(git_hub)
    api.create_repo("me/sums", repo_type="dataset")
    push(api, "me/sums", {"train.parquet": b"PAR1 rows", "README.md": b"---\nlicense: mit\n---\n"}, repo_type="dataset")
    assert api.dataset_info("me/sums").card_data.license == "mit"
    assert fetched(git_hub, "me/sums", tmp_path / "cache", repo_type="dataset")["train.parquet"] == b"PAR1 rows"
    assert not api.repo_exists("me/sums")


def test_what_came_by_xet_is_read_without_it_and_the_other_way_round(
    git_hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    api = client(git_hub)
    for path, xet in (("by_xet.bin", False), ("by_lfs.bin", True)):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", xet)
        api.create_repo("me/adapter", exist_ok=True)
        push(api, "me/adapter", {path: path.encode() * 1000})
    for xet in (False, True):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", xet)
        came = fetched(git_hub, "me/adapter", tmp_path / str(xet))
        assert (came["by_xet.bin"], came["by_lfs.bin"]) == (b"by_xet.bin" * 1000, b"by_lfs.bin" * 1000)


def test_git_itself_finds_the_repository_whole_and_the_ids_true(git_hub: Hub, transfer: str):
    api = client(git_hub)
    api.create_repo("me/adapter")
    commit = push(api, "me/adapter", {"note.txt": b"hello", "adapter_model.safetensors": FEW}).oid
    folder = git_hub.folder("model", "me/adapter")
    git(folder, "fsck", "--strict")
    pointer = git(folder, "cat-file", "blob", f"{commit}:adapter_model.safetensors")
    found = {file.path: file for file in api.list_repo_tree("me/adapter")}
    assert found["note.txt"].blob_id == blob_id(b"hello")
    assert found["adapter_model.safetensors"].blob_id == blob_id(pointer)
    assert found["adapter_model.safetensors"].lfs.sha256 == Pointer.read(pointer).sha256
    assert (found["adapter_model.safetensors"].xet_hash is not None) == (transfer == "xet")


def test_a_commit_on_a_head_that_has_moved_is_refused_and_leaves_nothing(git_hub: Hub):
    git_hub.create("me/adapter")
    stale = git_hub.head("me/adapter")
    newer = git_hub.push("me/adapter", {"note.txt": b"from elsewhere"})
    with pytest.raises(HfHubHTTPError, match="A commit has happened since") as refused:
        push(client(git_hub), "me/adapter", {"note.txt": b"mine"}, parent_commit=stale)
    assert refused.value.response.status_code == 412
    assert git_hub.head("me/adapter") == newer


def test_of_commits_that_race_on_one_parent_exactly_one_wins(git_hub: Hub):
    git_hub.create("me/adapter")
    parent, together = git_hub.head("me/adapter"), threading.Barrier(4, timeout=30)
    git_hub.faults.add("commit", "before", together.wait, times=4)
    outcomes: list[str] = []

    def race(number: int) -> None:
        try:
            outcomes.append(push(client(git_hub), "me/adapter", {"n.txt": b"%d" % number}, parent_commit=parent).oid)
        except HfHubHTTPError as error:
            outcomes.append(str(error.response.status_code))

    racers = [threading.Thread(target=race, args=(number,)) for number in range(4)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
    assert outcomes.count("412") == 3
    assert git_hub.head("me/adapter") in outcomes
    assert len(git_hub.history("me/adapter")) == 2


def test_a_strangers_pull_request_is_opened_pushed_to_and_merged(git_hub: Hub, transfer: str):
    git_hub.create("me/adapter")
    stranger, owner = client(git_hub, STRANGER_TOKEN), client(git_hub)
    opened = push(stranger, "me/adapter", {"adapter_model.safetensors": FEW}, create_pr=True)
    assert (opened.pr_num, opened.pr_revision) == (1, "refs/pr/1")
    push(stranger, "me/adapter", {"note.txt": b"more"}, revision="refs/pr/1")
    assert "adapter_model.safetensors" not in git_hub.files("me/adapter")
    details = owner.get_discussion_details("me/adapter", 1)
    assert (details.status, details.author, details.target_branch) == ("draft", "you", "refs/heads/main")
    assert next(event.oid for event in details.events if event.type == "commit") == opened.oid
    assert [one.num for one in owner.get_repo_discussions("me/adapter", discussion_type="pull_request")] == [1]
    with pytest.raises(HfHubHTTPError, match="create_pr=1"):
        push(stranger, "me/adapter", {"note.txt": b"straight to main"})
    owner.comment_discussion("me/adapter", 1, "Thank you")
    owner.merge_pull_request("me/adapter", 1)
    assert git_hub.files("me/adapter")["adapter_model.safetensors"] == FEW
    assert owner.get_discussion_details("me/adapter", 1).merge_commit_oid == git_hub.head("me/adapter")


def test_branches_and_tags_are_set_listed_refused_and_deleted(git_hub: Hub):
    git_hub.create("me/adapter")
    api, first = client(git_hub), git_hub.head("me/adapter")
    api.create_branch("me/adapter", branch="try/one")
    second = push(api, "me/adapter", {"note.txt": b"x"}, revision="try/one").oid
    api.create_tag("me/adapter", tag="v1", tag_message="the first")
    api.create_tag("me/adapter", tag="v2", revision=second)
    refs = api.list_repo_refs("me/adapter", include_pull_requests=True)
    assert {branch.name: branch.target_commit for branch in refs.branches} == {"main": first, "try/one": second}
    assert {tag.name: tag.target_commit for tag in refs.tags} == {"v1": first, "v2": second}
    for again in (
        lambda: api.create_tag("me/adapter", tag="v1"),
        lambda: api.create_branch("me/adapter", branch="try/one"),
    ):
        with pytest.raises(HfHubHTTPError) as refused:
            again()
        assert refused.value.response.status_code == 409
    api.create_tag("me/adapter", tag="v1", exist_ok=True)
    api.delete_tag("me/adapter", tag="v1")
    api.delete_branch("me/adapter", branch="try/one")
    assert not api.revision_exists("me/adapter", "v1")
    assert api.model_info("me/adapter", revision="v2").sha == second
    with pytest.raises(RevisionNotFoundError):
        api.delete_tag("me/adapter", tag="v1")


def test_a_long_tree_comes_in_pages(git_hub: Hub):
    git_hub.page_size = 3
    paths = [f"folder/{number}.txt" for number in range(7)]
    git_hub.create("me/adapter", dict.fromkeys(paths, b"x"))
    api = client(git_hub)
    listed = list(api.list_repo_tree("me/adapter", recursive=True, expand=True))
    assert [entry.path for entry in listed] == [".gitattributes", "folder", *paths]
    assert listed[2].last_commit.title == "A push from elsewhere"
    assert git_hub.faults.count("tree") == 3
    assert [entry.path for entry in api.list_repo_tree("me/adapter", "folder")] == paths
    assert [entry.path for entry in api.get_paths_info("me/adapter", ["folder", "none.txt"])] == ["folder"]
    with pytest.raises(EntryNotFoundError):
        list(api.list_repo_tree("me/adapter", "none"))


def test_copies_and_deletions_make_a_rename_and_a_rollback(git_hub: Hub):
    git_hub.create("me/adapter", {"model.safetensors": FEW, "note.txt": b"old", "logs/1.txt": b"x"})
    api = client(git_hub)
    api.create_tag("me/adapter", tag="good")
    files = {"model.safetensors": FEW * 2, "note.txt": b"bad"}
    bad = push(api, "me/adapter", files).oid
    api.create_commit(
        "me/adapter",
        [CommitOperationCopy(path, path, src_revision="good") for path in files] + [CommitOperationDelete("logs/")],
        commit_message="Roll back",
        parent_commit=bad,
    )
    assert git_hub.files("me/adapter")["model.safetensors"] == FEW
    assert set(git_hub.files("me/adapter")) == {".gitattributes", "model.safetensors", "note.txt"}
    renaming = [CommitOperationCopy("note.txt", "a/note.txt"), CommitOperationDelete("note.txt")]
    api.create_commit("me/adapter", renaming, commit_message="Rename")
    assert git_hub.files("me/adapter")["a/note.txt"] == b"old"
    with pytest.raises(EntryNotFoundError):
        api.delete_file("note.txt", "me/adapter")


def test_history_is_listed_and_squashed(git_hub: Hub):
    git_hub.create("me/adapter", {"note.txt": b"x"})
    api = client(git_hub)
    push(api, "me/adapter", {"note.txt": b"y"}, commit_description="Why so")
    newest = api.list_repo_commits("me/adapter")[0]
    assert (newest.title, newest.message, newest.authors) == ("Push", "Why so", ["me"])
    assert len(api.list_repo_commits("me/adapter")) == 3
    api.super_squash_history("me/adapter")
    assert len(git_hub.history("me/adapter")) == 1
    assert git_hub.files("me/adapter")["note.txt"] == b"y"


def test_what_is_not_there_is_said_with_the_hubs_own_codes(git_hub: Hub):
    git_hub.create("me/adapter")
    api = client(git_hub)
    for name in ("me/none", "gpt2"):
        with pytest.raises(RepositoryNotFoundError):
            api.model_info(name)
    with pytest.raises(RevisionNotFoundError):
        api.model_info("me/adapter", revision="v9")
    with pytest.raises(RevisionNotFoundError):
        push(api, "me/adapter", {"note.txt": b"x"}, revision="v9")
    assert not api.file_exists("me/adapter", "none.txt")
    assert api.file_exists("me/adapter", ".gitattributes")


def test_a_large_file_that_was_never_sent_or_is_not_what_it_says_is_refused(git_hub: Hub, transfer: str):
    git_hub.create("me/adapter")
    lying = CommitOperationAdd("w.bin", b"weights")
    lying.upload_info.sha256 = b"\0" * 32
    with pytest.raises((HfHubHTTPError, RuntimeError)) as refused:
        client(git_hub).create_commit("me/adapter", [lying], commit_message="Push")
    assert "does not exist" in str(refused.value) if transfer == "xet" else "BadDigest" in str(refused.value.__cause__)
    assert not git_hub.large.has("00" * 32)


def test_repositories_are_made_once_moved_and_deleted(git_hub: Hub):
    api = client(git_hub)
    made = api.create_repo("me/adapter")
    assert made == api.create_repo("me/adapter", exist_ok=True) == f"{git_hub.endpoint}/me/adapter"
    with pytest.raises(HfHubHTTPError, match="already created") as exists:
        api.create_repo("me/adapter")
    assert exists.value.response.json()["url"] == made
    with pytest.raises(HfHubHTTPError, match="don't have the rights"):
        api.create_repo("library/model")
    api.move_repo("me/adapter", "lab/adapter")
    assert api.model_info("lab/adapter").sha
    api.delete_repo("lab/adapter")
    assert not api.repo_exists("lab/adapter")


def test_info_has_card_tags_siblings_and_stored_elements(git_hub: Hub):
    card = (
        "---\nlicense: mit\nlibrary_name: peft\ntags: [lora]\nbase_model: me/base\nbase_model_relation: adapter\n---\n"
    )
    git_hub.create("me/adapter", {"README.md": card.encode(), "adapter_model.safetensors": FEW})
    info = client(git_hub).model_info("me/adapter", files_metadata=True)
    assert (info.card_data.license, info.library_name) == ("mit", "peft")
    assert info.tags == ["lora", "peft", "license:mit", "base_model:me/base", "base_model:adapter:me/base"]
    sizes = {file.rfilename: (file.size, file.lfs and file.lfs.size) for file in info.siblings}
    assert sizes["adapter_model.safetensors"] == (len(FEW), len(FEW))
    assert sizes["README.md"] == (len(card), None)
    expanded = client(git_hub).model_info("me/adapter", expand=["safetensors"])
    assert expanded.safetensors.parameters == {"F32": 6, "F16": 4}
    assert expanded.sha is None


def test_ignored_files_stay_away(git_hub: Hub):
    git_hub.create("me/adapter", {".gitignore": b"*.log\nruns/\n"})
    push(client(git_hub), "me/adapter", {"a.log": b"x", "runs/b.bin": b"x", "note.txt": b"x"})
    assert set(git_hub.files("me/adapter")) == {".gitattributes", ".gitignore", "note.txt"}


PUSH = """
import sys
from huggingface_hub import CommitOperationAdd, HfApi, snapshot_download
from pathlib import Path
name = sys.argv[1]
HfApi().create_repo(f"me/{name}", exist_ok=True)
pushed = HfApi().create_commit(f"me/{name}", [CommitOperationAdd("w.bin", name.encode() * 100_000)], commit_message="p")
folder = snapshot_download(f"me/{name}", revision=pushed.oid)
assert (Path(folder) / "w.bin").read_bytes() == name.encode() * 100_000
print(pushed.oid)
"""


def environment(endpoint: str, home: Path, **more: str) -> dict[str, str]:
    return os.environ | {"HF_ENDPOINT": endpoint, "HF_TOKEN": WRITE_TOKEN, "HF_HOME": str(home)} | more


def test_processes_push_at_once_with_xet_and_without(git_hub: Hub, tmp_path: Path):
    clients = [
        subprocess.Popen(
            [sys.executable, "-c", PUSH, name],
            env=environment(git_hub.endpoint, tmp_path / name, HF_HUB_DISABLE_XET=disabled),
            stdout=subprocess.PIPE,
            text=True,
        )
        for name, disabled in (("one", "0"), ("two", "0"), ("three", "1"))
    ]
    heads = [process.communicate(timeout=300)[0].strip() for process in clients]
    assert heads == [git_hub.head(f"me/{name}") for name in ("one", "two", "three")]
    assert (git_hub.faults.count("xet-token"), git_hub.faults.count("lfs-put")) == (4, 1)


@needs_git
def test_as_a_process_it_outlives_a_killed_client_and_its_own_end(tmp_path: Path):
    root = tmp_path / "root"

    def served(*faults: str) -> tuple[subprocess.Popen, str]:
        command = [sys.executable, str(SERVER), "--root", str(root), *(f"--fault={fault}" for fault in faults)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        return process, process.stdout.readline().strip()

    server, endpoint = served("commit:after:slow")
    with subprocess.Popen([sys.executable, "-c", PUSH, "one"], env=environment(endpoint, tmp_path / "hf")) as killed:
        while not (Hub(root).exists("model", "me/one") and len(Hub(root).history("me/one")) == 2):
            assert killed.poll() is None
            time.sleep(0.05)
        killed.kill()
    landed = Hub(root).head("me/one")
    result = run_python("-c", PUSH, "one", **environment(endpoint, tmp_path / "hf"))
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == landed
    server.send_signal(signal.SIGINT)
    assert server.wait(30) == 0
    server.stdout.close()
    server, endpoint = served()
    with server:
        assert HfApi(endpoint=endpoint, token=WRITE_TOKEN).model_info("me/one").sha == landed
        server.send_signal(signal.SIGINT)
