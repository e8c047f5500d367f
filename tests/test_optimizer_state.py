"""An optimizer's memory through a change of basis: as if the gradients had been seen in it."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers.optimization import Adafactor

from hf_lora_ext.errors import ConfigError
from hf_lora_ext.ranks.optimizer_state import (
    AlongAxis,
    carried,
    carry_in_place_,
    check_optimizer,
    forget_parameters_,
    swap_parameter_,
)

RANK, N_IN, N_OUT, KEPT = 4, 6, 5, 3


@pytest.fixture
def change() -> dict[str, torch.Tensor]:
    """A change of basis, cut to three directions, and its inverse side."""
    torch.manual_seed(0)
    to_a = torch.randn(RANK, RANK, dtype=torch.float64)
    return {"to_a": to_a[:KEPT], "to_b": torch.linalg.inv(to_a)[:, :KEPT]}


def test_the_maps_are_those_of_the_gradient(change: dict[str, torch.Tensor]):
    """With everything that is cut at 0, the loss is the same function of old and new factors."""
    to_a, to_b = change["to_a"], change["to_b"]
    new_a = torch.randn(KEPT, N_IN, dtype=torch.float64, requires_grad=True)
    new_b = torch.randn(N_OUT, KEPT, dtype=torch.float64, requires_grad=True)
    a = (to_b @ new_a.detach()).requires_grad_()
    b = (new_b.detach() @ to_a).requires_grad_()
    target = torch.randn(N_OUT, N_IN, dtype=torch.float64)
    for left, right in ((b, a), (new_b, new_a)):
        (left @ right - target).square().sum().backward()
    assert torch.allclose(AlongAxis(0, to_b.T)(a.grad), new_a.grad)
    assert torch.allclose(AlongAxis(1, to_a)(b.grad), new_b.grad)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (torch.optim.AdamW, {}),
        (torch.optim.AdamW, {"amsgrad": True}),
        (torch.optim.AdamW, {"fused": True}),
        (torch.optim.NAdam, {}),
        (torch.optim.RAdam, {}),
        (torch.optim.SGD, {"momentum": 0.9}),
        (torch.optim.SGD, {}),
        (torch.optim.RMSprop, {"momentum": 0.9, "centered": True}),
        (torch.optim.Adagrad, {}),
        (Adafactor, {"relative_step": False, "scale_parameter": False, "lr": 1e-2, "beta1": 0.9}),
    ],
)
def test_first_moments_change_exactly_and_training_goes_on(kind: Any, settings: dict, axis: int):
    torch.manual_seed(1)
    old = nn.Parameter(torch.randn((RANK, N_IN) if axis == 0 else (N_OUT, RANK)))
    optimizer = kind([old], **({"lr": 1e-2} | settings))
    seen = []
    for _ in range(3):
        old.grad = torch.randn_like(old)
        seen.append(old.grad.clone())
        optimizer.step()
    change = AlongAxis(axis, torch.randn(KEPT, RANK, dtype=torch.float64))
    before = {key: value.clone() if torch.is_tensor(value) else value for key, value in optimizer.state[old].items()}
    new = nn.Parameter(change(old.detach()).float())
    swap_parameter_(optimizer, old, new, change)
    state = optimizer.state[new] if optimizer.state else {}
    assert old not in optimizer.state
    assert optimizer.param_groups[0]["params"] == [new]
    if "exp_avg" in before:
        assert torch.allclose(state["exp_avg"].double(), change(before["exp_avg"]), atol=1e-6)
    if "step" in before:
        assert float(state["step"]) == 3
    if "exp_avg_sq" in before:
        assert (state["exp_avg_sq"] >= 0).all()
        assert (state["exp_avg_sq"] * (1 + 1e-5) >= state["exp_avg"].square()).all()
    new.grad = change(seen[-1]).float()
    optimizer.step()
    assert new.isfinite().all()


@pytest.mark.parametrize("axis", [0, 1])
def test_adafactors_means_change_as_those_of_the_squared_gradient(axis: int):
    row, column = torch.rand(5).double() + 0.1, torch.rand(4).double() + 0.1
    column *= row.mean() / column.mean()
    second = row[:, None] * column / row.mean()
    change = AlongAxis(axis, torch.randn(3, second.shape[axis], dtype=torch.float64))
    new = carried({"exp_avg_sq_row": row, "exp_avg_sq_col": column, "step": 2}, change)
    wanted = change.squared(second)
    assert torch.allclose(new["exp_avg_sq_row"], wanted.mean(1))
    assert torch.allclose(new["exp_avg_sq_col"], wanted.mean(0))


def test_a_masked_direction_stays_zero_under_momentum_decay_and_clipping():
    p = nn.Parameter(torch.randn(RANK, N_IN))
    optimizer = torch.optim.AdamW([p], lr=0.1, weight_decay=0.1)
    p.grad = torch.randn_like(p)
    optimizer.step()
    cut = torch.zeros(RANK, RANK, dtype=torch.float64)
    cut[0, 1] = 1.0
    address = p.data_ptr()
    carry_in_place_(optimizer, p, AlongAxis(0, cut))
    p.data[1:] = 0
    p.grad = torch.cat([torch.randn(1, N_IN), torch.zeros(RANK - 1, N_IN)])
    nn.utils.clip_grad_norm_([p], 0.1)
    optimizer.step()
    assert not p.detach()[1:].any()
    assert p.data_ptr() == address


def test_a_forgotten_parameter_leaves_its_group_and_its_state():
    kept, gone = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([{"params": [kept]}, {"params": [gone]}], lr=0.1)
    for p in (kept, gone):
        p.grad = torch.ones(2)
    optimizer.step()
    forget_parameters_(optimizer, [gone])
    assert [group["params"] for group in optimizer.param_groups] == [[kept], []]
    assert list(optimizer.state) == [kept]
    optimizer.step()


def test_optimizers_whose_state_cannot_be_cut_are_refused_with_what_can():
    import bitsandbytes

    p = [nn.Parameter(torch.zeros(8, 8))]
    for packed in (bitsandbytes.optim.AdamW8bit(p), bitsandbytes.optim.Lion8bit(p)):
        with pytest.raises(ConfigError, match=r"8 bits.*adamw_torch"):
            check_optimizer(packed)
    with pytest.raises(ConfigError, match="pages"):
        check_optimizer(bitsandbytes.optim.PagedAdamW32bit(p))

    class Sophia(torch.optim.SGD):
        pass

    with pytest.raises(ConfigError, match="Sophia is not known"):
        check_optimizer(Sophia(p, lr=0.1))
    for known in (torch.optim.AdamW(p), bitsandbytes.optim.Lion32bit(p), Adafactor(p)):
        check_optimizer(known)


def test_unknown_state_is_refused_not_dropped():
    with pytest.raises(ConfigError, match="hessian"):
        carried({"hessian": torch.ones(4, 2)}, AlongAxis(0, torch.eye(4).double()))
