"""A run pushes while it trains and when it ends, over the wire; whatever the Hub does, training ends as it would."""

import json
import logging
import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from adaptive_runs import adapted, build, callback
from adaptive_runs import load as load_base
from git_hub_access import READ_TOKEN, WRITE_TOKEN
from git_hub_state import Hub
from huggingface_hub import HfApi
from peft import AdaLoraConfig, LoraConfig
from push_runs import REPO, pushing_to
from safetensors.torch import load
from transformers import TrainerCallback

from hf_lora_ext import AdaLoraCallback, ConfigError, FactsCallback, PushAdapterCallback, PushError
from hf_lora_ext.callbacks import PlainAdapterCallback
from hf_lora_ext.push.queue import AGAIN
from hf_lora_ext.push.release import CARD, CONFIG, WEIGHTS

LICENCE = "mit"
SLOW_SECONDS = 3.0


@pytest.fixture
def hub(git_hub: Hub):
    with pushing_to(git_hub):
        yield git_hub


def pusher(**changes: Any) -> PushAdapterCallback:
    """A callback whose lines are kept, and which does not verify unless a test is about that."""
    lines: list[str] = []
    made = PushAdapterCallback(REPO, **({"license": LICENCE, "verify": False, "say": lines.append} | changes))
    made.lines = lines
    return made


def run(tiny_model: Path, folder: Path, *callbacks: TrainerCallback, resume: str | None = None, **settings: Any):
    chosen = {"max_steps": 4, "save_strategy": "steps", "save_steps": 1} | settings
    trainer = build(adapted(tiny_model), folder, *callbacks, **chosen)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def weights(folder: Path) -> bytes:
    return (folder / WEIGHTS).read_bytes()


class Each(TrainerCallback):
    """Calls a function after each step."""

    def __init__(self, act):
        self.act = act

    def on_step_end(self, args, state, control, **kwargs):
        self.act(state.global_step)


def settled(push: PushAdapterCallback) -> Each:
    """Waits after each step until nothing is on its way, so that no save is skipped."""
    return Each(lambda step: push.queue_.wait(60))


def test_every_second_save_and_the_end_go(hub: Hub, tiny_model: Path, tmp_path: Path):
    push = pusher(every_saves=2)
    run(tiny_model, tmp_path, push, settled(push), max_steps=5)
    assert hub.history(REPO) == [
        "End of training, step 5", "Step 4, on the way", "Step 2, on the way", "initial commit",
    ]  # fmt: skip
    assert hub.files(REPO)[WEIGHTS] == weights(tmp_path / "checkpoint-5")
    assert [result.status for result in push.results_] == ["pushed"] * 3
    assert push.lines[-1] == f"push: End of training, step 5: pushed, {REPO} at {hub.head(REPO)}"
    assert not any((tmp_path / "to_push").iterdir())


def test_the_end_is_verified_and_tagged_and_nothing_but_the_adapter_goes(hub: Hub, tiny_model: Path, tmp_path: Path):
    token = "hf_" + "t" * 34
    (tmp_path / ".env").write_text("x=1")
    run(tiny_model, tmp_path, pusher(tag="v1", verify=True), hub_token=token)
    assert hub.head(REPO, "v1") == hub.head(REPO)
    assert set(hub.files(REPO)) == {CARD, CONFIG, WEIGHTS, ".gitattributes"}
    everything = b"".join(hub.files(REPO).values())
    assert token.encode() not in everything
    assert str(tmp_path).encode() not in everything


def losses_of(values: list[float]) -> TrainerCallback:
    class Told(TrainerCallback):
        """Puts losses of the test's own in the place of the measured ones."""

        def on_evaluate(self, args, state, control, *, metrics, **kwargs):
            metrics["eval_loss"] = values[state.global_step - 1]

    return Told()


@pytest.mark.parametrize("loads_best", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_best_goes_when_it_is_the_best_and_again_at_the_end(
    hub: Hub, tiny_model: Path, tmp_path: Path, loads_best: bool
):
    push = pusher(best=True, tag="best", verify=True)
    run(
        tiny_model, tmp_path, losses_of([3.0, 1.0, 2.0, 2.5]), push, settled(push), eval_strategy="steps",
        eval_steps=1, metric_for_best_model="loss", greater_is_better=False, load_best_model_at_end=loads_best,
        save_total_limit=1,
    )  # fmt: skip
    assert hub.history(REPO) == ["Step 2, best so far", "Step 1, best so far", "initial commit"]
    assert hub.files(REPO)[WEIGHTS] == weights(tmp_path / "checkpoint-2")
    assert hub.head(REPO, "best") == hub.head(REPO)
    assert push.results_[-1].status == "already there"


def test_a_checkpoint_that_is_rotated_away_while_it_waits_is_pushed_whole(hub: Hub, tiny_model: Path, tmp_path: Path):
    push = pusher(every_saves=1, at_end=False)
    kept: dict[int, bytes] = {}
    gate = threading.Event()
    hub.create(REPO)
    hub.faults.add("preupload", "before", lambda: gate.wait(30))

    def act(step: int) -> None:
        if step > 1:
            kept[step - 1] = weights(tmp_path / f"checkpoint-{step - 1}")
        if step == 4:
            assert not (tmp_path / "checkpoint-2").exists()
            gate.set()
            push.queue_.wait(60)

    run(tiny_model, tmp_path, push, Each(act), save_total_limit=1)
    assert hub.history(REPO)[1:] == ["Step 3, on the way", "Step 1, on the way", "initial commit"]
    assert "push: Step 2, on the way: skipped, Step 3, on the way takes its place" in push.lines
    commits = [result.commit for result in push.results_]
    assert [hub.files(REPO, commit)[WEIGHTS] for commit in commits[:2]] == [kept[1], kept[3]]


def test_a_slow_hub_holds_no_step_up(hub: Hub, tiny_model: Path, tmp_path: Path):
    hub.create(REPO)
    hub.faults.add("preupload", "before", lambda: threading.Event().wait(SLOW_SECONDS))
    clock: list[float] = []
    push = pusher(every_saves=1)
    run(tiny_model, tmp_path, push, Each(lambda step: clock.append(time.monotonic())), max_steps=6)
    steps = clock[-1] - clock[0]
    print(f"5 steps with their saves in {steps:.2f} s, beside a push of {SLOW_SECONDS:.0f} s and more")
    assert steps < SLOW_SECONDS < time.monotonic() - clock[0]
    assert hub.history(REPO)[:2] == ["End of training, step 6", "Step 1, on the way"]


def test_the_hub_away_all_the_time_leaves_a_trained_run_and_a_command(
    hub: Hub, tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    away = [hub.faults.add(where, "before", "drop", times=10_000) for where in ("whoami", "info")]
    push = pusher(every_saves=2, tag="v1", verify=True)
    with caplog.at_level(logging.WARNING, logger="hf_lora_ext"):
        trainer = run(tiny_model, tmp_path / "out", push)
    assert trainer.state.global_step == 4
    assert "the Hub is away, so what it alone knows was not checked" in caplog.text
    assert "End of training, step 4 was not pushed, and training goes on" in caplog.text
    folder = tmp_path / "out" / "to_push" / "end"
    command = f"hf-lora push {folder} {REPO} --tag v1 --license mit"
    assert push.lines[-1] == f"push: {REPO} does not hold this run's last adapter; it is kept: {command}"
    assert command in (folder / AGAIN).read_text()
    assert [kept.name for kept in folder.parent.iterdir()] == ["end"]
    for fault in away:
        fault.times = 0
    from hf_lora_ext import push_adapter

    assert push_adapter(folder, REPO, license=LICENCE, tag="v1").status == "pushed"
    assert hub.files(REPO)[WEIGHTS] == weights(tmp_path / "out" / "checkpoint-4")
    assert AGAIN not in hub.files(REPO)


def test_what_is_kept_stays_as_it_was_when_its_checkpoint_is_written_anew(hub: Hub, tiny_model: Path, tmp_path: Path):
    hub.create(REPO)
    hub.faults.add("commit", "before", 403)
    push = pusher(every_saves=2, at_end=False)
    run(tiny_model, tmp_path, push, settled(push), max_steps=3)
    kept, checkpoint = tmp_path / "to_push" / "step-2", tmp_path / "checkpoint-2"
    assert push.lines[-1].startswith(f"push: {REPO} does not hold this run's last adapter; it is kept: hf-lora push")
    before = weights(kept)
    with (checkpoint / WEIGHTS).open("r+b") as file:
        file.truncate(10)
    assert weights(kept) == before


def test_the_hub_away_for_a_while_costs_that_save_alone(hub: Hub, tiny_model: Path, tmp_path: Path):
    hub.create(REPO)
    away = hub.faults.add("preupload", "before", "drop", times=0)
    push = pusher(every_saves=1, at_end=False)

    def act(step: int) -> None:
        push.queue_.wait(60)
        away.times = 100 if step == 2 else 0

    run(tiny_model, tmp_path, push, Each(act), max_steps=4)
    assert hub.history(REPO) == ["Step 4, on the way", "Step 3, on the way", "Step 1, on the way", "initial commit"]
    assert not any((tmp_path / "to_push").iterdir())


def test_a_push_that_hangs_is_waited_for_so_long_and_no_longer(hub: Hub, tiny_model: Path, tmp_path: Path):
    gate = threading.Event()
    hub.create(REPO)
    hub.faults.add("preupload", "before", lambda: gate.wait(60))
    push = pusher(wait_seconds=0.5)
    try:
        run(tiny_model, tmp_path, push, max_steps=1)
        assert push.lines[-1].startswith("push: goes on while this process lives; if that ends first: hf-lora push")
        assert weights(tmp_path / "to_push" / "end")
    finally:
        gate.set()
        push.queue_.wait(60)
    assert hub.history(REPO)[0] == "End of training, step 1"


class Killed(Exception):
    """Stands for the end of the process."""


def test_a_resumed_run_goes_on_counting_and_pushes_nothing_twice(hub: Hub, tiny_model: Path, tmp_path: Path):
    push = pusher(every_saves=2)

    def stop(step: int) -> None:
        push.queue_.wait(60)
        if step == 5:
            raise Killed

    with pytest.raises(Killed):
        run(tiny_model, tmp_path, push, Each(stop), max_steps=6)
    assert hub.history(REPO) == ["Step 4, on the way", "Step 2, on the way", "initial commit"]
    shutil.rmtree(tmp_path / "checkpoint-4")  # as if it had been torn
    (tmp_path / "to_push" / "step-9").mkdir()  # what a killed run leaves
    again = pusher(every_saves=2)
    run(tiny_model, tmp_path, again, settled(again), max_steps=6, resume=str(tmp_path / "checkpoint-3"))
    assert "push: Step 4, on the way is on me/sums already" in again.lines
    assert hub.history(REPO)[:3] == ["Step 6, on the way", "Step 4, on the way", "Step 2, on the way"]
    assert hub.files(REPO)[WEIGHTS] == weights(tmp_path / "checkpoint-6")
    assert not any((tmp_path / "to_push").iterdir())


def test_the_card_is_of_the_facts_at_that_moment(hub: Hub, tiny_model: Path, tmp_path: Path):
    push = pusher(every_saves=2)
    run(tiny_model, tmp_path, push, FactsCallback(), settled(push), max_steps=3)
    on_the_way, end = (json.loads(hub.files(REPO, r.commit)["facts.json"]) for r in push.results_)
    assert (on_the_way["run"]["steps"], end["run"]["steps"]) == (2, 3)
    assert len(end["loss_history"]) == 1 + len(on_the_way["loss_history"])
    assert "loss_curve.png" in hub.files(REPO)
    assert str(tmp_path) not in json.dumps([on_the_way, end])


def test_a_checkpoint_over_the_budget_stays_and_the_end_is_within_it(hub: Hub, tiny_model: Path, tmp_path: Path):
    push = pusher(every_saves=1)
    ranks = callback()
    run(tiny_model, tmp_path, push, ranks, settled(push), max_steps=12)
    assert any("checkpoint-1 stays here" in line and "over the budget" in line for line in push.lines)
    assert len(hub.history(REPO)) > 2
    for result in push.results_:
        stored = load(hub.files(REPO, result.commit)[WEIGHTS])
        assert sum(tensor.numel() for tensor in stored.values()) <= ranks.budget_


@pytest.mark.slow
def test_a_finished_run_that_is_started_again_makes_no_commit(hub: Hub, tiny_model: Path, tmp_path: Path):
    run(tiny_model, tmp_path, pusher(tag="v1", verify=True), max_steps=2)
    before = hub.history(REPO)
    again = pusher(tag="v1", verify=True)
    run(tiny_model, tmp_path, again, max_steps=2, resume=str(tmp_path / "checkpoint-2"))
    assert hub.history(REPO) == before
    assert again.results_[-1].status == "already there"


@pytest.mark.parametrize(
    ("changes", "settings", "said"),
    [
        ({"token": READ_TOKEN}, {}, "could not be pushed to me/sums: the token of me only reads"),
        ({"license": None}, {}, "nothing says what licence"),
        ({"private": False}, {}, "is private, you asked for public"),
        ({"tag": "taken", "verify": True}, {}, "tag taken of me/sums is taken"),
        ({"best": True}, {}, "set metric_for_best_model"),
    ],
)
def test_what_cannot_be_pushed_is_refused_before_the_first_step(
    hub: Hub, tiny_model: Path, tmp_path: Path, changes: dict, settings: dict, said: str
):
    hub.create(REPO, private=True)
    HfApi(endpoint=hub.endpoint, token=WRITE_TOKEN).create_tag(REPO, tag="taken")
    steps: list[int] = []
    with pytest.raises((ConfigError, PushError), match=said) as refused:
        run(tiny_model, tmp_path, Each(steps.append), pusher(**changes), **settings)
    assert steps == []
    assert "again: " not in str(refused.value)


def test_a_run_that_nobody_is_logged_in_for_is_refused_before_the_first_step(
    hub: Hub, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
    steps: list[int] = []
    with pytest.raises(PushError, match="could not be pushed to me/sums: no token was found; log in with"):
        run(tiny_model, tmp_path, Each(steps.append), pusher())
    assert steps == []


def test_a_path_in_the_output_folder_goes_where_it_is_allowed(hub: Hub, tiny_model: Path, tmp_path: Path):
    (tmp_path / CARD).write_text("---\nlicense: mit\n---\nData in /data/sums/train.json\n")
    run(tiny_model, tmp_path, push := pusher(allow=["/data/sums/train.json"]), save_steps=4)
    assert push.last_.problem is None
    assert push.results_[-1].plan.allowed == ("/data/sums/train.json",)


def test_a_secret_in_the_output_folder_is_refused_before_the_first_step(hub: Hub, tiny_model: Path, tmp_path: Path):
    (tmp_path / CARD).write_text("---\nlicense: mit\n---\nlog in with hf_" + "a" * 34 + "\n")
    with pytest.raises(PushError, match=r"README\.md"):
        run(tiny_model, tmp_path, pusher())
    assert not list(tmp_path.glob("checkpoint-*"))


def only_the_end(tiny_model: Path, folder: Path, config: Any, *callbacks: TrainerCallback) -> None:
    from peft import get_peft_model

    build(get_peft_model(load_base(tiny_model), config), folder, *callbacks, max_steps=4, save_strategy="steps",
          save_steps=1).train()  # fmt: skip


def test_of_pissa_only_the_end_goes_for_the_unchanged_base(hub: Hub, tiny_model: Path, tmp_path: Path):
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights="pissa")
    with pytest.raises(ConfigError, match="give the trainer PlainAdapterCallback too"):
        only_the_end(tiny_model, tmp_path, config, pusher())
    push = pusher(every_saves=1)
    only_the_end(tiny_model, tmp_path, config, push, PlainAdapterCallback())
    assert hub.history(REPO) == ["End of training, step 4", "initial commit"]
    assert hub.files(REPO)[WEIGHTS] == weights(tmp_path / "plain_adapter")
    assert any("no checkpoint goes to me/sums on the way: init pissa changes the base" in line for line in push.lines)


@pytest.mark.slow
def test_of_adalora_only_the_end_goes_as_plain_lora(hub: Hub, tiny_model: Path, tmp_path: Path):
    config = AdaLoraConfig(init_r=4, target_r=2, total_step=4, tinit=1, tfinal=1, target_modules=["q_proj", "v_proj"],
                           task_type="CAUSAL_LM")  # fmt: skip
    only_the_end(tiny_model, tmp_path, config, AdaLoraCallback(), pusher(every_saves=1))
    assert hub.history(REPO) == ["End of training, step 4", "initial commit"]
    assert json.loads(hub.files(REPO)[CONFIG])["peft_type"] == "LORA"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"every_saves": 0}, "a whole number from 1"),
        ({"every_saves": 2, "best": True}, "exclude each other"),
        ({"at_end": False}, "nothing would ever be pushed"),
        ({"at_end": False, "every_saves": 1, "tag": "v1"}, "a tag is for what the training ends with"),
        ({"tag": "v1", "verify": False}, "a tag says that the push was verified"),
        ({"wait_seconds": 0}, "must be above 0"),
    ],
)
def test_arguments_that_contradict_each_other_are_refused_at_once(wrong: dict, said: str):
    with pytest.raises(ConfigError, match=said):
        PushAdapterCallback(REPO, **wrong)


@pytest.mark.slow
def test_pushing_changes_no_weight_of_the_training(hub: Hub, tiny_model: Path, tmp_path: Path):
    run(tiny_model, tmp_path / "with", pusher(every_saves=1, verify=True))
    run(tiny_model, tmp_path / "without")
    assert weights(tmp_path / "with" / "checkpoint-4") == weights(tmp_path / "without" / "checkpoint-4")


@pytest.mark.slow
def test_the_weights_of_what_waits_are_shared_with_the_checkpoint(hub: Hub, tiny_model: Path, tmp_path: Path):
    gate = threading.Event()
    hub.create(REPO)
    hub.faults.add("whoami", "before", lambda: gate.wait(30), skip=1)
    push = pusher(every_saves=1)
    seen: list[int] = []

    def act(step: int) -> None:
        if step == 3:
            seen.append(os.stat(tmp_path / "checkpoint-2" / WEIGHTS).st_nlink)
            gate.set()

    run(tiny_model, tmp_path, push, Each(act), max_steps=3)
    assert seen == [2]
