"""What an adapter does with its ranks, as values, text and JSON. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from textwrap import wrap
from typing import Any, Final

from ..adapters.patterns import alpha_for, exact_pattern
from ..cards.layer_ranks import place_of
from .spectra import ENERGIES, Spectrum, Verdict

__all__ = ["RankReport", "places"]

WIDTH: Final = 100
"""Columns of the text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankReport:
    """A saved adapter's modules, and which of them have too much rank or too little."""

    adapter: str
    """What was looked at, as it was given."""
    method: str
    """LoRA, rsLoRA, DoRA or AdaLoRA."""
    base: str | None
    """The base model, as the adapter's config names it."""
    rslora: bool
    """Whether the scaling is alpha / √r."""
    parameters: int
    """Numbers in the factors."""
    modules: tuple[Spectrum, ...]
    """The modules, in the order of their layers."""
    others: tuple[str, ...]
    """Tensors that are no part of a low-rank product, and are not analysed."""
    notes: tuple[str, ...]
    """What the numbers do not say, one line each."""

    def of(self, verdict: Verdict) -> tuple[Spectrum, ...]:
        """Return the modules with a verdict."""
        return tuple(module for module in self.modules if module.verdict == verdict)

    @property
    def shares(self) -> dict[str, float]:
        """Module → its share of the squared Frobenius norm of the whole update; 0 where all is 0."""
        total = math.hypot(*(module.norm for module in self.modules))
        return {module.name: (module.norm / total) ** 2 if total else 0.0 for module in self.modules}

    @property
    def _changes(self) -> dict[str, Spectrum]:
        """Pattern → module, for those whose rank is to change and whose name is known."""
        return {
            exact_pattern(module.target): module
            for module in self.modules
            if module.suggested_rank not in (0, module.rank) and module.target is not None
        }

    @property
    def rank_pattern(self) -> dict[str, int]:
        """What to give a LoraConfig next: pattern → rank, for the modules whose rank is to change."""
        return {pattern: module.suggested_rank for pattern, module in self._changes.items()}

    @property
    def alpha_pattern(self) -> dict[str, float]:
        """The alphas that keep the scaling under `rank_pattern`; empty where alpha is unknown."""
        return {
            pattern: alpha_for(module.scaling, module.suggested_rank, self.rslora)
            for pattern, module in self._changes.items()
            if module.scaling is not None
        }

    @property
    def suggested_parameters(self) -> int:
        """Numbers in the factors at the suggested ranks."""
        return sum(module.parameters * module.suggested_rank // max(module.rank, 1) for module in self.modules)

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON-ready values."""
        shares = self.shares
        return {
            "adapter": self.adapter,
            "method": self.method,
            "base": self.base,
            "parameters": self.parameters,
            "suggested_parameters": self.suggested_parameters,
            "rank_pattern": self.rank_pattern,
            "alpha_pattern": self.alpha_pattern,
            "notes": list(self.notes),
            "not_analysed": list(self.others),
            "modules": [module.to_dict() | {"share": shares[module.name]} for module in self.modules],
        }

    def explain(self, top: int | None = None) -> str:
        """Return the report as text of at most 100 columns: a summary, then a row for each module.

        Args:
            top: Rows; those of the modules with the largest share of the norm. All if left out.
        """
        return "\n".join([*self._summary(), "", *self._table(top)])

    def plot(self, path: str | Path) -> list[Path]:
        """Draw heat maps of layer and module, and the spectra, into PNGs; return their paths.

        Args:
            path: A folder, which gets `ranks.png` and `spectra.png`; or the `.png` of the heat maps, beside which the
                spectra go, with `_spectra` in the name.

        Raises:
            AdapterError: If all modules are of rank 0, or the folder cannot be written.
        """
        from .pictures import draw_report

        return draw_report(self, Path(path))

    def _summary(self) -> list[str]:
        ranks = sorted({module.rank for module in self.modules})
        said = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"
        over = f" over {self.base}" if self.base else ""
        lines = [
            f"{self.adapter}: {self.method}{over}",
            f"{_counted(self.modules)}, {said}, {self.parameters:,} numbers in factors, scaling {self._scalings()}",
        ]
        if learned := [module for module in self.modules if module.norm]:
            needed = fmean(module.directions_for(ENERGIES[-1]) for module in learned)
            effective, stable = (fmean(m.effective_rank for m in learned), fmean(m.stable_rank for m in learned))
            lines.append(
                f"on average {needed:.1f} directions carry 99 % of a module's update; effective rank {effective:.1f}, "
                f"stable rank {stable:.1f}"
            )
        told = [*lines, *self._verdicts(), *(f"note: {note}" for note in self.notes)]
        return [part for line in told for part in wrap(line, WIDTH, subsequent_indent="  ", break_on_hyphens=False)]

    def _scalings(self) -> str:
        known = sorted({module.scaling for module in self.modules if module.scaling is not None})
        if not known:
            return "unknown"
        return f"{known[0]:.3g}" + (f" to {known[-1]:.3g}" if len(known) > 1 else "")

    def _verdicts(self) -> list[str]:
        """Return what to do about the modules whose rank does not fit."""
        over, under, empty = (self.of(verdict) for verdict in ("over", "under", "empty"))
        lines = []
        if over:
            total = sum(module.rank for module in over)
            spare = total - sum(module.suggested_rank for module in over)
            lines.append(
                f"over: {_counted(over)} with 99 % of the update in fewer directions than the rank; {spare} of {total} "
                "directions are to spare"
            )
        if under:
            lines.append(
                f"under: {_counted(under)} whose directions carry alike to the last, as random ones would; give twice "
                "the rank, and see whether the loss falls"
            )
        elif nearest := max(
            (module for module in self.of("fits") if module.rank > 1), key=lambda m: m.last_evenness, default=None
        ):
            lines.append(
                f"under: none; nearest is {nearest.name}, whose last direction has {nearest.last_evenness:.0%} of an "
                "even share"
            )
        if empty:
            lines.append(f"empty: {_counted(empty)} with an update of 0; leave out of target_modules, or train longer")
        if self.rank_pattern:
            more = "and alpha_pattern of --json" if self.alpha_pattern else "of --json, with alphas that keep alpha / r"
            sizes = f"{self.parameters:,} -> {self.suggested_parameters:,} numbers"
            lines.append(f"to try next: the rank_pattern {more}, {sizes}; energy is not loss, so compare the loss")
        return lines

    def _table(self, top: int | None) -> list[str]:
        shares, where = self.shares, places([module.name for module in self.modules])
        largest = sorted(self.modules, key=lambda module: -shares[module.name])[:top]
        shown = {module.name for module in largest}
        head = f"{'layer':>5} {'module':28} {'rank':>4} {'eff.':>5} {'stable':>6} {'90%':>4} {'95%':>4} {'99%':>4}"
        rows = [f"{head} {'>chance':>7} {'last':>5} {'share':>6}  verdict"]
        for module in self.modules:
            if module.name in shown:
                kind, layer = where[module.name]
                counts = " ".join(f"{module.directions_for(energy):4}" for energy in ENERGIES)
                rows.append(
                    f"{'-' if layer is None else layer:>5} {_ending(kind, 28):28} {module.rank:4} "
                    f"{module.effective_rank:5.1f} {module.stable_rank:6.1f} {counts} {module.above_chance:7} "
                    f"{module.last_evenness:5.0%} {shares[module.name]:6.1%}  {_told(module)}"
                )
        left = len(self.modules) - len(shown)
        return [*rows, f"and {left} modules with a smaller share"] if left else rows


def _counted(modules: Sequence[Spectrum]) -> str:
    return f"{len(modules)} module" + "s" * (len(modules) != 1)


def _told(module: Spectrum) -> str:
    changed = module.verdict in ("over", "under")
    return f"{module.verdict} -> {module.suggested_rank}" if changed else module.verdict


def _ending(text: str, width: int) -> str:
    return text if len(text) <= width else "…" + text[1 - width :]


def places(names: Sequence[str]) -> Mapping[str, tuple[str, int | None]]:
    """Return each module's kind and its layer's index; None for one that is in no layer.

    Where a model has several stacks of layers, the kind begins with what tells them apart.

    >>> places(["layers.3.q", "lm_head"])
    {'layers.3.q': ('q', 3), 'lm_head': ('lm_head', None)}
    >>> places(["text.layers.0.q", "vision.layers.0.q"])["vision.layers.0.q"]
    ('vision.layers.q', 0)
    """
    found = {name: place_of(name) for name in names}
    is_one = len({stack for stack, layer, _ in found.values() if layer is not None}) < 2
    return {
        name: (module if is_one or not stack else f"{stack}.{module}", layer)
        for name, (stack, layer, module) in found.items()
    }
