"""The card's check of the Hub stand-in: what it refuses, with words that name the key."""

import pytest
from git_hub_state import Hub
from hub_card_check import card_answer, metadata
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError
from test_git_hub import client

GOOD_RESULTS = """
model-index:
- name: a
  results:
  - {task: {type: t}, dataset: {type: d, name: D}, metrics: [{type: m, value: 1}]}
"""


def card(metadata: str) -> str:
    return f"---\n{metadata}\n---\n# A card\n"


@pytest.mark.parametrize(
    "text",
    [
        "license: mit",
        "license: [mit, apache-2.0]",
        "license: other\nlicense_name: mine\nlicense_link: LICENSE",
        "base_model: meta-llama/Llama-2-7b-hf\nbase_model_relation: adapter",
        "base_model: [gpt2, me/other]",
        "pipeline_tag: text-generation",
        GOOD_RESULTS,
    ],
)  # fmt: skip
def test_a_good_card_passes(text: str):
    assert card_answer(card(text), "model") == (200, {"errors": [], "warnings": []})


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("license: [", "YAML Metadata Error"),
        ("just words", "no mapping"),
        ("license: my-own", '"license"'),
        ("license: other", '"license_name"'),
        ("base_model: /home/me/model", '"base_model"'),
        ("base_model: ./model", '"base_model"'),
        ("base_model: a/b/c", '"base_model"'),
        ("base_model: [None, {}]", '"base_model"'),
        ("base_model_relation: child", '"base_model_relation"'),
        ("pipeline_tag: chatting", '"pipeline_tag"'),
        ("library_name: [peft]", '"library_name"'),
        ("tags: [1]", '"tags"'),
        ("model-index: [{results: []}]", '"model-index[0].name"'),
        ("model-index: [{name: a, results: [{dataset: {type: d, name: D}}]}]", "task.type"),
        ("model-index: [{name: a, results: [{task: {type: t}, dataset: {name: D}}]}]", "dataset"),
        ("model-index: [{name: a, results: [{task: {type: t}, dataset: {type: d, name: D}}]}]", "metrics"),
    ],
)  # fmt: skip
def test_a_bad_card_is_refused_by_key(text: str, named: str):
    status, body = card_answer(card(text), "model")
    assert status == 400
    assert any(named in error["message"] for error in body["errors"])


def test_a_card_without_metadata_is_warned_of():
    status, body = card_answer("# A card", "model")
    assert status == 200
    assert "empty or missing" in body["warnings"][0]["message"]
    assert metadata("# A card") == metadata(card("[")) == {}


def test_the_client_refuses_a_bad_card_before_anything_is_sent(git_hub: Hub):
    git_hub.create("me/adapter")
    api: HfApi = client(git_hub)
    with pytest.raises(ValueError, match='"base_model" with value "/tmp/model" is not valid'):
        api.create_commit(
            "me/adapter",
            [CommitOperationAdd("README.md", card("base_model: /tmp/model").encode())],
            commit_message="Push",
        )
    assert git_hub.faults.count("preupload") == 0
    with pytest.warns(UserWarning, match="empty or missing yaml metadata"):
        api.create_commit("me/adapter", [CommitOperationAdd("README.md", b"# A card")], commit_message="Push")


def test_a_bad_card_that_was_not_checked_first_is_refused_by_the_commit(git_hub: Hub):
    git_hub.create("me/adapter")
    git_hub.faults.add("validate-yaml", "before", 200)
    bad = CommitOperationAdd("README.md", card("pipeline_tag: chatting").encode())
    with pytest.raises(HfHubHTTPError, match="rejected during YAML metadata verification"):
        client(git_hub).create_commit("me/adapter", [bad], commit_message="Push")
    assert "README.md" not in git_hub.files("me/adapter")
