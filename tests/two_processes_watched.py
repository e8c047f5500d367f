"""Trains a tiny adapter with all callbacks that go together, on every process that launches it.

Run by `test_callback_contract.py`, under `accelerate launch`. Each process leaves the files that it wrote itself.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from adaptive_runs import adapted, build, callback

from hf_lora_ext.callbacks import (
    AdapterPrecisionCallback,
    EvaluateAtEnd,
    FactsCallback,
    HeldOutLoss,
    NewTokensCallback,
    OverfitCallback,
    ProgressLines,
    ResourceCallback,
    TrainLog,
)

WRITES = os.O_WRONLY | os.O_RDWR


def main(model_folder: str, output: str, resume: str | None = None) -> None:
    """Train for twelve steps."""
    folder, written, losses, lines = Path(output).resolve(), set(), [], []

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[0], (str, bytes)) and (arguments[2] or 0) & WRITES:
            path = Path(os.fsdecode(arguments[0])).resolve()
            if path.is_relative_to(folder):
                written.add(str(path.relative_to(folder)))

    sys.addaudithook(watch)
    torch.manual_seed(0)
    trainer = build(
        adapted(Path(model_folder)), folder,
        AdapterPrecisionCallback(), callback(), EvaluateAtEnd(), FactsCallback(), NewTokensCallback(),
        HeldOutLoss(lambda *told: losses.append(told)), OverfitCallback(action="best"), ProgressLines(lines.append),
        ResourceCallback(), TrainLog(folder / "train.log"),
        save_strategy="steps", save_steps=3, eval_strategy="steps", eval_steps=2, learning_rate=3e-2,
        include_num_input_tokens_seen="all",
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=resume)
    trainer.save_model(str(folder / "adapter"))
    weights = {
        name: p.detach().double().sum().item() for name, p in trainer.model.named_parameters() if "lora_" in name
    }
    told = {"written": sorted(written), "losses": losses, "lines": lines, "weights": weights}
    (folder / f"process-{trainer.args.process_index}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
