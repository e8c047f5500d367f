"""The plot of the rank benchmark: value against parameters, one line a method, each named beside its points."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rank_report import BASELINE, OURS, Arm
from rank_statistics import Estimate, estimate

HUES = (*range(0, 20, 2), *range(1, 20, 2))
"""Dark colours before light ones."""
APART = 0.012
"""Methods of equal parameters are drawn this much apart (natural logarithm), so that none hides another."""
LINE = 0.036
"""Height of a name, as a share of the axes."""


def plot(arms: Sequence[Arm], measure: str, title: str, path: Path) -> None:
    """Draw the mean value of each method over its final parameters, with 95 % intervals, into a PNG."""
    figure = Figure(figsize=(9, 6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    curves = drawn_apart(by_method(arms))
    palette = itertools.cycle(colormaps["tab20"](index) for index in HUES)
    colors = {method: "#c8553d" if method == OURS else "#222222" if method == BASELINE else next(palette)
              for method in curves}  # fmt: skip
    for method, points in curves.items():
        strong = method in (OURS, BASELINE)
        widths = [0 if math.isinf(found.half_width) else found.half_width for _, found in points]
        axes.errorbar([x for x, _ in points], [found.mean for _, found in points], widths, color=colors[method],
                      marker="o", markersize=5 if strong else 3.5, linewidth=2 if strong else 1, capsize=3,
                      zorder=3 if strong else 2)  # fmt: skip
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
    axes.yaxis.set_major_formatter(lambda y, _: f"{y:.3g}")
    axes.xaxis.set_minor_formatter(lambda x, _: f"{x:,.0f}" if leading(x) in (2, 3, 5) else "")
    axes.yaxis.set_minor_formatter(lambda y, _: f"{y:.3g}" if leading(y) in (2, 3, 5) else "")
    axes.set(xlabel="parameters of the final adapter (methods drawn a little apart)", ylabel=measure)
    axes.set_title(title, fontsize=10, loc="left")
    axes.grid(alpha=0.2)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(y=0.08)
    places = [x for points in curves.values() for x, _ in points]
    axes.set_xlim(0.9 * min(places), 1.12 * max(places))
    name_curves(figure, axes, curves, colors)
    figure.savefig(path, format="png", metadata={"Software": None})


def by_method(arms: Sequence[Arm]) -> dict[str, list[tuple[float, Estimate]]]:
    """Return (parameters, estimate) by method, in order of parameters."""
    curves: dict[str, list[tuple[float, Estimate]]] = defaultdict(list)
    for arm in arms:
        if arm.values():
            curves[arm.method].append((arm.mean("parameters"), estimate(list(arm.values().values()))))
    return {method: sorted(points, key=lambda point: point[0]) for method, points in curves.items()}


def drawn_apart(curves: dict[str, list[tuple[float, Estimate]]]) -> dict[str, list[tuple[float, Estimate]]]:
    """Return the curves, each moved sideways by its place among them."""
    moved = {}
    for place, (method, points) in enumerate(curves.items()):
        factor = math.exp(APART * (place - (len(curves) - 1) / 2))
        moved[method] = [(x * factor, found) for x, found in points]
    return moved


def name_curves(figure, axes, curves, colors) -> None:  # type: ignore[no-untyped-def]
    """Write each method's name at the right, level with its last point or as near as others leave room."""
    figure.draw_without_rendering()
    to_axes = axes.transData + axes.transAxes.inverted()
    ends = {method: to_axes.transform((points[-1][0], points[-1][1].mean)) for method, points in curves.items()}
    heights = spread({method: float(end[1]) for method, end in ends.items()}, LINE)
    for method, end in ends.items():
        axes.annotate(
            method, xy=(end[0], end[1]), xycoords="axes fraction", xytext=(1.03, heights[method]),
            textcoords="axes fraction", va="center", fontsize=8.5, color=colors[method], annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colors[method], "linewidth": 0.5, "alpha": 0.6, "shrinkB": 3},
        )  # fmt: skip


def spread(wanted: dict[str, float], apart: float) -> dict[str, float]:
    """Return places near the wanted ones, in their order and at least `apart`, from 0 up to 1 where they fit."""
    names = sorted(wanted, key=lambda name: wanted[name])
    places: list[float] = []
    for name in names:
        places.append(max(wanted[name], places[-1] + apart if places else 0.0))
    top = max(1.0, apart * (len(names) - 1))
    for index in reversed(range(len(places))):
        places[index] = min(places[index], top)
        top = places[index] - apart
    return dict(zip(names, places, strict=True))


def leading(value: float) -> int:
    """Return a number's first digit."""
    return int(value / 10 ** math.floor(math.log10(value) + 1e-9) + 0.5)
