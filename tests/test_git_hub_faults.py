"""What goes wrong on request, and what the real client does then: what any push must live with."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from git_hub import ROUTES
from git_hub_access import WRITE_TOKEN
from git_hub_state import Hub
from hub_faults import ENDPOINTS, Fault
from huggingface_hub import CommitOperationAdd, HfApi, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import _http, _xet

FILES = {"adapter_model.safetensors": b"weights" * 1000, "adapter_config.json": b"{}"}
HOWS = ("create_commit", "upload_folder")


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Let the client retry at once, and note how long it would have waited, in seconds."""
    noted: list[float] = []
    monkeypatch.setattr(_http, "time", SimpleNamespace(sleep=noted.append))
    monkeypatch.setenv("HF_XET_CLIENT_RETRY_BASE_DELAY", "20ms")
    monkeypatch.setattr(_xet, "_GLOBAL_XET_HOLDER", _xet.XetSessionHolder())
    return noted


@pytest.fixture
def hub(git_hub: Hub) -> Hub:
    """A Hub with a new repository `me/adapter`."""
    git_hub.create("me/adapter")
    return git_hub


@pytest.fixture
def without_xet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)


def send(hub: Hub, how: str, folder: Path, files: dict[str, bytes] = FILES, parent: str | None = None) -> str:
    """Push files in one of the client's two ways, and return the commit."""
    api = HfApi(endpoint=hub.endpoint, token=WRITE_TOKEN)
    if how == "create_commit":
        operations = [CommitOperationAdd(path, content) for path, content in files.items()]
        return api.create_commit("me/adapter", operations, commit_message="Push", parent_commit=parent).oid
    folder = folder / "push"
    folder.mkdir()
    for path, content in files.items():
        (folder / path).write_bytes(content)
    return api.upload_folder(repo_id="me/adapter", folder_path=folder, commit_message="Push", parent_commit=parent).oid


def landed(hub: Hub) -> int:
    """Return how many commits of the push are on main."""
    return len(hub.history("me/adapter")) - 1


def is_whole(hub: Hub, files: dict[str, bytes] = FILES) -> bool:
    found = hub.files("me/adapter")
    return all(found.get(path) == content for path, content in files.items())


def test_a_fault_can_be_at_every_endpoint_and_nowhere_else():
    assert {where for where, *_ in ROUTES} == ENDPOINTS
    with pytest.raises(ValueError, match="'comit' is no endpoint"):
        Fault("comit", "before", 500)


def test_a_fault_is_read_from_a_line_of_text():
    assert Fault.parse("commit:after:drop") == Fault("commit", "after", "drop")
    assert Fault.parse("resolve:before:503:2:1") == Fault("resolve", "before", 503, times=2, skip=1)
    for wrong in ("commit:after", "commit:later:503", "commit:after:explode"):
        with pytest.raises(ValueError, match=r"fault|unpack"):
            Fault.parse(wrong)


@pytest.mark.parametrize(("when", "tagged"), [("before", False), ("after", True)])
@pytest.mark.parametrize("what", [500, "drop", "html"])
def test_before_nothing_was_done_and_after_it_was(hub: Hub, when: str, tagged: bool, what: int | str):
    api = HfApi(endpoint=hub.endpoint, token=WRITE_TOKEN)
    hub.faults.add("tag", when, what)
    with pytest.raises(Exception, match=r"500|disconnected|502"):
        api.create_tag("me/adapter", tag="v1")
    assert api.revision_exists("me/adapter", "v1") == tagged
    api.create_tag("me/adapter", tag="v1", exist_ok=True)


def test_a_fault_lets_some_requests_pass_and_strikes_some(hub: Hub):
    api = HfApi(endpoint=hub.endpoint, token=WRITE_TOKEN)
    hub.faults.add("info", "before", 500, times=2, skip=1)
    outcomes = []
    for _ in range(5):
        try:
            outcomes.append(bool(api.model_info("me/adapter").sha))
        except HfHubHTTPError:
            outcomes.append(False)
    assert outcomes == [True, False, False, True, True]


def test_a_slow_answer_runs_into_the_clients_patience(hub: Hub):
    api = HfApi(endpoint=hub.endpoint, token=WRITE_TOKEN)
    hub.faults.add("info", "before", "slow", seconds=1.0)
    with pytest.raises(Exception, match="timed out"):
        api.model_info("me/adapter", timeout=0.2)
    hub.faults.add("info", "after", "slow", seconds=0.2)
    assert api.model_info("me/adapter", timeout=5).sha


def test_a_truncated_answer_is_noticed_and_a_truncated_download_resumed(
    hub: Hub, waits: list[float], without_xet: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)
    hub.push("me/adapter", {"w.bin": b"0123456789" * 1000})
    hub.faults.add("info", "after", "truncate")
    with pytest.raises(Exception, match="peer closed connection"):
        HfApi(endpoint=hub.endpoint, token=WRITE_TOKEN).model_info("me/adapter")
    hub.faults.add("resolve", "before", "truncate", skip=1)  # the first asks for the headers alone
    file = hf_hub_download("me/adapter", "w.bin", endpoint=hub.endpoint, token=WRITE_TOKEN, cache_dir=tmp_path)
    assert Path(file).read_bytes() == b"0123456789" * 1000
    assert hub.faults.count("resolve") == 3


def test_a_function_runs_at_a_point(hub: Hub, tmp_path: Path):
    """Another push lands after the head was read and before the commit."""
    head = hub.head("me/adapter")
    hub.faults.add("commit", "before", lambda: hub.push("me/adapter", {"note.txt": b"first"}))
    with pytest.raises(HfHubHTTPError, match="A commit has happened since"):
        send(hub, "create_commit", tmp_path, parent=head)
    assert hub.files("me/adapter")["note.txt"] == b"first"
    assert not is_whole(hub)


# What the client does when things fail.


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize(("status", "retry_after", "waited"), [(503, None, 1), (429, None, 1), (429, 7, 8)])
def test_a_refused_preupload_is_tried_again_when_the_server_says(
    hub: Hub, waits: list[float], tmp_path: Path, how: str, status: int, retry_after: int | None, waited: int
):
    hub.faults.add("preupload", "before", status, retry_after=retry_after)
    send(hub, how, tmp_path)
    assert is_whole(hub)
    assert (waits, hub.faults.count("preupload")) == ([waited], 2)


@pytest.mark.parametrize("what", [500, "drop"])
@pytest.mark.parametrize("where", ["lfs-batch", "lfs-put", "lfs-part", "lfs-complete", "lfs-verify"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_failed_upload_by_lfs_is_tried_again(
    hub: Hub, waits: list[float], without_xet: None, tmp_path: Path, where: str, what: int | str, when: str
):
    hub.multipart_bytes = 3000 if where in {"lfs-part", "lfs-complete"} else 10_000
    hub.faults.add(where, when, what)
    send(hub, "create_commit", tmp_path)
    assert is_whole(hub)
    assert waits == [1]


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("what", [500, 429, "drop"])
def test_a_failed_xet_token_is_tried_again(hub: Hub, waits: list[float], tmp_path: Path, how: str, what: int | str):
    hub.faults.add("xet-token", "before", what)
    send(hub, how, tmp_path)
    assert is_whole(hub)
    assert hub.faults.count("xet-token") == 2


@pytest.mark.parametrize("how", HOWS)
def test_a_forbidden_xet_token_is_a_builtin_connection_error(hub: Hub, waits: list[float], tmp_path: Path, how: str):
    hub.faults.add("xet-token", "before", 403)
    with pytest.raises(ConnectionError, match="403 Forbidden"):
        send(hub, how, tmp_path)
    assert landed(hub) == 0


@pytest.mark.parametrize("what", [503, 429, "drop"])
def test_a_refused_commit_is_not_tried_again_by_create_commit(
    hub: Hub, waits: list[float], tmp_path: Path, what: int | str
):
    hub.faults.add("commit", "before", what)
    with pytest.raises(Exception, match=r"503|429|disconnected"):
        send(hub, "create_commit", tmp_path)
    assert (landed(hub), hub.faults.count("commit"), waits) == (0, 1, [])


@pytest.mark.parametrize("what", [503, 429, "drop"])
def test_a_refused_commit_is_tried_again_by_upload_folder(
    hub: Hub, waits: list[float], tmp_path: Path, what: int | str
):
    hub.faults.add("commit", "before", what)
    send(hub, "upload_folder", tmp_path)
    assert (landed(hub), hub.faults.count("commit"), waits) == (1, 2, [1])


def test_upload_folder_gives_up_after_five_more_tries(hub: Hub, waits: list[float], tmp_path: Path):
    hub.faults.add("commit", "before", 503, times=99)
    with pytest.raises(HfHubHTTPError, match="503"):
        send(hub, "upload_folder", tmp_path)
    assert (landed(hub), hub.faults.count("commit"), waits) == (0, 6, [1, 2, 4, 8, 8])


@pytest.mark.parametrize("with_parent", [False, True])
def test_a_commit_whose_answer_is_lost_has_landed_though_create_commit_raises(
    hub: Hub, waits: list[float], tmp_path: Path, with_parent: bool
):
    head = hub.head("me/adapter")
    hub.faults.add("commit", "after", "drop")
    with pytest.raises(Exception, match="disconnected"):
        send(hub, "create_commit", tmp_path, parent=head if with_parent else None)
    assert (landed(hub), is_whole(hub)) == (1, True)


def test_a_commit_whose_answer_is_lost_is_made_twice_by_upload_folder(hub: Hub, waits: list[float], tmp_path: Path):
    hub.faults.add("commit", "after", "drop")
    send(hub, "upload_folder", tmp_path)
    assert hub.history("me/adapter") == ["Push", "Push", "initial commit"]


def test_with_a_parent_upload_folder_calls_a_landed_commit_stale(hub: Hub, waits: list[float], tmp_path: Path):
    hub.faults.add("commit", "after", "drop")
    with pytest.raises(HfHubHTTPError, match="412"):
        send(hub, "upload_folder", tmp_path, parent=hub.head("me/adapter"))
    assert (landed(hub), is_whole(hub)) == (1, True)


@pytest.mark.parametrize("how", HOWS)
def test_a_stale_parent_is_refused(hub: Hub, waits: list[float], tmp_path: Path, how: str):
    stale = hub.head("me/adapter")
    hub.push("me/adapter", {"note.txt": b"x"})
    with pytest.raises(HfHubHTTPError, match="412"):
        send(hub, how, tmp_path, parent=stale)
    assert not is_whole(hub)


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize(("what", "error"), [(503, HfHubHTTPError), ("html", json.JSONDecodeError)])
def test_a_check_of_the_card_that_fails_is_not_tried_again(
    hub: Hub, waits: list[float], tmp_path: Path, how: str, what: int | str, error: type[Exception]
):
    hub.faults.add("validate-yaml", "before", what)
    with pytest.raises(error):
        send(hub, how, tmp_path, FILES | {"README.md": b"---\nlicense: mit\n---\n"})
    assert (landed(hub), hub.faults.count("validate-yaml"), waits) == (0, 1, [])


MANY = {f"{number:03}.txt": b"%d" % number for number in range(300)}


@pytest.mark.parametrize(("how", "commits"), [("create_commit", 1), ("upload_folder", 2)])
def test_over_250_files_are_one_commit_or_several(hub: Hub, waits: list[float], tmp_path: Path, how: str, commits: int):
    send(hub, how, tmp_path, MANY)
    assert is_whole(hub, MANY)
    assert landed(hub) == commits


def test_a_split_upload_is_left_torn_where_a_later_batch_fails(hub: Hub, waits: list[float], tmp_path: Path):
    hub.faults.add("commit", "before", 503, skip=1, times=999)
    with pytest.raises(HfHubHTTPError, match="503"):
        send(hub, "upload_folder", tmp_path, MANY)
    assert landed(hub) == 1
    assert 0 < len(set(hub.files("me/adapter")) & set(MANY)) < len(MANY)
