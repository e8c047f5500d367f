"""`hf-lora train --dry-run`, on the screen."""

from __future__ import annotations

from collections import Counter
from math import prod
from typing import Final

from ..choices.adapter import short_count
from ..presets.explanation import warning_lines
from ..runs.dry_run import DryRun, Piece
from ..runs.recipe_plan import MemoryNeed

__all__ = ["print_dry_run"]

MOST_SHOWN: Final = 4
"""Examples of the batch that are shown."""
MOST_SHAPES: Final = 6
"""Shapes of what trains that are listed, the largest first."""
MOST_CHARACTERS: Final = 2_000
"""Characters of an example that are shown."""


def print_dry_run(made: DryRun) -> None:
    """Print the plan, what trains, steps, tokens and the first batch: in colour on a terminal, marked elsewhere."""
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    for name, text in _lines(made):
        console.print(f"{name:<11}{text}", markup=False)
    if not made.batch:
        return
    how = "green" if console.is_terminal else "between « and »"
    note = f", {made.batch_note}" if made.batch_note else ""
    console.print(f"\nfirst batch{note}; what the loss counts is {how}", markup=False)
    for number, example in enumerate(made.batch[:MOST_SHOWN], 1):
        console.print(f"\n[{number} of {len(made.batch)}]", markup=False)
        if console.is_terminal:
            console.print(_coloured(example))
        else:
            console.print(_marked(example), markup=False)


def _lines(made: DryRun) -> list[tuple[str, str]]:
    chosen = made.preset
    count = "about " if made.is_estimated else ""
    kinds = Counter(made.trained.values())
    largest = sorted(kinds, key=prod, reverse=True)[:MOST_SHAPES]
    shapes = ", ".join(f"{kinds[shape]} of {' × '.join(map(str, shape))}" for shape in largest)
    start = f"; {made.trained_at_start:,} at the start" if made.trained_at_start != made.trained_parameters else ""
    lines = [
        ("model", f"{made.recipe.model}: {short_count(chosen.shape.parameters)} parameters, {_shape(made)}"),
        ("preset", f"{chosen.method}, rank {chosen.rank}, alpha {chosen.alpha}, {chosen.dtype}, {chosen.hardware}"),
        *(("look out", line) for line in warning_lines(chosen)),
        ("memory", _memory(made.need)),
        ("trains", f"{made.trained_parameters:,} parameters in {len(made.trained)} tensors{start}"),
        ("", f"{shapes}{', …' if len(kinds) > MOST_SHAPES else ''}"),
        ("data", f"{made.train_examples:,} to train on, {made.held_out_examples:,} held out ({made.form})"),
        ("steps", f"{made.steps:,} of {made.examples_per_step} examples, {made.epochs:.2f} epochs"),
    ]
    if made.tokens is not None:
        counted = f"{count}{made.counted_tokens:,} of them counted by the loss"
        lines.append(("tokens", f"{count}{made.tokens:,} an epoch, {counted}"))
    if not made.batch and made.batch_note:
        lines.append(("batch", made.batch_note))
    if made.note:
        lines.insert(2, ("hardware", made.note))
    return lines


def _shape(made: DryRun) -> str:
    shape = made.preset.shape
    known = {"layers": shape.layers, "hidden": shape.hidden, "heads": shape.heads, "vocabulary": shape.vocabulary}
    return ", ".join(f"{name} {value:,}" for name, value in known.items() if value) or shape.source


def _memory(need: MemoryNeed) -> str:
    if need.needed_gib is None:
        return "not known to the planner"
    of = "" if need.available_gib is None else f" of {need.available_gib:g}"
    if need.is_lower_bound:
        return f"at least {need.needed_gib:.2f} GiB{of} of host memory, for base and adapter without activations"
    return f"{need.needed_gib:.1f} GiB{of} on each GPU, margin included"


def _clipped(example: tuple[Piece, ...]) -> list[Piece]:
    left, kept = MOST_CHARACTERS, []
    for piece in example:
        if left > 0:
            kept.append(Piece(piece.text[:left], piece.counted))
        left -= len(piece.text)
    return [*kept, Piece(" …", False)] if left < 0 else kept


def _coloured(example: tuple[Piece, ...]) -> object:
    from rich.text import Text

    return Text.assemble(*((piece.text, "green" if piece.counted else "dim") for piece in _clipped(example)))


def _marked(example: tuple[Piece, ...]) -> str:
    return "".join(f"«{piece.text}»" if piece.counted else piece.text for piece in _clipped(example))
