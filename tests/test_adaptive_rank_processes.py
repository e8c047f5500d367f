"""Adaptive rank in two processes under `accelerate launch`: one decision, kept shapes, an ordinary adapter."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from launching import launch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from hf_lora_ext import AdaptiveRankCallback
from hf_lora_ext.ranks.lora_layers import lora_layers
from hf_lora_ext.ranks.probes import Moments
from hf_lora_ext.ranks.storage import AdapterLayers

SCRIPT = Path(__file__).parent / "two_processes.py"


@pytest.fixture(scope="module")
def two(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run in two processes."""
    folder = tmp_path_factory.mktemp("two")
    done = launch(SCRIPT, 2, model_folder=str(tiny_model), output=str(folder))
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def test_both_processes_decide_the_same_and_keep_their_shapes(two: Path):
    first, second = (json.loads((two / f"process-{i}.json").read_text()) for i in (0, 1))
    assert first == second
    totals = [sum(step["ranks"].values()) for step in first]
    assert len(set(totals)) >= 3  # two events or more
    assert totals[-1] <= 0.9 * sum(first[-1]["widths"].values())
    assert all(step["widths"] == first[0]["widths"] for step in first)
    assert len(set(first[-1]["ranks"].values())) > 1


def test_what_is_saved_is_compact_and_loads_with_peft_alone(two: Path, tiny_model: Path):
    weights = load_file(two / "adapter" / "adapter_model.safetensors")
    ranks = json.loads((two / "rank_history.json").read_text())["ranks"]
    sizes = {key.removeprefix("base_model.model.").removesuffix(".lora_A.weight"): len(value)
             for key, value in weights.items() if ".lora_A." in key}  # fmt: skip
    assert sizes == {name: rank for name, rank in ranks.items() if rank}
    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, two / "adapter")
    layers = {name: factors.rank for name, factors in lora_layers_of(model).items()}
    assert layers == sizes
    last = load_file(two / "checkpoint-12" / "adapter_model.safetensors")
    assert all(torch.equal(last[key], weights[key]) for key in weights)


def lora_layers_of(model: PeftModel) -> dict[str, Any]:
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return lora_layers(model, "default")


@pytest.mark.slow
@pytest.mark.parametrize("stop", [4, 6, 9])
def test_a_resumed_run_ends_in_the_same_bytes(two: Path, tiny_model: Path, tmp_path: Path, stop: int):
    done = launch(SCRIPT, 2, model_folder=str(tiny_model), output=str(tmp_path), resume=str(two / f"checkpoint-{stop}"))
    assert done.returncode == 0, done.stderr[-3000:]
    file = Path("adapter") / "adapter_model.safetensors"
    assert (tmp_path / file).read_bytes() == (two / file).read_bytes()


def test_one_process_fed_what_two_have_seen_decides_the_same(two: Path, tiny_model: Path):
    recorded = sorted(two.glob("decision-*.pt"), key=lambda file: int(file.stem.partition("-")[2]))
    assert len(recorded) == 3
    for file in recorded:
        kept = torch.load(file, weights_only=True)
        names = list(kept["factors"])
        base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
        model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=2, lora_alpha=8, target_modules=names))
        layers = lora_layers(model, "default")
        for name, (a, b) in kept["factors"].items():
            layers[name].replace_(a, b)
        seen = {}
        for name, sums in kept["moments"].items():
            rank = layers[name].rank
            cut = {kind: value[(slice(rank),) * value.dim()] for kind, value in sums.items()}
            seen[name] = Moments(**cut)
        callback = AdaptiveRankCallback(target_rank=2)
        callback.layers_, callback.least_ = AdapterLayers(model, "default", layers), {}
        assert callback._best(seen, kept["budget"], 0)[1] == kept["ranks"]


@pytest.mark.slow
def test_dora_keeps_a_direction_of_each_layer_so_that_what_is_saved_answers_as_what_was_trained(
    tiny_model: Path, tmp_path: Path
):
    done = launch(SCRIPT, 2, model_folder=str(tiny_model), output=str(tmp_path), dora=True)
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = json.loads((tmp_path / "rank_history.json").read_text())["ranks"].values()
    assert min(ranks) == 1
    assert max(ranks) > 2
    seen = torch.load(tmp_path / "answers.pt", weights_only=True)
    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    loaded = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    with torch.no_grad():
        assert torch.allclose(loaded(seen["input_ids"]).logits, seen["logits"], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("settings", "says"), [({"mode": "fixed"}, "in and out of the adapter"),
                                                ({"budget_parameters": 300}, "below the")])  # fmt: skip
def test_dora_in_two_processes_is_refused_where_it_cannot_keep_them(
    tiny_model: Path, tmp_path: Path, settings: dict[str, Any], says: str
):
    done = launch(SCRIPT, 2, model_folder=str(tiny_model), output=str(tmp_path), dora=True, **settings)
    assert done.returncode != 0
    assert says in done.stderr
    assert not list(tmp_path.glob("checkpoint-*"))


@pytest.fixture(scope="module")
def fixed(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of mode `fixed` in two processes."""
    folder = tmp_path_factory.mktemp("fixed")
    done = launch(SCRIPT, 2, model_folder=str(tiny_model), output=str(folder), mode="fixed", max_steps=30)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def test_fixed_mode_moves_rank_alike_in_place_and_within_the_budget(fixed: Path, tiny_model: Path):
    first, second = (json.loads((fixed / f"process-{i}.json").read_text()) for i in (0, 1))
    assert first == second
    assert all(step["widths"] == first[0]["widths"] for step in first)
    history = json.loads((fixed / "rank_history.json").read_text())
    assert [event["grown"] > 0 for event in history["events"]] == [True, True]
    assert all(event["parameters"] <= history["budget"] for event in history["events"])
    weights = load_file(fixed / "adapter" / "adapter_model.safetensors")
    sizes = {
        key.split("base_model.model.")[1].split(".lora_A")[0]: len(weights[key]) for key in weights if "lora_A" in key
    }
    assert sizes == {name: rank for name, rank in history["ranks"].items() if rank}


@pytest.mark.slow
@pytest.mark.parametrize("stop", [6, 9, 12])  # searching, judging, after an event
def test_a_resumed_fixed_run_ends_in_the_same_bytes(fixed: Path, tiny_model: Path, tmp_path: Path, stop: int):
    done = launch(SCRIPT, 2, model_folder=str(tiny_model), output=str(tmp_path), mode="fixed", max_steps=30,
                  resume=str(fixed / f"checkpoint-{stop}"))  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    file = Path("adapter") / "adapter_model.safetensors"
    assert (tmp_path / file).read_bytes() == (fixed / file).read_bytes()


@pytest.mark.slow
def test_adafactor_is_refused_where_directions_are_masked(tiny_model: Path, tmp_path: Path):
    done = launch(SCRIPT, 2, model_folder=str(tiny_model), output=str(tmp_path), optim="adafactor")
    assert done.returncode != 0
    assert "Adafactor's row means would wake them" in done.stderr
    assert not list(tmp_path.glob("checkpoint-*"))
