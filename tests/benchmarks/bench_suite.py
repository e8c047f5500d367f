"""The benchmarks that `make bench` runs: each a command, with its seeds, its length and what it must be given."""

from __future__ import annotations

from dataclasses import dataclass

PLANTED = ("--out", "build/bench/planted", "--tune-seeds", "90", "--share-rates", "--budgets", "10445p")
"""Both planted benchmarks keep their cells in one folder, since they share some."""
GIVEN = {
    "measurements": "a CSV file of measured peaks, as memory_accuracy.py describes it",
    "model": "a folder with a causal model",
    "encoder": "a folder with an encoder, such as the one that adaptive_rank.py describes",
}
"""What only the caller has: the name of the option, and what it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """One command of `make bench`."""

    name: str
    script: str
    """File in this folder."""
    arguments: tuple[str, ...] = ()
    """`{work}` is a folder of its own under `build/bench`, `{measurements}` and its like what the caller gives."""
    minutes: int
    """About how long it takes on two quiet cores."""
    seeds: tuple[int, ...] = ()
    """Seeds that its values are over."""
    needs: str | None = None
    """A key of GIVEN."""


SUITE = (
    Benchmark(name="presets", script="plan_time.py", arguments=("--runs", "9"), minutes=2),
    Benchmark(name="memory", script="memory_accuracy.py", arguments=("{measurements}", "--short"), minutes=1,
              needs="measurements"),
    Benchmark(name="compress", script="compress.py", arguments=("--seeds", "3"), minutes=7, seeds=(0, 1, 2)),
    Benchmark(name="cost", script="adaptive_rank.py", arguments=("--cost",), minutes=8, seeds=(0,)),
    Benchmark(name="push", script="push_time.py", minutes=20),
    Benchmark(name="speed", script="training_speed.py", arguments=("--runs", "3"), minutes=18),
    Benchmark(name="quickstart", script="quickstart_seeds.py",
              arguments=("--seeds", "0", "1", "2", "--out", "{work}"), minutes=15, seeds=(0, 1, 2)),
    Benchmark(name="planted", script="adaptive_rank.py", minutes=150, seeds=(0, 1, 2, 3, 4), arguments=(
        *PLANTED, "--seeds", "0-4", "--methods", "ours,truncate-whitened,truncate-svd,anneal,ours-svd,shuffled",
        "--also", "uniform@2,adalora@2")),
    Benchmark(name="planted-changes", script="adaptive_rank.py", minutes=75, seeds=(0, 1, 2), arguments=(
        *PLANTED, "--seeds", "0-2",
        "--methods", "ours,ours-reset,replay,ours-start4,ours-events4,ours-freeze80,ours-input,ours-random")),
    Benchmark(name="causal", script="adaptive_rank.py", minutes=30, seeds=(0, 1, 2), needs="model", arguments=(
        "--task", "causal", "--model", "{model}", "--whole-text", "--targets", "v_proj", "--length", "64",
        "--batch", "4", "--steps", "120", "--held-out-rows", "128", "--tune-seeds", "90", "--seeds", "0-2",
        "--learning-rates", "2e-2", "--methods", "uniform,ours", "--budgets", "1", "--out", "{work}")),
    Benchmark(name="classification", script="adaptive_rank.py", minutes=15, seeds=(0, 1, 2), needs="encoder",
              arguments=("--task", "classification", "--model", "{encoder}", "--length", "32", "--held-out-rows", "500",
                         "--tune-seeds", "90", "--seeds", "0-2", "--learning-rates", "3.56e-3",
                         "--methods", "uniform,ours", "--budgets", "4", "--out", "{work}")),
)  # fmt: skip
"""Short ones first, so that a broken evening leaves most of them."""
