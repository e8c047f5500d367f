"""Directions of a LoRA update: the product stays, the order is right, and what is cut costs what it says."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_lora_ext.ranks.low_rank import find_basis, gram_of_columns, gram_of_rows

SEEDS = st.integers(0, 10_000)


def factors(seed: int, rank: int = 5, n_in: int = 12, n_out: int = 9) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    a = torch.randn(rank, n_in, generator=draw, dtype=torch.float64)
    b = torch.randn(n_out, rank, generator=draw, dtype=torch.float64)
    return a, b * torch.logspace(0, -3, rank, dtype=torch.float64)


def tokens(seed: int, width: int, count: int = 400) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=draw, dtype=torch.float64) * torch.logspace(0, -2, width).double()
    return torch.randn(count, width, generator=draw, dtype=torch.float64) @ mix.T


@settings(max_examples=30)
@given(SEEDS)
def test_a_change_of_basis_keeps_the_product(seed: int):
    a, b = factors(seed)
    x, delta = tokens(seed + 1, a.shape[1]), tokens(seed + 2, len(b))
    z, zeta = x @ a.T, delta @ b
    basis = find_basis(z.T @ z, zeta.T @ zeta, gram_of_rows(a))
    product = (b @ basis.to_b) @ (basis.to_a @ a)
    assert torch.allclose(product, b @ a, rtol=0, atol=1e-9 * (b @ a).norm())
    assert torch.allclose(basis.to_b @ basis.to_a, torch.eye(5).double(), atol=1e-7)


@settings(max_examples=30)
@given(SEEDS)
def test_white_statistics_give_the_singular_value_decomposition(seed: int):
    a, b = factors(seed)
    basis = find_basis(gram_of_rows(a), gram_of_columns(b), gram_of_rows(a))
    u, s, vt = torch.linalg.svd(b @ a)
    assert torch.allclose(basis.values, s[:5], rtol=1e-4, atol=1e-6 * s[0])
    kept = basis.cut(3)
    best = u[:, :3] * s[:3] @ vt[:3]
    assert torch.allclose((b @ kept.to_b) @ (kept.to_a @ a), best, atol=1e-5 * float(s[0]))


@settings(max_examples=30)
@given(SEEDS, st.integers(1, 4))
def test_what_is_cut_costs_what_the_values_say_and_less_than_a_plain_cut(seed: int, rank: int):
    a, b = factors(seed)
    x, delta = tokens(seed + 1, a.shape[1]), tokens(seed + 2, len(b))
    inputs, gradients = x.T @ x / len(x), delta.T @ delta / len(delta)

    def cost(update: torch.Tensor) -> float:
        return float(torch.trace(gradients @ update @ inputs @ update.T))

    def lost(basis):
        kept = basis.cut(rank)
        return cost(b @ a - (b @ kept.to_b) @ (kept.to_a @ a))

    whitened = find_basis(a @ inputs @ a.T, b.T @ gradients @ b, gram_of_rows(a))
    plain = find_basis(gram_of_rows(a), gram_of_columns(b), gram_of_rows(a))
    assert lost(whitened) == pytest.approx(
        float(whitened.values[rank:].square().sum()), rel=1e-3, abs=1e-9 * cost(b @ a)
    )
    assert lost(whitened) <= lost(plain) * (1 + 1e-6) + 1e-9 * cost(b @ a)


def test_the_rows_of_a_keep_their_size():
    a, b = factors(3)
    basis = find_basis(gram_of_rows(a), gram_of_columns(b), gram_of_rows(a))
    norms = (basis.to_a @ a).norm(dim=1)
    assert torch.allclose(norms, a.square().sum(1).mean().sqrt().expand(5), rtol=1e-9)


@pytest.mark.parametrize("unseen", ["inputs", "gradients", "both"])
def test_what_was_never_seen_is_worth_nothing_and_stays_as_it_is(unseen: str):
    a, b = factors(0)
    inputs, gradients = gram_of_rows(a), gram_of_columns(b)
    inputs, gradients = inputs * (unseen == "gradients"), gradients * (unseen == "inputs")
    basis = find_basis(inputs, gradients, gram_of_rows(a))
    assert not basis.values.any()
    assert torch.equal(basis.to_a, torch.eye(5).double())


def test_a_singular_statistic_bounds_what_is_lost():
    a, b = factors(0)
    x = tokens(1, a.shape[1])[:2]  # two tokens see a plane of five directions
    z = x @ a.T
    basis = find_basis(z.T @ z, gram_of_columns(b), gram_of_rows(a))
    assert torch.allclose((b @ basis.to_b) @ (basis.to_a @ a), b @ a, atol=1e-4 * float((b @ a).norm()))
