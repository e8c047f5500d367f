"""When a run overfits: told when the training loss falls and the held-out loss rises beyond its noise, never else."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_lora_ext.choices.overfitting import find_overfitting, noise_of

LOSSES = st.lists(st.floats(0.01, 10), min_size=2, max_size=24)
PATIENCE = st.integers(1, 4)


def rows(held_out: list[float], training: list[float] | None = None) -> list[dict[str, float]]:
    """A history with an evaluation each tenth step, and a falling training loss if none is given."""
    training = [5 - n / 10 for n in range(len(held_out))] if training is None else training
    both = zip(training, held_out, strict=True)
    return [row for n, (loss, held) in enumerate(both, start=1)
            for row in ({"step": 10 * n, "loss": loss}, {"step": 10 * n, "eval_loss": held})]  # fmt: skip


def rising(noise: float = 0.0, seed: int = 0) -> list[float]:
    draw = random.Random(seed)
    return [1 + abs(n - 6) / 10 + draw.gauss(0, noise) for n in range(20)]


@given(LOSSES, PATIENCE)
def test_nothing_is_said_while_the_held_out_loss_falls(losses: list[float], patience: int):
    assert find_overfitting(rows(sorted(losses, reverse=True)), patience) is None


@given(LOSSES, PATIENCE)
def test_nothing_is_said_while_the_training_loss_does_not_fall(losses: list[float], patience: int):
    assert find_overfitting(rows(losses, [float(n) for n in range(len(losses))]), patience) is None


@given(LOSSES, PATIENCE)
def test_nothing_is_said_without_a_training_loss_to_compare_with(losses: list[float], patience: int):
    history = [{"step": n, "eval_loss": loss} for n, loss in enumerate(losses)]
    assert find_overfitting(history, patience) is None


@given(LOSSES, PATIENCE, st.integers(-40, 40), st.integers(-3, 6))
def test_neither_level_nor_unit_of_the_losses_matters(losses: list[float], patience: int, level: int, power: int):
    losses = [round(64 * loss) / 64 for loss in losses]  # so that what is added and multiplied is exact
    said = find_overfitting(rows(losses), patience)
    for other in ([loss + level for loss in losses], [loss * 2.0**power for loss in losses]):
        again = find_overfitting(rows(other), patience)
        assert (again is None) == (said is None)
        assert said is None or again.since_step == said.since_step


@given(st.integers(0, 10**6), st.integers(0, 19))
def test_one_bad_evaluation_is_no_overfitting(seed: int, where: int):
    draw = random.Random(seed)
    losses = [2 - n / 20 + draw.gauss(0, 0.01) for n in range(20)]
    losses[where] += 0.2
    assert all(find_overfitting(rows(losses[:n])) is None for n in range(1, 21))


def test_a_rise_beyond_the_noise_is_told_soon_and_says_since_when():
    losses = rising()
    found = [find_overfitting(rows(losses[:n])) for n in range(1, 21)]
    first = next(n for n, said in enumerate(found, start=1) if said)
    assert 8 <= first <= 11
    assert {said.since_step for said in found[first:]} == {70}
    assert "the lowest held-out loss was at step 70" in str(found[-1])


@pytest.mark.parametrize("seed", range(20))
def test_noise_smaller_than_the_rise_delays_and_does_not_hide_it(seed: int):
    assert find_overfitting(rows(rising(noise=0.05, seed=seed))) is not None


def test_a_level_loss_with_noise_seldom_passes_for_overfitting():
    """Over a whole run of twelve evaluations, with a training loss that falls all the while."""
    draw = random.Random(0)

    def alarmed() -> bool:
        losses = [2 + draw.gauss(0, 0.1) for _ in range(12)]
        return any(find_overfitting(rows(losses[:n])) for n in range(1, 13))

    assert sum(alarmed() for _ in range(500)) <= 0.1 * 500


def test_losses_that_are_not_finite_do_not_count():
    history = rows(rising())
    broken = [{"step": 201, "eval_loss": float("nan")}, {"step": 202, "loss": float("inf")}]
    assert find_overfitting([*history, *broken]) == find_overfitting(history)


@given(st.floats(-5, 5), st.floats(-5, 5), st.integers(3, 12))
def test_a_straight_line_has_no_noise(start: float, slope: float, count: int):
    assert noise_of([start + slope * n for n in range(count)]) == pytest.approx(0, abs=1e-9)
