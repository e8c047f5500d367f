"""Trains a tiny adapter with adaptive rank on every process that launches it; leaves what each has seen in a folder.

Run by `test_adaptive_rank_processes.py`, under `accelerate launch` or alone.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from hf_lora_ext import AdaptiveRankCallback
from hf_lora_ext.ranks.probes import Moments


class Recording(AdaptiveRankCallback):
    """Keeps what each decision was made of, so that one process can be fed what two have seen."""

    folder: Path

    def _best(self, moments: Any, budget: int, step: int) -> Any:
        live = self.layers_.live
        kept: dict[str, Any] = {"budget": budget, "factors": {name: live[name].directions() for name in live}}
        kept["moments"] = {name: {kind: getattr(moments[name], kind) for kind in Moments.__slots__} for name in live}
        bases, ranks = super()._best(moments, budget, step)
        if PartialState().is_main_process:  # both have the same to say, and one file
            torch.save(kept | {"ranks": ranks}, self.folder / f"decision-{step}.pt")
        return bases, ranks


def main(model_folder: str, output: str, **settings: Any) -> None:
    """Train for twelve steps."""
    folder = Path(output)
    resume = settings.pop("resume", None)
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    config = LoraConfig(task_type="CAUSAL_LM", r=2, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"],
                        use_dora=settings.pop("dora", False))  # fmt: skip
    model = get_peft_model(base, config)
    mode = settings.pop("mode", "anneal")
    parameters = settings.pop("budget_parameters", None)
    budget: dict[str, Any] = {"budget_parameters": parameters} if parameters else {"target_rank": 2}
    if mode == "anneal":
        callback = Recording(**budget, events=3, last=0.6, probe_steps=2)
    else:
        callback = Recording(**budget, events=2, mode=mode)
    callback.folder = folder
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"input_ids": [2 + (n * i) % 90 for i in range(24)]} for n in range(48)]
    arguments: dict[str, Any] = {
        "output_dir": output, "max_steps": 12, "per_device_train_batch_size": 2, "learning_rate": 1e-2, "seed": 3,
        "save_strategy": "steps", "save_steps": 1, "report_to": "none", "disable_tqdm": True, "use_cpu": True,
        "logging_steps": 1, "weight_decay": 0.1,
    }  # fmt: skip
    trainer = Trainer(model=model, args=TrainingArguments(**(arguments | settings)),
                      train_dataset=Dataset.from_list([row | {"labels": row["input_ids"]} for row in rows]),
                      callbacks=[callback])  # fmt: skip
    seen = []
    original = callback.on_step_end

    def watch(args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        original(args, state, control, **kwargs)
        widths = {name: factors.width for name, factors in callback.layers_.carrying.items()}
        size = sum(p.detach().double().abs().sum() for p in model.parameters() if p.requires_grad)
        seen.append({"ranks": callback.layers_.ranks, "widths": widths, "size": float(size)})

    callback.on_step_end = watch
    trainer.train(resume_from_checkpoint=resume)
    (folder / f"process-{trainer.args.process_index}.json").write_text(json.dumps(seen))
    trainer.save_model(str(folder / "adapter"))
    ids = torch.arange(2, 26)[None]
    with torch.no_grad():
        answers = {"input_ids": ids, "logits": model.eval()(ids).logits}
    if trainer.args.process_index == 0:
        torch.save(answers, folder / "answers.pt")


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
