"""Plots that people look at. Drawn without a display and without touching matplotlib's global state."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, MaxNLocator, NullFormatter

from .cards.layer_ranks import module_and_layer

__all__ = [
    "CurveLine", "Grid", "PlotPoint", "Spectra", "plot_against", "plot_grids", "plot_loss", "plot_rank_curves",
    "plot_ranks", "plot_spectra",
]  # fmt: skip

MOST_TICKS: Final = 8
"""Places on an axis up to which each gets a tick of its own."""
ACCENT: Final = "#c8553d"
GREY: Final = "#777777"
SERIES: Final = (ACCENT, "#3d6fc8", "#4f9d69", "#8a5fb5", "#b58a2e", "#4aa3a8", GREY)
"""Colours of joined points."""
CURVE_COLOURS: Final = (ACCENT, "#3d6ca8", "#6a994e")
"""Colours of rank curves, whose bands are drawn in them too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CurveLine:
    """Loss by budget, by ascending parameters; the last point is the whole adapter."""

    label: str
    """How directions were ordered."""
    parameters: Sequence[int]
    """Of each point."""
    losses: Sequence[float]
    """In nats a supervised token."""
    errors: Sequence[float]
    """Standard error of each loss's difference from the whole's."""
    knee: int
    """Index of the knee."""


def _figure(size: tuple[float, float], title: str | None = None) -> Figure:
    """Return an empty figure, its sizes in inches, with a line above all of its plots if there is one."""
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    if title is not None:
        figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    return figure


def _dress(axes: Axes, title: str, points: int = 10) -> None:
    """Give a plot of lines its title, in letters of so many points, a faint grid, and no box around it."""
    axes.set_title(title, fontsize=points, loc="left")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, format="png", metadata={"Software": None})


def plot_loss(history: Sequence[Mapping[str, float]], path: Path, title: str, label: str = "loss") -> None:
    """Draw training and held-out loss, or reward, over optimizer steps into a PNG.

    Args:
        history: Rows of `step` with `loss` or `reward` (training), or with `eval_loss` or `eval_reward` (held out).
        path: File to write.
        title: Line above the plot.
        label: What is drawn, with its unit.
    """
    figure = _figure((7, 4))
    axes = figure.add_subplot()
    for start, name, color, marker in (("", "training", "#8aa4c8", ""), ("eval_", "held out", ACCENT, "o")):
        keys = (f"{start}loss", f"{start}reward")
        points = [(row["step"], row[key]) for row in history for key in keys if key in row]
        if points:
            axes.plot(*zip(*points, strict=True), label=name, color=color, marker=marker, markersize=5)
            step, loss = points[-1]
            axes.annotate(
                f"{loss:.2f}",
                (step, loss),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
            )
    axes.set(xlabel="optimizer step", ylabel=label)
    _dress(axes, title)
    axes.margins(x=0.06)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False)
    _save(figure, path)


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """A number for each module of each layer."""

    title: str
    """Line above it, with the unit."""
    cells: Mapping[tuple[str, int | None], float]
    """Module's kind and layer → number; a module in no layer has None."""
    highest: float
    """Where the colours end; they begin at 0."""
    words: str = ".0f"
    """Format of the numbers."""


def plot_grids(grids: Sequence[Grid], path: Path, title: str) -> None:
    """Draw heat maps above each other into a PNG: a row a module, a column a layer.

    Args:
        grids: From the top.
        path: File to write.
        title: Line above the plot.
    """
    places = {place for grid in grids for place in grid.cells}
    modules = sorted({module for module, _ in places})
    layers = sorted({layer for _, layer in places}, key=lambda layer: -1 if layer is None else layer)
    size = max(5.0, 2 + 0.28 * len(layers)), 0.7 + len(grids) * (0.55 + 0.24 * len(modules))
    figure = _figure(size, title)
    for axes, grid in zip(figure.subplots(len(grids), 1, squeeze=False)[:, 0], grids, strict=True):
        rows = [[grid.cells.get((module, layer), float("nan")) for layer in layers] for module in modules]
        axes.imshow(rows, cmap="Blues", vmin=0, vmax=grid.highest, aspect="auto")
        for (module, layer), number in grid.cells.items():
            axes.text(layers.index(layer), modules.index(module), format(number, grid.words), ha="center", va="center",
                      fontsize=6, color="white" if number > 0.6 * grid.highest else "black")  # fmt: skip
        axes.set_yticks(range(len(modules)), modules, fontsize=7)
        axes.set_xticks(range(len(layers)), ["–" if layer is None else str(layer) for layer in layers], fontsize=6)
        axes.set_title(grid.title, fontsize=8, loc="left")
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    axes.set_xlabel("layer", fontsize=8)
    _save(figure, path)


def plot_ranks(moments: Sequence[tuple[int, Mapping[str, int]]], path: Path, title: str) -> None:
    """Draw the rank of every layer at up to four moments of a run into a PNG: a row a module, a column a layer.

    Args:
        moments: Optimizer step and rank by layer name, in order; of more than four, the first, the last and two
            between are drawn.
        path: File to write.
        title: Line above the plot.
    """
    last = len(moments) - 1
    shown = [moments[index] for index in sorted({0, last // 3, 2 * last // 3, last})]
    highest = max(rank for _, ranks in shown for rank in ranks.values())
    grids = [
        Grid(
            title=f"after step {step}" if step else "at the start",
            cells={module_and_layer(name): rank for name, rank in ranks.items()},
            highest=highest,
        )
        for step, ranks in shown
    ]
    plot_grids(grids, path, title)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spectra:
    """The singular values of one kind of module along the layers."""

    title: str
    """The module's kind."""
    lines: Sequence[tuple[int, Sequence[float]]]
    """Layer, and values, descending, over their Frobenius norm."""
    edges: tuple[float, float] | None
    """Bounds that random factors keep within: of the largest value, and of the smallest; None where they differ."""


def plot_spectra(kinds: Sequence[Spectra], path: Path, title: str) -> None:
    """Draw the spectra of each kind of module into a PNG, a line a layer.

    Args:
        kinds: A plot for each.
        path: File to write.
        title: Line above the plots.
    """
    columns = min(4, len(kinds))
    rows = -(-len(kinds) // columns)
    figure = _figure((1.2 + 2.5 * columns, 1.1 + 2.1 * rows), title)
    layers = [layer for kind in kinds for layer, _ in kind.lines]
    colours: Any = ScalarMappable(Normalize(min(layers), max(*layers, min(layers) + 1)), "viridis")
    lowest = min((x for kind in kinds for _, values in kind.lines for x in values if x), default=1.0)
    all_axes = figure.subplots(rows, columns, squeeze=False, sharey=True).flat
    for axes, kind in zip(all_axes, kinds, strict=False):
        for layer, values in kind.lines:
            axes.plot(range(1, len(values) + 1), values, color=colours.to_rgba(layer), linewidth=0.8, marker=".",
                      markersize=3)  # fmt: skip
        for edge, style in zip(kind.edges or (), ("--", ":"), strict=False):
            axes.axhline(edge, color=ACCENT, linewidth=1, linestyle=style)
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")  # not as powers, whose fonts a small machine may lack
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_ylim(max(lowest, 1e-4) * 0.8, 1.25)
        axes.tick_params(labelsize=6)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        _dress(axes, kind.title, points=8)
    for index, axes in enumerate(figure.axes):
        axes.set_visible(index < len(kinds))
        if index + columns >= len(kinds):
            axes.set_xlabel("direction", fontsize=8)
        if index % columns == 0:
            axes.set_ylabel("singular value / norm", fontsize=8)
    bar = figure.colorbar(colours, ax=figure.axes, fraction=0.02, pad=0.01)
    bar.set_label("layer", fontsize=8)
    bar.ax.tick_params(labelsize=6)
    lines = [Line2D([], [], color=ACCENT, linewidth=1, linestyle=style) for style in ("--", ":")]
    words = ("chance keeps the largest value below", "chance keeps the smallest value above")
    figure.legend(lines, words, loc="outside lower center", ncols=2, frameon=False, fontsize=7)
    _save(figure, path)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlotPoint:
    """A measured point of a plot."""

    x: float
    """Where it is."""
    y: float
    """What was measured."""
    error: float | None = None
    """Half the length of its bar."""
    series: str = ""
    """Points of one series are joined by a line."""
    mark: str = ""
    """Words beside it, and a larger marker."""


def _scale(axis: Axis, set_scale: Callable[[str], None], places: Sequence[float]) -> None:
    """Make an axis logarithmic if it spans a decade, with a tick at each place if they are few."""
    if min(places) > 0 and max(places) >= 10 * min(places):
        set_scale("log")
        axis.set_major_formatter(lambda value, _: _short(value))  # matplotlib's own would set powers of ten
        axis.set_minor_formatter(NullFormatter())
    if len(distinct := sorted(set(places))) <= MOST_TICKS:
        axis.set_major_locator(FixedLocator(distinct))
        axis.set_major_formatter(lambda value, _: _short(value))


def _short(value: float) -> str:
    """Return a number in few characters, whole thousands and millions as such.

    >>> _short(1_221_120), _short(305_280), _short(64), _short(0.0003)
    ('1.22M', '305k', '64', '0.0003')
    """
    for least, unit, name in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if value >= least:
            return f"{value / unit:.3g}{name}"
    return f"{value:g}"


def plot_against(
    points: Sequence[PlotPoint], path: Path, title: str, labels: tuple[str, str], level: tuple[str, float] | None = None
) -> None:
    """Draw what was measured against one quantity into a PNG, on a logarithmic axis where it spans a decade.

    Args:
        points: The points.
        path: File to write.
        title: Line above the plot.
        labels: What the two axes show.
        level: Words and height of a line across, if any.
    """
    figure = _figure((7, 4))
    axes = figure.add_subplot()
    names = list(dict.fromkeys(point.series for point in points))
    for index, name in enumerate(names):
        own = sorted((point for point in points if point.series == name), key=lambda point: (point.x, point.y))
        color = SERIES[index % len(SERIES)]
        bars = [point.error or 0.0 for point in own]
        axes.errorbar([p.x for p in own], [p.y for p in own], yerr=bars, label=name, color=color, marker="o",
                      markersize=4, linewidth=1, elinewidth=0.8, capsize=2)  # fmt: skip
    for point in points:
        if point.mark:
            axes.plot(point.x, point.y, "o", markersize=10, fillstyle="none", color="black")
            axes.annotate(point.mark, (point.x, point.y), xytext=(0, -16), textcoords="offset points", fontsize=8,
                          ha="center")  # fmt: skip
    _scale(axes.xaxis, axes.set_xscale, [point.x for point in points])
    if level is not None:
        axes.axhline(level[1], color="grey", linestyle=":", linewidth=1)
        axes.annotate(level[0], (0.01, level[1]), xycoords=("axes fraction", "data"), fontsize=8, va="bottom")
    axes.set(xlabel=labels[0], ylabel=labels[1])
    _dress(axes, title)
    axes.margins(0.08)
    if names != [""]:
        axes.legend(frameon=False, fontsize=8)
    _save(figure, path)


def plot_rank_curves(lines: Sequence[CurveLine], base_loss: float, error: float, path: Path, title: str) -> None:
    """Draw held-out loss by the parameters that an adapter keeps into a PNG, with base, whole adapter and knees.

    Args:
        lines: Curves of one adapter, at most three.
        base_loss: Loss without the adapter, in nats a supervised token.
        error: How far above the whole adapter's loss a knee may be.
        path: File to write.
        title: Line above the plot.
    """
    figure = _figure((7.5, 4.5))
    axes = figure.add_subplot()
    whole, most = lines[0].losses[-1], lines[0].parameters[-1]
    axes.axhline(base_loss, color=GREY, linestyle=":", label=f"base alone, {base_loss:.3f}")
    axes.axhline(whole, color=GREY, linestyle="--", linewidth=1, label=f"whole adapter, {whole:.3f}")
    axes.axhspan(whole, whole + error, color=GREY, alpha=0.12, linewidth=0,
                 label=f"within one standard error, {error:.3f}")  # fmt: skip
    for line, colour in zip(lines, CURVE_COLOURS, strict=False):
        knee, loss = line.parameters[line.knee], line.losses[line.knee]
        name = f"{line.label}: knee at {knee:,} ({knee / most:.1%}), {loss:.3f}"
        axes.plot(line.parameters, line.losses, color=colour, marker="o", markersize=4, label=name)
        below, above = ([loss + sign * error for loss, error in zip(line.losses, line.errors, strict=True)]
                        for sign in (-1, 1))  # fmt: skip
        axes.fill_between(line.parameters, below, above, color=colour, alpha=0.18, linewidth=0)
        axes.plot([knee], [loss], marker="D", markersize=10, color=colour, markerfacecolor="none", linestyle="none")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set(xlabel="parameters kept (log scale)", ylabel="held-out loss (nats per supervised token)")
    _dress(axes, title)
    axes.legend(frameon=False, fontsize=8, title="band: ± 1 paired standard error; diamond: knee", title_fontsize=7)
    _save(figure, path)
