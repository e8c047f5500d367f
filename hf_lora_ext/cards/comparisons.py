"""Two models' answers to the same examples, compared: values, differences and their intervals, as plain facts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

__all__ = ["METRICS", "Comparison", "Difference", "Measured", "Metric", "merged_comparisons"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """What a metric is called, and which way is better."""

    words: str
    """Its name in tables."""
    hub: str
    """Its identifier in a card's `model-index`."""
    rises: bool = True
    """Whether more is better."""


METRICS: Final[Mapping[str, Metric]] = {
    "loss": Metric(words="loss", hub="loss", rises=False),
    "perplexity": Metric(words="perplexity", hub="perplexity", rises=False),
    "token_accuracy": Metric(words="token accuracy", hub="token_accuracy"),
    "accuracy": Metric(words="accuracy", hub="accuracy"),
    "f1_macro": Metric(words="F1, macro", hub="f1"),
    "f1_micro": Metric(words="F1, micro", hub="f1"),
    "exact_match": Metric(words="exact match", hub="exact_match"),
    "rouge1": Metric(words="ROUGE-1", hub="rouge"),
    "rouge2": Metric(words="ROUGE-2", hub="rouge"),
    "rougeL": Metric(words="ROUGE-L", hub="rouge"),
}
"""Metric → what it is; in the order of the tables."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How far one model's value is above another's, with an interval."""

    value: float
    """On the examples as they are."""
    low: float
    """Lower end."""
    high: float
    """Upper end."""

    @property
    def is_seen(self) -> bool:
        """Whether the interval leaves out 0."""
        return not self.low <= 0 <= self.high


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One metric of several models on the same examples."""

    metric: str
    """A name in `METRICS`."""
    examples: int
    """Examples that it was measured on."""
    base: float
    """The base's value."""
    adapter: float
    """The adapted model's."""
    change: Difference
    """The adapted model's over the base's."""
    full: float | None = None
    """Value of a model whose weights all trained."""
    beside_full: Difference | None = None
    """The adapted model's value over that one's."""

    @property
    def is_finite(self) -> bool:
        """Whether all of it are numbers; a model that overflows has a loss that is none."""
        found = [self.base, self.adapter, 0.0 if self.full is None else self.full]
        ends = [(one.low, one.high) for one in (self.change, self.beside_full) if one is not None]
        return all(map(math.isfinite, [*found, *(end for pair in ends for end in pair)]))

    @property
    def verdict(self) -> str:
        """What the interval says of the adapter: `better`, `worse` or `no difference`.

        >>> measured = {"metric": "loss", "examples": 9, "base": 3.0, "adapter": 2.5}
        >>> Measured(**measured, change=Difference(value=-0.5, low=-0.7, high=-0.2)).verdict
        'better'
        """
        return _verdict(self.metric, self.change)

    @property
    def verdict_beside_full(self) -> str:
        """The same beside the model whose weights all trained; empty without one."""
        return "" if self.beside_full is None else _verdict(self.metric, self.beside_full)


def _verdict(metric: str, difference: Difference) -> str:
    if not difference.is_seen:
        return "no difference"
    return "better" if (difference.value > 0) == METRICS[metric].rises else "worse"


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A base and its adapter on the same rows."""

    data: str
    """Name of the rows' source."""
    held_out: bool
    """Whether the run held these rows out itself."""
    examples: int
    """Rows."""
    fingerprint: str
    """SHA-256 over their content, in order."""
    measured: Sequence[Measured]
    """What was found, in the order of `METRICS`."""
    resamples: int
    """Resamples behind each interval."""
    level: float
    """Share of such intervals that are meant to hold the true difference."""
    trained_on: int | None = None
    """How many of the rows the adapter was trained on; None where that cannot be told."""
    full: str | None = None
    """Name of the model whose weights all trained."""
    max_new_tokens: int | None = None
    """Tokens that an answer could have."""
    notes: Sequence[str] = ()
    """What a reader must know, a sentence each."""

    @property
    def lines(self) -> list[str]:
        """What was found, a metric a line."""
        return [
            f"{METRICS[row.metric].words}: {row.base:.4g} to {row.adapter:.4g}, {row.change.value:+.4g} "
            f"({row.change.low:+.4g} to {row.change.high:+.4g}), {row.verdict}"
            for row in self.measured
        ]

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Comparison:
        """Return the comparison in a mapping that `dataclasses.asdict` made.

        Raises:
            TypeError: If it is none.
        """
        rows = [dict(row) for row in raw.get("measured", ())]
        for row in rows:
            row |= {name: Difference(**row[name]) for name in ("change", "beside_full") if row.get(name)}
            if row["metric"] not in METRICS:
                raise TypeError(f"metric {row['metric']!r} is not known")
        measured = tuple(Measured(**row) for row in rows)
        return cls(**{**raw, "measured": measured, "notes": tuple(raw.get("notes", ()))})


def merged_comparisons(known: Sequence[Comparison], new: Comparison) -> tuple[Comparison, ...]:
    """Return what was known with what is new.

    On the same rows and by the same settings the two become one, in which a metric that was measured anew replaces the
    old one. By other settings the old one stays beside the new, unless all of it was measured anew.

    Args:
        known: Comparisons of one adapter.
        new: One more.
    """
    anew = {row.metric for row in new.measured}
    found: list[Comparison] = []
    for old in known:
        kept = [row for row in old.measured if row.metric not in anew]
        if old.fingerprint != new.fingerprint or (kept and not _as_measured(old, new)):
            found.append(old)
        elif kept:
            rows = sorted([*kept, *new.measured], key=lambda row: [*METRICS].index(row.metric))
            tokens = new.max_new_tokens or old.max_new_tokens
            notes = tuple(dict.fromkeys([*old.notes, *new.notes]))
            new = replace(new, measured=tuple(rows), notes=notes, max_new_tokens=tokens)
    return (*found, new)


def _as_measured(old: Comparison, new: Comparison) -> bool:
    """Return whether two comparisons of the same rows have the same settings."""
    answered = None in (old.max_new_tokens, new.max_new_tokens) or old.max_new_tokens == new.max_new_tokens
    return answered and (old.resamples, old.level, old.full) == (new.resamples, new.level, new.full)
