"""What a model's name means: folder, Hub (real HTTP to a server on loopback), cache, embedded copy, or an error."""

import json
from pathlib import Path

import pytest
from conftest import hf_lora, run_python
from git_hub_state import Hub

from hf_lora_ext import ConfigError
from hf_lora_ext.models.base_models import EMBEDDED_MODEL, find_base_model, find_shape

NOWHERE = "http://127.0.0.1:9"  # the discard port: nothing listens, so the Hub is out of reach

FIND = """
import json, sys
from hf_lora_ext import LoraExtError, preset
from hf_lora_ext.models.base_models import find_base_model
for name in sys.argv[1:]:
    answer = {}
    try:
        p = preset(name)
        answer |= {"source": p.shape.source, "parameters": p.shape.parameters}
        base = find_base_model(name)
        answer |= {"path": base.path, "recorded": base.recorded_name, "revision": base.facts.revision,
                   "license": base.facts.license}
    except LoraExtError as error:
        answer["error"] = str(error)
    print(json.dumps(answer))
"""


def find(names: list[str], endpoint: str, cache: Path) -> list[dict]:
    """Ask a fresh process for each name's preset, and then for its model."""
    result = run_python("-c", FIND, *names, HF_ENDPOINT=endpoint, HF_HOME=str(cache), HF_HUB_DISABLE_TELEMETRY="1")
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()[-len(names) :]]


def test_a_local_folder_is_itself(tiny_model: Path):
    base = find_base_model(str(tiny_model))
    assert (base.path, base.facts.name, base.facts.on_hub, base.revision) == (
        str(tiny_model),
        "tiny-llama",
        False,
        None,
    )


def test_with_the_hub_in_reach_name_revision_licence_and_size_come_from_it(
    git_hub: Hub, tiny_model: Path, tmp_path: Path
):
    git_hub.create_from("me/tiny", tiny_model)
    commit = git_hub.push("me/tiny", {"README.md": b"---\nlicense: apache-2.0\n---\n"})
    [found] = find(["me/tiny"], git_hub.endpoint, tmp_path)
    assert found["source"] == "config.json on the Hub (llama, exact)"
    assert found["parameters"] == 35104
    assert (found["path"], found["recorded"], found["revision"], found["license"]) == (
        "me/tiny",
        "me/tiny",
        commit,
        "apache-2.0",
    )


def test_a_name_that_the_hub_does_not_know_is_said_at_once(git_hub: Hub, tmp_path: Path):
    [found] = find(["me/tinny-7b"], git_hub.endpoint, tmp_path)
    assert "is not on the Hub, or is private" in found["error"]


def test_a_gated_model_still_gets_a_preset(git_hub: Hub, tiny_model: Path, tmp_path: Path):
    names = ["me/gated-7b", "meta-llama/Llama-2-7b-hf"]
    for name in names:
        git_hub.create_from(name, tiny_model, gated="manual")
    named, shipped = find(names, git_hub.endpoint, tmp_path)
    assert (named["parameters"], named["source"].partition(" (")[0]) == (7 * 10**9, "its name")
    assert (shipped["parameters"], shipped["source"].partition(" (")[0]) == (
        6_738_415_616,
        "the config shipped for this popular model",
    )


def test_the_quickstarts_model_comes_from_the_hub_where_it_is_in_reach(
    git_hub: Hub, tiny_model: Path, tiny_recipe: Path, tmp_path: Path
):
    """The same command, the same id: a small model under that id on a Hub on loopback is what gets trained."""
    git_hub.create_from(EMBEDDED_MODEL, tiny_model)
    result = hf_lora(
        "train", tiny_recipe, f"model={EMBEDDED_MODEL}", "--json", HF_ENDPOINT=git_hub.endpoint, HF_HOME=str(tmp_path)
    )
    assert result.returncode == 0, result.stderr
    facts = json.loads(result.stdout)["facts"]
    assert facts["base_model"]["revision"] == git_hub.head(EMBEDDED_MODEL)
    assert facts["base_model"]["parameters"] == 35104
    assert "note" not in facts["base_model"]
    assert any(request.path.endswith("model.safetensors") for request in git_hub.faults.log)
    config = json.loads((tiny_recipe.parent / "run" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == EMBEDDED_MODEL


def test_a_downloaded_model_is_found_when_the_hub_is_away(git_hub: Hub, tiny_model: Path, tmp_path: Path):
    download = "from huggingface_hub import snapshot_download; snapshot_download('me/tiny')"
    git_hub.create_from("me/tiny", tiny_model)
    assert run_python("-c", download, HF_ENDPOINT=git_hub.endpoint, HF_HOME=str(tmp_path)).returncode == 0
    [found] = find(["me/tiny"], NOWHERE, tmp_path)
    assert found["revision"] == git_hub.head("me/tiny")
    assert found["recorded"] == "me/tiny"
    assert Path(found["path"]).is_dir()


def test_away_from_the_hub_a_preset_knows_the_size_and_a_run_is_refused(tmp_path: Path):
    shipped, named, unknown = find(["meta-llama/Llama-2-7b-hf", "somebody/new-7b", "some/model"], NOWHERE, tmp_path)
    assert shipped["source"] == "the config shipped for this popular model (llama, exact)"
    assert named["source"] == "its name (no config.json within reach)"
    for found in (shipped, named):
        assert "is not a folder here, the Hub is out of reach" in found["error"]
    assert "its name states none" in unknown["error"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "no config.json"),
        (lambda folder: (folder / "adapter_config.json").write_text("{}"), "it holds an adapter: name its base"),
        (lambda folder: (folder / "config.json").write_text("{}"), "no weights"),
    ],
)
def test_a_folder_without_a_model_is_refused(tmp_path: Path, make, message: str):
    make(tmp_path)
    with pytest.raises(ConfigError, match=message):
        find_base_model(str(tmp_path))


@pytest.mark.parametrize("model", ["", "nobody", "./nowhere", "a/b/c", 7, None])
def test_what_is_no_model_is_refused(model):
    with pytest.raises(ConfigError):
        find_shape(model)


def test_a_config_that_no_installed_family_knows_is_refused():
    with pytest.raises(ConfigError, match="model_type='llama99'"):
        find_shape({"model_type": "llama99"})


@pytest.mark.slow
def test_the_embedded_model_is_unpacked_once_into_ordinary_linear_layers(tmp_path: Path):
    script = (
        "from hf_lora_ext.models.base_models import find_base_model as f; import sys, torch, transformers as t\n"
        f"base = f({EMBEDDED_MODEL!r}); model = t.AutoModelForCausalLM.from_pretrained(base.path)\n"
        "up = model.model.layers[0].mlp.up_proj\n"
        "print(type(up) is torch.nn.Linear, model.num_parameters(), base.facts.sha256[:8])"
    )
    for _ in range(2):
        result = run_python("-c", script, HF_ENDPOINT=NOWHERE, HF_HOME=str(tmp_path))
        assert result.stdout.splitlines()[-1] == "True 134515008 b179c952", result.stderr
    assert len(list((tmp_path / "hf_lora_ext").iterdir())) == 1
