"""Fixed mode's decision: which directions leave their layers, and which rows grow where they pay more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .allocation import Gain, allocate_moves
from .change import begin_again_, change_ranks_, mask_ranks_
from .criteria import find_bases
from .growth import expected_gains, new_rows
from .lora_layers import LoraFactors
from .low_rank import Basis, gram_of_rows
from .optimizer_state import group_of
from .probes import Moments
from .sketches import Sketches
from .storage import AdapterLayers

__all__ = ["Moves", "apply_moves_", "decide_moves", "groups_of", "rows_to_judge"]


@dataclass(frozen=True, slots=True)
class Moves:
    """What an event of fixed mode does."""

    bases: dict[str, Basis]
    """The directions of each layer in use, in order of worth."""
    kept: dict[str, int]
    """How many of them stay; 0 too for layers of rank 0."""
    rows: dict[str, Tensor]
    """Rows of A that grow, by layer; float64 on the CPU."""


def rows_to_judge(
    layers: Mapping[str, LoraFactors], moments: Mapping[str, Moments], sketches: Sketches
) -> dict[str, Tensor]:
    """Return what each layer's second half of a probe judges: its own rows, uncorrelated, and what it could grow.

    Args:
        layers: Layers with a direction in use.
        moments: What was seen of them so far.
        sketches: What was seen so far of where layers could grow.
    """
    bases = find_bases(layers, moments, "whitened")
    return sketches.rows(
        {name: bases[name].to_a @ factors.directions()[0].double() for name, factors in layers.items()}
    )


def decide_moves(
    layers: Mapping[str, LoraFactors],
    costs: Mapping[str, int],
    moments: Mapping[str, Moments],
    sketches: Sketches,
    budget: int,
    accumulation: int,
    room: int,
) -> Moves:
    """Return the moves that lower the loss most, as far as a probe can tell.

    A direction's removal costs ½ S² (see `low_rank.find_basis`), a new one wins ½ ρ² (see `growth.expected_gains`).
    A direction that stays can win too, as long as its layer is not settled; without that, each event would give what
    has just been grown away for what is new. Its share is the mean over the layer's own rows.

    ρ has no unit, but S has the loss's, so that both are brought to nats a label here: of n tokens with a gradient
    and b labels, the mean over b labels has slopes n / b times those over tokens, and the Fisher matrix of one label
    is that of n / b tokens whose gradients are b / n times as large as `Moments` takes them to be. Accumulation
    divides gradients too, which is undone.

    Args:
        layers: Layers with a direction in use.
        costs: Parameters of one direction of every layer, those of rank 0 included.
        moments: What was seen of the layers in use.
        sketches: What was seen of where layers could grow.
        budget: Parameters that all directions may have together.
        accumulation: Micro-batches that the trainer adds up for a step.
        room: Most directions that a layer may have.
    """
    bases = find_bases(layers, moments, "whitened")
    seen = {name: float(sums.tokens) for name, sums in moments.items()}
    seen |= {name: float(sketch.tokens) for name, sketch in sketches.layers.items()}
    ratio = {name: sketches.tokens_per_label(seen.get(name, 0.0)) for name in costs}
    scores = {name: torch.zeros(0, dtype=torch.float64) for name in costs}
    scores |= {name: basis.values.square() / 2 * accumulation**2 / ratio[name] for name, basis in bases.items()}
    gains: dict[str, list[Gain]] = {}
    for name, sketch in sketches.layers.items():
        rank = len(scores[name])
        worth, error = (per_token * ratio[name] for per_token in expected_gains(sketch.passes))
        scores[name] = scores[name] + worth[:rank].sum().clamp_min(0) / max(1, rank)
        most = max(rank, min(room, len(sketch.slopes)))
        gains[name] = [Gain(*gain) for gain in zip(worth[rank:most].tolist(), error[rank:most].tolist(), strict=True)]
    kept, grown = allocate_moves({name: values.tolist() for name, values in scores.items()}, gains, costs, budget)
    rows = {
        name: _grown(layers, name, sketches.layers[name].rows[len(scores[name]) :][list(picked)])
        for name, picked in grown.items()
    }
    return Moves(bases, kept, rows)


def _grown(layers: Mapping[str, LoraFactors], name: str, candidates: Tensor) -> Tensor:
    """Return rows of the root mean square norm of the layer's own; of all layers' where it has none."""
    squares = {other: gram_of_rows(f.directions()[0]).diagonal() for other, f in layers.items()}
    own = [squares[name]] if name in layers else list(squares.values())
    length = (sum(float(s.sum()) for s in own) / sum(len(s) for s in own)) ** 0.5
    a = layers[name].directions()[0] if name in layers else candidates.new_zeros(0, candidates.shape[1])
    return new_rows(candidates, a, length)


def apply_moves_(
    layers: AdapterLayers,
    moves: Moves,
    optimizer: torch.optim.Optimizer,
    groups: Mapping[str, Mapping[str, int]],
    *,
    in_place: bool,
) -> None:
    """Do what was decided; the answers change by the directions that leave alone.

    Args:
        layers: The adapter's layers.
        moves: What was decided.
        optimizer: The optimizer.
        groups: From `groups_of`, for layers that the adapter comes back to.
        in_place: Whether every shape must stay.
    """
    if in_place:
        mask_ranks_(layers.model, layers.carrying, moves.bases, moves.kept, optimizer, moves.rows)
        return
    used = layers.live
    kept = {name: rank for name, rank in moves.kept.items() if name in used}
    rows = {name: grown for name, grown in moves.rows.items() if name in used}
    for name in moves.rows.keys() - used.keys():
        order = lambda: list(layers.model.parameters())  # noqa: E731
        begin_again_(layers.take_up_(name), moves.rows[name], optimizer, groups[name], used, order)
        kept[name] = len(moves.rows[name])
    layers.leave_(change_ranks_(layers.model, layers.live, moves.bases, kept, optimizer, rows))


def groups_of(optimizer: torch.optim.Optimizer, layers: Mapping[str, LoraFactors]) -> dict[str, dict[str, int]]:
    """Return the optimizer's group of each part of each layer that it trains."""
    found: dict[str, dict[str, int]] = {}
    for name, factors in layers.items():
        for part, parameter in factors.parameters.items():
            group = group_of(optimizer, parameter)
            if group is not None:
                found.setdefault(name, {})[part] = group
    return found
