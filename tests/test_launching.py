"""`hf-lora train` in two real processes: one folder, one log, the right exit code, and no process left behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from conftest import hf_lora, outcome, write_tiny_recipe
from git_hub_access import WRITE_TOKEN
from git_hub_state import Hub
from push_runs import REPO

from hf_lora_ext import ConfigError, ResumeError, load_recipe, render_card
from hf_lora_ext.hardware import Hardware
from hf_lora_ext.runs.launching import launch, processes_of
from hf_lora_ext.runs.processes import Processes, by_first, find_processes, first_then_others
from hf_lora_ext.runs.run_folder import checkpoint_to_resume

CPU = Hardware(kind="cpu")


def weights(folder: Path) -> bytes:
    return (folder / "adapter_model.safetensors").read_bytes()


def train(recipe: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "hf_lora_ext.cli", "train", str(recipe), *more]


def heed_interrupts() -> None:
    """Let Ctrl-C through to a program, as a terminal does; what a shell starts in its background ignores it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def below(pid: int) -> list[psutil.Process]:
    """The processes of the run that a launcher has started, the first one first."""
    return sorted(psutil.Process(pid).children(), key=lambda process: process.create_time())


def until(true, seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.01)


@pytest.fixture
def long_recipe(tiny_recipe: Path) -> Path:
    """The tiny recipe over more steps, so that it can be stopped between two of them."""
    tiny_recipe.write_text(tiny_recipe.read_text().replace("max_steps: 6", "max_steps: 24"))
    return tiny_recipe


@pytest.fixture(scope="module")
def whole_run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess[str]:
    """The same run, uninterrupted; its folder is `args[-1]`."""
    file = write_tiny_recipe(tmp_path_factory.mktemp("whole"), tiny_model)
    file.write_text(file.read_text().replace("max_steps: 6", "max_steps: 24"))
    done = hf_lora("train", file, "--launch", "ddp2", "--json")
    done.args = [*done.args, str(file.parent / "run")]
    return done


def test_two_processes_leave_one_folder_one_log_and_one_result(whole_run):
    assert whole_run.returncode == 0, whole_run.stderr
    folder = Path(whole_run.args[-1])
    told = json.loads(whole_run.stdout)
    assert (told["status"], told["folder"]) == ("trained", str(folder))
    assert told["facts"]["run"]["examples_per_step"] == 4
    assert (folder / "README.md").read_text() == render_card(told["facts"])
    assert load_recipe(folder / "recipe.yaml").output_dir == str(folder)
    lines = whole_run.stderr.splitlines()
    assert [line for line in lines if "2 processes, each with a batch of its own" in line]
    for once in ("data     ", "model    ", "saving", "step    24/24  loss"):
        assert len([line for line in lines if once in line]) == 1, whole_run.stderr
    assert len([*(folder / "checkpoints" / "checkpoint-24").glob("rng_state_*.pth")]) == 2


@pytest.mark.slow
@pytest.mark.parametrize("victim", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_run_of_which_one_process_is_killed_goes_on_to_the_same_bytes(long_recipe: Path, whole_run, victim: int):
    folder = Path(load_recipe(long_recipe).output_dir)
    process = subprocess.Popen(train(long_recipe, "--launch", "ddp2"), stderr=subprocess.PIPE, text=True)
    until(lambda: (folder / "checkpoints" / "checkpoint-4").exists() or process.poll() is not None)
    both = below(process.pid)
    assert len(both) == 2
    both[victim].send_signal(signal.SIGKILL)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGKILL
    assert f"process {victim} of 2 was killed (SIGKILL), and the others were ended; the same command again" in said
    assert not [one for one in both if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
    assert not (folder / "README.md").exists()
    again = hf_lora("train", long_recipe, "--launch", "ddp2", "--json")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["status"] == "resumed"
    assert weights(folder) == weights(Path(whole_run.args[-1]))


@pytest.mark.parametrize("how", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)])
def test_what_ends_the_launcher_ends_every_process(long_recipe: Path, how: signal.Signals):
    folder = Path(load_recipe(long_recipe).output_dir)
    endless = train(long_recipe, "training.max_steps=100000", "--launch", "ddp2")
    with subprocess.Popen(endless, stderr=subprocess.PIPE, text=True, preexec_fn=heed_interrupts) as process:
        try:
            until(lambda: (folder / "checkpoints" / "checkpoint-2").exists() or process.poll() is not None)
            both = below(process.pid)
            assert len(both) == 2
            process.send_signal(how)
            _, said = process.communicate(timeout=60)
        finally:
            for one in [*below(process.pid), process] if process.poll() is None else []:
                one.kill()
    assert process.returncode == (130 if how == signal.SIGINT else -how)
    assert ("interrupted; the same command again goes on" in said) == (how == signal.SIGINT)
    until(lambda: not [one for one in both if one.is_running() and one.status() != psutil.STATUS_ZOMBIE], 30)


def test_what_is_wrong_is_told_once_with_the_exit_code_of_one_process(tiny_recipe: Path):
    done = hf_lora("train", tiny_recipe, "--launch", "ddp2", "targets=[dense_4h]")
    assert done.returncode == 2
    assert [line for line in done.stderr.splitlines() if line.startswith("hf-lora:")] == [
        "hf-lora: targets ('dense_4h',) match no module of tiny-llama; use all-linear"
    ]


@pytest.mark.slow
def test_two_processes_fetch_the_model_once_and_push_once(git_hub: Hub, tiny_model: Path, tiny_recipe: Path):
    git_hub.create_from("me/tiny", tiny_model)
    git_hub.push("me/tiny", {"README.md": b"---\nlicense: apache-2.0\n---\n"})
    own = {"HF_ENDPOINT": git_hub.endpoint, "HF_TOKEN": WRITE_TOKEN, "HF_HOME": str(git_hub.root / "home")}
    wishes = ("model=me/tiny", "samples=0", f"push.repo={REPO}", "push.private=true")
    done = hf_lora("train", tiny_recipe, *wishes, "--launch", "ddp2", "--json", **own)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["push"]["status"] == "pushed"
    assert git_hub.history(REPO) == ["Push adapter", "initial commit"]
    fetched = [one for one in git_hub.faults.log if "me/tiny/" in one.path and one.path.endswith("model.safetensors")]
    assert len([one for one in fetched if one.method == "GET"]) == 1


@pytest.mark.slow
def test_it_runs_under_accelerate_launch_by_hand(tiny_recipe: Path):
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--num_processes", "2",
               "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--multi_gpu",
               "--main_process_port", "0", "-m", *train(tiny_recipe, "--json")[2:]]  # fmt: skip
    done = subprocess.run(command, env=os.environ, capture_output=True, text=True, timeout=580, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout)["facts"]["run"]["examples_per_step"] == 4


def test_another_number_of_processes_does_not_go_on_with_a_run(whole_run):
    folder = Path(whole_run.args[-1]) / "checkpoints"
    assert checkpoint_to_resume(folder, 2) == folder / "checkpoint-24"
    with pytest.raises(ResumeError, match=r"written by 2 processes, and here one process .* --launch ddp2"):
        checkpoint_to_resume(folder, 1)
    with pytest.raises(ResumeError, match="here 4 processes"):
        checkpoint_to_resume(folder, 4)


def test_a_process_that_fails_alone_is_quoted(capsys):
    script = "import os, sys; print('I am', os.environ['RANK']); sys.exit(3 if os.environ['RANK'] == '1' else 0)"
    said: list[str] = []
    assert launch([sys.executable, "-c", script], 2, said.append) == 3
    assert said == ["hf-lora: process 1 of 2 ended with 3; it said last:", "I am 1"]


@pytest.mark.parametrize(
    ("asked", "found", "message"),
    [
        ("fsdp2", CPU, r"--launch fsdp2: needed ddp and a number.*accelerate launch --config_file"),
        ("ddp0", CPU, "needed ddp and a number"),
        ("ddp4", Hardware(kind="cuda", devices=2), "found 2 GPUs here, needed 4, one for each process; use ddp2"),
        ("ddp2", Hardware(kind="mps"), "one Apple GPU"),
    ],
)
def test_a_launch_that_cannot_be_is_refused(asked: str, found: Hardware, message: str):
    with pytest.raises(ConfigError, match=message):
        processes_of(asked, found)


def test_a_cpu_takes_any_number_of_processes_and_a_card_one():
    assert (processes_of("ddp3", CPU), processes_of("ddp2", Hardware(kind="cuda", devices=8))) == (3, 2)


def test_a_process_knows_its_place_by_torch_s_names():
    assert find_processes({}) == find_processes({"RANK": "1", "WORLD_SIZE": "2"}) == Processes()
    four = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    here = find_processes(four)
    assert (here.is_first, here.machines) == (False, 2)


def test_one_process_alone_does_its_work_at_once():
    assert by_first(lambda: 1) == first_then_others(lambda: 1) == 1


@pytest.mark.parametrize("sharding", ["fsdp", "zero3"])
def test_weights_that_are_shared_out_are_refused_where_accelerate_did_not_start_it(
    capsys, tiny_recipe: Path, sharding: str, monkeypatch
):
    code, _, err = outcome(capsys, "train", tiny_recipe, f"sharding={sharding}")
    assert code == 2
    assert f"sharding {sharding} shares the weights out" in err
    assert "accelerate launch --config_file FILE" in err


def test_the_file_for_accelerate_is_written_for_the_declared_hardware(capsys, tmp_path: Path):
    from accelerate.commands.config.config_args import load_config_from_file

    file = tmp_path / "new" / "fsdp.yaml"
    code, out, _ = outcome(capsys, "train", "qlora_70b_fsdp", "--accelerate-config", file)
    assert (code, out) == (
        0,
        f"wrote {file}; next: accelerate launch --config_file {file} -m hf_lora_ext.cli train qlora_70b_fsdp\n",
    )
    assert load_config_from_file(str(file)).fsdp_config["fsdp_offload_params"] is True
    more = ("hardware.machines=2", "--main-process-ip", "10.0.0.1")
    assert "--machine_rank N" in outcome(capsys, "train", "qlora_70b_fsdp", "--accelerate-config", file, *more)[1]
    assert load_config_from_file(str(file)).num_processes == 4
    assert (
        "declares no hardware"
        in outcome(capsys, "train", "quickstart", "hardware=null", "--accelerate-config", file)[2]
    )


@pytest.mark.parametrize(("visible", "kept"), [(None, "0"), ("2,3", "2")])
def test_a_process_that_is_alone_keeps_to_one_gpu_and_says_what_uses_all(monkeypatch, visible: str | None, kept: str):
    from hf_lora_ext.cli import train as verb

    monkeypatch.setattr(verb, "find_hardware", lambda: Hardware(kind="cuda", devices=2))
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    said: list[str] = []
    verb._keep_to_one_gpu(Processes(size=2), said.append)
    assert (os.environ.get("CUDA_VISIBLE_DEVICES"), said) == (visible, [])
    verb._keep_to_one_gpu(Processes(), said.append)
    assert (os.environ["CUDA_VISIBLE_DEVICES"], said) == (kept, ["GPUs     1 of 2; --launch ddp2 uses all"])
