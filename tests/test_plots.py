"""What was measured against one quantity, as a picture that can be read."""

from pathlib import Path

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from hf_lora_ext.plots import PlotPoint, plot_against, plot_loss


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that were saved."""
    figures: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **how: (figures.append(self), save(self, *args, **how)))
    return figures


def points(*places: float) -> list[PlotPoint]:
    return [PlotPoint(x=x, y=3 - index / 10, error=0.05, series="all") for index, x in enumerate(places)]


def ticks(figure: Figure) -> list[str]:
    figure.canvas.draw()
    return [label.get_text() for label in figure.axes[0].get_xticklabels()]


def test_few_places_over_a_decade_get_a_logarithmic_axis_with_a_tick_each(drawn: list[Figure], tmp_path: Path):
    plot_against(points(305_280, 1_221_120, 19_537_920), tmp_path / "p.png", "title", ("parameters", "loss"))
    assert drawn[0].axes[0].get_xscale() == "log"
    assert ticks(drawn[0]) == ["305k", "1.22M", "19.5M"]
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_places_within_a_decade_stay_on_a_linear_axis(drawn: list[Figure], tmp_path: Path):
    plot_against(points(2, 4, 8), tmp_path / "p.png", "title", ("rank", "loss"))
    assert drawn[0].axes[0].get_xscale() == "linear"
    assert ticks(drawn[0]) == ["2", "4", "8"]


def test_a_mark_and_a_level_are_told_in_words(drawn: list[Figure], tmp_path: Path):
    marked = [*points(1, 2), PlotPoint(x=3, y=1.0, mark="best", series="other")]
    plot_against(marked, tmp_path / "p.png", "title", ("rank", "loss"), ("full fine-tuning", 0.9))
    axes = drawn[0].axes[0]
    assert {text.get_text() for text in axes.texts} == {"best", "full fine-tuning"}
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["all", "other"]


FEW = [
    {"step": 0, "eval_loss": 0.5},
    {"step": 1, "loss": 0.5},
    {"step": 2, "loss": 0.5001},
    {"step": 2, "eval_loss": 0.5},
]


def test_a_long_title_stays_within_the_picture(drawn: list[Figure], tmp_path: Path):
    plot_loss(FEW, tmp_path / "loss.png", "a model of some length, " * 8)
    texts = [text for text in drawn[0].axes[0].get_children() if isinstance(text, Text) and "model" in text.get_text()]
    assert [text.get_window_extent().x1 <= drawn[0].bbox.x1 for text in texts] == [True]


def test_a_run_of_few_steps_has_no_tick_between_two(drawn: list[Figure], tmp_path: Path):
    plot_loss(FEW, tmp_path / "loss.png", "few")
    assert all(tick == int(tick) for tick in drawn[0].axes[0].get_xticks())


def test_the_values_of_two_lines_that_end_together_do_not_cover_each_other(drawn: list[Figure], tmp_path: Path):
    plot_loss([{"step": 0, "eval_loss": 2.0}, *FEW[1:]], tmp_path / "loss.png", "near")
    lower, upper = (text.get_window_extent() for text in drawn[0].axes[0].texts)
    assert lower.y1 <= upper.y0 + 1
