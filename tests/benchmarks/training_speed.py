"""Print tokens a second, peak memory and held-out loss of a preset beside a stock TRL + PEFT script.

    python tests/benchmarks/training_speed.py
    python tests/benchmarks/training_speed.py --model FOLDER --data rows.jsonl --examples 256 --runs 5 --out out/speed

Two scripts train on the same rows in the same order, once each, by turns, every run a process of its own:

- *as they come*: TRL's own example, `SFTTrainer(model, args=SFTConfig(out), train_dataset=data,
  peft_config=LoraConfig())`, beside `preset(model)` with its callbacks and `FactsCallback`. Neither is told anything
  about batch, precision, checkpointing, rank or rate; whatever differs is what their authors chose. But on a CPU the
  stock script is told `bf16=False`, without which it ends in an error there.
- *made equal*: both are given the preset's precision, attention, batch, adapter and rate, without packing and without
  activation checkpointing, so that what is left is what this library costs a step.

The first step of a run, which warms up, is not timed. Tokens are TRL's own count, without padding. The held-out loss is
taken by the same lines for both, after the timing: nats a token of the completions. Every model and data set will do:
`--data` takes JSON lines of `prompt` and `completion`; without it, docstrings of Python's standard library, split by
module. Expected time on two quiet cores: a minute and a half a run of 64 examples, 18 minutes for three turns of all.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

from transformers import TrainerCallback

from hf_lora_ext.machine import describe_hardware, peak_memory, software_versions

SCRIPTS = ("stock", "preset")
WAYS = ("as they come", "made equal")
FEWEST = 48
"""Examples: three steps of the preset's 16."""


class StepClock(TrainerCallback):  # type: ignore[misc]  # transformers is untyped
    """Note when each step ends."""

    def __init__(self) -> None:
        """Start without steps."""
        self.ends: list[float] = []
        self.worked: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Note the time and the processor's, seconds."""
        self.ends.append(time.perf_counter())
        self.worked.append(time.process_time())


def rows(data: Path | None, examples: int, held_out: int) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Return rows to train on and rows that the training never sees, `prompt` and `completion` each."""
    if data:
        found = [json.loads(line) for line in data.read_text(encoding="utf8").splitlines() if line]
        return found[held_out : held_out + examples], found[:held_out]
    from hf_lora_ext.data.stdlib_docstrings import docstring_examples

    unseen = {"json", "statistics", "zipfile", "calendar", "textwrap"}
    sides: dict[bool, list[dict[str, str]]] = {True: [], False: []}
    for row in docstring_examples():
        if len(row["prompt"]) + len(row["completion"]) < 1000:
            kept = {"prompt": row["prompt"], "completion": row["completion"]}
            sides[row["module"].partition(".")[0] in unseen].append(kept)
    return sides[False][:: max(1, len(sides[False]) // examples)][:examples], sides[True][:held_out]


def equal_arguments(p: Any) -> dict[str, Any]:
    """Return the arguments that both scripts get where they are made equal: the preset's."""
    return {
        "per_device_train_batch_size": p.micro_batch, "gradient_accumulation_steps": 1, "max_length": p.max_length,
        "learning_rate": p.learning_rate, "lr_scheduler_type": "constant", "warmup_steps": 0, "packing": False,
        "gradient_checkpointing": False, "bf16": p.dtype == "bfloat16",
        "model_init_kwargs": {"dtype": p.dtype, "attn_implementation": p.attention},
    }  # fmt: skip


def trainer_of(script: str, way: str, model: str, train: list[dict[str, str]], folder: str) -> Any:
    """Return the trainer of one script; `way` is one of WAYS."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    from hf_lora_ext import FactsCallback, preset

    data = Dataset.from_list(train)
    told: dict[str, Any] = {"num_train_epochs": 1, "logging_steps": 1, "save_strategy": "no", "report_to": "none"}
    if script == "stock" and way == "as they come":
        told |= {} if torch.cuda.is_available() else {"bf16": False}
        return SFTTrainer(model, args=SFTConfig(folder, **told), train_dataset=data, peft_config=LoraConfig())
    p = preset(model)
    if way == "made equal":
        told |= equal_arguments(p)
    if script == "stock":
        adapter = LoraConfig(r=p.rank, lora_alpha=p.alpha, lora_dropout=p.dropout, target_modules="all-linear")
        return SFTTrainer(model, args=SFTConfig(folder, **told), train_dataset=data, peft_config=adapter)
    return SFTTrainer(
        model,
        args=p.sft_config(folder, **told),
        train_dataset=data,
        peft_config=p.peft_config,
        quantization_config=p.quantization_config,
        callbacks=[*p.callbacks(), FactsCallback(data, name="the same rows")],
    )


def run_one(script: str, way: str, options: argparse.Namespace) -> dict[str, float]:
    """Train once in this process; return tokens a second, GiB at the peak, the loss after it, and what was trained."""
    train, held_out = rows(options.data, options.examples, options.held_out)
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(script, way, options.model, train, folder)
        clock = StepClock()
        trainer.add_callback(clock)
        trainer.train()
        counted = [line["num_tokens"] for line in trainer.state.log_history if "num_tokens" in line]
        peaks, tokens = peak_memory(), counted[-1] - counted[0]
        return {
            "tokens_per_second": tokens / (clock.ends[-1] - clock.ends[0]),
            "processor_seconds_per_token": (clock.worked[-1] - clock.worked[0]) / tokens,
            "peak_gib": peaks.get("gpu_allocated_gib", peaks["process_gib"]),
            "held_out_loss": completion_loss(trainer.model, trainer.processing_class, held_out),
            "steps": trainer.state.global_step,
            "trained_parameters": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        }


def completion_loss(model: Any, tokenizer: Any, held_out: list[dict[str, str]]) -> float:
    """Return the mean loss of the completions' tokens, nats, one row at a time."""
    import torch

    model.eval()
    total, count = 0.0, 0
    with torch.no_grad():
        for row in held_out:
            prompt = tokenizer(row["prompt"])["input_ids"]
            whole = prompt + tokenizer(row["completion"] + tokenizer.eos_token, add_special_tokens=False)["input_ids"]
            ids = torch.tensor([whole], device=model.device)
            labels = ids.clone()
            labels[:, : len(prompt)] = -100
            total += float(model(input_ids=ids, labels=labels).loss) * (len(whole) - len(prompt))
            count += len(whole) - len(prompt)
    return total / count


def measured(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Run all scripts by turns, a process each; return one record a run."""
    records: list[dict[str, Any]] = []
    for turn, way, script in product(range(options.runs), WAYS, SCRIPTS):
        print(f"turn {turn + 1} of {options.runs}: {script}, {way} …", file=sys.stderr, flush=True)
        passed = [f"--{name.replace('_', '-')}={value}" for name, value in vars(options).items()
                  if value is not None and name in ("model", "data", "examples", "held_out")]  # fmt: skip
        command = [sys.executable, __file__, "--one", script, "--way", way, *passed]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        records.append({"turn": turn, "way": way, "script": script, **json.loads(done.stdout.splitlines()[-1])})
    return records


def table(records: list[dict[str, Any]]) -> str:
    """Return a table of medians over the turns, and of the preset's ratios to the stock script, paired by turn."""
    lines = [
        "| way | script | steps | trained | tokens/s | peak GiB | held-out loss |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for way, script in product(WAYS, SCRIPTS):
        runs = [record for record in records if (record["way"], record["script"]) == (way, script)]
        middle = {name: median(run[name] for run in runs) for name in runs[0] if name not in ("way", "script")}
        lines.append(
            f"| {way} | {script} | {middle['steps']:.0f} | {middle['trained_parameters']:,.0f} "
            f"| {middle['tokens_per_second']:.1f} | {middle['peak_gib']:.2f} | {middle['held_out_loss']:.3f} |"
        )
    for way in WAYS:
        ratios = {name: _ratios(records, way, name) for name in ("tokens_per_second", "peak_gib")}
        said = ", ".join(f"{name.replace('_', ' ')} {median(of):.2f} ({min(of):.2f} to {max(of):.2f})"
                         for name, of in ratios.items())  # fmt: skip
        lines.append(f"\n{way}, preset over stock, median and range of {len(ratios['peak_gib'])} turns: {said}")
    return "\n".join(lines)


def _ratios(records: list[dict[str, Any]], way: str, name: str) -> list[float]:
    by = {(record["turn"], record["script"]): record[name] for record in records if record["way"] == way}
    return [by[turn, "preset"] / by[turn, "stock"] for turn in sorted({turn for turn, _ in by})]


def main() -> None:
    """Measure, print the table, and write `results.json` and `table.md` where `--out` says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="local folder or Hub id; without it the quickstart's")
    parser.add_argument("--data", type=Path, help="JSON lines of prompt and completion")
    parser.add_argument("--examples", type=int, default=64, help="rows to train on, once")
    parser.add_argument("--held-out", type=int, default=32, help="rows for the loss")
    parser.add_argument("--runs", type=int, default=3, help="turns of all four")
    parser.add_argument("--out", type=Path, help="folder for results.json and table.md")
    parser.add_argument("--one", choices=SCRIPTS, help=argparse.SUPPRESS)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.examples < FEWEST:
        parser.error(f"{options.examples} examples are too few steps to time; at least {FEWEST} are needed")
    if options.model is None:
        from hf_lora_ext.models.base_models import find_base_model

        options.model = find_base_model("HuggingFaceTB/SmolLM2-135M-Instruct").path
    if options.one:
        print(json.dumps(run_one(options.one, options.way, options)))
        return
    records = measured(options)
    print(table(records))
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        written = {
            "machine": describe_hardware(),
            "versions": software_versions(),
            "options": {k: str(v) for k, v in vars(options).items()},
            "runs": records,
        }
        (options.out / "results.json").write_text(json.dumps(written, indent=1) + "\n", encoding="utf8")
        (options.out / "table.md").write_text(table(records) + "\n", encoding="utf8")


if __name__ == "__main__":
    main()
