"""`adaptive_rank=True` in presets and recipes: one line, planned at its wide start, killed and resumed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import hf_lora
from small_runs import logits, losses, reloaded, trainer_for

from hf_lora_ext import ConfigError, preset


@pytest.mark.filterwarnings("ignore:.*quantization.*:UserWarning", "ignore:MatMul8bitLt.*:UserWarning")
@pytest.mark.parametrize(
    "wishes",
    [
        {},
        {"method": "qlora"},
        {"method": "qlora8"},
        {"method": "dora"},
        {"init": "eva"},
        {"optimizer": "loraplus"},
        {"new_tokens": [40, 41]},
    ],
    ids=lambda wishes: next(iter(map(str, wishes.values())), "lora"),
)
def test_an_adaptive_preset_learns_and_leaves_an_ordinary_adapter(wishes: dict, wide_model: Path, tmp_path: Path):
    p = preset(str(wide_model), rank=2, adaptive_rank=True, **wishes)
    trainer = trainer_for(p, tmp_path, steps=30, learning_rate=1e-2)
    trainer.train()
    assert losses(trainer)[-1] < losses(trainer)[0] / 2
    history = json.loads((tmp_path / "rank_history.json").read_text())
    assert len(set(history["ranks"].values())) > 1
    assert history["events"][-1]["parameters"] <= history["budget"]
    trainer.save_model(str(tmp_path / "adapter"))
    assert (logits(trainer.model) - logits(reloaded(p, tmp_path / "adapter"))).abs().max() == 0


def test_the_wide_start_is_what_is_planned():
    plain, adaptive = (preset("7B", method="qlora", gpu_memory_gib=24, adaptive_rank=a).found for a in (False, True))
    assert plain is not None
    assert adaptive is not None
    assert adaptive.plan.rank * adaptive.plan.start_factor == 8 * plain.plan.rank
    assert adaptive.estimate.adapters == 8 * plain.estimate.adapters


def test_the_start_is_as_wide_as_the_memory_allows():
    p = preset("7B", method="qlora", gpu_memory_gib=7, adaptive_rank=True)
    assert p.found is not None
    assert p.start_factor == p.found.plan.start_factor == p.callbacks()[-1].start_factor == 2
    assert "start_factor              2                     times wider at the start: 8 do not fit" in p.explain()
    assert preset("7B", method="qlora", gpu_memory_gib=24, adaptive_rank=True).start_factor == 8
    assert preset("7B").start_factor == 1


def test_what_fits_at_no_start_is_refused_with_what_would():
    with pytest.raises(ConfigError, match="what would fit: a card of 8 GiB"):
        preset("7B", method="qlora", gpu_memory_gib=6, adaptive_rank=True)


@pytest.mark.parametrize(
    ("wishes", "words"),
    [
        ({"method": "adalora"}, "allocation of its own"),
        ({"method": "prefix"}, "prefix has no adaptive_rank"),
        ({"init": "pissa"}, "ranks it started with"),
        ({"optimizer": "paged_adamw_8bit"}, "8-bit state"),
        ({"sharding": "fsdp", "gpus": 2, "gpu_memory_gib": 80}, "cannot change their shape"),
        ({"adaptive_rank": 8}, "True or False"),
    ],
)
def test_what_does_not_go_with_adaptive_rank_is_refused_at_once(wishes: dict, words: str):
    with pytest.raises(ConfigError, match=words):
        preset("7B", **({"adaptive_rank": True} | wishes))


def newest_checkpoint(folder: Path) -> int:
    return max((int(path.name.removeprefix("checkpoint-")) for path in folder.glob("checkpoint-*")), default=0)


@pytest.mark.slow
def test_a_recipe_killed_with_signal_9_around_an_event_ends_in_the_same_bytes(tiny_recipe: Path, tmp_path: Path):
    settings = ["adaptive_rank=true", "rank=2", "training.max_steps=12", "training.save_steps=1", "samples=0"]
    whole = hf_lora("train", tiny_recipe, *settings, f"output_dir={tmp_path / 'whole'}")
    assert whole.returncode == 0, whole.stderr
    folder = tmp_path / "killed"
    command = [sys.executable, "-m", "hf_lora_ext.cli", "train", str(tiny_recipe), *settings, f"output_dir={folder}"]
    for stop in (3, 6):
        process = subprocess.Popen(command, env=os.environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 300
        while newest_checkpoint(folder / "checkpoints") < stop:  # this one itself may be gone before it is seen
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = hf_lora("train", tiny_recipe, *settings, f"output_dir={folder}")
    assert done.returncode == 0, done.stderr
    name = "adapter_model.safetensors"
    assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    first, second = (json.loads((f / "rank_history.json").read_text()) for f in (folder, tmp_path / "whole"))
    assert first["ranks"] == second["ranks"]
    ranks = [rank for rank in first["ranks"].values() if rank]
    card = (folder / "README.md").read_text(encoding="utf8")
    assert f"adapter with ranks of {min(ranks)} to {max(ranks)} from layer to layer" in card
    adapter = json.loads((folder / "facts.json").read_text())["adapter"]
    assert (adapter["rank"], adapter["ranks"]) == (max(ranks), f"{min(ranks)} to {max(ranks)}")
