"""Plots that people look at. Drawn without a display and without touching matplotlib's global state."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

__all__ = ["plot_loss"]


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
