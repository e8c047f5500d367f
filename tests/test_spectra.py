"""Measures of a spectrum, and what chance would give: against dense decompositions, closed forms and simulation."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_lora_ext.analysis.edges import edges_of
from hf_lora_ext.analysis.spectra import Edges, Spectrum
from hf_lora_ext.ranks.low_rank import singular_values

SIZES = st.tuples(st.integers(1, 9), st.integers(1, 12), st.integers(1, 12))
VALUES = st.lists(st.floats(0, 1e6), min_size=1, max_size=12).map(lambda drawn: tuple(sorted(drawn, reverse=True)))


def spectrum(values, rank: int | None = None, shape=(64, 64), **fields) -> Spectrum:
    rank = rank or len(values)
    edges = edges_of(rank, *shape) if any(values) else None
    settings = {"name": "q", "kind": "linear", "target": "q", "parameters": 1, "scaling": 1.0, "edges": edges}
    return Spectrum(values=tuple(values), rank=rank, shape=shape, **settings | fields)


@settings(max_examples=60)
@given(SIZES, st.integers(0, 999), st.sampled_from([1.0, 1e-12, 1e12]))
def test_singular_values_are_those_of_the_dense_product(sizes, seed: int, size: float):
    rank, n_in, n_out = sizes
    draw = torch.Generator().manual_seed(seed)
    a = torch.randn(rank, n_in, generator=draw, dtype=torch.float64) * size
    b = torch.randn(n_out, rank, generator=draw, dtype=torch.float64) * torch.logspace(0, -6, rank).double()
    dense = torch.linalg.svdvals(b @ a)
    found = singular_values(a, b)
    count = min(sizes)
    assert len(found) == count
    assert torch.allclose(found, dense[:count], rtol=1e-9, atol=1e-13 * float(dense[0]))


def test_small_singular_values_keep_their_digits():
    wanted = torch.logspace(0, -10, 6, dtype=torch.float64)
    left, right = (torch.linalg.qr(torch.randn(40, 6, dtype=torch.float64)).Q for _ in range(2))
    assert torch.allclose(singular_values(right.T, left * wanted), wanted, rtol=1e-5, atol=0)


@settings(max_examples=100)
@given(VALUES, st.floats(1e-6, 1e6))
def test_measures_keep_their_bounds_and_do_not_depend_on_size(values, size: float):
    one, other = spectrum(values, edges=None), spectrum([value * size for value in values], edges=None)
    count = sum(value > 0 for value in values)
    if one.norm > 1e-100:
        assert 1 - 1e-9 <= one.stable_rank <= one.effective_rank * (1 + 1e-9)
    assert one.effective_rank <= count * (1 + 1e-9)
    assert list(one.energies) == sorted(one.energies)
    assert one.directions_for(0.9) <= one.directions_for(0.95) <= one.directions_for(0.99) <= len(values)
    if one.norm > 1e-100 and other.norm > 1e-100:
        assert other.effective_rank == pytest.approx(one.effective_rank, rel=1e-6)
        assert other.stable_rank == pytest.approx(one.stable_rank, rel=1e-6)


@pytest.mark.parametrize("rank", [1, 3, 100])
def test_equal_directions_have_full_rank_by_every_measure(rank: int):
    flat = spectrum([2.0] * rank, edges=None)
    assert (flat.effective_rank, flat.stable_rank) == (pytest.approx(rank), pytest.approx(rank))
    assert flat.directions_for(0.99) == math.ceil(0.99 * rank)
    assert flat.last_evenness == pytest.approx(1)


def test_measures_by_hand():
    found = spectrum([3.0, 1.0])
    assert found.energies == pytest.approx((0.9, 1.0))
    assert found.stable_rank == pytest.approx(10 / 9)
    assert found.effective_rank == pytest.approx(math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25)))
    assert [found.directions_for(share) for share in (0.9, 0.95, 0.99)] == [1, 2, 2]
    assert found.last_evenness == pytest.approx(0.2)


def test_a_rank_with_directions_to_spare_is_over_and_gets_those_that_it_uses():
    found = spectrum([3, 2, 1, 0.01, 0.001, 0])
    assert (found.verdict, found.suggested_rank) == ("over", 3)
    assert "3 of 6 directions carry 99 % of its update; give it rank 3" in found.advice


def test_a_rank_above_what_the_shape_allows_is_over_however_flat():
    assert spectrum([1.0] * 4, rank=8, shape=(4, 64)).verdict == "over"


def test_a_flat_spectrum_is_under_and_gets_twice_the_rank_as_far_as_there_is():
    assert (spectrum([1.0] * 6).verdict, spectrum([1.0] * 6).suggested_rank) == ("under", 12)
    assert spectrum([1.0] * 6, shape=(64, 8)).suggested_rank == 8
    assert spectrum([1.0] * 6, shape=(64, 6)).verdict == "fits"
    assert "give it rank 12, and if the loss does not fall" in spectrum([1.0] * 6).advice


def test_a_falling_spectrum_that_uses_its_rank_fits():
    found = spectrum([3, 2, 1.5, 1])
    assert (found.verdict, found.suggested_rank) == ("fits", 4)


def test_one_direction_alone_says_nothing():
    assert spectrum([1.0]).verdict == "fits"


@pytest.mark.parametrize("values", [(), (0.0, 0.0)])
def test_an_update_of_nothing_is_empty(values):
    found = spectrum(values, rank=2)
    assert (found.verdict, found.suggested_rank, found.directions_for(0.99), found.stable_rank) == ("empty", 0, 0, 0)
    assert "learned nothing" in found.advice
    assert found.to_dict()["chance"] is None


# --- chance -----------------------------------------------------------------------------------------------------


def random_products(draws: int, rank: int, rows: int, columns: int, uniform: bool = False) -> torch.Tensor:
    """Singular values of products of random factors over their norm; a uniform A is as PEFT draws it."""
    draw = torch.Generator().manual_seed(1)
    a = torch.randn(draws, rank, columns, generator=draw, dtype=torch.float64)
    if uniform:
        a = torch.rand(draws, rank, columns, generator=draw, dtype=torch.float64) * 2 - 1
    b = torch.randn(draws, rows, rank, generator=draw, dtype=torch.float64)
    values = torch.linalg.svdvals(b @ a)[:, : min(rank, rows, columns)]
    return values / values.norm(dim=1, keepdim=True)


@pytest.mark.parametrize(("rank", "rows", "columns"), [(4, 64, 96), (8, 40, 40), (12, 20, 150), (6, 4, 50)])
@pytest.mark.parametrize("level", [0.01, 0.1])
def test_random_factors_pass_an_edge_as_often_as_is_said(level: float, rank: int, rows: int, columns: int):
    draws = 2000
    edges, values = edges_of(rank, rows, columns, level), random_products(draws, rank, rows, columns)
    # Three standard deviations of the frequency, given that of the edges' own simulation.
    tolerance = 3 * math.sqrt(level * (1 - level) * (1 / draws + 1 / 3999))
    assert float((values[:, 0] > edges.largest).double().mean()) == pytest.approx(level, abs=tolerance)
    assert float((values[:, -1] < edges.smallest).double().mean()) == pytest.approx(level, abs=tolerance)
    needed = (values.square().cumsum(1) < 0.99).sum(1) + 1
    assert float((needed < edges.needed).double().mean()) <= level + tolerance


def test_an_a_as_peft_draws_it_passes_the_edges_no_more_often():
    edges, values = edges_of(4, 64, 96, 0.1), random_products(2000, 4, 64, 96, uniform=True)
    assert float((values[:, 0] > edges.largest).double().mean()) < 0.1
    assert float((values[:, -1] < edges.smallest).double().mean()) < 0.1


def test_random_factors_are_not_called_over_even_where_one_direction_of_many_is_under_a_percent():
    values = random_products(30, 110, 400, 400)
    verdicts = [spectrum(row.tolist(), shape=(400, 400)).verdict for row in values]
    assert values[0].square().min() < 0.01 / 2
    assert verdicts.count("over") <= 2


def test_edges_are_the_same_each_time_for_both_orders_and_leave_torch_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = edges_of(5, 30, 70)
    edges_of.__globals__["_edges"].cache_clear()
    assert edges_of(5, 70, 30) == first
    assert torch.equal(torch.get_rng_state(), before)


def test_edges_close_in_on_an_even_spectrum_as_the_module_widens():
    narrow, wide = edges_of(8, 64, 64), edges_of(8, 4096, 4096)
    even = 8**-0.5
    assert narrow.smallest < wide.smallest < even < wide.largest < narrow.largest


def test_a_planted_direction_is_above_chance():
    values = random_products(1, 8, 64, 64)[0].tolist()
    found = spectrum([2.0, *values[1:]])
    assert found.above_chance == 1
    assert isinstance(found.edges, Edges)
