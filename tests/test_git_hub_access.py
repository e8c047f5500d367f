"""Who may see, read and write what on the Hub stand-in, and what it refuses whoever sends it."""

from pathlib import Path

import pytest
from git_hub_access import FINE_TOKEN, READ_TOKEN, STRANGER_TOKEN, WRITE_TOKEN
from git_hub_state import Hub
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError
from test_git_hub import client, push


def code_of(error: HfHubHTTPError) -> tuple[int, str | None]:
    return error.response.status_code, error.response.headers.get("X-Error-Code")


def test_a_private_repository_is_hidden_from_strangers_and_the_nameless(git_hub: Hub):
    git_hub.create("me/secret", {"note.txt": b"x"}, private=True)
    for token, code in ((STRANGER_TOKEN, 404), (False, 401)):
        api = client(git_hub, token)
        for act in (
            lambda api=api: api.model_info("me/secret"),
            lambda api=api: push(api, "me/secret", {"a.txt": b"x"}),
            lambda api=api: api.create_tag("me/secret", tag="v1"),
        ):
            with pytest.raises(RepositoryNotFoundError) as hidden:
                act()
            assert code_of(hidden.value) == (code, "RepoNotFound")
    assert client(git_hub, READ_TOKEN).model_info("me/secret").private
    client(git_hub).update_repo_settings("me/secret", private=False)
    assert not client(git_hub, False).model_info("me/secret").private


def test_a_gated_repository_shows_its_card_and_keeps_its_files(git_hub: Hub, tmp_path: Path):
    git_hub.create("me/gated", {"note.txt": b"x"}, gated="manual")

    def read(token: str | bool) -> str:
        return hf_hub_download(
            "me/gated", "note.txt", endpoint=git_hub.endpoint, token=token, cache_dir=tmp_path / str(token)
        )

    for token, code in ((STRANGER_TOKEN, 403), (False, 401)):
        assert client(git_hub, token).model_info("me/gated").gated == "manual"
        with pytest.raises(GatedRepoError) as gated:
            read(token)
        assert code_of(gated.value) == (code, "GatedRepo")
        with pytest.raises(GatedRepoError):
            client(git_hub, token).auth_check("me/gated")
    git_hub.change("me/gated", admitted=["you"])
    assert Path(read(STRANGER_TOKEN)).read_bytes() == b"x"


@pytest.mark.parametrize(
    ("token", "repo_id", "status"),
    [
        (WRITE_TOKEN, "me/allowed", 200),
        (READ_TOKEN, "me/allowed", 403),
        (FINE_TOKEN, "me/allowed", 200),
        (FINE_TOKEN, "me/other", 403),
        (STRANGER_TOKEN, "me/allowed", 403),
        (False, "me/allowed", 401),
        (WRITE_TOKEN, "lab/model", 200),
        (WRITE_TOKEN, "library/model", 403),
        ("hf_nobodys", "me/allowed", 401),
    ],
)
def test_who_may_write_where(git_hub: Hub, token: str | bool, repo_id: str, status: int):
    git_hub.create(repo_id)
    before = git_hub.head(repo_id)
    try:
        push(client(git_hub, token), repo_id, {"note.txt": b"x"})
        found = 200
    except HfHubHTTPError as error:
        found = error.response.status_code
    assert found == status
    assert (git_hub.head(repo_id) != before) == (status == 200)


def test_whoami_tells_a_tokens_user_role_and_scopes(git_hub: Hub):
    roles = {token: client(git_hub, token).whoami() for token in (WRITE_TOKEN, READ_TOKEN, FINE_TOKEN)}
    assert {found["name"] for found in roles.values()} == {"me"}
    assert [found["auth"]["accessToken"]["role"] for found in roles.values()] == ["write", "read", "fineGrained"]
    assert [org["name"] for org in roles[WRITE_TOKEN]["orgs"]] == ["lab", "library"]
    scoped = roles[FINE_TOKEN]["auth"]["accessToken"]["fineGrained"]["scoped"]
    assert [scope["entity"]["name"] for scope in scoped] == ["me/allowed"]
    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        client(git_hub, "hf_nobodys").whoami()


def test_private_storage_that_is_full_refuses_uploads_and_commits(git_hub: Hub, transfer: str):
    git_hub.create("me/secret", {"full.bin": b"x" * 900}, private=True)
    git_hub.private_quota_bytes = 1000
    before = git_hub.head("me/secret")
    with pytest.raises((HfHubHTTPError, RuntimeError), match="storage limit reached"):
        push(client(git_hub), "me/secret", {"more.bin": b"y" * 200})
    assert git_hub.head("me/secret") == before
    assert git_hub.faults.count("commit") == (1 if transfer == "xet" else 0)  # a Xet token is for any size
    git_hub.create("me/open")
    push(client(git_hub), "me/open", {"more.bin": b"y" * 200})


def test_a_token_in_a_file_is_refused(git_hub: Hub):
    git_hub.create("me/adapter")
    with pytest.raises(HfHubHTTPError, match="valid Hugging Face secrets"):
        push(client(git_hub), "me/adapter", {"config.json": f'{{"token": "{WRITE_TOKEN}"}}'.encode()})
