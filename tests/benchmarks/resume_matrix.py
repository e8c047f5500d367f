"""Does a resumed run of adaptive rank end in the bytes of the uninterrupted one? Every optimizer, precision and place.

    python tests/benchmarks/resume_matrix.py
    python tests/benchmarks/resume_matrix.py --optimizers adamw_torch,sgd --precisions float32

A tiny random Llama trains 12 steps with events after steps 3, 5 and 7, and a checkpoint at each step. From each kind
of place a new process state goes on: a new model, adapter, trainer and callback that know the checkpoint alone. `=`
says that all trained weights and what the optimizer holds are equal bit for bit, `-` that the largest difference
follows. About 2 minutes on one core.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from rank_report import table
from transformers import LlamaConfig, LlamaForCausalLM, PrinterCallback, Trainer, TrainingArguments
from transformers import logging as transformers_logging

from hf_lora_ext import AdaptiveRankCallback

OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop", "lion_32bit")
PRECISIONS = {
    "float32": (torch.float32, torch.float32, False),
    "bfloat16 adapter": (torch.bfloat16, torch.bfloat16, False),
    "bfloat16 autocast": (torch.float32, torch.float32, True),
    "bfloat16 base": (torch.bfloat16, torch.float32, True),
}
"""Name → precision of the base, of the adapter, and whether the passes run under autocast."""
PLACES = {"before the first probe": 1, "inside a probe": 4, "after an event": 5, "after the last event": 8}
"""Name → step of the checkpoint, with 12 steps, 3 events from 0.1 to 0.6 and 2 probe steps."""
STEPS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A row of the matrix."""

    optimizer: str
    precision: str


def built(case: Case, folder: Path) -> Trainer:
    """Return a trainer of its own model; the same for every call."""
    base_type, adapter_type, autocast = PRECISIONS[case.precision]
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    base = LlamaForCausalLM(config).to(base_type)
    lora = LoraConfig(task_type="CAUSAL_LM", r=2, lora_alpha=8, lora_dropout=0.1,
                      target_modules=["q_proj", "v_proj", "down_proj"])  # fmt: skip
    model = get_peft_model(base, lora, autocast_adapter_dtype=adapter_type == torch.float32)
    texts = [[2 + (n + i) % 90 for i in range(24)] for n in range(40)]
    rows = Dataset.from_list([{"input_ids": text, "labels": text} for text in texts])
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=STEPS, per_device_train_batch_size=2, learning_rate=1e-2, seed=3,
        optim=case.optimizer, bf16=autocast, use_cpu=True, save_strategy="steps", save_steps=1, report_to="none",
        disable_tqdm=True, logging_strategy="no", optim_args="momentum=0.9" if case.optimizer == "sgd" else None,
    )  # fmt: skip
    ours = AdaptiveRankCallback(target_rank=2, events=3, probe_steps=2)
    trainer = Trainer(model=model, args=arguments, callbacks=[ours], train_dataset=rows)
    trainer.remove_callback(PrinterCallback)
    return trainer


def held(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Return everything that the run has come to: the adapter by name, and the optimizer's state of each weight."""
    found = {name: p.detach() for name, p in trainer.model.named_parameters() if p.requires_grad}
    names = {id(p): name for name, p in trainer.model.named_parameters()}
    for parameter, state in trainer.optimizer.state.items():
        told = {key: value for key, value in state.items() if isinstance(value, torch.Tensor)}
        found |= {f"{names[id(parameter)]} {key}": value for key, value in told.items()}
    return found


def difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Return the largest difference of two runs, infinite where they hold different things; 0 is bit for bit."""
    if one.keys() != other.keys() or any(one[name].shape != other[name].shape for name in one):
        return float("inf")
    gaps = [float((one[n].double() - other[n].double()).abs().max()) for n in one if not torch.equal(one[n], other[n])]
    return max(gaps, default=0.0)


def resumed(case: Case) -> dict[str, float]:
    """Return how far each resumed run ends from the uninterrupted one."""
    with tempfile.TemporaryDirectory() as folder:
        whole = built(case, Path(folder) / "whole")
        whole.train()
        wanted, found = held(whole), {}
        for place, step in PLACES.items():
            again = built(case, Path(folder) / place.replace(" ", "-"))
            again.train(resume_from_checkpoint=str(Path(folder) / "whole" / f"checkpoint-{step}"))
            found[place] = difference(wanted, held(again))
    return found


def matrix(optimizers: Sequence[str], precisions: Sequence[str]) -> Iterator[tuple[Case, dict[str, float]]]:
    """Yield each case with its differences."""
    for optimizer in optimizers:
        for precision in precisions:
            case = Case(optimizer=optimizer, precision=precision)
            yield case, resumed(case)


def main(arguments: Sequence[str]) -> int:
    """Print the matrix; 1 where a cell differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--optimizers", default=",".join(OPTIMIZERS))
    parser.add_argument("--precisions", default=",".join(PRECISIONS))
    options = parser.parse_args(arguments)
    rows: list[list[str]] = []
    differ = 0
    for case, found in matrix(options.optimizers.split(","), options.precisions.split(",")):
        rows.append([case.optimizer, case.precision, *("=" if gap == 0 else f"- {gap:.0e}" for gap in found.values())])
        differ += sum(gap != 0 for gap in found.values())
    print(table(["optimizer", "precision", *PLACES], rows))
    print(f"\n{len(rows) * len(PLACES)} resumed runs, {differ} of them differ; torch {torch.__version__}, on a CPU")
    return int(differ > 0)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    transformers_logging.set_verbosity_error()
    sys.exit(main(sys.argv[1:]))
