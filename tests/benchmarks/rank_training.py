"""One training run of the rank benchmark: an adapter of given ranks in `transformers.Trainer`, watched."""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from rank_tasks import Prepared, Sizes, Task, layer_costs
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments, set_seed

from hf_lora_ext.ranks.lora_layers import lora_layers

WARM_UP = 0.03
"""Share of the steps over which the learning rate rises; it then falls linearly to 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One run: what a method is given."""

    method: str
    seed: int
    budget: int
    """Parameters that the adapter may have in the end."""
    learning_rate: float
    scale: float
    """What an update is multiplied by, the same for each layer: ΔW = scale · B A."""
    given: Mapping[str, int] | None = None
    """Ranks by layer, for a method that takes another's."""


@dataclass(slots=True)
class Job:
    """A cell with the model and the data to run it on."""

    cell: Cell
    task: Task
    sizes: Sizes
    kept: Path | None = None
    """Folder for what cells share; nothing is shared if None."""
    prepared: Prepared = field(init=False)
    costs: dict[str, int] = field(init=False)
    """Parameters of one direction, by layer."""

    def __post_init__(self) -> None:
        self.prepared = self.task.prepare(self.cell.seed, self.sizes)
        self.prepared.base.to(self.task.device)
        self.costs = layer_costs(self.prepared.base, self.task.targets)

    @property
    def mean_rank(self) -> float:
        """Rank of a uniform adapter of the budget's size."""
        return self.cell.budget / sum(self.costs.values())

    @property
    def whole_rank(self) -> int:
        """The mean rank, rounded, for methods that know only whole ones."""
        return max(1, round(self.mean_rank))


@dataclass(slots=True)
class Trained:
    """A trained adapter and what training it took."""

    model: Any
    ranks: dict[str, int]
    """By layer; 0 where it has none."""
    seconds: float
    """In the trainer."""
    peak: int
    """Most adapter parameters held while training."""
    mean: float
    """Adapter parameters held while training, the mean over steps."""
    extra_seconds: float = 0.0
    """Before or after the training."""


class Watch(TrainerCallback):
    """Counts the adapter's parameters at the start of each step."""

    def __init__(self) -> None:
        self.counts: list[int] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, *, model: Any, **kwargs: Any) -> None:
        """Count; a classification head is no part of the adapter."""
        self.counts.append(sum(p.numel() for n, p in model.named_parameters() if p.requires_grad and "lora_" in n))


def lora_model(job: Job, ranks: Mapping[str, int], low_cpu_mem_usage: bool = False, **config: Any) -> Any:
    """Return the base with an adapter of these ranks, each layer's update scaled by the cell's scale."""
    live = {name: rank for name, rank in ranks.items() if rank}
    scale = job.cell.scale
    settings: dict[str, Any] = {
        "task_type": job.prepared.task_type, "r": max(live.values()), "lora_alpha": scale * max(live.values()),
        "target_modules": list(live), "rank_pattern": {"^" + re.escape(name): rank for name, rank in live.items()},
        "alpha_pattern": {"^" + re.escape(name): scale * rank for name, rank in live.items()},
    }  # fmt: skip
    set_seed(job.cell.seed)
    return get_peft_model(job.prepared.base, LoraConfig(**(settings | config)), low_cpu_mem_usage=low_cpu_mem_usage)


def train(job: Job, model: Any, callbacks: Sequence[TrainerCallback] = ()) -> Trained:
    """Train a model's adapter and return it; the ranks are those of its LoRA layers, for the caller to put right."""
    with tempfile.TemporaryDirectory() as folder:
        return train_in(folder, job, model, callbacks)


def train_in(folder: str, job: Job, model: Any, callbacks: Sequence[TrainerCallback]) -> Trained:
    """Train with a folder for what callbacks write."""
    watch = Watch()
    trainer = Trainer(
        model=model,
        args=arguments(folder, job),
        train_dataset=job.prepared.rows,
        data_collator=job.prepared.collate,
        compute_loss_func=job.prepared.loss,
        callbacks=[*callbacks, watch],
    )
    trainer.remove_callback(PrinterCallback)
    began = time.perf_counter()
    trainer.train()
    return Trained(
        model=model,
        ranks=dict.fromkeys(job.costs, 0) | live_ranks(model),
        seconds=time.perf_counter() - began,
        peak=max(watch.counts),
        mean=sum(watch.counts) / len(watch.counts),
    )


def arguments(folder: str, job: Job) -> TrainingArguments:
    """Return the trainer's settings: its defaults, and one pass over the rows in their order."""
    return TrainingArguments(
        output_dir=folder, max_steps=job.sizes.steps, per_device_train_batch_size=job.sizes.batch,
        learning_rate=job.cell.learning_rate, warmup_steps=max(1, round(WARM_UP * job.sizes.steps)),
        lr_scheduler_type="linear", train_sampling_strategy="sequential", seed=job.cell.seed,
        use_cpu=job.task.device == "cpu", save_strategy="no", logging_strategy="no", report_to="none",
        disable_tqdm=True, remove_unused_columns=False, dataloader_pin_memory=False,
    )  # fmt: skip


def live_ranks(model: Any) -> dict[str, int]:
    """Return the rank of each layer that carries plain LoRA; none for another kind of adapter."""
    if model.peft_config["default"].peft_type != "LORA":
        return {}
    return {name: factors.rank for name, factors in lora_layers(model, "default").items()}


def on_device(batch: dict[str, torch.Tensor], model: Any) -> dict[str, torch.Tensor]:
    """Return a batch on the model's device."""
    device = next(model.parameters()).device
    return {key: value.to(device) for key, value in batch.items()}
