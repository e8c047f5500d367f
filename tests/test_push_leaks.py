"""Nothing private reaches the Hub, wherever it was planted: it is cut out, left behind, or stops the push."""

import getpass
import json
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from git_hub_state import Hub
from planted_secrets import PATHS, SECRETS
from push_runs import REPO, push, pushing_to
from safetensors.torch import load_file, save_file
from test_release import chunk, picture

from hf_lora_ext import ConfigError, Facts, PushError
from hf_lora_ext.cards.comparisons import Comparison
from hf_lora_ext.cards.facts import DataFacts
from hf_lora_ext.push.release import CONFIG, WEIGHTS

LOGIN, HOST, DIARY, OWN = "annabelle-w", "workstation-seventeen", "ann/private-diary", "correct-horse-battery"
TOKEN = SECRETS["hugging face"]
HOME = PATHS["home"]


def text(name: str, line: str) -> Callable[[Path], object]:
    def plant(folder: Path) -> None:
        file = folder / name
        file.parent.mkdir(exist_ok=True)
        file.write_text((file.read_text() if file.exists() else "") + f"\n{line}\n")

    return plant


def value(name: str, **more: object) -> Callable[[Path], object]:
    def plant(folder: Path) -> None:
        file = folder / name
        known = json.loads(file.read_text()) if file.exists() else {}
        file.write_text(json.dumps(known | more))

    return plant


def facts(**more: object) -> Callable[[Path], object]:
    def plant(folder: Path) -> None:
        (folder / "facts.json").write_text(Facts(adapter={"kind": "LORA"}, **more).to_json())

    return plant


def data(**more: object) -> DataFacts:
    return DataFacts(**{"name": "rows", "form": "text", "train_examples": 1, "fingerprint": "0"} | more)


def compared_on(name: str) -> Comparison:
    return Comparison(data=name, held_out=False, examples=9, fingerprint="0", measured=(), resamples=1000, level=0.95)


def metadata(**more: str) -> Callable[[Path], object]:
    return lambda folder: save_file(load_file(folder / WEIGHTS), folder / WEIGHTS, metadata={"format": "pt", **more})


def tensor_name(name: str) -> Callable[[Path], object]:
    def plant(folder: Path) -> None:
        config = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps(config | {"target_modules": ".*"}))
        tensors = load_file(folder / WEIGHTS)
        save_file({key.replace("base_model", name): tensor for key, tensor in tensors.items()}, folder / WEIGHTS)

    return plant


def remark(said: str) -> Callable[[Path], object]:
    return lambda folder: (folder / "loss_curve.png").write_bytes(picture(chunk(b"tEXt", b"Source\0" + said.encode())))


OFTEN = ("hugging", "aws", "private key", "home", "windows", "root")
"""Of the many that differ in their text alone, those that every test run plants; `test_leaks` knows them all."""


PLANTED: dict[str, tuple[Callable[[Path], object], str]] = {
    **{f"card: {name}": (text("README.md", secret), secret) for name, secret in SECRETS.items()},
    **{f"card: path {name}": (text("README.md", f"`{path}`"), path) for name, path in PATHS.items()},
    **{f"facts: path {name}": (facts(run={"note": f"from {path}"}), path) for name, path in PATHS.items()},
    **{f"config: {name}": (value(CONFIG, base_model_name_or_path=path), path) for name, path in PATHS.items()},
    "card: login": (text("README.md", f"Trained by {LOGIN}."), LOGIN),
    "card: host": (text("README.md", f"on {HOST}"), HOST),
    "card: the environment's own token": (text("README.md", OWN), OWN),
    "card: private dataset": (text("README.md", f"---\ndatasets: [{DIARY}]\n---\n"), DIARY),
    "facts: token in a sample": (facts(recipe=f"token: {TOKEN}"), TOKEN),
    "facts: login": (facts(run={"by": LOGIN}), LOGIN),
    "facts: host": (facts(environment={"hardware": {"host": HOST}}), HOST),
    "facts: private dataset": (facts(data=data(name=DIARY), recipe=f"data: {DIARY}"), DIARY),
    "facts: private dataset in a comparison": (facts(comparisons=(compared_on(DIARY),)), DIARY),
    "facts: path in a recipe": (facts(recipe=f"output_dir: {HOME}"), HOME),
    "facts: the environment's own token": (facts(recipe=OWN), OWN),
    "config: token": (value(CONFIG, revision=TOKEN), TOKEN),
    "tokenizer: name_or_path": (value("tokenizer_config.json", name_or_path=HOME), HOME),
    "tokenizer: token": (value("tokenizer_config.json", auth_token=TOKEN), TOKEN),
    "vocabulary: token": (value("tokenizer.json", note=TOKEN), TOKEN),
    "vocabulary: the environment's own token": (value("vocab.json", note=OWN), OWN),
    "merges: token": (text("merges.txt", TOKEN), TOKEN),
    "binary tokenizer: token": (text("tokenizer.model", TOKEN), TOKEN),
    "chat template: token": (text("chat_template.jinja", TOKEN), TOKEN),
    "chat template: path": (text("additional_chat_templates/tool.jinja", HOME), HOME),
    "rank history: path": (value("rank_history.json", folder=HOME), HOME),
    "rank history: token": (value("rank_history.json", folder=TOKEN), TOKEN),
    "evaluation: token": (text(".eval_results/a.yaml", f"notes: {TOKEN}"), TOKEN),
    "evaluation: path": (text(".eval_results/a.yaml", f"notes: {HOME}"), HOME),
    "licence: path": (text("LICENSE", HOME), HOME),
    "notice: token": (text("NOTICE", TOKEN), TOKEN),
    "weights: token in the metadata": (metadata(wandb=TOKEN), TOKEN),
    "weights: path in the metadata": (metadata(base=HOME), HOME),
    "weights: token as a key": (metadata(**{TOKEN: "x"}), TOKEN),
    "weights: login in the metadata": (metadata(author=LOGIN), LOGIN),
    "weights: token in a tensor's name": (tensor_name(TOKEN), TOKEN),
    "picture: path in a remark": (remark(HOME), HOME),
    "left out: .env": (text(".env", f"HF_TOKEN={TOKEN}"), TOKEN),
    "left out: training_args.bin": (text("training_args.bin", TOKEN), TOKEN),
    "left out: trainer_state.json": (text("trainer_state.json", TOKEN), TOKEN),
    "left out: a checkpoint": (text("checkpoint-1/README.md", TOKEN), TOKEN),
    "left out: recipe.yaml.bak": (text("recipe.yaml.bak", HOME), HOME),
    "left out: a log": (text("run.log", HOME), HOME),
}  # fmt: skip


def test_many_places_are_planted():
    assert len(PLANTED) >= 100


@pytest.fixture
def hub(git_hub: Hub, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MY_SERVICE_PASSWORD", OWN)
    monkeypatch.setattr(getpass, "getuser", lambda: LOGIN)
    monkeypatch.setattr(socket, "gethostname", lambda: HOST)
    git_hub.create(DIARY, kind="dataset", private=True)
    with pushing_to(git_hub):
        yield git_hub


@pytest.fixture
def bare(adapter: Path) -> Path:
    """An adapter's folder without a card."""
    (adapter / "README.md").unlink()
    return adapter


def every_byte(hub: Hub) -> bytes:
    return b"\n".join(hub.files(REPO).values()) if hub.exists("model", REPO) else b""


def is_rare(place: str) -> bool:
    where, _, what = place.partition(": ")
    listed = what.removeprefix("path ") in {**SECRETS, **PATHS}
    return where in {"card", "facts", "config"} and listed and not what.removeprefix("path ").startswith(OFTEN)


@pytest.mark.parametrize("place", [pytest.param(p, marks=pytest.mark.slow) if is_rare(p) else p for p in PLANTED])
def test_what_was_planted_never_arrives_and_is_never_shown(hub: Hub, bare: Path, place: str):
    plant, private = PLANTED[place]
    plant(bare)
    shown = ""
    try:
        result = push(bare, verify=False)
        shown = result.plan.explain()
        assert result.plan.changes
    except (PushError, ConfigError) as error:
        shown = str(error)
        assert not hub.exists("model", REPO)
    finally:
        assert private.encode() not in every_byte(hub)
        assert private == DIARY or private not in repr(hub.faults.log)  # whether a dataset is private is asked by name
    if private not in PATHS.values():
        assert private not in shown
    if place.startswith(
        ("left out", "facts: path", "tokenizer: name", "rank history: path", "picture", "config: home")
    ):
        assert hub.exists("model", REPO), shown  # what a library wrote, or what does not go, stops nothing


def test_a_refusal_lists_every_place_at_once(hub: Hub, bare: Path):
    text("README.md", f"# Mine\n{TOKEN}\n{HOME}")(bare)
    text("LICENSE", OWN)(bare)
    with pytest.raises(PushError) as refusal:
        push(bare)
    for said in ("README.md:3: a Hugging Face token", "README.md:4: a local path",
                 "LICENSE:2: the value of MY_SERVICE_PASSWORD"):  # fmt: skip
        assert said in str(refusal.value)
