"""Runs of adaptive rank, killed with signal 9 at random moments: the same command then ends in the same bytes."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from calls import Tally
from forked import ending_of, finished, load_libraries, start

__all__ = ["SAME", "kill_runs", "race_runs", "recipe_for", "results"]

SAME = ("adapter_model.safetensors", "adapter_config.json")
"""Files that do not depend on when and how long a run ran."""


def recipe_for(model: Path, folder: Path) -> Path:
    """Write a recipe of 16 steps with four events of adaptive rank and a checkpoint at every second step."""
    rows = folder / "rows.jsonl"
    rows.write_text(
        "".join(f'{{"prompt": "What is {n} plus one?", "completion": " It is {n + 1}."}}\n' for n in range(40))
    )
    file = folder / "recipe.yaml"
    file.write_text(
        f"""
model: {model}
output_dir: {folder / "whole"}
data: {{source: {rows}}}
adaptive_rank: true
rank: 2
samples: 0
training: {{max_steps: 16, per_device_train_batch_size: 2, gradient_accumulation_steps: 1, learning_rate: 1e-2,
           logging_steps: 1, eval_steps: 8, save_steps: 2}}
""",
        encoding="utf8",
    )
    return file


def results(folder: Path) -> dict[str, bytes]:
    """Return what a run left that another of the same recipe must leave too."""
    return {name: (folder / name).read_bytes() for name in SAME}


def kill_runs(model: Path, scratch: Path, count: int, seed: int, say: Callable[[str], None]) -> Tally:
    """Kill `count` runs, each once or twice, and end them.

    Args:
        model: Folder of the base.
        scratch: Where the runs lie; those that ended wrong stay.
        count: Runs.
        seed: Of the moments, even over the time that a whole run takes.
        say: Takes a line for each run.
    """
    load_libraries()
    recipe, draw, tally = recipe_for(model, scratch), random.Random(seed), Tally(name="killed runs")
    finished(["train", recipe], scratch / "whole.log")  # warms the caches; the next one is timed
    wanted = results(scratch / "whole")
    began = time.monotonic()
    finished(["train", recipe, f"output_dir={scratch / 'timed'}"], scratch / "timed.log")
    seconds = time.monotonic() - began
    for number in range(count):
        folder = scratch / f"killed-{number}"
        command = ["train", recipe, f"output_dir={folder}"]
        moments = [draw.uniform(0, seconds) for _ in range(draw.choice([1, 1, 2]))]
        killed = [start(command, scratch / f"{number}.log").kill_after(moment) for moment in moments]
        end = start(command, scratch / f"{number}.log")
        ending = ending_of(end)
        if ending != "done" or results(folder) != wanted:
            ending = "other bytes" if ending == "done" else f"not resumed: {ending}"
        tally.add(ending, f"{folder}, killed after {moments} s: {end.said()[-2000:]}")
        tally.beside["kills"] += sum(killed)
        say(f"  run {number}: {sum(killed)} kills of {len(moments)}, {ending}")
        if ending == "done":
            shutil.rmtree(folder)
    return tally


def race_runs(model: Path, scratch: Path, count: int, seed: int, say: Callable[[str], None]) -> Tally:
    """Start two runs in one folder at nearly the same moment, `count` times: one trains, the other is refused."""
    load_libraries()
    recipe, draw, tally = recipe_for(model, scratch), random.Random(seed), Tally(name="two runs in one folder")
    finished(["train", recipe], scratch / "whole.log")
    wanted = results(scratch / "whole")
    for number in range(count):
        folder = scratch / f"raced-{number}"
        command = ["train", recipe, f"output_dir={folder}"]
        first = start(command, scratch / f"{number}-first.log")
        time.sleep(draw.uniform(0, 1))
        second = start(command, scratch / f"{number}-second.log")
        endings = sorted(map(ending_of, (first, second)))
        # Both may come through, one after the other: then the second finds a finished run.
        good = endings in (["done", "refused"], ["done", "done"]) and results(folder) == wanted
        ending = "done" if good else f"ended {endings}"
        tally.add(ending, f"{folder}: {first.said()[-800:]} | {second.said()[-800:]}")
        tally.beside["refused meanwhile"] += endings.count("refused")
        say(f"  pair {number}: {endings}")
        if ending == "done":
            shutil.rmtree(folder)
    return tally
