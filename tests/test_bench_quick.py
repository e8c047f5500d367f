"""`make bench-quick`: ratios are of pairs, what has moved is told, and only what has moved twice."""

import json
import random
from pathlib import Path

import bench_quick
import pytest
import quick_probes
from bench_ratios import GROUPS, RATIOS, Ratio, moved, paired_median
from hypothesis import given
from hypothesis import strategies as st

SECONDS = st.floats(1e-3, 1e3)
PAIRS = st.lists(st.tuples(SECONDS, SECONDS), min_size=1, max_size=9)
NAME = "import hf_lora_ext / python"


@given(PAIRS, st.floats(0.1, 10), st.randoms(use_true_random=False))
def test_a_ratio_is_the_same_on_a_slower_machine_and_in_another_order(
    pairs: list[tuple[float, float]], slower: float, shuffling: random.Random
):
    other = [(slower * above, slower * below) for above, below in pairs]
    shuffling.shuffle(other)
    assert paired_median(other) == pytest.approx(paired_median(pairs))


@given(st.floats(0.5, 2), SECONDS, SECONDS)
def test_one_bad_turn_of_three_changes_nothing(ratio: float, size: float, bad: float):
    assert paired_median([(ratio, 1.0), (bad, 1.0), (ratio * size, size)]) == pytest.approx(ratio)


@pytest.mark.parametrize("samples", [[], [(1.0, 0.0)]])
def test_no_pairs_or_no_denominator_is_refused(samples: list[tuple[float, float]]):
    with pytest.raises(ValueError, match="denominators above 0"):
        paired_median(samples)


@given(st.floats(0.01, 100), st.floats(1.01, 5), st.floats(0, 0.99), st.floats(1.001, 3))
def test_a_ratio_has_moved_beyond_its_factor_in_either_direction_and_not_within(
    recorded: float, factor: float, share: float, by: float
):
    ratios = {"a": Ratio("startup", factor)}
    for near in (factor**share, factor**-share):
        assert moved({"a": recorded * near}, {"a": recorded}, ratios) == []
    for far in (factor * by, 1 / (factor * by)):
        assert [one.name for one in moved({"a": recorded * far}, {"a": recorded}, ratios)] == ["a"]


def test_what_moved_is_told_with_found_recorded_and_allowed():
    (one,) = moved({"a": 3.0}, {"a": 1.0}, {"a": Ratio("startup", 1.5)})
    assert str(one) == "a: found 3, recorded 1, allowed 0.667 to 1.5"


def test_what_was_not_measured_or_not_recorded_counts_as_moved():
    ratios = {"a": Ratio("startup", 2), "b": Ratio("startup", 2)}
    told = [str(one) for one in moved({"a": 1.0}, {"b": 2.0}, ratios)]
    assert told[0].endswith("record it with `make bench-quick RECORD=1`")
    assert told[1] == "b: was not measured; recorded is 2"


def test_every_declared_ratio_is_recorded_and_every_group_has_a_probe():
    recorded = json.loads(bench_quick.RECORDED.read_text(encoding="utf8"))
    assert recorded["ratios"].keys() == RATIOS.keys()
    assert all(value > 0 for value in recorded["ratios"].values())
    assert set(GROUPS) == quick_probes.PROBES.keys()


def measuring(monkeypatch: pytest.MonkeyPatch, folder: Path, *times_recorded: float) -> None:
    """Let one group's measurements be so many times what is recorded, one after the other."""
    ratios = {name: 2.0 for name, ratio in RATIOS.items() if ratio.group == "startup"}
    monkeypatch.setattr(bench_quick, "RECORDED", folder / "quick.json")
    bench_quick.record(ratios)
    turns = iter(times_recorded)
    monkeypatch.setattr(bench_quick, "measured", lambda group: ratios | {NAME: 2.0 * next(turns)})


@pytest.mark.parametrize(("turns", "code"), [((1.0,), 0), ((9.0, 1.0), 0), ((9.0, 9.0), 1), ((0.1, 0.1), 1)])
def test_what_moves_once_is_measured_again_and_what_moves_twice_ends_with_1(
    turns: tuple[float, ...], code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):  # fmt: skip
    measuring(monkeypatch, tmp_path, *turns)
    assert bench_quick.main(["startup"]) == code
    captured = capsys.readouterr()
    assert f"| {NAME} |" in captured.out
    assert ("moved, in two measurements" in captured.err) == bool(code)
    assert ("measured once more" in captured.err) == (len(turns) == 2)


def test_recording_a_group_keeps_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    measuring(monkeypatch, tmp_path, 3.0)
    monkeypatch.setattr(
        bench_quick, "measured", lambda group: {next(n for n, r in RATIOS.items() if r.group == group): 7.0}
    )
    assert bench_quick.main(["event", "--record"]) == 0
    ratios = json.loads((tmp_path / "quick.json").read_text(encoding="utf8"))["ratios"]
    assert (ratios[NAME], ratios["event, its bases / 10 Adam steps"]) == (2.0, 7.0)
