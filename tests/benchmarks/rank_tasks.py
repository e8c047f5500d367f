"""What a task of the rank benchmark gives to a method, and the layers that an adapter may have."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

HEADS = {"classifier", "score", "lm_head", "pooler"}
"""Parts of the names of layers that no adapter goes into: a classification head is trained whole, and a pooler sees one
vector a row, of which PEFT's EVA can make nothing."""
ATTENTION = ("attn", "attention")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How much is trained."""

    steps: int
    batch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """One seed's model, data and measure."""

    base: Any
    """The model without an adapter; not shared with another cell."""
    rows: Sequence[dict[str, Any]]
    """Training rows in the order in which every method sees them, one epoch of the run's length."""
    collate: Callable[[list[dict[str, Any]]], dict[str, Tensor]]
    measure: Callable[[Any], dict[str, float]]
    """Gives `value`, lower is better, and maybe `accuracy`, on held-out rows."""
    supervised_tokens: int
    """Targets that the training rows hold, repeats not counted."""
    loss: Callable[..., Tensor] | None = None
    """The trainer's `compute_loss_func`; the model's own loss if None."""
    task_type: str | None = None
    """PEFT's."""
    true_ranks: dict[str, int] | None = None
    """Rank of what is to be learned, by layer, where it is known."""


class Task(Protocol):
    """A task, as the benchmark runs it."""

    @property
    def name(self) -> str:
        """Name on the command line."""

    @property
    def measure(self) -> str:
        """What `value` is, with its unit."""

    @property
    def targets(self) -> str:
        """`all-linear`, or the last parts of the adapted layers' names, comma-separated."""

    @property
    def sources(self) -> tuple[str, ...]:
        """Files beside this one that determine the task."""

    @property
    def device(self) -> str:
        """`cpu` or `cuda`."""

    def settings(self) -> dict[str, Any]:
        """Return all that determines the task."""

    def prepare(self, seed: int, sizes: Sizes) -> Prepared:
        """Return a seed's model, data and measure."""


def layer_costs(model: Any, targets: str) -> dict[str, int]:
    """Return the parameters of one direction in each layer that an adapter may have.

    Raises:
        SystemExit: If no linear layer has such a name.
    """
    wanted = None if targets == "all-linear" else set(targets.split(","))
    costs = {
        name: layer.in_features + layer.out_features
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear)
        and not HEADS & set(name.split("."))
        and (wanted is None or name.rpartition(".")[2] in wanted)
    }
    if not costs:
        raise SystemExit(f"--targets {targets}: {type(model).__name__} has no nn.Linear of such a name")
    return costs


def is_attention(name: str) -> bool:
    """Return whether a layer is one of an attention block's, by its name."""
    return any(word in part for part in name.split(".") for word in ATTENTION)


def uniform_ranks(costs: dict[str, int], budget: int, seed: int) -> dict[str, int]:
    """Return ranks that differ by at most 1 and hold the budget.

    What a whole rank for every layer leaves goes, one direction each, to layers drawn by the seed.
    """
    whole, left = divmod(budget, sum(costs.values()))
    ranks = dict.fromkeys(costs, whole)
    for name in random.Random(seed).sample(sorted(costs), len(costs)):
        if costs[name] <= left:
            ranks[name] += 1
            left -= costs[name]
    return ranks


def in_order(count: int, wanted: int, seed: int) -> list[int]:
    """Return row numbers for `wanted` rows: whole epochs, each shuffled, the last one cut."""
    draw = random.Random(seed)
    order: list[int] = []
    while len(order) < wanted:
        order += draw.sample(range(count), count)
    return order[:wanted]
