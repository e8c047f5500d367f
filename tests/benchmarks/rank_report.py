"""Tables of the rank benchmark: each method against tuned uniform ranks, ours against each method, and who lost."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rank_statistics import Estimate, estimate, paired

Result = dict[str, Any]
BASELINE, OURS = "uniform", "ours"


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """A method at a budget, at the rate and scale chosen for it, over all seeds."""

    method: str
    budget: int
    learning_rate: float
    scale: float
    results: Mapping[int, Result]
    """By seed."""

    def values(self, what: str = "value") -> dict[int, float]:
        """Return a number by seed, of the cells that did not fail and have it."""
        return {seed: told[what] for seed, told in self.results.items() if told.get(what) is not None}

    def mean(self, what: str) -> float:
        """Return the mean of a number over the seeds."""
        return statistics.mean(self.values(what).values())

    @property
    def failed(self) -> dict[int, str]:
        """Errors by seed."""
        return {seed: told["error"] for seed, told in self.results.items() if "error" in told}


def tables(arms: Sequence[Arm], measure: str, rates: Sequence[float]) -> str:
    """Return all tables as Markdown, lower values being better.

    Args:
        arms: All methods at all budgets.
        measure: What the value is, with its unit.
        rates: Learning rates that were tried.
    """
    parts = [f"Values: {measure}; lower is better. ± is half the 95 % t interval over seeds; differences are paired by "
             "seed. A tie is a difference whose interval includes 0; intervals are not widened for the number of "
             "methods. Parameters are the adapter's."]  # fmt: skip
    for budget in sorted({arm.budget for arm in arms}):
        here = [arm for arm in arms if arm.budget == budget]
        parts += [f"## Budget {budget:,} parameters", capacity(here), main_table(here), "\n".join(losers(here))]
    against = table(AGAINST_HEAD, against_each(arms))
    parts += ["## `ours` against each method at its own budget or a larger one", against] if against else []
    parts += ["## Learning rates chosen", rates_told(arms, rates)]
    failures = [f"- {arm.method}, {arm.budget:,} parameters, seed {seed}: {error}"
                for arm in arms for seed, error in arm.failed.items()]  # fmt: skip
    parts += ["## Failed cells", "\n".join(failures)] if failures else []
    return "\n\n".join(part for part in parts if part) + "\n"


def capacity(arms: Iterable[Arm]) -> str:
    """Say whether the budget can be what limits the result."""
    told = [told for arm in arms if arm.method == BASELINE for told in arm.results.values() if "error" not in told]
    if not told:
        return ""
    tokens, parameters = told[0]["supervised_tokens"], told[0]["parameters"]
    says = "the budget binds" if told[0]["binds"] else "the budget does not bind: any rank may hold what there is"
    return f"Supervised tokens {tokens:,}, 2 x {BASELINE}'s parameters {2 * parameters:,}: {says}."


def main_table(arms: Sequence[Arm]) -> str:
    """Return one budget's table."""
    base = next((arm for arm in arms if arm.method == BASELINE), None)
    columns = [name for name, what in EXTRA.items() if any(arm.values(what) for arm in arms)]
    head = ["method", "value", f"minus {BASELINE}", "is", f"x {BASELINE}", *columns, "final", "mean", "peak",
            "highest rank", "seconds", "2·p ≤ tokens"]  # fmt: skip
    return table(head, [main_row(arm, base, columns) for arm in arms])


EXTRA = {"accuracy": "accuracy", "correlation with true ranks": "correlation"}
"""Columns that only some tasks fill."""


def main_row(arm: Arm, base: Arm | None, columns: Sequence[str]) -> list[str]:
    """Return a method's row."""
    values = arm.values()
    failed = f" ({len(arm.failed)} failed)" if arm.failed else ""
    if not values:
        return [arm.method, f"failed: {next(iter(arm.failed.values()), 'no cell')}"[:80]]
    difference = paired(values, base.values()) if base is not None and arm.method != BASELINE else None
    final = arm.mean("parameters")
    over = " (over)" if final > arm.budget else ""
    bind = {told["binds"] for told in arm.results.values() if "error" not in told}
    ratio = times(arm, base) if base is not None else ""
    return [
        arm.method, shown(estimate(list(values.values()))) + failed, shown(difference, signed=True),
        difference.verdict if difference else "", ratio,
        *(shown(estimate(list(arm.values(EXTRA[c]).values()))) if arm.values(EXTRA[c]) else "" for c in columns),
        f"{final:,.0f}{over}", f"{arm.mean('mean_parameters'):,.0f}", f"{arm.mean('peak_parameters'):,.0f}",
        f"{max(arm.values('max_rank').values())}",
        f"{sum(statistics.median(arm.values(part).values()) for part in ('seconds', 'extra_seconds')):.0f}",
        "binds" if bind == {True} else "does not" if bind == {False} else "differs",
    ]  # fmt: skip


def times(arm: Arm, base: Arm) -> str:
    """Return the mean value as a multiple of the baseline's, over the seeds that both have."""
    shared = arm.values().keys() & base.values().keys()
    if not shared:
        return ""
    mine, theirs = (statistics.mean(one.values()[seed] for seed in shared) for one in (arm, base))
    return f"{mine / theirs:.2f}"


AGAINST_HEAD = ["ours at", "against", "at", "difference", "ours is"]


def against_each(arms: Sequence[Arm]) -> list[list[str]]:
    """Return rows of ours against every other method, at ours' budget and at larger ones."""
    rows = []
    for mine in (arm for arm in arms if arm.method == OURS):
        for other in arms:
            if other.method != OURS and other.budget >= mine.budget:
                difference = paired(mine.values(), other.values())
                if difference is not None:
                    rows.append([f"{mine.budget:,}", other.method, f"{other.budget:,}", shown(difference, signed=True),
                                 difference.verdict])  # fmt: skip
    return rows


def losers(arms: Sequence[Arm]) -> list[str]:
    """Say which methods are worse than uniform ranks, and which ours is not better than."""
    base = next((arm for arm in arms if arm.method == BASELINE), None)
    mine = next((arm for arm in arms if arm.method == OURS), None)
    lines = []
    if base is not None:
        lines.append(f"Worse than {BASELINE}: {named(arms, lambda arm: verdict(arm, base) == 'worse')}.")
    if mine is not None:
        lines.append(f"Worse than {OURS}: {named(arms, lambda arm: verdict(arm, mine) == 'worse')}.")
        lines.append(f"Tied with {OURS}: {named(arms, lambda arm: verdict(arm, mine) == 'tie')}.")
        lines.append(f"Better than {OURS}: {named(arms, lambda arm: verdict(arm, mine) == 'better')}.")
    return lines


def verdict(arm: Arm, other: Arm) -> str:
    """Return what the paired difference says; nothing where it cannot be taken."""
    difference = paired(arm.values(), other.values()) if arm is not other else None
    return difference.verdict if difference else ""


def named(arms: Sequence[Arm], chosen: Callable[[Arm], bool]) -> str:
    """Return the chosen methods' names."""
    return ", ".join(arm.method for arm in arms if chosen(arm)) or "none"


def rates_told(arms: Sequence[Arm], rates: Sequence[float]) -> str:
    """Return the rate of each method, and whether a better one may lie outside the grid."""
    lines = [f"Grid: {', '.join(f'{rate:g}' for rate in rates)}."]
    for arm in arms:
        edge = len(rates) > 1 and arm.learning_rate in (min(rates), max(rates))
        note = ", at the edge of the grid: a better one may lie outside" if edge else ""
        lines.append(f"- {arm.method}, {arm.budget:,} parameters: {arm.learning_rate:g}, scale {arm.scale:g}{note}")
    return "\n".join(lines)


def shown(found: Estimate | None, signed: bool = False) -> str:
    """Return an estimate as text, with the digits that its size needs."""
    if found is None:
        return ""
    digits = 4 if abs(found.mean) < 1 else 3
    width = "" if found.count < 2 else f" ± {found.half_width:.{digits}f}"
    return f"{found.mean:{'+' if signed else ''}.{digits}f}{width}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return rows as a Markdown table; nothing without rows."""
    if not rows:
        return ""
    whole = [[*row, *[""] * (len(head) - len(row))] for row in rows]
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *whole]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
