"""Print how near the memory estimate comes to measured peaks: `python tests/benchmarks/memory_accuracy.py FILE.csv`.

The file has the columns source, model, params_b, method, rank, targets, batch, seq_len, grad_ckpt, optimizer, dtype,
gpus, measured_gib, notes. `--short` leaves out the rows; `--fit` fits the calibrated constants anew, one family out.
"""

import itertools
import sys
from collections.abc import Iterable
from contextlib import contextmanager
from statistics import mean, median

from memory_rows import GIB, Row, read_rows

from hf_lora_ext import memory
from hf_lora_ext.memory import estimate_memory

CARDS = (8, 11, 12, 16, 20, 24, 32, 40, 48, 64, 80)
"""GiB of the cards that fits are judged on."""
GRID = {
    "CACHED_LOGIT_BYTES": (2.0, 3.0, 4.0, 5.0, 6.0, 7.0),
    "CONTEXT_BYTES": tuple(round(x * GIB) for x in (1.0, 1.5, 2.0)),
    "COLLECTIVE_BYTES": tuple(round(x * GIB) for x in (0.5, 1.0, 1.5)),
}
"""The calibrated constants of what the device shows beyond the allocated, and what is tried for each."""
STREAMS = (1.0, 1.5, 2.0, 2.5, 3.0)
"""What is tried for `FSDP_STREAMS`, the only calibrated constant of the allocated."""


def predicted(row: Row) -> float:
    """Return the estimate in GiB, in the row's metric."""
    estimate = estimate_memory(row.shape, row.plan)
    if row.metric == "allocated" and row.plan.loads_whole:  # the tool's counter runs from the start
        return max(estimate.allocated, estimate.loading) / GIB
    return int(getattr(estimate, row.metric)) / GIB


def error(row: Row) -> float:
    """Return the signed relative error."""
    return predicted(row) / row.measured - 1


def transformer_math(row: Row) -> float:
    """Return Transformer Math 101's sum in GiB: `s b h L 34` when checkpointing, else `s b h L (34 + 5 a s / h)`."""
    shape, plan = row.shape, row.plan
    element = {"nf4": 0.5, "gptq": 0.5, "int8": 1.0}.get(plan.base, 2.0)
    estimate = estimate_memory(shape, plan)
    per = plan.tokens * (shape.hidden or 0) * (shape.layers or 0)
    heads = shape.heads or 1
    saved = 34 if plan.checkpointing else 34 + 5 * heads * plan.sequence / (shape.hidden or 1)
    total = shape.parameters * element / plan.shards + (estimate.adapters + estimate.optimizer) + estimate.adapters
    return (total + per * saved) / GIB


def loading_only(row: Row) -> float:
    """Return what `accelerate estimate-memory` gives for training: weights as loaded, x 4 with Adam if all train."""
    element = {"nf4": 0.5, "gptq": 0.5, "int8": 1.0}.get(row.plan.base, 2.0)
    return row.shape.parameters * element * (4 if row.plan.method == "full" else 1) / GIB


def fits(rows: Iterable[Row], margin: float) -> tuple[int, int, int, int]:
    """Return false fits, cases that do not fit, false refusals, cases that fit, over the customary cards."""
    false_fits = too_large = false_refusals = fitting = 0
    for row in rows:
        say = predicted(row) * (1 + margin)
        for card in CARDS:
            if row.measured > card:
                too_large += 1
                false_fits += say <= card
            else:
                fitting += 1
                false_refusals += say > card
    return false_fits, too_large, false_refusals, fitting


def line(name: str, rows: list[Row]) -> str:
    """Return one line of the summary."""
    errors = [error(row) for row in rows]
    fit = fits(rows, memory.MARGIN)
    return (
        f"{name:44} {len(rows):4} {mean(map(abs, errors)):7.1%} {median(map(abs, errors)):7.1%} "
        f"{max(map(abs, errors)):7.1%} {mean(errors):+7.1%}   {fit[0]:3}/{fit[1]:<5} {fit[2]:3}/{fit[3]:<5}"
    )


def groups(rows: list[Row]) -> Iterable[tuple[str, list[Row]]]:
    """Yield the named groups of the summary."""
    for tag, metric in sorted({(row.tag, row.metric) for row in rows}):
        chosen = [row for row in rows if (row.tag, row.metric) == (tag, metric)]
        yield f"[{tag}] {metric}", chosen
        for name in sorted({(row.family, row.plan.method, row.plan.base, row.plan.sharding) for row in chosen}):
            part = [r for r in chosen if (r.family, r.plan.method, r.plan.base, r.plan.sharding) == name]
            yield "    " + " ".join(name), part


@contextmanager
def constants(values: dict[str, float]):
    """Set the calibrated constants for a while."""
    before = {name: getattr(memory, name) for name in values}
    try:
        for name, value in values.items():
            setattr(memory, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(memory, name, value)


def fitted(rows: list[Row]) -> dict[str, float]:
    """Return the constants of least mean error over configurations, each a tool's family, method and sharding."""
    weight = {}
    for row in rows:
        key = (row.family, row.plan.base, row.plan.sharding, row.metric)
        weight[key] = weight.get(key, 0) + 1

    def score(trial: dict[str, float], part: list[Row]) -> float:
        with constants(trial):
            return sum(abs(error(r)) / weight[r.family, r.plan.base, r.plan.sharding, r.metric] for r in part)

    sharded = [row for row in rows if row.metric == "allocated" and row.plan.sharding == "fsdp"]
    streams = min(STREAMS, key=lambda number: score({"FSDP_STREAMS": number}, sharded))
    visible = [row for row in rows if row.metric != "allocated"]
    trials = [
        {"FSDP_STREAMS": streams, **dict(zip(GRID, values, strict=True))}
        for values in itertools.product(*GRID.values())
    ]
    return min(trials, key=lambda trial: score(trial, visible))


def leave_one_family_out(rows: list[Row]) -> None:
    """Print the error on each family of [A] with the constants fitted to the others."""
    print("\nleave one family out: constants fitted to the other families' [A] rows")
    chosen = [row for row in rows if row.tag == "A"]
    every: dict[str, list[float]] = {}
    for family in sorted({row.family for row in chosen}):
        values = fitted([row for row in chosen if row.family != family])
        with constants(values):
            for metric in ("allocated", "reserved", "device"):
                part = [row for row in chosen if row.family == family and row.metric == metric]
                if part:
                    every.setdefault(metric, []).extend(error(row) for row in part)
                    print(line(f"  {family} {metric}", part))
        print(f"      {values}")
    for metric, errors in every.items():
        print(f"  all {metric}: mean {mean(map(abs, errors)):.1%}, max {max(map(abs, errors)):.1%}, n {len(errors)}")


def main(arguments: list[str]) -> None:
    """Print everything."""
    rows, left = read_rows(next(a for a in arguments if not a.startswith("--")))
    if "--short" not in arguments:
        for row in rows:
            print(
                f"{row.number:4} [{row.tag}] {row.model[:30]:30} {row.method[:24]:24} b{row.plan.micro_batch:<2} "
                f"{row.plan.sequence:6} {row.plan.sharding:5} {row.metric:9} {predicted(row):7.2f} predicted "
                f"{row.measured:7.2f} measured {error(row):+7.1%} {estimate_memory(row.shape, row.plan).peak}"
            )
    print(f"\n{'':44}    n    mean  median     max    bias   false fits, false refusals (margin {memory.MARGIN:.0%})")
    for name, part in groups(rows):
        print(line(name, part))
    print("\npeers' closed forms, on the same rows: mean absolute error, bias")
    for name, function in (("Transformer Math 101", transformer_math), ("loading only", loading_only)):
        for tag, metric in sorted({(row.tag, row.metric) for row in rows}):
            errors = [function(r) / r.measured - 1 for r in rows if (r.tag, r.metric) == (tag, metric)]
            print(f"  {name:22} [{tag}] {metric:9} {mean(map(abs, errors)):7.1%} {mean(errors):+8.1%}")
    print(f"\n{len(left)} rows are not compared")
    for number, what, why in left:
        print(f"  {number:4} {what}: {why}")
    if "--fit" in arguments:
        leave_one_family_out(rows)


if __name__ == "__main__":
    main(sys.argv[1:])
