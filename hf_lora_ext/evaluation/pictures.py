"""A comparison as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..cards.comparisons import METRICS, Comparison, Measured

__all__ = ["plot_comparison"]

_COLOURS: Final = {"better": "#4f9d69", "worse": "#c8553d", "no difference": "#777777"}


def plot_comparison(comparison: Comparison, losses: Mapping[str, Sequence[float]], path: Path, title: str) -> None:
    """Draw each metric's change with its interval, and base against adapter for each example, into a PNG.

    Args:
        comparison: The metrics.
        losses: `base` and `adapter` → loss of each example; the second plot is left out without them.
        path: File to write.
        title: Line above the plots.
    """
    rows = comparison.measured
    scattered = {"base", "adapter"} <= losses.keys()
    figure = Figure(figsize=(10 if scattered else 6, max(3.6, 1.2 + 0.62 * len(rows))), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    names = f"{title}: {comparison.examples:,} {'held-out ' if comparison.held_out else ''}examples of"
    figure.suptitle(f"{names} {comparison.data}", fontsize=10, x=0.01, ha="left")
    parts: Any = figure.subfigures(1, 2, width_ratios=(1.25, 1)) if scattered else [figure]
    left, *right = parts
    left.supxlabel(f"adapter − base, {100 * comparison.level:g} % interval (paired bootstrap)", fontsize=8)
    for axes, row in zip(left.subplots(len(rows), 1, squeeze=False)[:, 0], rows, strict=True):
        _draw_change(axes, row)
    for figure_right in right:
        _draw_examples(figure_right.subplots(), losses["base"], losses["adapter"])
    figure.savefig(path, format="png", metadata={"Software": None})


def _draw_change(axes: Any, row: Measured) -> None:
    """Draw one metric's change on an axis of its own, since metrics differ in scale."""
    change, colour = row.change, _COLOURS[row.verdict]
    axes.errorbar([change.value], [0], xerr=[[change.value - change.low], [change.high - change.value]],
                  color=colour, marker="o", markersize=5, capsize=3, linewidth=1.5)  # fmt: skip
    axes.axvline(0, color="black", linewidth=0.8, linestyle=":")
    axes.set_ylim(-1, 1)
    axes.set_yticks([])
    axes.set_ylabel(METRICS[row.metric].words, rotation=0, ha="right", va="center", fontsize=8)
    axes.set_title(f"{change.value:+.4g}, {row.verdict}", fontsize=7, loc="right", color=colour, pad=2)
    axes.tick_params(labelsize=6, length=2)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.margins(x=0.15)


def _draw_examples(axes: Any, base: Sequence[float], adapter: Sequence[float]) -> None:
    better = sum(after < before for before, after in zip(base, adapter, strict=True))
    ends = min(*base, *adapter), max(*base, *adapter)
    axes.plot(ends, ends, color="black", linewidth=0.8, linestyle=":")
    axes.scatter(base, adapter, s=12, color="#3d6fc8", alpha=0.6, linewidths=0)
    axes.set_xlabel("base: loss of an example (nats a counted token)", fontsize=8)
    axes.set_ylabel("adapter", fontsize=8)
    axes.set_title(f"lower with the adapter: {better} of {len(base)} examples", fontsize=8, loc="left")
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
