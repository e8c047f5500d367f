"""Print how near the memory estimate comes to measured peaks: `python tests/benchmarks/memory_accuracy.py FILE.csv`.

The file has the columns source, model, params_b, method, rank, targets, batch, seq_len, grad_ckpt, optimizer, dtype,
gpus, measured_gib, notes. `--short` leaves out the rows, and the reasons of those that are not compared.
"""

import itertools
import sys
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from statistics import mean, median

from memory_peers import PEERS, CannotSay, Peer
from memory_rows import GIB, Row, read_rows

from hf_lora_ext.memory import peaks as memory
from hf_lora_ext.memory.peaks import estimate_memory

CARDS = (8, 11, 12, 16, 20, 24, 32, 40, 48, 64, 80)
"""GiB of the cards that fits are judged on."""
MARGINS = (0.0, 0.05, 0.08, 0.1, 0.12, 0.14, 0.16, 0.2, 0.25, 0.3)
ALLOCATED = {"FSDP_STREAMS": (1.0, 1.25, 1.5, 1.75, 2.0, 2.25, 2.5)}
"""Calibrated constants of the allocated bytes, and what is tried for each."""
VISIBLE = {
    "CACHED_LOGIT_BYTES": (3.0, 3.5, 4.0, 4.5, 5.0, 5.5, 6.0),
    "CACHED_SHARE": (0.0, 0.1, 0.2, 0.25, 0.3, 0.4),
    "CACHED_SHARE_SHARDED": (0.3, 0.4, 0.45, 0.5, 0.55, 0.6, 0.7),
    "CONTEXT_BYTES": tuple(round(x * GIB) for x in (0.5, 0.75, 1.0, 1.25, 1.5)),
    "COLLECTIVE_BYTES": tuple(round(x * GIB) for x in (1.0, 1.25, 1.5, 1.75, 2.0, 2.25, 2.5)),
}
"""Calibrated constants of what the device shows beyond the allocated, and what is tried for each."""


def predicted(row: Row) -> float:
    """Return the estimate in GiB, in the row's metric, of a run on the row's card."""
    estimate = estimate_memory(row.shape, row.plan)
    if row.metric == "allocated":
        counted = estimate.allocated
        if row.plan.loads_whole:  # the tool's counter runs from the start
            counted = max(counted, estimate.loading)
        return counted / GIB
    shown = int(getattr(estimate, row.metric)) / GIB
    outside = estimate.context if row.metric == "device" else 0
    if row.card and estimate.allocated + outside < row.card * GIB:
        shown = min(shown, row.card)  # before it fails, the allocator gives back what it keeps
    return shown


def error(row: Row) -> float:
    """Return the signed relative error."""
    return predicted(row) / row.measured - 1


def over_configurations(rows: Iterable[Row], errors: Iterable[float]) -> float:
    """Return the mean over configurations of their mean absolute errors, so that many siblings count once."""
    by: dict[str, list[float]] = {}
    for row, value in zip(rows, errors, strict=True):
        by.setdefault(row.configuration, []).append(abs(value))
    return mean(map(mean, by.values()))


def fits(rows: Iterable[Row], margin: float) -> tuple[int, int, int, int]:
    """Return false fits, cases that do not fit, false refusals, cases that fit, over the customary cards.

    `margin` takes the place of `MARGIN`; what an estimate asks beyond that stays.
    """
    false_fits = too_large = false_refusals = fitting = 0
    for row in rows:
        beyond = estimate_memory(row.shape, row.plan).margin - memory.MARGIN
        say = predicted(row) * (1 + margin + beyond)
        for card in CARDS:
            if row.measured > card:
                too_large += 1
                false_fits += say <= card
            else:
                fitting += 1
                false_refusals += say > card
    return false_fits, too_large, false_refusals, fitting


def line(name: str, rows: list[Row]) -> str:
    """Return one line of a table."""
    errors = [error(row) for row in rows]
    fit = fits(rows, memory.MARGIN)
    return (
        f"{name:44} {len(rows):4} {mean(map(abs, errors)):7.1%} {over_configurations(rows, errors):7.1%} "
        f"{median(map(abs, errors)):7.1%} {max(map(abs, errors)):7.1%} {mean(errors):+7.1%}   "
        f"{fit[0]:3}/{fit[1]:<5} {fit[2]:3}/{fit[3]:<5}"
    )


HEAD = f"{'':44}    n    mean configs  median     max    bias   false fits, false refusals"


def groups(rows: list[Row]) -> Iterator[tuple[str, list[Row]]]:
    """Yield the named groups of the summary."""
    for tag, metric in sorted({(row.tag, row.metric) for row in rows}):
        chosen = [row for row in rows if (row.tag, row.metric) == (tag, metric)]
        yield f"[{tag}] {metric}", chosen
        for name in sorted({(row.configuration, row.plan.sharding) for row in chosen}):
            yield "    " + " ".join(name), [r for r in chosen if (r.configuration, r.plan.sharding) == name]


@contextmanager
def constants(values: dict[str, float]) -> Iterator[None]:
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
    """Return the constants of least mean error over configurations: one after another, twice around."""
    values: dict[str, float] = {}
    weight = Counter(f"{row.configuration} {row.plan.sharding} {row.metric}" for row in rows)

    def score(trial: dict[str, float], part: list[Row]) -> float:
        with constants(trial):
            return sum(abs(error(r)) / weight[f"{r.configuration} {r.plan.sharding} {r.metric}"] for r in part)

    sharded = [row for row in rows if row.metric == "allocated" and row.plan.sharding == "fsdp"]
    visible = [row for row in rows if row.metric != "allocated"]
    for grid, part in ((ALLOCATED, sharded), (VISIBLE, visible), (VISIBLE, visible)):
        for name, tried in grid.items():
            scores = {value: score({**values, name: value}, part) for value in tried}
            values[name] = min(scores, key=scores.__getitem__)
    return values


def held_out(name: str, parts: list[tuple[str, list[Row], list[Row]]]) -> None:
    """Print the error on rows that the constants were not fitted to, for (name, fitted to, judged on)."""
    print(f"\n{name}\n{HEAD}")
    every: dict[str, list[tuple[Row, float]]] = {}
    for part, known, judged in parts:
        values = fitted(known)
        with constants(values):
            for metric in ("allocated", "reserved", "device"):
                rows = [row for row in judged if row.metric == metric]
                if rows:
                    print(line(f"  {part} {metric}", rows))
                    every.setdefault(metric, []).extend((row, error(row)) for row in rows)
        print(f"      {', '.join(f'{n} {v / GIB:g} GiB' if v > GIB / 8 else f'{n} {v:g}' for n, v in values.items())}")
    for metric, pairs in every.items():
        rows, errors = [row for row, _ in pairs], [value for _, value in pairs]
        print(
            f"  all {metric}: mean {mean(map(abs, errors)):.1%}, over configurations "
            f"{over_configurations(rows, errors):.1%}, max {max(map(abs, errors)):.1%}, n {len(errors)}"
        )


def splits(rows: list[Row]) -> None:
    """Print both honest splits of the [A] rows: one family out, and halves by configuration."""
    chosen = [row for row in rows if row.tag == "A"]
    families = sorted({row.family for row in chosen})
    held_out(
        "one family left out: constants fitted to the other families",
        [(f, [r for r in chosen if r.family != f], [r for r in chosen if r.family == f]) for f in families],
    )
    half = {row.configuration: zlib.crc32(row.configuration.encode()) % 2 for row in chosen}
    first, second = ([r for r in chosen if half[r.configuration] == number] for number in (0, 1))
    held_out(
        "halves by configuration (family, method, tool): constants fitted to the other half",
        [("first half", second, first), ("second half", first, second)],
    )


def margins(rows: list[Row]) -> None:
    """Print what each margin would cost, over the [A] rows."""
    print("\nmargin: false fits of cases that do not fit, false refusals of cases that fit, over all [A] rows")
    for margin in sorted({*MARGINS, memory.MARGIN}):
        told = []
        for metric in ("allocated", "reserved", "device"):
            fit = fits([row for row in rows if row.tag == "A" and row.metric == metric], margin)
            told.append(f"{metric} {fit[0]:3}/{fit[1]:<4} {fit[2]:3}/{fit[3]:<4} ({fit[2] / max(1, fit[3]):5.1%})")
        print(f"  {margin:4.0%}{' <' if margin == memory.MARGIN else '  '} {'   '.join(told)}")


def peers(rows: list[Row]) -> None:
    """Print the peers beside ours, each pair on the rows of which the peer says something."""
    print("\npeers, each on the rows of which it says something, and ours on the same: mean absolute error, bias")
    silent: Counter[tuple[str, str]] = Counter()
    for name, peer in PEERS.items():
        said = {row.number: found for row in rows if (found := _said(name, peer, row, silent)) is not None}
        for tag, metric in sorted({(row.tag, row.metric) for row in rows}):
            part = [r for r in rows if (r.tag, r.metric) == (tag, metric) and r.number in said]
            if not part:
                continue
            theirs = [said[r.number] / r.measured - 1 for r in part]
            ours = [error(r) for r in part]
            nearer = sum(abs(a) < abs(b) for a, b in zip(theirs, ours, strict=True))
            print(
                f"  {name:26} [{tag}] {metric:9} n {len(part):3}  {mean(map(abs, theirs)):7.1%} {mean(theirs):+8.1%}  "
                f"ours {mean(map(abs, ours)):6.1%} {mean(ours):+7.1%}  nearer than ours on {nearer}"
            )
    for (name, why), count in sorted(silent.items()):
        print(f"  {name} says nothing of {count} rows: {why}")


def _said(name: str, peer: Peer, row: Row, silent: Counter[tuple[str, str]]) -> float | None:
    try:
        return peer(row)
    except CannotSay as reason:
        silent[name, str(reason)] += 1
        return None


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
    print(f"\nmargin {memory.MARGIN:.0%}, {memory.WIDE_MARGIN:.0%} where it is wide\n{HEAD}")
    for name, part in groups(rows):
        print(line(name, part))
    margins(rows)
    splits(rows)
    peers(rows)
    print(f"\n{len(left)} rows are not compared")
    for why, same in itertools.groupby(sorted(left, key=lambda item: item[2]), key=lambda item: item[2]):
        numbers = list(same)
        print(f"  {len(numbers):3} {why}" + ("" if "--short" in arguments else f": {[n for n, _, _ in numbers]}"))


if __name__ == "__main__":
    main(sys.argv[1:])
