"""Advice: the practical rules for rank, alpha, dropout and targets as code, each line with its reason and source.

The rules narrow a range of ranks: the task gives it, the data bounds it, the model's size key settles it where
nothing else is known. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, get_args

from ..decisions import WITHOUT_REGRET, Choice
from ..errors import ConfigError, nearest
from ..models.sizes import ModelShape, size_band
from ..models.targets import targets_choice

__all__ = ["TASKS", "Advice", "Task", "advise", "check_question", "overfitting_risk"]

Task = Literal["style", "classification", "chat", "code", "domain"]
TASKS: Final[tuple[Task, ...]] = get_args(Task)

RANGES: Final[dict[str, tuple[int, int, str]]] = {
    "style": (4, 16, "a form or tone is a small change"),
    "classification": (4, 16, "a few labels are a small change"),
    "chat": (8, 64, "following instructions is a broader change"),
    "code": (16, 128, "a formal language has much to learn"),
    "domain": (16, 128, "new knowledge has much to learn"),
}
"""Task → lowest and highest customary rank, and why."""

PRACTICE = "practitioners' ranges"
BITS_PER_PARAMETER: Final = 2.0
"""What an adapter's parameter can hold."""
BITS_PER_TOKEN: Final = 1.0
"""What a training token asks to be held, at most (0.69 nats)."""
SMALL_DATA: Final = 1_000
"""Examples below which an adapter soon knows them by heart: rank and dropout are lowered there, and a run is watched
(`OverfitCallback`), so that one bound decides all three."""
TINY_DATA: Final = 100
LADDER: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """What to try first, why, and what to look out for."""

    rank: int
    """Rank to start from."""
    alpha: int
    """LoRA's alpha."""
    dropout: float
    """Dropout on the adapter's input."""
    targets: str | tuple[str, ...]
    """Modules to adapt."""
    lines: tuple[Choice, ...]
    """Each value with its reason and source."""
    warnings: tuple[Choice, ...]
    """Risks: `name` says which, `value` how large, `why` what to do."""


def advise(
    shape: ModelShape, *, task: Task | None = None, examples: int | None = None, tokens: int | None = None
) -> Advice:
    """Return the rank to start from and what goes with it.

    >>> advise(ModelShape(parameters=7 * 10**9, source="size"), task="style", examples=500).rank
    4

    Args:
        shape: The base model; its linear layers, where known, give an adapter's capacity.
        task: What is to be learned: `style`, `classification`, `chat`, `code` or `domain` (new knowledge).
        examples: Training examples.
        tokens: Training tokens that the loss counts, once through the data.

    Raises:
        ConfigError: If the task is not known or a count is not positive.
    """
    check_question(task, examples, tokens)
    rank = _rank(shape, task, examples, tokens)
    dropout, targets = _dropout(examples), targets_choice(shape)
    lines = (
        rank,
        Choice(
            name="alpha",
            value=2 * rank.value,
            why="alpha = r or 2r is customary; 2r scales the update by 2 at every rank",
            source=f"{PRACTICE}; TRL's LoRA defaults (16, 32)",
        ),
        dropout,
        targets,
    )
    return Advice(
        rank=rank.value,
        alpha=2 * rank.value,
        dropout=dropout.value,
        targets=targets.value,
        lines=lines,
        warnings=_warnings(shape, rank.value, examples, tokens),
    )


def check_question(task: str | None, examples: int | None, tokens: int | None) -> None:
    """Raise for a task that is not known or a count that cannot be.

    Raises:
        ConfigError: With what is needed.
    """
    if task is not None and task not in TASKS:
        raise ConfigError(f"task {task!r} is not known; {nearest(str(task), TASKS)}")
    for name, value in (("examples", examples), ("tokens", tokens)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ConfigError(f"{name}={value!r} must be a whole number from 1; leave it out where it is not known")


def overfitting_risk(examples: int | None) -> Literal["severe", "likely"] | None:
    """Return how likely a run is to learn its examples by heart; None where they are many, or not counted."""
    if examples is None or examples >= SMALL_DATA:
        return None
    return "severe" if examples < TINY_DATA else "likely"


def _rank(shape: ModelShape, task: Task | None, examples: int | None, tokens: int | None) -> Choice:
    """Return the lowest rank of the task's range, raised to what the tokens ask, lowered where data is small."""
    band = size_band(shape.parameters)
    if task is None:
        lowest, highest, why = band.rank // 2, 4 * band.rank, f"{band.anchor}'s customary rank"
        start, source = band.rank, f"size key, anchor {band.anchor}"
    else:
        lowest, highest, why = RANGES[task]
        start, source = _start(task, band.rank), PRACTICE
        why = f"{task} {lowest} to {highest}: {why}; start low"
    if examples is not None and examples < SMALL_DATA:
        return Choice(name="rank", value=lowest, why=f"{why}; {examples:,} examples are few", source=PRACTICE)
    needed = _rank_for(shape, tokens)
    if needed is not None and needed > start:
        raised = min(needed, highest)
        why = f"{why}; {tokens:,} tokens ask for more than r{start} holds"
        return Choice(name="rank", value=raised, why=why, source=f"{source}; {WITHOUT_REGRET}")
    return Choice(name="rank", value=start, why=why, source=source)


def _start(task: Task, band_rank: int) -> int:
    """Return the size key's rank, held in the lower half (in octaves) of the task's range: the knee is found upward."""
    lowest, highest, _ = RANGES[task]
    middle = max(rank for rank in LADDER if rank * rank <= lowest * highest)
    return min(max(band_rank, lowest), middle)


def _rank_for(shape: ModelShape, tokens: int | None) -> int | None:
    """Return the lowest rank of the ladder whose adapter holds what the tokens can teach, or None if unknown."""
    per_rank = _capacity(shape, 1)
    if tokens is None or per_rank is None:
        return None
    held = (rank for rank in LADDER if BITS_PER_PARAMETER * per_rank * rank >= BITS_PER_TOKEN * tokens)
    return next(held, LADDER[-1])


def _capacity(shape: ModelShape, rank: int) -> int | None:
    """Return the parameters of the adapter that a preset makes of a rank."""
    return shape.lora_parameters(rank, targets_choice(shape).value)


def _dropout(examples: int | None) -> Choice:
    if examples is not None and examples < SMALL_DATA:
        why = f"{examples:,} examples are seen often"
        return Choice(name="dropout", value=0.1, why=why, source=f"{PRACTICE}: 0.05 to 0.1 for small data")
    why = "light regularisation"
    return Choice(name="dropout", value=0.05, why=why, source="QLoRA, arXiv 2305.14314; TRL's default")


def _warnings(shape: ModelShape, rank: int, examples: int | None, tokens: int | None) -> tuple[Choice, ...]:
    found = []
    if (how := overfitting_risk(examples)) is not None:
        why = "hold examples out, watch their loss from the first epoch, stop early"
        found.append(Choice(name="overfitting", value=how, why=why, source=PRACTICE))
    capacity = _capacity(shape, rank)
    if tokens is not None and capacity is not None:
        ratio = BITS_PER_TOKEN * tokens / (BITS_PER_PARAMETER * capacity)
        if ratio > 1:
            why = "past capacity LoRA learns less per token; raise the rank, or fine-tune fully"
            found.append(Choice(name="capacity", value=f"{ratio:.1f}x full", why=why, source=WITHOUT_REGRET))
    found.append(
        Choice(
            name="knee",
            value=f"r{max(1, rank // 2)} and r{2 * rank}",
            why="compare held-out loss; keep the lowest rank that reaches the quality",
            source=PRACTICE,
        )
    )
    return tuple(found)
