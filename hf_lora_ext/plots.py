"""Plots that people look at. Drawn without a display and without touching matplotlib's global state."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from .cards.layer_ranks import module_and_layer

__all__ = ["CurveLine", "plot_loss", "plot_rank_curves", "plot_ranks"]

CURVE_COLOURS: Final = ("#c8553d", "#3d6ca8", "#6a994e")


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


def plot_loss(history: Sequence[Mapping[str, float]], path: Path, title: str) -> None:
    """Draw training and held-out loss over optimizer steps into a PNG.

    Args:
        history: Rows of `step` with `loss` (training) or `eval_loss` (held out), in nats per token.
        path: File to write.
        title: Line above the plot.
    """
    figure = Figure(figsize=(7, 4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for key, label, color, marker in (("loss", "training", "#8aa4c8", ""), ("eval_loss", "held out", "#c8553d", "o")):
        points = [(row["step"], row[key]) for row in history if key in row]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, color=color, marker=marker, markersize=5)
            step, loss = points[-1]
            axes.annotate(
                f"{loss:.2f}",
                (step, loss),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
            )
    axes.set(xlabel="optimizer step", ylabel="loss (nats per supervised token)")
    axes.set_title(title, fontsize=10, loc="left")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.06)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False)
    figure.savefig(path, format="png", metadata={"Software": None})


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
    modules = sorted({module_and_layer(name)[0] for _, ranks in shown for name in ranks})
    layers = sorted({module_and_layer(name)[1] for _, ranks in shown for name in ranks})
    highest = max(rank for _, ranks in shown for rank in ranks.values())
    size = max(5.0, 2 + 0.28 * len(layers)), 0.7 + len(shown) * (0.55 + 0.24 * len(modules))
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    for axes, (step, ranks) in zip(figure.subplots(len(shown), 1, squeeze=False)[:, 0], shown, strict=True):
        cells = {module_and_layer(name): rank for name, rank in ranks.items()}
        grid = [[cells.get((module, layer), float("nan")) for layer in layers] for module in modules]
        axes.imshow(grid, cmap="Blues", vmin=0, vmax=highest, aspect="auto")
        for (module, layer), rank in cells.items():
            axes.text(layers.index(layer), modules.index(module), str(rank), ha="center", va="center", fontsize=6,
                      color="white" if rank > 0.6 * highest else "black")  # fmt: skip
        axes.set_yticks(range(len(modules)), modules, fontsize=7)
        axes.set_xticks(range(len(layers)), [str(layer) for layer in layers], fontsize=6)
        axes.set_title(f"after step {step}" if step else "at the start", fontsize=8, loc="left")
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    axes.set_xlabel("layer", fontsize=8)
    figure.savefig(path, format="png", metadata={"Software": None})


def plot_rank_curves(lines: Sequence[CurveLine], base_loss: float, error: float, path: Path, title: str) -> None:
    """Draw held-out loss by the parameters that an adapter keeps into a PNG, with base, whole adapter and knees.

    Args:
        lines: Curves of one adapter, at most three.
        base_loss: Loss without the adapter, in nats a supervised token.
        error: How far above the whole adapter's loss a knee may be.
        path: File to write.
        title: Line above the plot.
    """
    figure = Figure(figsize=(7.5, 4.5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    whole, most = lines[0].losses[-1], lines[0].parameters[-1]
    axes.axhline(base_loss, color="#777777", linestyle=":", label=f"base alone, {base_loss:.3f}")
    axes.axhline(whole, color="#777777", linestyle="--", linewidth=1, label=f"whole adapter, {whole:.3f}")
    axes.axhspan(whole, whole + error, color="#777777", alpha=0.12, linewidth=0,
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
    axes.set_title(title, fontsize=10, loc="left")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, title="band: ± 1 paired standard error; diamond: knee", title_fontsize=7)
    figure.savefig(path, format="png", metadata={"Software": None})
