"""How a run is shown: lines for a file, one line that a terminal redraws, and the trackers that a recipe names."""

import os
import re
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from adaptive_runs import adapted, build
from conftest import outcome
from transformers import TrainerControl, TrainerState, TrainingArguments

from hf_lora_ext import ConfigError, ResourceCallback, load_recipe
from hf_lora_ext.callbacks import ProgressLines
from hf_lora_ext.runs import trackers
from hf_lora_ext.runs.recipe import parse_recipe
from hf_lora_ext.runs.run_folder import claimed
from hf_lora_ext.runs.trackers import check_trackers

EVALUATED = {"max_steps": 3, "eval_strategy": "steps", "eval_steps": 3, "include_num_input_tokens_seen": "all"}


class Drawn:
    def __init__(self) -> None:
        self.shown: list[tuple[int, int, str]] = []
        self.closed = 0

    def show(self, step: int, steps: int, words: str) -> None:
        self.shown.append((step, steps, words))

    def close(self) -> None:
        self.closed += 1


def test_a_line_says_loss_tokens_memory_and_time_left(tiny_model: Path, tmp_path: Path):
    lines: list[str] = []
    build(adapted(tiny_model), tmp_path, ResourceCallback(), ProgressLines(lines.append), **EVALUATED).train()
    assert len(lines) == 4
    number = r"[\d,.]+"
    said = rf"  step     2/3  loss {number}  {number} tokens/s  {number} GiB  {number} s/step  0:\d\d left"
    assert re.fullmatch(said, lines[1])
    assert re.fullmatch(rf"  step     3/3  held-out loss {number}", lines[-1])


def test_without_measured_resources_a_line_says_less(tiny_model: Path, tmp_path: Path):
    lines: list[str] = []
    build(adapted(tiny_model), tmp_path, ProgressLines(lines.append), max_steps=1).train()
    assert re.fullmatch(r"  step     1/1  loss [\d.]+  [\d.]+ s/step  0:00 left", lines[0])


def test_a_bar_is_drawn_at_each_step_and_closed_and_the_held_out_loss_is_said(tiny_model: Path, tmp_path: Path):
    lines, bar = [], Drawn()
    build(adapted(tiny_model), tmp_path, ResourceCallback(), ProgressLines(lines.append, bar), **EVALUATED).train()
    assert [step for step, _, _ in bar.shown] == [1, 1, 2, 2, 3, 3]  # at the step, and once its log is there
    assert bar.closed == 1
    assert "tokens/s" in bar.shown[-1][2]
    assert len(lines) == 1


def test_where_the_loss_says_nothing_lines_and_bar_tell_what_does():
    state = TrainerState(global_step=2, max_steps=4)
    args, control = TrainingArguments(report_to="none"), TrainerControl()
    lines: list[str] = []
    drawn = Drawn()
    for bar in (None, drawn):
        shown = ProgressLines(lines.append, bar, ("reward",))
        shown.on_train_begin(args, state, control)
        shown.on_log(args, state, control, logs={"loss": 1e-4, "reward": 0.5})
        shown.on_evaluate(args, state, control, metrics={"eval_loss": 1e-4, "eval_reward": 0.25})
    assert lines[0].startswith("  step     2/4  reward 0.500  ")
    assert lines[1:] == ["  step     2/4  held-out reward 0.250"] * 2
    assert drawn.shown[-1][2].startswith("reward 0.500  ")


def screen(command: list[str], **environment: str) -> str:
    """Run a command at the other end of a terminal, and return what it wrote there."""
    main, terminal = os.openpty()
    process = subprocess.Popen(command, stderr=terminal, stdout=subprocess.DEVNULL, env=os.environ | environment)
    os.close(terminal)
    seen, began = b"", time.monotonic()
    while time.monotonic() - began < 500:
        if select.select([main], [], [], 0.2)[0]:
            try:
                seen += os.read(main, 65536)
            except OSError:  # the other end is closed
                break
        elif process.poll() is not None:
            break
    assert process.wait(60) == 0
    return seen.decode("utf8", "replace")


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="no terminals to open on this system")
def test_on_a_terminal_the_training_is_one_line_and_others_stay_whole(tiny_recipe: Path):
    command = [sys.executable, "-m", "hf_lora_ext.cli", "train", str(tiny_recipe), "samples=0"]
    text = screen(command, TERM="xterm-256color", COLUMNS="100")
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    assert re.search(r"━+ +6/6 loss [\d.]+  [\d,]+ tokens/s  [\d.]+ GiB  0:00 left", plain)
    assert re.search(r"[\r\n] *step     3/6  held-out loss [\d.]+ *[\r\n]", plain)
    assert "s/step" not in plain
    assert "\x1b[?25h" in text  # the cursor is back


def test_in_a_file_there_is_a_line_for_each_log(capsys: pytest.CaptureFixture[str], tiny_recipe: Path):
    code, _, err = outcome(capsys, "train", tiny_recipe, "samples=0")
    assert code == 0, err
    assert len(re.findall(r"step +\d/6  loss [\d.]+  [\d,]+ tokens/s", err)) == 6
    assert "\x1b" not in err


# --- trackers ---------------------------------------------------------------------------------------------------


def recipe_with(report_to: Any) -> Any:
    data = {"source": "x.jsonl"}
    return parse_recipe({"model": "m", "output_dir": "o", "data": data, "training": {"report_to": report_to}})


@pytest.mark.parametrize("report_to", ["none", "tensorboard", ["wandb", "mlflow"], ["trackio"]])
def test_a_recipe_may_name_trackers(report_to: Any):
    assert recipe_with(report_to).training["report_to"] == report_to


@pytest.mark.parametrize("report_to", ["all", "tensorbord", ["wandb", "x"], 3, []])
def test_other_trackers_are_refused_with_what_there_is(report_to: Any):
    with pytest.raises(ConfigError, match="needed tensorboard, wandb, trackio, mlflow, a list of them, or none"):
        recipe_with(report_to)


def test_a_tracker_that_is_not_installed_is_told_before_anything_loads(
    tiny_recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(trackers, "find_spec", lambda package: None)
    code, _, error = outcome(
        capsys, "train", tiny_recipe, "training.report_to=tensorboard", "data.source=missing.jsonl"
    )
    assert code == 2
    assert "tensorboard is not installed; pip install tensorboard" in error
    assert not (tmp_path / "run").exists()


def test_one_of_the_packages_of_a_tracker_is_enough(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(trackers, "find_spec", lambda package: "there" if package == "tensorboardX" else None)
    check_trackers("tensorboard")
    check_trackers("none")
    check_trackers(None)
    with pytest.raises(ConfigError, match="wandb is not installed"):
        check_trackers(["tensorboard", "wandb"])


def test_where_a_run_is_reported_does_not_make_it_another_run(tiny_recipe: Path):
    with claimed(load_recipe(tiny_recipe)) as folder:
        (folder.root / "facts.json").write_text("{}")
    with claimed(load_recipe(tiny_recipe, ["training.report_to=tensorboard"])) as folder:
        assert folder.root.is_dir()


def test_a_run_that_failed_before_its_first_checkpoint_leaves_its_folder_to_a_mended_recipe(tiny_recipe: Path):
    with claimed(load_recipe(tiny_recipe)) as folder:
        folder.log.write_text('{"step": 1}\n')
    with claimed(load_recipe(tiny_recipe, ["seed=3"])) as folder:
        assert "seed: 3" in (folder.root / "recipe.yaml").read_text()
