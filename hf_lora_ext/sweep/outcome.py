"""What a sweep tells: the best trial, the knee, and what a parameter buys; from plain figures alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import mean, stdev
from typing import Any, Literal

from .space import Point, shown

__all__ = ["Efficiency", "Run", "Trial", "best", "efficiency", "knee", "standard_error", "table"]

State = Literal["running", "interrupted", "complete", "pruned", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What one run of a trial measured."""

    seed: int
    """Its seed."""
    loss: float
    """Held-out loss at the end, in nats a token."""
    base_loss: float | None = None
    """Held-out loss before the first step, where that is the base's own."""
    parameters: int
    """Parameters that trained."""
    seconds: float
    """Training time, evaluations included."""
    peak_gib: float
    """Peak memory: of the GPU where there is one, else of the process."""
    held_out: str | None = None
    """Fingerprint of the held-out examples."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A point of the space and what its runs measured."""

    name: str
    """Its folder's name."""
    point: Point
    """The point."""
    state: State
    """How far it came."""
    runs: tuple[Run, ...] = ()
    """A run for each seed that is finished."""
    reason: str | None = None
    """Why it is no further, where that is known."""
    is_full: bool = False
    """Whether it is a reference that trains all weights."""

    @property
    def loss(self) -> float | None:
        """Mean held-out loss over the seeds; None unless all have run."""
        return mean(run.loss for run in self.runs) if self.state == "complete" and self.runs else None

    @property
    def error(self) -> float | None:
        """Standard error of the loss over the seeds; None with one."""
        return standard_error([run.loss for run in self.runs])

    @property
    def parameters(self) -> int | None:
        """Parameters that trained."""
        return max((run.parameters for run in self.runs), default=None)

    @property
    def seconds(self) -> float:
        """Training time of all its runs."""
        return sum(run.seconds for run in self.runs)

    @property
    def peak_gib(self) -> float | None:
        """The highest peak memory of its runs."""
        return max((run.peak_gib for run in self.runs), default=None)

    def to_dict(self) -> dict[str, Any]:
        """Return the trial as plain values that JSON takes, what follows from its runs among them."""
        return asdict(self) | {
            "point": dict(self.point),
            "loss": self.loss,
            "standard_error": self.error,
            "parameters": self.parameters,
            "seconds": round(self.seconds, 1),
            "peak_gib": self.peak_gib,
        }


@dataclass(frozen=True, slots=True)
class Efficiency:
    """What a trial gains, and what its parameters buy, beside a reference."""

    share: float
    """Share of the reference's gain over the base."""
    per_parameter: float
    """That share over the share of the reference's parameters: gain a parameter, beside the reference's."""


def standard_error(values: Sequence[float]) -> float | None:
    """Return the standard error of the mean; None of fewer than two values."""
    return stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None


def best(trials: Iterable[Trial]) -> Trial | None:
    """Return the finished trial with the lowest loss; of equals the one with fewer parameters, then the earlier."""
    finished = [trial for trial in trials if trial.loss is not None]
    return min(finished, key=lambda trial: (trial.loss, trial.parameters, trial.name), default=None)


def knee(trials: Iterable[Trial]) -> Trial | None:
    """Return the trial with the fewest parameters within one standard error of the best; None where that is unknown.

    The one-standard-error rule: the simplest model whose loss is no more than one standard error of the best one's
    above it.

    Reference: Breiman et al., Classification and Regression Trees, 1984, section 3.4.3; there over folds, here over
    seeds.
    """
    trials = list(trials)
    leader = best(trials)
    if leader is None or leader.loss is None or leader.error is None:
        return None
    limit = leader.loss + leader.error
    near = [trial for trial in trials if trial.loss is not None and trial.loss <= limit]
    return min(near, key=lambda trial: (trial.parameters, trial.loss, trial.name))


def efficiency(trial: Trial, reference: Trial) -> Efficiency | None:
    """Return what a trial's parameters buy beside a reference's; None where either is not finished or gains nothing.

    A measure of ours: gain is the fall of the held-out loss from the base's. A trial that has 95 % of the reference's
    gain with 1 % of its parameters has a share of 0.95 and 95 times the gain a parameter.
    """
    gain, whole = _gain(trial), _gain(reference)
    if gain is None or whole is None or whole <= 0 or not trial.parameters or not reference.parameters:
        return None
    share = gain / whole
    return Efficiency(share, share / (trial.parameters / reference.parameters))


def _gain(trial: Trial) -> float | None:
    bases = [run.base_loss for run in trial.runs if run.base_loss is not None]
    return mean(bases) - trial.loss if bases and trial.loss is not None else None


def table(trials: Sequence[Trial], keys: Iterable[str]) -> tuple[list[str], list[list[str]]]:
    """Return the headings and the rows of a sweep's table, the lowest loss first, what is unfinished last.

    Args:
        trials: The trials, references among them.
        keys: Keys of the space, in their order.
    """
    keys = list(keys)
    reference = best(t for t in trials if t.is_full) or best(trials)
    headings = ["trial", *(key.rpartition(".")[2] for key in keys), "loss", "± SE", "parameters", "gain",
                "per parameter", "seconds", "peak GiB", "state"]  # fmt: skip
    ordered = sorted(trials, key=lambda t: (t.loss is None, t.loss or 0.0, t.name))
    return headings, [_row(trial, keys, reference) for trial in ordered]


def _row(trial: Trial, keys: Iterable[str], reference: Trial | None) -> list[str]:
    bought = efficiency(trial, reference) if reference is not None else None
    return [
        trial.name,
        *(_cell(trial, key) for key in keys),
        "" if trial.loss is None else f"{trial.loss:.4f}",
        "" if trial.loss is None or trial.error is None else f"{trial.error:.4f}",
        "" if trial.parameters is None else f"{trial.parameters:,}",
        "" if bought is None else f"{bought.share:.1%}",
        "" if bought is None else f"{bought.per_parameter:.3g}x",
        f"{trial.seconds:.0f}" if trial.runs else "",
        "" if trial.peak_gib is None else f"{trial.peak_gib:.2f}",
        trial.state + (f": {trial.reason}" if trial.reason else ""),
    ]


def _cell(trial: Trial, key: str) -> str:
    known: Mapping[str, Any] = trial.point
    return shown(known[key]) if key in known else "all weights" if trial.is_full else ""
