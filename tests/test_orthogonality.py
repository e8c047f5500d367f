"""The regulariser's closed-form gradient against autograd, and the bound that makes clipping needless."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_lora_ext.adapters.orthogonality import orthogonality_gradients

SHAPES = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 9)), min_size=1, max_size=4)


def draw(shapes: list[tuple[int, int]], seed: int, scale: float) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [scale * torch.randn(shape, generator=generator) for shape in shapes]


def orthogonality_loss(factors: list[torch.Tensor]) -> torch.Tensor:
    """The regulariser itself, as PEFT has it: the mean of ‖P·Pᵀ − I‖."""
    norms = [torch.linalg.matrix_norm(p.float() @ p.float().T - torch.eye(len(p))) for p in factors]
    return torch.stack(norms).mean()


@given(SHAPES, st.integers(0, 99), st.sampled_from([0.02, 0.3, 1.0, 4.0]))
def test_the_gradient_is_that_of_autograd(shapes: list[tuple[int, int]], seed: int, scale: float):
    factors = [factor.requires_grad_() for factor in draw(shapes, seed, scale)]
    orthogonality_loss(factors).backward()
    for factor, gradient in zip(factors, orthogonality_gradients([f.detach() for f in factors]), strict=True):
        torch.testing.assert_close(gradient, factor.grad, rtol=1e-4, atol=1e-5)


@given(SHAPES, st.integers(0, 99), st.sampled_from([0.02, 1.0, 50.0]))
def test_the_gradient_is_bounded_by_the_factor(shapes: list[tuple[int, int]], seed: int, scale: float):
    factors = draw(shapes, seed, scale)
    for factor, gradient in zip(factors, orthogonality_gradients(factors), strict=True):
        bound = 2 * torch.linalg.matrix_norm(factor, 2) / len(factors)
        assert torch.linalg.matrix_norm(gradient) <= bound * 1.001


def test_orthonormal_factors_have_no_loss_and_no_gradient():
    q, _ = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(0)).double())
    eye = torch.eye(3, 5)
    assert orthogonality_loss([eye]) == 0
    assert orthogonality_gradients([eye])[0].abs().max() == 0
    assert orthogonality_loss([q[:3]]) < 1e-6


def test_a_direction_of_zeros_stays_zero():
    factor = torch.cat([torch.randn(2, 6, generator=torch.Generator().manual_seed(1)), torch.zeros(3, 6)])
    assert orthogonality_gradients([factor])[0][2:].abs().max() == 0
    assert orthogonality_gradients([factor])[0][:2].abs().max() > 0
