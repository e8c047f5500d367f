"""What a sweep leaves: its figures as JSON, plots, and the winning recipes, which `hf-lora train` runs as they are."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any, Final, Literal

from ..cards.facts import redact, write_text_atomically
from ..plots import PlotPoint, plot_against
from ..runs.push_choice import PushChoice
from ..runs.recipe import dump_recipe
from .outcome import Trial, best, efficiency, knee, table
from .settings import Sweep, recipe_at
from .space import Choices, shown, spoken

__all__ = ["SweepResult", "write_report"]

RANK: Final = "rank"
RATE: Final = "training.learning_rate"
LOSS_LABEL: Final = "held-out loss (nats per supervised token)"

Status = Literal["finished", "time is up", "others still work", "unfinished"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepResult:
    """What is known of a sweep."""

    sweep: Sweep
    """The sweep."""
    folder: Path
    """Its folder."""
    status: Status
    """How far it is."""
    trials: tuple[Trial, ...]
    """Every trial that was begun, references among them."""
    best: Trial | None
    """The adapter with the lowest held-out loss."""
    knee: Trial | None
    """The adapter with the fewest parameters within one standard error of the best; None with one seed."""
    files: tuple[str, ...]
    """What was written into the folder."""

    @property
    def reference(self) -> Trial | None:
        """What gains are compared with: the best full fine-tuning, else the best adapter."""
        return best(t for t in self.trials if t.is_full) or self.best

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Return headings and rows, the lowest loss first."""
        return table(self.trials, self.sweep.space)

    def notes(self) -> list[str]:
        """Return what a reader of the table must know, one line each."""
        return [note for note in (self._gain_note(), self._knee_note(), *self._warnings()) if note]

    def _gain_note(self) -> str:
        bases = [run.base_loss for trial in self.trials for run in trial.runs if run.base_loss is not None]
        if not bases or self.reference is None:
            return ""
        whose = "the best full fine-tuning" if self.reference.is_full else f"trial {self.reference.name}, the best one,"
        return (
            f"gain is the share of the loss's fall from the base's {mean(bases):.4f} that {whose} has; per parameter: "
            "that share over the share of its parameters"
        )

    def _knee_note(self) -> str:
        if self.best is None:
            return "no trial is finished, so there is no best one"
        if self.knee is None:
            return "one seed gives no standard error, so no knee is told; seeds: 3 would"
        where = f"trial {self.knee.name} ({spoken(self.knee.point)}, {self.knee.parameters:,} parameters)"
        if self.knee == self.best:
            return f"knee: {where}, the best one itself; nothing smaller is within one standard error of it"
        bought = efficiency(self.knee, self.best)
        share = f", with {bought.share:.1%} of its gain" if bought else ""
        return f"knee: {where} is the smallest within one standard error of the best{share}"

    def _warnings(self) -> Iterable[str]:
        if len({run.held_out for trial in self.trials for run in trial.runs}) > 1:
            yield "the held-out examples changed while the sweep ran: these losses cannot be compared"
        failed = [trial.name for trial in self.trials if trial.state == "failed"]
        if failed:
            yield f"failed: {', '.join(failed)}; the same command again tries them once more, up to three times in all"
        if self.best is None:
            return
        for key, axis in self.sweep.space.items():
            ends = axis.on_grid() if isinstance(axis, Choices) else axis.ends
            numbers = [value for value in ends if isinstance(value, (int, float)) and not isinstance(value, bool)]
            if len(numbers) > 1 and self.best.point.get(key) in (min(numbers), max(numbers)):
                yield f"the best {key} is at the end of what was tried; there may be a better one beyond it"

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain values that JSON takes."""
        compared = {
            trial.name: {"share_of_gain": bought.share, "gain_per_parameter": bought.per_parameter}
            for trial in self.trials
            if self.reference is not None and (bought := efficiency(trial, self.reference))
        }
        return {
            "folder": str(self.folder),
            "status": self.status,
            "trials": [trial.to_dict() | compared.get(trial.name, {}) for trial in self.trials],
            "best": self.best.name if self.best else None,
            "knee": self.knee.name if self.knee else None,
            "reference": self.reference.name if self.reference else None,
            "notes": self.notes(),
            "files": list(self.files),
        }


def write_report(sweep: Sweep, trials: Sequence[Trial], status: Status) -> SweepResult:
    """Write results, plots and winning recipes into the sweep's folder; return what they say."""
    folder = Path(sweep.output_dir)
    adapters = [trial for trial in trials if not trial.is_full]
    winner, small = best(adapters), knee(adapters)
    files = ["results.json"]
    for name, trial in (("best", winner), ("knee", small)):
        if trial is not None:
            write_text_atomically(folder / f"{name}.yaml", _recipe_text(sweep, trial, folder / name))
            files.append(f"{name}.yaml")
    full = best(t for t in trials if t.is_full)
    files += _plots(sweep, adapters, full, {"best": winner, "knee": small}, folder)
    result = SweepResult(
        sweep=sweep, folder=folder, status=status, trials=tuple(trials), best=winner, knee=small, files=tuple(files)
    )
    write_text_atomically(folder / "results.json", json.dumps(result.to_dict(), indent=2, ensure_ascii=False) + "\n")
    return result


def _recipe_text(sweep: Sweep, trial: Trial, run_folder: Path) -> str:
    """Return a trial's recipe, with the base's push, and how it was found."""
    recipe = recipe_at(sweep, trial.point, sweep.first_seed, run_folder)
    if push := sweep.base.get("push"):
        recipe = replace(recipe, push=PushChoice(**push))
    error = "" if trial.error is None else f" ± {trial.error:.4f}"
    seeds = f"{len(trial.runs)} seed{'s' if len(trial.runs) > 1 else ''}"
    return f"# Trial {trial.name}: held-out loss {trial.loss:.4f}{error} over {seeds}.\n{dump_recipe(recipe)}"


def _plots(
    sweep: Sweep, adapters: Sequence[Trial], full: Trial | None, marks: dict[str, Trial | None], folder: Path
) -> list[str]:
    """Draw the loss against rank, parameters and learning rate, each where it differs between finished trials."""
    finished = [trial for trial in adapters if trial.loss is not None]
    level = None if full is None or full.loss is None else ("full fine-tuning", full.loss)
    wanted = {"rank": RANK, "learning_rate": RATE, "parameters": None}
    drawn = []
    for name, key in wanted.items():
        points = [point for trial in finished if (point := _point(sweep, trial, key, marks)) is not None]
        if len({point.x for point in points}) > 1:
            words = "trained parameters" if key is None else name.replace("_", " ")
            title = f"{redact(sweep.base['model'])}, {len(points)} trials"
            plot_against(points, folder / f"loss_against_{name}.png", title, (words, LOSS_LABEL), level)
            drawn.append(f"loss_against_{name}.png")
    return drawn


def _point(sweep: Sweep, trial: Trial, key: str | None, marks: dict[str, Trial | None]) -> PlotPoint | None:
    x = trial.parameters if key is None else trial.point.get(key)
    if isinstance(x, bool) or not isinstance(x, (int, float)) or trial.loss is None:
        return None
    others = [k for k, axis in sweep.space.items() if k != key and isinstance(axis, Choices)]
    if key is None:
        others = [k for k in others if k != RANK]
    told = ", ".join(f"{k.rpartition('.')[2]} {shown(trial.point.get(k))}" for k in others)
    if any(not isinstance(axis, Choices) for k, axis in sweep.space.items() if k != key) and sweep.strategy != "grid":
        told = ""  # each point would be a line of its own
    mark = " and ".join(name for name, marked in marks.items() if marked == trial)
    return PlotPoint(x=x, y=trial.loss, error=trial.error, series=told, mark=mark)
