"""What adaptive rank costs: steps and runs of several methods by turns in one process, and one event of a 7B's size."""

from __future__ import annotations

import cProfile
import pstats
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from planted import PlantedShape, PlantedTask
from rank_methods import WIDE, adalora_method
from rank_report import table
from rank_tasks import Sizes
from rank_training import Cell, Job, lora_model, train
from torch import nn
from transformers import TrainerCallback

from hf_lora_ext.callbacks import AdaptiveRankCallback
from hf_lora_ext.ranks.allocation import allocate_ranks
from hf_lora_ext.ranks.change import change_ranks_
from hf_lora_ext.ranks.criteria import find_bases
from hf_lora_ext.ranks.lora_layers import LoraFactors, lora_layers
from hf_lora_ext.ranks.probes import Moments

ROUNDS, RANK = 5, 8
SIZES = Sizes(steps=20, batch=4)
SHAPE = PlantedShape(vocabulary=1024, hidden=512, intermediate=1024, layers=2, heads=8)
EVENT_STEP, PROBE_FROM = 12, 5
"""With 20 steps, one event, first=0.1, last=0.6 and 8 probe steps."""
RUNS, RUN_SIZES = 3, Sizes(steps=200, batch=4)
"""Whole runs, with the callback's defaults: 8 events' probes are a third of 200 steps, a thirtieth of 2,000."""
LAYERS, WIDTH, WIDE_RANK = 196, 2048, 32
"""The event that is timed: as many layers as a Llama of 28 blocks has, cut from rank 32 to a mean of 8."""


def now(device: str) -> float:
    """Return seconds: on a CPU those that this process has had, so that other load does not count."""
    return time.process_time() if device == "cpu" else time.perf_counter()


class Clock(TrainerCallback):
    """Times from the start of each step to the start of the next, all callbacks included; must come first."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.starts: list[float] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note the time."""
        self.starts.append(now(self.device))

    @property
    def seconds(self) -> list[float]:
        """Seconds of step 1, 2, …; the last step's end is not seen."""
        return [end - start for start, end in zip(self.starts, self.starts[1:], strict=False)]


def print_cost(device: str) -> None:
    """Print the tables."""
    print(f"{torch.get_num_threads()} thread(s), torch {torch.__version__}, {device}; medians over {ROUNDS} rounds")
    print("CPU seconds of this process\n" if device == "cpu" else "seconds by the clock\n")
    print(step_table(step_times(device)), "\n", flush=True)
    print(run_table(run_times(device)), "\n", flush=True)
    print(event_report())


def step_times(device: str) -> dict[str, list[float]]:
    """Return seconds of a step by what is done in it; every method has its turn in every round."""
    found: dict[str, list[float]] = defaultdict(list)
    turns: dict[str, Callable[[Clock, str], dict[str, list[float]]]] = {
        "start": plain_wide, "target": plain_target, "ours": ours_in_phases, "adalora": adalora_steps,
    }  # fmt: skip
    for _ in range(ROUNDS):
        for turn in turns.values():
            for phase, seconds in turn(Clock(device), device).items():
                found[phase].append(statistics.median(seconds))
    return found


def run_times(device: str) -> dict[str, list[float]]:
    """Return seconds of whole runs, first step and set-up of the model left out; every method has its turn."""
    found: dict[str, list[float]] = defaultdict(list)
    turns: dict[str, Callable[[Job, Clock], None]] = {
        f"plain LoRA, target rank {RANK}": lambda made, clock: train_plain(made, clock, RANK),
        f"plain LoRA, start rank {WIDE * RANK}": lambda made, clock: train_plain(made, clock, WIDE * RANK),
        "ours": train_ours,
        f"AdaLoRA, {round(1.5 * RANK)} to {RANK}": lambda made, clock: adalora_method(made, [clock]),
    }
    for _ in range(RUNS):
        for name, turn in turns.items():
            clock = Clock(device)
            turn(job(device, RUN_SIZES), clock)
            found[name].append(sum(clock.seconds[1:]))
    return found


def train_plain(made: Job, clock: Clock, rank: int) -> None:
    train(made, lora_model(made, dict.fromkeys(made.costs, rank)), [clock])


def train_ours(made: Job, clock: Clock) -> None:
    callback = AdaptiveRankCallback(budget_parameters=made.cell.budget)
    train(made, lora_model(made, dict.fromkeys(made.costs, RANK)), [clock, callback])


def job(device: str, sizes: Sizes = SIZES) -> Job:
    """Return a run on a Llama of 512 channels, 256 tokens a step."""
    task = PlantedTask(length=64, held_out_rows=1, shape=SHAPE, device=device)
    made = Job(Cell(method="", seed=0, budget=0, learning_rate=1e-3, scale=1.0), task, sizes)
    made.cell = replace(made.cell, budget=RANK * sum(made.costs.values()))
    return made


def plain_wide(clock: Clock, device: str) -> dict[str, list[float]]:
    train_plain(job(device), clock, WIDE * RANK)
    return {f"plain LoRA, start rank {WIDE * RANK}": clock.seconds[2:]}


def plain_target(clock: Clock, device: str) -> dict[str, list[float]]:
    train_plain(job(device), clock, RANK)
    return {f"plain LoRA, target rank {RANK}": clock.seconds[2:]}


def ours_in_phases(clock: Clock, device: str) -> dict[str, list[float]]:
    made = job(device)
    callback = AdaptiveRankCallback(budget_parameters=made.cell.budget, events=1)
    train(made, lora_model(made, dict.fromkeys(made.costs, RANK)), [clock, callback])
    steps = clock.seconds
    return {
        "ours, before a probe": steps[1 : PROBE_FROM - 1],
        "ours, probe": steps[PROBE_FROM - 1 : EVENT_STEP - 1],
        "ours, probe and event": steps[EVENT_STEP - 1 : EVENT_STEP],
        "ours, after the last event": steps[EVENT_STEP + 1 :],
        f"ours, mean of {len(steps) - 1} steps": [statistics.mean(steps[1:])],
    }


def adalora_steps(clock: Clock, device: str) -> dict[str, list[float]]:
    made = job(device)
    adalora_method(made, [clock])
    return {f"AdaLoRA, {round(1.5 * RANK)} to {RANK}": clock.seconds[2:]}


def step_table(found: dict[str, list[float]]) -> str:
    """Return medians, the spread over rounds, and ratios to plain LoRA of the start rank, paired by round."""
    base = found[f"plain LoRA, start rank {WIDE * RANK}"]
    rows = []
    for phase, seconds in found.items():
        ratios = [one / other for one, other in zip(seconds, base, strict=True)]
        rows.append([phase, f"{1000 * statistics.median(seconds):.0f}", f"{1000 * min(seconds):.0f}",
                     f"{1000 * max(seconds):.0f}", f"{statistics.median(ratios):.2f}"])  # fmt: skip
    return table(["step", "ms", "lowest", "highest", "x start rank"], rows)


def run_table(found: dict[str, list[float]]) -> str:
    """Return medians of whole runs, and ratios to plain LoRA of the target rank, paired by round."""
    base = next(iter(found.values()))
    rows = []
    for name, seconds in found.items():
        ratios = [one / other for one, other in zip(seconds, base, strict=True)]
        rows.append([name, f"{statistics.median(seconds):.1f}", f"{statistics.median(ratios):.2f}",
                     f"{min(ratios):.2f} to {max(ratios):.2f}"])  # fmt: skip
    head = [f"run of {RUN_SIZES.steps} steps", "s", "x target rank", f"range of {RUNS}"]
    return table(head, rows)


def event_report() -> str:
    """Return how long one event takes and where the time goes."""
    setting = event_setting()
    profile = cProfile.Profile()
    profile.enable()
    seconds = event_parts(*setting)
    profile.disable()
    total = sum(seconds.values())
    head = (f"One event: {LAYERS} layers of {WIDTH} x {WIDTH}, rank {WIDE_RANK} to a mean of {RANK}, Adam: "
            f"{total:.2f} s, profiled, on the CPU (the bar is 2 s).")  # fmt: skip
    rows = [[name, f"{value:.3f}", f"{100 * value / total:.0f} %"] for name, value in seconds.items()]
    return f"{head}\n\n{table(['part', 's', 'share'], rows)}\n\n{hottest(profile)}"


def event_parts(
    model: Any, layers: dict[str, LoraFactors], moments: dict[str, Moments], optimizer: torch.optim.Optimizer
) -> dict[str, float]:
    """Carry out one event; return the seconds of its parts."""
    costs, seconds = {name: factors.cost for name, factors in layers.items()}, {}
    began = now("cpu")
    bases = find_bases(layers, moments, "whitened")
    seconds["find_bases"] = now("cpu") - began
    began = now("cpu")
    worth = {name: basis.worths for name, basis in bases.items()}
    ranks = allocate_ranks(worth, costs, RANK * sum(costs.values()))
    seconds["allocate_ranks"] = now("cpu") - began
    began = now("cpu")
    change_ranks_(model, layers, bases, ranks, optimizer)
    seconds["change_ranks_"] = now("cpu") - began
    return seconds


def event_setting() -> tuple[Any, dict[str, LoraFactors], dict[str, Moments], torch.optim.Optimizer]:
    """Return a model of many layers that share one frozen weight, its moments, and an Adam that has made a step."""
    torch.manual_seed(0)
    stack = nn.ModuleList([nn.Linear(1, 1, bias=False) for _ in range(LAYERS)])
    weight = nn.Parameter(torch.randn(WIDTH, WIDTH) / WIDTH**0.5, requires_grad=False)
    for layer in stack:
        layer.weight, layer.in_features, layer.out_features = weight, WIDTH, WIDTH
    config = LoraConfig(r=WIDE_RANK, target_modules=[str(n) for n in range(LAYERS)], init_lora_weights=False)
    model = get_peft_model(nn.ModuleDict({"stack": stack}), config)
    layers = lora_layers(model, "default")
    moments = {}
    for index, (name, factors) in enumerate(layers.items()):
        moments[name] = Moments.none(factors)
        moments[name].add_(torch.randn(256, WIDE_RANK), torch.randn(256, WIDE_RANK) * (1 + index % 7))
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters)
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    return model, layers, moments, optimizer


def hottest(profile: cProfile.Profile, count: int = 8) -> str:
    """Return the functions that most of the time was spent in, calls of others not counted."""
    stats: Any = pstats.Stats(profile)
    ordered = sorted(stats.stats.items(), key=lambda item: -item[1][2])[:count]
    rows = [[f"{Path(file).name}:{line} {name}" if line else name, f"{calls:,}", f"{own:.3f}"]
            for (file, line, name), (_, calls, own, _, _) in ordered]  # fmt: skip
    return table(["function", "calls", "own s"], rows)
