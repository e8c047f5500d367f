"""Our compression of a trained adapter against PEFT's `convert_to_lora`, at equal parameters.

    python tests/benchmarks/compress.py
    python tests/benchmarks/compress.py --adapter out/quickstart --ranks 2 --thresholds 0.8
    python tests/benchmarks/compress.py --adapter FOLDER --model FOLDER --data held_out.jsonl --calibration train.jsonl

PEFT converts to one rank (`rank=2`) or to the energy that each layer keeps (`rank=0.9`); what either then has in
parameters is the budget that ours is given, which spends at most that. `svd` is data-free, as PEFT is; `whitened` looks
at training rows, and its seconds include that. Without `--adapter`, rank-16 adapters are trained first, one a seed, on
a small random Llama that must become a copy with updates of known low rank added (`planted.py`); there the loss is the
KL divergence to the copy. With it, it is the held-out NLL, as `hf-lora curve` measures it.

Then wide layers, random factors of rank 64 in modules of 2048 x 2048, seconds alone: ours on all 28, PEFT on
`--wide-peft` of them, both by their mean seconds a module. Seconds are those of this process, in turns. About 7 minutes
on one quiet core.
"""

from __future__ import annotations

import argparse
import statistics
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from peft.tuners.lora.conversion import convert_to_lora
from planted import PlantedTask
from rank_cost import now
from rank_methods import watched
from rank_report import table
from rank_tasks import Sizes
from rank_training import Cell, Job, lora_model, train
from torch import nn
from transformers import logging as transformers_logging

from hf_lora_ext.analysis.curve import Reading, calibration_examples, encoded
from hf_lora_ext.analysis.knee import loss_a_token
from hf_lora_ext.analysis.passes import at_rest, example_losses, watch_examples
from hf_lora_ext.analysis.subject import find_subject
from hf_lora_ext.analysis.truncation import cut_meanwhile, truncation
from hf_lora_ext.ranks.lora_layers import LoraFactors, lora_layers
from hf_lora_ext.ranks.probes import Moments

RANK = 16
SIZES = Sizes(steps=300, batch=48)
LEARNING_RATE = 3.56e-3
"""The middle of the planted task's grid in `adaptive_rank.py`."""
MODULES, WIDTH, WIDE_RANK, WIDE_BUDGET = 28, 2048, 64, 16


@dataclass(frozen=True, slots=True)
class Case:
    """A trained adapter."""

    model: Any
    measure: Callable[[], float]
    """Its held-out loss as the model is now."""
    watch: Callable[[], Mapping[str, Moments]]
    """What flows through its layers on training rows."""

    @property
    def layers(self) -> dict[str, LoraFactors]:
        """Its layers."""
        return lora_layers(self.model, "default", trains=False)


@dataclass(frozen=True, slots=True)
class Outcome:
    """An adapter made smaller."""

    parameters: int
    loss: float
    seconds: float


def planted_case(seed: int, steps: int) -> Case:
    """Train an adapter on the planted task."""
    cell = Cell(method="wide", seed=seed, budget=1, learning_rate=LEARNING_RATE, scale=1.0)
    job = Job(cell, PlantedTask(), Sizes(steps=steps, batch=SIZES.batch))
    model = train(job, lora_model(job, dict.fromkeys(job.costs, RANK))).model
    return Case(model, lambda: job.prepared.measure(model)["value"], lambda: watched(job, model))


def given_case(options: argparse.Namespace) -> Case:
    """Return the adapter that was named."""
    subject = find_subject(
        options.adapter, base=options.model, data=options.data, calibration=options.calibration, max_length=None
    )
    if subject.held_out is None or subject.training is None:
        raise SystemExit("--adapter is no run folder of hf-lora train: give --data and --calibration too")
    model, tokenizer = subject.load_()
    reading = Reading(tokenizer, subject.max_length, subject.assistant_only)
    held_out = encoded(subject.held_out, reading)
    seen = calibration_examples(subject.training, held_out, reading)
    tokens = [example.supervised for example in held_out]

    def measure() -> float:
        with at_rest(model):
            return loss_a_token(example_losses(model, held_out), tokens).mean

    def watch() -> Mapping[str, Moments]:
        with at_rest(model):
            return watch_examples(model, lora_layers(model, "default", trains=False), seen)

    return Case(model, measure, watch)


def by_peft(case: Case, rank: int | float) -> Outcome:
    """Convert with PEFT and measure what it gives."""
    began = now("cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the adapter is LoRA already
        config, tensors = convert_to_lora(case.model, rank=rank)
    seconds = now("cpu") - began
    case.model.add_adapter("converted", config)
    loaded = set_peft_model_state_dict(case.model, tensors, adapter_name="converted")
    assert not loaded.unexpected_keys
    case.model.set_adapter("converted")
    loss = case.measure()
    case.model.set_adapter("default")
    case.model.delete_adapter("converted")
    return Outcome(sum(tensor.numel() for tensor in tensors.values()), loss, seconds)


def by_us(case: Case, criterion: str, budget: int) -> Outcome:
    """Cut to a budget and measure."""
    began = now("cpu")
    moments = case.watch() if criterion == "whitened" else None
    cut = truncation(case.layers, criterion, moments)
    ranks = cut.ranks_for(budget)
    for name, rank in ranks.items():
        cut.factors(name, rank)
    seconds = now("cpu") - began
    with cut_meanwhile(case.layers, cut, ranks):
        return Outcome(cut.parameters_at(ranks), case.measure(), seconds)


def compared(case: Case, ranks: list[int | float]) -> Iterator[tuple[str, str, Outcome]]:
    """Yield (what PEFT was asked for, method, outcome), the methods in turn."""
    for rank in ranks:
        asked = f"rank {rank}" if isinstance(rank, int) else f"energy {rank}"
        theirs = by_peft(case, rank)
        yield asked, "PEFT", theirs
        for criterion in ("svd", "whitened"):
            yield asked, f"ours, {criterion}", by_us(case, criterion, theirs.parameters)


def loss_table(found: dict[tuple[str, str], list[Outcome]], whole: list[float]) -> str:
    """Return means over seeds, and in how many seeds ours is better than PEFT."""
    rows = []
    for (asked, method), outcomes in found.items():
        losses = [outcome.loss for outcome in outcomes]
        rivals = [outcome.loss for outcome in found[asked, "PEFT"]]
        wins = sum(loss < rival for loss, rival in zip(losses, rivals, strict=True))
        rises = [loss - start for loss, start in zip(losses, whole, strict=True)]
        rows.append([
            asked, method, f"{statistics.mean(o.parameters for o in outcomes):,.0f}", f"{statistics.mean(losses):.4f}",
            f"{statistics.mean(rises):+.4f}", "" if method == "PEFT" else f"{wins} of {len(losses)}",
            f"{statistics.median(o.seconds for o in outcomes):.2f}",
        ])  # fmt: skip
    return table(["PEFT asked for", "method", "parameters", "loss", "above whole", "better than PEFT", "s"], rows)


def wide_model(count: int) -> Any:
    """Return modules of 2048 x 2048 that share one frozen weight, each with random factors."""
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(WIDTH, WIDTH) / WIDTH**0.5, requires_grad=False)
    stack = nn.ModuleList([nn.Linear(WIDTH, WIDTH, bias=False, device="meta") for _ in range(count)])
    for layer in stack:
        layer.weight = weight
    names = [f"stack.{number}" for number in range(count)]
    config = LoraConfig(r=WIDE_RANK, lora_alpha=WIDE_RANK, target_modules=names, init_lora_weights=False)
    return get_peft_model(nn.ModuleDict({"stack": stack}), config)


def wide_table(peft_modules: int) -> str:
    """Return seconds a module, ours on all modules before and after PEFT's on some."""
    case = Case(wide_model(MODULES), lambda: 0.0, dict)
    few = Case(wide_model(peft_modules), lambda: 0.0, dict)
    budget = MODULES * WIDE_BUDGET * 2 * WIDTH
    before = by_us(case, "svd", budget)
    theirs = by_peft(few, WIDE_BUDGET)
    after = by_us(case, "svd", budget)
    ours = (before.seconds + after.seconds) / 2 / MODULES
    rows = [["ours, svd", str(MODULES), f"{ours:.4f}", ""],
            ["PEFT", str(peft_modules), f"{theirs.seconds / peft_modules:.4f}",
             f"{theirs.seconds / peft_modules / ours:,.0f}"]]  # fmt: skip
    return table(["method", f"modules of {WIDTH} x {WIDTH}, rank {WIDE_RANK} to {WIDE_BUDGET}", "s a module",
                  "times ours"], rows)  # fmt: skip


def options_from(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapter", help="folder of a trained adapter; else planted ones are trained")
    parser.add_argument("--model", help="its base; else the one that it names")
    parser.add_argument("--data", help="held-out rows; else those of the run")
    parser.add_argument("--calibration", help="training rows; else those of the run")
    parser.add_argument("--ranks", default="1,2,4", help="what PEFT is asked for: one rank for all layers")
    parser.add_argument("--thresholds", default="0.8,0.95", help="what PEFT is asked for: energy that a layer keeps")
    parser.add_argument("--seeds", type=int, default=3, help="planted adapters")
    parser.add_argument("--steps", type=int, default=SIZES.steps, help="their optimizer steps")
    parser.add_argument("--wide-peft", type=int, default=2, help="wide modules that PEFT converts; 0: no wide layers")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Print the tables."""
    options = options_from(arguments)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)
    asked: list[int | float] = [int(rank) for rank in options.ranks.split(",") if rank]
    asked += [float(threshold) for threshold in options.thresholds.split(",") if threshold]
    found: dict[tuple[str, str], list[Outcome]] = {}
    whole = []
    for seed in range(1 if options.adapter else options.seeds):
        case = given_case(options) if options.adapter else planted_case(seed, options.steps)
        whole.append(case.measure())
        for mode, method, outcome in compared(case, asked):
            found.setdefault((mode, method), []).append(outcome)
    about = options.adapter or f"{len(whole)} planted adapters of rank {RANK}, {options.steps} steps"
    print(f"{about}: loss of the whole {statistics.mean(whole):.4f}\n\n{loss_table(found, whole)}\n")
    if options.wide_peft:
        print(wide_table(options.wide_peft))


if __name__ == "__main__":
    main()
