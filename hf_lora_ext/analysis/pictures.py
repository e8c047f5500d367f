"""A rank report as pictures."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from ..errors import AdapterError
from ..plots import Grid, Spectra, plot_grids, plot_spectra
from .report import RankReport, places
from .spectra import ENERGIES, Spectrum

__all__ = ["draw_report"]

MOST_ROWS: Final = 64
"""Kinds of modules that are told apart; of more (each expert a module), those that differ in a number share a row."""
MOST_SPECTRA: Final = 12
"""Kinds whose spectra are drawn: those with the largest shares."""


def draw_report(report: RankReport, path: Path) -> list[Path]:
    """Draw heat maps and spectra; return the files.

    Args:
        report: The report.
        path: A folder, or the `.png` of the heat maps.

    Raises:
        AdapterError: If there is nothing to draw, or the file cannot be written.
    """
    learned = [module for module in report.modules if module.norm]
    if not learned:
        raise AdapterError(f"every module of {report.adapter} has an update of 0, so there is nothing to draw")
    is_file = path.suffix.lower() == ".png"
    heat, lines = (
        (path, path.with_name(f"{path.stem}_spectra.png")) if is_file else (path / "ranks.png", path / "spectra.png")
    )
    name = Path(report.adapter).name
    try:
        heat.parent.mkdir(parents=True, exist_ok=True)
        plot_grids(_grids(report), heat, f"{name}: {report.method}, {len(report.modules)} modules")
        plot_spectra(_spectra(report, learned), lines, f"{name}: singular values of each module's update")
    except OSError as error:
        raise AdapterError(
            f"{heat.parent} cannot be written ({error.strerror}); give another place for the plot"
        ) from error
    return [heat, lines]


def _rows(modules: Iterable[Spectrum]) -> dict[str, tuple[str, int | None]]:
    """Return module → row and column of the heat maps."""
    found = dict(places([module.name for module in modules]))
    if len({kind for kind, _ in found.values()}) <= MOST_ROWS:
        return found
    return {name: (re.sub(r"(?<=\.)\d+(?=\.)", "*", kind), layer) for name, (kind, layer) in found.items()}


def _grids(report: RankReport) -> list[Grid]:
    """Return the heat maps; of modules that share a cell, their mean, or the sum of their shares."""
    where, shares = _rows(report.modules), report.shares
    members: dict[tuple[str, int | None], list[Spectrum]] = {}
    for module in report.modules:
        members.setdefault(where[module.name], []).append(module)

    def grid(title: str, number: Callable[[Spectrum], float], words: str, highest: float | None = None) -> Grid:
        cells = {place: sum(map(number, those)) / len(those) for place, those in members.items()}
        return Grid(title=title, cells=cells, words=words, highest=highest or max(cells.values()) or 1.0)

    ranks = [module.rank for module in report.modules]
    given = grid("rank", lambda module: module.rank, ".0f")
    percent = {place: 100 * sum(shares[module.name] for module in those) for place, those in members.items()}
    energy = ENERGIES[-1]
    return [
        *([given] if len(set(ranks)) > 1 else []),
        grid("effective rank (exponential of the entropy)", lambda module: module.effective_rank, ".1f", max(ranks)),
        grid(
            f"directions that carry {energy * 100:.0f} % of the energy, of rank {min(ranks)}"
            + (f" to {max(ranks)}" if max(ranks) > min(ranks) else ""),
            lambda module: module.directions_for(energy), ".0f", max(ranks),
        ),
        Grid(title="share of the whole update's squared norm, %", cells=percent, words=".1f",
             highest=max(percent.values())),
    ]  # fmt: skip


def _spectra(report: RankReport, learned: list[Spectrum]) -> list[Spectra]:
    where, shares = _rows(report.modules), report.shares
    kinds: dict[str, list[Spectrum]] = {}
    for module in learned:
        kinds.setdefault(where[module.name][0], []).append(module)
    largest = sorted(kinds, key=lambda kind: -sum(shares[module.name] for module in kinds[kind]))[:MOST_SPECTRA]
    return [_lines(kind, [(where[module.name][1] or 0, module) for module in kinds[kind]]) for kind in sorted(largest)]


def _lines(kind: str, modules: list[tuple[int, Spectrum]]) -> Spectra:
    """Return the spectra of one kind of module, with the edges where they are one for all."""
    edges = {(module.edges.largest, module.edges.smallest) for _, module in modules if module.edges}
    return Spectra(
        title=kind,
        lines=[(layer, [value / module.norm for value in module.values]) for layer, module in modules],
        edges=edges.pop() if len(edges) == 1 else None,
    )
