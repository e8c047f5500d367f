"""What was pushed is read back by clients that are not ours: the Hub's own packages for JavaScript."""

import base64
import json
import shutil
import subprocess
from pathlib import Path

import pytest
from git_hub_access import WRITE_TOKEN
from git_hub_state import Hub
from push_runs import REPO, push, pushing_to

from hf_lora_ext.push.release import CARD, CONFIG
from hf_lora_ext.push.release_card import card_metadata_of

READ = """
import { listFiles, downloadFile } from "@huggingface/hub";
const [hubUrl, accessToken, name, revision] = process.argv.slice(2);
const repo = { type: "model", name };
const found = {};
for await (const file of listFiles({ repo, revision, hubUrl, accessToken, recursive: true })) {
  const blob = await downloadFile({ repo, revision, hubUrl, accessToken, path: file.path, xet: false });
  found[file.path] = { size: file.size, base64: Buffer.from(await blob.arrayBuffer()).toString("base64") };
}
console.log(JSON.stringify(found));
"""
ASK = """
import * as tasks from "@huggingface/tasks";
const given = JSON.parse(process.argv[2]);
const library = tasks.MODEL_LIBRARIES_UI_ELEMENTS[given.metadata.library_name];
const model = { id: given.id, tags: [], config: { peft: given.config } };
console.log(JSON.stringify({
  library: library?.repoName ?? null,
  tag: given.metadata.pipeline_tag in tasks.PIPELINE_DATA,
  snippet: library.snippets(model).join("\\n"),
}));
"""


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both packages from the npm registry."""
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("node and npm are not installed")
    folder = tmp_path_factory.mktemp("node")
    install = ["npm", "install", "--silent", "--prefix", str(folder), "@huggingface/hub", "@huggingface/tasks"]
    if subprocess.run(install, check=False, capture_output=True, timeout=120).returncode:
        pytest.skip("the npm registry is out of reach")
    return folder


def by_node(folder: Path, script: str, *arguments: str) -> dict:
    (folder / "script.mjs").write_text(script, encoding="utf8")
    done = subprocess.run(
        ["node", "script.mjs", *arguments], cwd=folder, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_the_clients_for_javascript_read_what_was_pushed(node: Path, git_hub: Hub, adapter: Path, transfer: str):
    git_hub.create("lab/base", {"README.md": b"---\nlicense: mit\n---\n"})
    config = json.loads((adapter / CONFIG).read_text())
    (adapter / CONFIG).write_text(json.dumps(config | {"base_model_name_or_path": "lab/base"}))
    with pushing_to(git_hub):
        push(adapter, tag="v1")
    found = by_node(node, READ, git_hub.endpoint, WRITE_TOKEN, REPO, "v1")
    files = git_hub.files(REPO)
    assert {path: base64.b64decode(file["base64"]) for path, file in found.items()} == files
    assert {path: file["size"] for path, file in found.items()} == {
        path: len(content) for path, content in files.items()
    }
    told = {"id": REPO, "metadata": card_metadata_of(files[CARD].decode()), "config": json.loads(files[CONFIG])}
    answer = by_node(node, ASK, json.dumps(told))
    assert (answer["library"], answer["tag"]) == ("PEFT", True)
    assert 'from_pretrained("lab/base")' in answer["snippet"]
    assert f'PeftModel.from_pretrained(base_model, "{REPO}")' in answer["snippet"]
