"""The quickstart on the real model and the real data, shortened; killed, it ends in the same bytes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import hf_lora

from hf_lora_ext.resources import shipped_folder
from hf_lora_ext.runs.run_folder import last_whole_checkpoint

RECIPE = shipped_folder("recipes") / "quickstart.yaml"
SHORT = ("training.max_steps=4", "training.save_steps=2", "training.eval_steps=4", "data.eval_examples=8", "samples=1")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def arguments(folder: Path) -> list[str]:
    return ["train", str(RECIPE), *SHORT, f"output_dir={folder}"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quickstart") / "whole"
    result = hf_lora(*arguments(folder), OMP_NUM_THREADS="2")
    assert result.returncode == 0, result.stderr
    return folder


def test_four_steps_on_the_real_model_lower_the_held_out_loss(whole: Path):
    facts = json.loads((whole / "facts.json").read_text())
    assert facts["base_model"]["name"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert facts["adapter"]["trainable_parameters"] == 2_442_240
    assert facts["evaluation"]["adapter"]["loss"] < facts["evaluation"]["base"]["loss"]
    assert facts["samples"][0]["reference"]


def test_killed_with_signal_9_it_ends_in_the_same_bytes(whole: Path, tmp_path: Path):
    folder = tmp_path / "killed"
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    command = [sys.executable, "-m", "hf_lora_ext.cli", *arguments(folder)]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while last_whole_checkpoint(folder / "checkpoints") is None:
        assert process.poll() is None, "the run ended before its first checkpoint"
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    result = hf_lora(*arguments(folder), OMP_NUM_THREADS="2")
    assert result.returncode == 0, result.stderr
    assert "resuming from checkpoint-2" in result.stderr
    assert (folder / "adapter_model.safetensors").read_bytes() == (whole / "adapter_model.safetensors").read_bytes()
