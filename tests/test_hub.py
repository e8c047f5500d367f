"""The seam to the Hub over real HTTP: datasets by name, split and commit, and what is said when they are not there."""

import json
from pathlib import Path

import pytest
from conftest import PAIRS, hf_lora, run_python, write_jsonl
from git_hub_state import Hub

LOAD = """
import json, sys
from hf_lora_ext import LoraExtError
from hf_lora_ext.hub import load_hub_dataset
for asked in json.loads(sys.argv[1]):
    try:
        rows, commit = load_hub_dataset(*asked)
        answer = {"rows": len(rows), "columns": rows.column_names, "commit": commit}
    except LoraExtError as error:
        answer = {"error": str(error)}
    print(json.dumps(answer))
"""


@pytest.fixture
def commit(git_hub: Hub, tmp_path: Path) -> str:
    """The commit of a dataset `me/sums` on the Hub."""
    folder = tmp_path / "repository"
    folder.mkdir()
    write_jsonl(folder / "train.jsonl", PAIRS)
    write_jsonl(folder / "test.jsonl", PAIRS[:5])
    git_hub.create_from("me/sums", folder, kind="dataset")
    return git_hub.head("me/sums", kind="dataset")


def load(endpoint: str, cache: Path, *asked: tuple[str, ...]) -> list[dict]:
    """Load datasets, each by what is asked, in one fresh process."""
    result = run_python("-c", LOAD, json.dumps(asked), HF_ENDPOINT=endpoint, HF_HOME=str(cache))
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()[-len(asked) :]]


def test_a_dataset_comes_by_name_and_split_with_its_commit(git_hub: Hub, commit: str, tmp_path: Path):
    train, test, no_split, no_dataset, no_revision = load(
        git_hub.endpoint, tmp_path,
        ("me/sums", "train"), ("me/sums", "test", commit), ("me/sums", "trian"), ("me/summs", "train"),
        ("me/sums", "train", "v9"),
    )  # fmt: skip
    assert train == {"rows": 40, "columns": ["prompt", "completion"], "commit": commit}
    assert test["rows"] == 5
    assert "set data.split" in no_split["error"]
    assert "nor a dataset on the Hub" in no_dataset["error"]
    assert "at revision 'v9'" in no_revision["error"]


def test_a_run_on_a_hub_dataset_records_its_revision(git_hub: Hub, commit: str, tiny_recipe: Path, tmp_path: Path):
    result = hf_lora(
        "train",
        tiny_recipe,
        "data.source=me/sums",
        "--json",
        HF_ENDPOINT=git_hub.endpoint,
        HF_HOME=str(tmp_path / "hf"),
    )
    assert result.returncode == 0, result.stderr
    data = json.loads(result.stdout)["facts"]["data"]
    assert (data["name"], data["revision"], data["form"]) == ("me/sums", commit, "prompt-completion")
