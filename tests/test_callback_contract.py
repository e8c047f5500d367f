"""What every callback of the package keeps to, whichever trainer it is in.

A callback that is exported and has no case here fails the first test.
"""

import copy
import json
import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from adaptive_runs import TARGETS, adapted, build, callback, load, logits
from conftest import PAIRS
from git_hub import git_hub_on_loopback
from launching import launch
from peft import AdaLoraConfig, LoraConfig, PeftModel, get_peft_model
from push_runs import REPO, pushing_to
from safetensors.torch import load_file
from transformers import BitsAndBytesConfig, TrainerCallback

from hf_lora_ext import callbacks

SCRIPT = Path(__file__).parent / "two_processes_watched.py"
PICKLES = {".pt", ".pth", ".bin", ".pkl", ".pickle"}
RUN = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 3}
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*quantization.*:UserWarning", "ignore:`gradient_checkpointing` is deprecated:FutureWarning"
)


def silent(*told: Any) -> None:
    """Take what a callback says."""


def adalora(tiny_model: Path) -> PeftModel:
    torch.manual_seed(0)
    config = AdaLoraConfig(task_type="CAUSAL_LM", init_r=4, target_r=2, target_modules=TARGETS, total_step=1)
    return get_peft_model(load(tiny_model), config)


def packed(tiny_model: Path) -> PeftModel:
    torch.manual_seed(0)
    quantised = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    config = LoraConfig(task_type="CAUSAL_LM", r=2, lora_alpha=8, target_modules=TARGETS)
    return get_peft_model(load(tiny_model, quantization_config=quantised), config)


@dataclass
class Case:
    """How a callback is made, and what it is made for."""

    make: Callable[[Path, Path], TrainerCallback]
    """Given the tiny model's folder and the run's, the callback."""
    model: Callable[[Path], PeftModel] = adapted
    """The model that it trains."""
    pushes: bool = False
    """Whether it needs a Hub."""


def plain(name: str, **settings: Any) -> Case:
    return Case(lambda model, folder: getattr(callbacks, name)(**settings))


def push(name: str, **settings: Any) -> Case:
    given = {"license": "mit", "verify": False, "say": silent} | settings
    return Case(lambda model, folder: getattr(callbacks, name)(REPO, **given), pushes=True)


CASES = {
    "AdaLoraCallback": Case(lambda model, folder: callbacks.AdaLoraCallback(tinit=1, tfinal=2), model=adalora),
    "AdapterPrecisionCallback": plain("AdapterPrecisionCallback"),
    "AdaptiveRankCallback": Case(lambda model, folder: callback(events=2, probe_steps=1)),
    "EvaCallback": plain("EvaCallback"),
    "EvaluateAtEnd": plain("EvaluateAtEnd"),
    "FactsCallback": plain("FactsCallback"),
    "HeldOutLoss": plain("HeldOutLoss", tell=silent),
    "LoftqCallback": Case(lambda model, folder: callbacks.LoftqCallback(str(model)), model=packed),
    "NewTokensCallback": Case(
        lambda model, folder: callbacks.NewTokensCallback(),
        model=lambda folder: adapted(folder, trainable_token_indices={"embed_tokens": [5], "lm_head": [5]}),
    ),
    "OverfitCallback": plain("OverfitCallback", action="best"),
    "PlainAdapterCallback": Case(
        lambda model, folder: callbacks.PlainAdapterCallback(),
        model=lambda folder: adapted(folder, init_lora_weights="pissa"),
    ),
    "ProgressLines": plain("ProgressLines", say=silent),
    "PushAdapterCallback": push("PushAdapterCallback", every_saves=2),
    "PushOnTheWay": push("PushOnTheWay", every_saves=2),
    "ResourceCallback": plain("ResourceCallback"),
    "TrainLog": Case(lambda model, folder: callbacks.TrainLog(folder / "train.log")),
}


def test_every_callback_that_is_exported_has_a_case():
    exported = {name for name in callbacks.__all__ if issubclass(getattr(callbacks, name), TrainerCallback)}
    assert exported == set(CASES)


class Spy(TrainerCallback):
    """Notes every event that reaches it, last of all, with the step and what the trainer is told to do."""

    def __init__(self) -> None:
        self.seen: list[tuple[Any, ...]] = []

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("on_"):
            return super().__getattribute__(name)

        def note(args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.seen.append((name, state.global_step, *vars(control).values()))

        return note


@dataclass
class Trained:
    """A run with a callback, uninterrupted."""

    case: Case
    folder: Path
    spied: list[tuple[Any, ...]]
    files: set[str]
    adapter: bytes


def trainer_with(case: Case, tiny_model: Path, folder: Path, *more: TrainerCallback, **settings: Any) -> Any:
    return build(case.model(tiny_model), folder, case.make(tiny_model, folder), *more, **RUN | settings)


def saved(trainer: Any, folder: Path) -> bytes:
    trainer.save_model(str(folder / "adapter"))
    return (folder / "adapter" / "adapter_model.safetensors").read_bytes()


@pytest.fixture(scope="module", params=sorted(CASES))
def trained(request: pytest.FixtureRequest, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator:
    case, folder, spy = CASES[request.param], tmp_path_factory.mktemp(request.param), Spy()
    with ExitStack() as stack:
        if case.pushes:
            stack.enter_context(patch("huggingface_hub.constants.HF_HOME", str(folder / "hf_home")))
            stack.enter_context(pushing_to(stack.enter_context(git_hub_on_loopback(folder / "hub"))))
        trainer = trainer_with(case, tiny_model, folder / "run", spy)
        trainer.train()
        files = {str(file.relative_to(folder / "run")) for file in (folder / "run").rglob("*") if file.is_file()}
        yield Trained(case, folder, spy.seen, files, saved(trainer, folder))


@pytest.fixture(scope="module")
def bare(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[tuple[Any, ...]], set[str]]:
    """What a spy sees of a run without callbacks, and the files that it leaves."""
    folder, spy = tmp_path_factory.mktemp("bare"), Spy()
    build(adapted(tiny_model), folder, spy, **RUN).train()
    return spy.seen, {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}


def test_a_resumed_run_ends_in_the_same_bytes(trained: Trained, tiny_model: Path):
    folder = trained.folder / "resumed"
    shutil.copytree(trained.folder / "run" / "checkpoint-4", folder / "checkpoint-4")
    trainer = trainer_with(trained.case, tiny_model, folder)
    trainer.train(resume_from_checkpoint=str(folder / "checkpoint-4"))
    assert saved(trainer, folder) == trained.adapter


def test_other_callbacks_see_the_same_events_and_what_the_trainer_is_told_to_do_stays(trained: Trained, bare: tuple):
    assert trained.spied == bare[0]


def test_nothing_is_pickled(trained: Trained, bare: tuple):
    assert not {file for file in trained.files - bare[1] if Path(file).suffix in PICKLES}


def test_one_trainer_can_train_several_times(trained: Trained, tiny_model: Path):
    trainer = trainer_with(trained.case, tiny_model, trained.folder / "twice", max_steps=4)
    losses = []
    for _ in range(2):
        trainer.train()
        assert trainer.state.global_step == 4
        losses += [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert len(losses) == 8
    assert all(loss < 8 for loss in losses)


def test_it_works_in_trl_s_trainer_and_leaves_an_ordinary_adapter(trained: Trained, tiny_model: Path):
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    folder = trained.folder / "sft"
    rows = Dataset.from_list(PAIRS)
    settings = RUN | {"max_steps": 5, "per_device_train_batch_size": 2, "report_to": "none", "disable_tqdm": True}
    trainer = SFTTrainer(
        model=trained.case.model(tiny_model), train_dataset=rows, eval_dataset=rows.select(range(4)),
        args=SFTConfig(str(folder), use_cpu=True, bf16=False, **settings),
        callbacks=[trained.case.make(tiny_model, folder)],
    )  # fmt: skip
    trainer.train()
    assert trainer.state.global_step == 5
    weights = load_file(folder / "checkpoint-4" / "adapter_model.safetensors")
    assert weights
    assert all(weight.isfinite().all() for weight in weights.values())


def test_evaluating_before_and_after_training_works(trained: Trained, tiny_model: Path):
    trainer = trainer_with(trained.case, tiny_model, trained.folder / "evaluated", max_steps=4)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    after = trainer.evaluate()["eval_loss"]
    assert trainer.state.global_step == 4
    assert math.isfinite(before)
    assert math.isfinite(after)


# --- two processes ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run in two processes, with all callbacks that go together."""
    folder = tmp_path_factory.mktemp("two")
    done = launch(SCRIPT, 2, model_folder=str(tiny_model), output=str(folder))
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def of_processes(folder: Path) -> list[dict[str, Any]]:
    return [json.loads((folder / f"process-{number}.json").read_text()) for number in (0, 1)]


def test_two_processes_end_with_the_same_adapter_and_only_one_writes(two: Path, tiny_model: Path):
    first, second = of_processes(two)
    assert first["weights"] == second["weights"]
    assert first["losses"] == second["losses"]
    assert {Path(file).name for file in second["written"]} <= {"rng_state_1.pth", "process-1.json"}
    assert {"facts.json", "train.log", "rank_history.json"} <= {file.name for file in two.iterdir()}
    assert first["lines"]
    assert second["lines"] == []
    kept = copy.deepcopy(load_file(two / "adapter" / "adapter_model.safetensors"))
    model = PeftModel.from_pretrained(load(tiny_model), two / "adapter")
    assert logits(model).isfinite().all()
    assert kept


@pytest.mark.slow
@pytest.mark.parametrize("step", [6, 9])
def test_two_processes_that_are_resumed_end_in_the_same_bytes(two: Path, tiny_model: Path, tmp_path: Path, step: int):
    shutil.copytree(two / f"checkpoint-{step}", tmp_path / f"checkpoint-{step}")
    done = launch(SCRIPT, 2, model_folder=str(tiny_model), output=str(tmp_path),
                  resume=str(tmp_path / f"checkpoint-{step}"))  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    file = Path("adapter") / "adapter_model.safetensors"
    assert (tmp_path / file).read_bytes() == (two / file).read_bytes()
