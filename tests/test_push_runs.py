"""Runs that push: of a recipe, killed and resumed, and in two processes."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import hf_lora, run_python
from git_hub_access import READ_TOKEN, WRITE_TOKEN
from git_hub_state import Hub
from launching import launched
from push_runs import REPO, pushing_to

from hf_lora_ext import ConfigError, PushError, Recipe, load_recipe, run_recipe
from hf_lora_ext.push.release import WEIGHTS
from hf_lora_ext.runs.push_choice import PushChoice

SCRIPT = Path(__file__).parent / "pushing_run.py"
PUSH = PushChoice(repo=REPO, tag="v1", license="mit")


@pytest.fixture
def hub(git_hub: Hub):
    with pushing_to(git_hub):
        yield git_hub


@pytest.fixture
def recipe(tiny_recipe: Path) -> Recipe:
    return load_recipe(tiny_recipe, ["samples=0", "training.max_steps=4"])


def test_a_recipe_s_run_is_pushed_on_the_way_and_when_its_card_is_written(hub: Hub, recipe: Recipe):
    lines: list[str] = []
    result = run_recipe(replace(recipe, push=replace(PUSH, every_saves=1)), say=lines.append)
    assert (result.push.status, result.push.tag, result.push_problem) == ("pushed", "v1", None)
    assert hub.history(REPO)[0] == "Push adapter"
    assert hub.history(REPO)[-2:] == ["Step 2, on the way", "initial commit"]
    files = hub.files(REPO)
    assert files[WEIGHTS] == (result.folder / WEIGHTS).read_bytes()
    assert json.loads(files["facts.json"])["run"]["finished"]
    assert "push:" not in files["README.md"].decode()
    assert lines.index(f"push     {REPO}, when the run is finished") < lines.index(f"model    {recipe.model}")


@pytest.mark.slow
def test_a_finished_run_is_pushed_when_it_is_asked_for_later(hub: Hub, recipe: Recipe):
    run_recipe(recipe, say=lambda line: None)
    hub.faults.add("whoami", "before", 503, times=100)
    failed = run_recipe(replace(recipe, push=PUSH), say=lambda line: None)
    assert "is finished, and was not pushed: asking the Hub who you are" in failed.push_problem
    assert f"again: `hf-lora push {failed.folder} {REPO} --tag v1 --license mit`" in failed.push_problem
    hub.faults.pending.clear()
    later = run_recipe(replace(recipe, push=PUSH), say=lambda line: None)
    assert (later.status, later.push.status) == ("already finished", "pushed")
    assert run_recipe(replace(recipe, push=PUSH), say=lambda line: None).push.status == "already there"


def test_a_recipe_s_push_that_would_be_refused_is_told_before_anything_is_loaded(git_hub: Hub, recipe: Recipe):
    lines: list[str] = []
    with pushing_to(git_hub, READ_TOKEN), pytest.raises(PushError, match="only reads"):
        run_recipe(replace(recipe, push=PUSH), say=lines.append)
    assert lines == []
    with pushing_to(git_hub), pytest.raises(ConfigError, match="nothing says what licence"):
        run_recipe(replace(recipe, push=replace(PUSH, license=None)), say=lines.append)
    assert not any("step" in line for line in lines)


def environment(hub: Hub) -> dict[str, str]:
    return {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": WRITE_TOKEN, "HF_HOME": str(hub.root / "home")}


def trained(hub: Hub, tiny_model: Path, folder: Path, processes: int = 1, **settings: object):
    """Run the script, alone or in several processes; return the finished process."""
    given = json.dumps({"model": str(tiny_model), "output": str(folder), **settings})
    if processes > 1:
        return launched(processes, str(SCRIPT), given, environment=os.environ | environment(hub))
    return run_python(str(SCRIPT), given, **environment(hub))


@pytest.mark.slow
@pytest.mark.parametrize("where", [None, ("commit", "after"), ("preupload", "before")])
def test_killed_in_the_middle_and_started_again_every_save_is_there_once(
    git_hub: Hub, tiny_model: Path, tmp_path: Path, where: tuple[str, str] | None
):
    if where:  # so that step 4's push is on its way when the process is killed at step 5
        git_hub.faults.add(*where, "slow", skip=1, seconds=20.0)
    done = trained(git_hub, tiny_model, tmp_path / "out", kill_at=5)
    assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]
    again = trained(git_hub, tiny_model, tmp_path / "out")
    assert again.returncode == 0, again.stderr[-3000:]
    titles = git_hub.history(REPO)
    assert titles[0] == "End of training, step 6"
    assert len(titles) == len(set(titles))
    assert titles[-2:] == ["Step 2, on the way", "initial commit"]
    assert git_hub.head(REPO, "v1") == git_hub.head(REPO)
    assert git_hub.files(REPO)[WEIGHTS] == (tmp_path / "out" / "checkpoint-6" / WEIGHTS).read_bytes()
    assert not any((tmp_path / "out" / "to_push").iterdir())


@pytest.mark.slow
def test_of_two_processes_the_main_one_pushes_alone(git_hub: Hub, tiny_model: Path, tmp_path: Path):
    done = trained(git_hub, tiny_model, tmp_path / "out", processes=2)
    assert done.returncode == 0, done.stderr[-3000:]
    told = [json.loads((tmp_path / "out" / f"process-{i}.json").read_text()) for i in (0, 1)]
    assert told == [{"queue": True, "step": 6}, {"queue": False, "step": 6}]
    titles = git_hub.history(REPO)
    assert (titles[0], len(titles)) == ("End of training, step 6", len(set(titles)))


@pytest.mark.slow
def test_the_command_line_pushes_and_says_where(git_hub: Hub, tiny_recipe: Path):
    command = ("train", tiny_recipe, "samples=0", f"push.repo={REPO}", "push.license=mit", "push.private=true")
    done = hf_lora(*command, **environment(git_hub))
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"on the Hub             {REPO} at {git_hub.head(REPO)}, verified" in done.stdout
    git_hub.faults.add("whoami", "before", 503, times=100)
    failed = hf_lora(*command, "--json", **environment(git_hub))
    assert failed.returncode == 2
    assert "again: `hf-lora push" in failed.stderr
    assert json.loads(failed.stdout)["status"] == "already finished"
