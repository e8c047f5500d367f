"""The command line: help with an example, one clear message and exit code 2 for whatever is wrong."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from conftest import hf_lora, outcome, write_jsonl

from hf_lora_ext.cli import VERBS
from hf_lora_ext.errors import ConfigError


@pytest.mark.parametrize("verb", [[], *([verb] for verb in VERBS)])
def test_help_shows_an_example(capsys: pytest.CaptureFixture[str], verb: list[str]):
    code, out, _ = outcome(capsys, *verb, "--help")
    assert code == 0
    assert "Example" in out
    assert f"hf-lora {verb[0] if verb else 'train'} " in out.partition("Example")[2]
    assert max(map(len, out.splitlines())) <= 100


@pytest.mark.parametrize("verb", [[], *([verb] for verb in VERBS)])
def test_help_names_exit_codes(capsys: pytest.CaptureFixture[str], verb: list[str]):
    assert "Exit code" in " ".join(outcome(capsys, *verb, "--help")[1].split())


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["plan"],
        ["plan", "7B", "--gp", "24"],
        ["plan", "7B", "--gpu", "much"],
        ["preset", "7B", "--rank", "some"],
        ["preset", "7B", "--json", "--emit", "python"],
        ["train"],
    ],
)
def test_a_command_that_is_misspelt_is_one_line_that_points_to_the_help(capsys, arguments: list[str]):
    code, out, err = outcome(capsys, *arguments)
    assert (code, out) == (2, "")
    assert len(err.strip().splitlines()) == 1
    assert err.startswith("hf-lora: ")
    assert "--help`" in err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["trian", "quickstart"], "no command 'trian'; did you mean `train`?"),
        (["plan", "7B", "--gpu", "24GB"], "'24GB' is not a number of GiB; write it without a unit, e.g. 24"),
        (["plan", "7B", "--host-gib", "much"], "'much' is not a number of GiB"),
        (["train", "mine.jsonl"], "is a file of examples, needed a recipe; `hf-lora train quickstart data.source="),
        (["train", "quickstart", "seed", "=", "1"], "write it without spaces around ="),
        (["init", "qlora7b"], "did you mean `qlora_7b`?; see `hf-lora recipes`"),
    ],
)
def test_a_slip_of_the_pen_is_told_how_to_go_on(capsys, arguments: list[str], told: str):
    code, out, err = outcome(capsys, *arguments)
    assert (code, out) == (2, "")
    assert told in err


@pytest.mark.parametrize(("raised", "code"), [(KeyboardInterrupt, 130), (ConfigError("no"), 2)])
def test_exit_codes_say_how_it_ended(capsys, monkeypatch, raised, code):
    def fail(*args, **kwargs):
        raise raised

    monkeypatch.setattr("hf_lora_ext.cli.preset.preset", fail)
    assert outcome(capsys, "preset", "7B")[0] == code


def test_what_would_move_the_cursor_is_shown_escaped(capsys, monkeypatch):
    def fails(**_):
        raise ConfigError("no model \x1b[2J\x00me/\u202ea\nbut über-α")

    monkeypatch.setattr("hf_lora_ext.cli._group.main", fails)
    assert outcome(capsys, "plan")[2] == "hf-lora: no model \\x1b[2J\\x00me/\\u202ea\nbut über-α\n"


def test_a_bug_keeps_its_traceback(capsys, monkeypatch):
    monkeypatch.setattr("hf_lora_ext.cli.preset.preset", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        outcome(capsys, "preset", "7B")


def test_the_first_line_of_each_verbs_help_is_the_one_listed(capsys: pytest.CaptureFixture[str]):
    for verb, summary in VERBS.items():
        assert summary in outcome(capsys, verb, "--help")[1]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["rank=0"], "rank: found 0, needed a whole number from 1"),
        (["training.learning_rat=1e-4"], "did you mean `learning_rate`?"),
        (["training.learning_rate=fast"], "training.learning_rate: found 'fast', needed a number above 0"),
        (["data.source=missing.jsonl"], "no such file"),
        (["data.columns={prompt: question}"], "has no column 'question'"),
        (["model=./nowhere"], "no such folder"),
        (["model=nobody"], "nobody"),
        (["seed"], "is not key=value"),
        (["data.source=builtin:python-docstring"], "did you mean `python-docstrings`?"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], tiny_recipe: Path, overrides: list[str], message: str
):
    code, out, err = outcome(capsys, "train", tiny_recipe, *overrides, "--quiet")
    assert code == 2
    assert out == ""
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert not (tiny_recipe.parent / "run" / "adapter_model.safetensors").exists()


def test_all_problems_are_named_at_once(capsys: pytest.CaptureFixture[str], tiny_recipe: Path):
    code, _, err = outcome(capsys, "train", tiny_recipe, "rank=0", "methd=lora", "training.max_steps=-1")
    assert code == 2
    assert "3 problems" in err
    assert "did you mean `method`?" in err


def test_a_recipe_that_is_not_there_or_not_yaml(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    broken = tmp_path / "broken.yaml"
    broken.write_text("model: [unclosed", encoding="utf8")
    assert "no such file" in outcome(capsys, "train", tmp_path / "none.yaml")[2]
    code, _, err = outcome(capsys, "train", broken)
    assert code == 2
    assert "not valid YAML at line 1" in err


def test_wrong_columns_name_those_found_and_how_to_map_them(
    capsys: pytest.CaptureFixture[str], tiny_recipe: Path, tmp_path: Path
):
    file = write_jsonl(tmp_path / "wrong.jsonl", [{"question": "a", "answer": "b"}] * 3)
    code, _, err = outcome(capsys, "train", tiny_recipe, f"data.source={file}", "-q")
    assert code == 2
    assert "answer" in err
    assert "data.columns: {prompt: question, completion: answer}" in err


def test_json_is_the_only_thing_on_standard_output(capsys: pytest.CaptureFixture[str], tiny_recipe: Path):
    result = hf_lora("train", tiny_recipe, "--json", "--quiet")
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout)
    assert answer["status"] == "trained"
    assert answer["facts"]["run"]["finished"] is True
    assert result.stderr == ""
    _, shown, _ = outcome(capsys, "train", tiny_recipe)
    assert "already finished" in " ".join(shown.split())
    assert "trainable parameters" in shown


@pytest.fixture
def small_disk(tmp_path: Path):
    """A real file system of 66 MiB: enough to pass the check before the run, too little to finish it."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = (
        os.geteuid() == 0
        and subprocess.run(["mount", "-t", "tmpfs", "-o", "size=66m", "tmpfs", folder], check=False).returncode == 0
    )
    if not mounted:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_disk_too_small_is_refused_before_training(capsys, tiny_recipe: Path, small_disk: Path):
    (small_disk / "ballast").write_bytes(b"x" * (60 * 2**20))
    code, _, err = outcome(capsys, "train", tiny_recipe, f"output_dir={small_disk / 'run'}", "-q")
    assert code == 2
    assert "MiB free, the run needs about" in err
    assert not (small_disk / "run").exists()


def test_a_disk_that_fills_up_is_one_message_and_the_run_goes_on_later(capsys, tiny_recipe: Path, small_disk: Path):
    folder = small_disk / "run"
    ballast = small_disk / "ballast"

    def fill() -> None:
        with ballast.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(b"x" * 4096)
            except OSError:
                return

    from hf_lora_ext.callbacks import ProgressLines

    said = ProgressLines.on_log
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ProgressLines, "on_log", lambda self, *a, **k: (fill(), said(self, *a, **k))[1])
        code, _, err = outcome(capsys, "train", tiny_recipe, f"output_dir={folder}", "-q")
    assert code == 2
    assert "is full" in err
    ballast.unlink()
    assert outcome(capsys, "train", tiny_recipe, f"output_dir={folder}", "-q")[0] == 0
    assert (folder / "README.md").is_file()
