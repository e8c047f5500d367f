"""The methods of the rank benchmark: each spends the same budget of parameters in its own way.

Every method sees the same rows in the same order and draws its adapter from the same seed. Those that need more than
the budget on the way (`peak`) or that know only whole ranks (`adalora`, `eva`) are measured as they are.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from peft import (
    AdaLoraConfig,
    EvaConfig,
    get_peft_model,
    get_peft_model_state_dict,
    initialize_lora_eva_weights,
    set_peft_model_state_dict,
)
from rank_keys import cell_key
from rank_tasks import is_attention, uniform_ranks
from rank_training import Job, Trained, lora_model, on_device, train
from transformers import TrainerCallback, set_seed

from hf_lora_ext import AdaLoraCallback
from hf_lora_ext.adapters import adalora
from hf_lora_ext.callbacks import AdaptiveRankCallback
from hf_lora_ext.ranks.allocation import allocate_ranks
from hf_lora_ext.ranks.change import change_ranks_
from hf_lora_ext.ranks.criteria import Criterion, find_bases
from hf_lora_ext.ranks.lora_layers import lora_layers
from hf_lora_ext.ranks.low_rank import Basis
from hf_lora_ext.ranks.probes import Moments, Probe

WIDE = 8
"""Times the budget that a wide adapter has: `AdaptiveRankCallback`'s default, written out for the cells' keys."""
ADALORA_WIDE = 1.5
"""Times the target rank that AdaLoRA starts with, as in its paper (arXiv 2303.10512, section 4.1)."""
PROBE_BATCHES = 8
"""Batches watched before a trained adapter is cut: `AdaptiveRankCallback`'s default."""
RANKS = tuple(
    f"ranks/{name}"
    for name in ("allocation", "lora_layers", "low_rank", "criteria", "change", "probes", "optimizer_state")
)
MOVES = ("ranks/growth", "ranks/sketches", "ranks/moves")
EVENTS = ("ranks/events", "ranks/storage", "callbacks/adaptive_rank", "callbacks/trainer_fit")
ADALORA = ("adapters/adalora", "adapters/orthogonality", "adapters/adalora_schedule", "callbacks/adalora")


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """A way to spend a budget."""

    run: Callable[[Job], Trained]
    says: str
    modules: tuple[str, ...] = ()
    """Modules of the package that its result depends on."""
    needs: str = ""
    """Method whose final ranks, of the same seed and budget, it is given."""
    variant_of: str = ""
    """Method whose learning rate it may share, being that method but for one choice."""


class AnnealsTo(AdaptiveRankCallback):
    """The callback in all but its choice: the same events, bases and transport, and the ranks of each event are given.

    Each layer's rank falls by the schedule's own cubic from the start to the given one.
    """

    def __init__(self, final: Mapping[str, int], **settings: Any) -> None:
        super().__init__(**settings)
        self.final = dict(final)

    def on_train_begin(self, args: Any, state: Any, control: Any, *, model: Any, optimizer: Any, **kwargs: Any) -> None:
        """Remember what the ranks fall from."""
        super().on_train_begin(args, state, control, model=model, optimizer=optimizer, **kwargs)
        self.from_ranks, self.from_parameters = dict(self.layers_.ranks), self.layers_.parameters

    def _best(self, moments: Mapping[str, Moments], budget: int, step: int) -> tuple[dict[str, Basis], dict[str, int]]:
        bases, _ = super()._best(moments, budget, step)
        share = (budget - self.budget_) / (self.from_parameters - self.budget_)
        wanted = {name: rank + int(share * (self.from_ranks[name] - rank)) for name, rank in self.final.items()}
        return bases, {name: min(wanted[name], factors.rank) for name, factors in self.layers_.live.items()}


class ForgetsMoments(AdaptiveRankCallback):
    """The callback, but what the optimizer remembers of a changed factor is lost, as where it is made anew."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Forget the state of every factor that an event has put in place."""
        before = {id(parameter): parameter for parameter in self._trained()}  # kept alive, so that ids stay theirs
        super().on_step_end(args, state, control, **kwargs)
        for parameter in self._trained():
            if id(parameter) not in before:
                self.optimizer_.state.pop(parameter, None)

    def _trained(self) -> list[torch.nn.Parameter]:
        return [parameter for group in self.optimizer_.param_groups for parameter in group["params"]]


def uniform(job: Job) -> Trained:
    return train(job, lora_model(job, uniform_ranks(job.costs, job.cell.budget, job.cell.seed)))


def uniform_mlp(job: Job) -> Trained:
    costs = {name: cost for name, cost in job.costs.items() if not is_attention(name)}
    return train(job, lora_model(job, uniform_ranks(costs, job.cell.budget, job.cell.seed)))


def true_ranks(job: Job) -> Trained:
    if job.prepared.true_ranks is None:
        raise ValueError("the true ranks are known only for --task planted")
    return train(job, lora_model(job, job.prepared.true_ranks))


def replay(job: Job) -> Trained:
    assert job.cell.given is not None
    return train(job, lora_model(job, job.cell.given))


def ours(job: Job, kind: Callable[..., AdaptiveRankCallback] = AdaptiveRankCallback, **settings: Any) -> Trained:
    callback = kind(budget_parameters=job.cell.budget, **({"start_factor": WIDE} | settings))
    return train(job, lora_model(job, dict.fromkeys(job.costs, job.whole_rank)), [callback])


def fixed(job: Job) -> Trained:
    callback = AdaptiveRankCallback(budget_parameters=job.cell.budget, mode="fixed")
    return train(job, lora_model(job, uniform_ranks(job.costs, job.cell.budget, job.cell.seed)), [callback])


def anneal(job: Job) -> Trained:
    return ours(job, partial(AnnealsTo, uniform_ranks(job.costs, job.cell.budget, job.cell.seed)))


def shuffled(job: Job) -> Trained:
    assert job.cell.given is not None
    return ours(job, partial(AnnealsTo, shuffle_within_costs(job.cell.given, job.costs, job.cell.seed)))


def shuffle_within_costs(ranks: Mapping[str, int], costs: Mapping[str, int], seed: int) -> dict[str, int]:
    """Return the same ranks dealt out anew among layers of equal cost, so that the parameters stay."""
    draw = random.Random(seed)
    dealt: dict[str, int] = {}
    for cost in sorted(set(costs.values())):
        names = [name for name in ranks if costs[name] == cost]
        dealt |= dict(zip(names, draw.sample([ranks[name] for name in names], len(names)), strict=True))
    return dealt


def adalora_method(job: Job, callbacks: Sequence[TrainerCallback] = ()) -> Trained:
    start = max(job.whole_rank + 1, round(ADALORA_WIDE * job.whole_rank))
    config = AdaLoraConfig(
        task_type=job.prepared.task_type, target_modules=list(job.costs), init_r=start, target_r=job.whole_rank,
        lora_alpha=job.cell.scale * start, total_step=job.sizes.steps,
    )  # fmt: skip
    set_seed(job.cell.seed)
    model = get_peft_model(job.prepared.base, config)
    trained = train(job, model, [*callbacks, AdaLoraCallback(tinit=0.1, tfinal=0.4)])
    trained.ranks |= adalora.layer_ranks(model.base_model)
    return trained


def eva(job: Job) -> Trained:
    began = time.perf_counter()
    settings = {"init_lora_weights": "eva", "eva_config": EvaConfig(), "rank_pattern": {}, "alpha_pattern": {}}
    model = lora_model(job, dict.fromkeys(job.costs, job.whole_rank), low_cpu_mem_usage=True, **settings)
    rows, size = job.prepared.rows, job.sizes.batch
    batches = [job.prepared.collate(list(rows[at : at + size])) for at in range(0, len(rows), size)]
    if job.prepared.task_type != "CAUSAL_LM":  # elsewhere a label says nothing on which tokens count
        batches = [{key: value for key, value in batch.items() if key != "labels"} for batch in batches]
    initialize_lora_eva_weights(model, batches, show_progress_bar=False)
    seconds = time.perf_counter() - began
    trained = train(job, model)
    trained.extra_seconds = seconds
    return trained


def wide(job: Job) -> Trained:
    """Train a uniform adapter of WIDE times the budget, or take up the one that another cell has trained."""
    model = lora_model(job, dict.fromkeys(job.costs, max(1, round(WIDE * job.mean_rank))))
    file = shared_adapter(job)
    if file is None or not file.is_file():
        trained = train(job, model)
        if file is not None:
            told = {"seconds": trained.seconds, "peak": trained.peak, "mean": trained.mean, "ranks": trained.ranks}
            draft = file.with_suffix(f".{random.SystemRandom().randrange(10**9)}")
            torch.save({"adapter": get_peft_model_state_dict(model), "told": told}, draft)
            draft.replace(file)
        return trained
    stored = torch.load(file, map_location=job.task.device)
    set_peft_model_state_dict(model, stored["adapter"])
    return Trained(model=model, **stored["told"])


def shared_adapter(job: Job) -> Path | None:
    """Return the file of a wide adapter, by all that determines it but the method."""
    if job.kept is None:
        return None
    cell = replace(job.cell, method="wide")
    job.kept.mkdir(parents=True, exist_ok=True)
    return job.kept / f"wide-{cell_key(cell, job.task, job.sizes, METHODS['wide'].modules)}.pt"


def truncate(job: Job, criterion: Criterion) -> Trained:
    """Train wide, then keep what is worth most under the budget, over all layers together."""
    trained = wide(job)
    began = time.perf_counter()
    layers = lora_layers(trained.model, "default")
    moments = watched(job, trained.model) if criterion != "svd" else {}
    bases = find_bases(layers, moments, criterion)
    worth = {name: basis.worths for name, basis in bases.items()}
    ranks = allocate_ranks(worth, job.costs, job.cell.budget)
    change_ranks_(trained.model, layers, bases, ranks, torch.optim.SGD([torch.zeros(1)]))
    trained.ranks, trained.extra_seconds = ranks, time.perf_counter() - began
    return trained


def watched(job: Job, model: Any) -> dict[str, Moments]:
    """Return what flows through the trained adapter on the run's last batches."""
    size, rows = job.sizes.batch, job.prepared.rows
    starts = islice(reversed(range(0, len(rows), size)), PROBE_BATCHES)
    probe = Probe(lora_layers(model, "default"))
    model.train()
    for start in starts:
        batch = on_device(job.prepared.collate(list(rows[start : start + size])), model)
        if job.prepared.loss is None:
            model(**batch).loss.backward()
        else:
            labels = batch.pop("labels")
            job.prepared.loss(model(**batch), labels).backward()
        model.zero_grad()
    return probe.stop()


def ours_with(says: str, kind: Callable[..., AdaptiveRankCallback] = AdaptiveRankCallback, **settings: Any) -> Method:
    """Return a variant of our method."""
    return Method(run=partial(ours, kind=kind, **settings), says=says, modules=RANKS + EVENTS, variant_of="ours")


METHODS: dict[str, Method] = {
    "uniform": Method(run=uniform, says="plain LoRA, one rank everywhere"),
    "uniform-mlp": Method(run=uniform_mlp, says="plain LoRA outside attention, same parameters"),
    "wide": Method(run=wide, says=f"plain LoRA of {WIDE} times the budget: what the truncations start from"),
    "adalora": Method(run=adalora_method, says="PEFT's AdaLoRA under AdaLoraCallback", modules=ADALORA),
    "eva": Method(run=eva, says="PEFT's EVA: ranks and A from the inputs, before the training"),
    "anneal": Method(run=anneal, says="uniform ranks annealed as ours are", modules=RANKS + EVENTS),
    "truncate-svd": Method(run=partial(truncate, criterion="svd"), modules=RANKS,
                           says="wide, then cut once by singular values over all layers"),
    "truncate-whitened": Method(run=partial(truncate, criterion="whitened"), modules=RANKS,
                                says="wide, then cut once by predicted loss over all layers"),
    "ours": Method(run=ours, says="AdaptiveRankCallback", modules=RANKS + EVENTS),
    "ours-svd": ours_with("ours, directions worth their singular values", criterion="svd"),
    "ours-input": ours_with("ours, worth by inputs alone", criterion="input"),
    "ours-random": ours_with("ours, ranks at random", criterion="random"),
    "ours-start2": ours_with("ours, started at 2 times the budget", start_factor=2),
    "ours-start4": ours_with("ours, started at 4 times the budget", start_factor=4),
    "ours-start6": ours_with("ours, started at 6 times the budget", start_factor=6),
    "ours-start12": ours_with("ours, started at 12 times the budget", start_factor=12),
    "ours-events4": ours_with("ours, 4 events", events=4),
    "ours-freeze60": ours_with("ours, ranks fixed at 60 % of the run", last=0.6),
    "ours-freeze80": ours_with("ours, ranks fixed at 80 % of the run", last=0.8),
    "ours-reset": ours_with("ours, the optimizer forgets what changed", kind=ForgetsMoments),
    "fixed": Method(run=fixed, says="AdaptiveRankCallback, mode='fixed'",
                    modules=RANKS + EVENTS + MOVES),
    "replay": Method(run=replay, says="the final ranks of ours, from scratch", needs="ours"),
    "shuffled": Method(run=shuffled, says="the ranks of ours dealt out anew among equal layers, annealed alike",
                       needs="ours", variant_of="ours", modules=RANKS + EVENTS),
    "true": Method(run=true_ranks, says="the planted ranks, from scratch; their parameters, not the budget's"),
}  # fmt: skip
