"""Where a layer could grow: the right rows are found, and noise alone is no gain."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.utils.checkpoint import checkpoint

from hf_lora_ext.errors import ConfigError
from hf_lora_ext.ranks.events import plan_moves
from hf_lora_ext.ranks.growth import candidate_rows, expected_gains, new_rows
from hf_lora_ext.ranks.lora_layers import lora_layers
from hf_lora_ext.ranks.sketches import Sketch, Sketches, Tap


def test_candidates_lie_outside_the_rows_of_a_and_the_strongest_comes_first():
    torch.manual_seed(0)
    a, wanted = torch.linalg.qr(torch.randn(12, 4))[0].T.split([3, 1])
    sketch = (10 * wanted.T @ torch.randn(1, 8)) + 5 * a.T @ torch.randn(3, 8) + 0.1 * torch.randn(12, 8)
    rows = candidate_rows(sketch, a)
    assert torch.allclose(rows @ rows.T, torch.eye(len(rows)).double())
    assert (rows @ a.T.double()).abs().max() < 1e-6
    assert float((rows[0] @ wanted[0].double()).abs()) > 0.99


def test_a_full_or_unseen_layer_has_no_candidates():
    assert len(candidate_rows(torch.zeros(6, 8), torch.randn(2, 6))) == 0
    assert len(candidate_rows(torch.randn(6, 8), torch.eye(6))) == 0
    assert len(candidate_rows(torch.randn(6, 8), torch.eye(6)[:4])) == 2


def test_new_rows_are_orthogonal_and_of_the_length_asked_for():
    torch.manual_seed(0)
    a = torch.randn(3, 9)
    rows = new_rows(torch.randn(2, 9), a, 0.5)
    assert torch.allclose(rows @ rows.T, 0.25 * torch.eye(2).double())
    assert (rows @ a.double().T).abs().max() < 1e-12


def drawn(correlation: float, passes: int, tokens: int = 50) -> torch.Tensor:
    """Sums of passes over tokens whose uᵀδ and aᵀx have a correlation; a thousand candidates at once."""
    x, noise = torch.randn(2, passes, tokens, 1000, dtype=torch.float64)
    d = correlation * x + (1 - correlation**2) ** 0.5 * noise
    sums = (d * x).sum(1), d.square().sum(1), x.square().sum(1), torch.full((passes, 1000), float(tokens))
    return torch.stack(sums, 1)


@pytest.mark.parametrize("correlation", [0.0, 0.1, 0.3])
def test_gains_are_half_the_squared_correlation_and_noise_adds_nothing(correlation: float):
    torch.manual_seed(0)
    worth, error = expected_gains(drawn(correlation, 6))
    mistake = float(worth.std()) / 1000**0.5
    assert float(worth.mean()) == pytest.approx(correlation**2 / 2, abs=4 * mistake)
    assert 0.75 < float(error.square().mean().sqrt() / worth.std()) < 1.75  # too large where there is nothing to win


def test_with_too_few_passes_no_gain_is_sure():
    worth, error = expected_gains(drawn(0.9, 2))
    assert not bool((worth - error > 0).any())


def adapted() -> tuple[nn.Module, dict]:
    torch.manual_seed(0)
    config = LoraConfig(r=3, lora_alpha=6, target_modules=["0", "2"], init_lora_weights=False)
    model = get_peft_model(nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4)), config)
    return model, lora_layers(model, "default")


@pytest.mark.parametrize("left", [False, True])
def test_a_sketch_is_of_the_gradient_also_where_the_adapter_has_left(left: bool):
    model, layers = adapted()
    if left:
        layers["0"].remove_()
    x, target = torch.randn(7, 6), torch.randn(7, 4)
    sketches = Sketches.none(layers, seed=1)
    aim = {name: sketch.aim for name, sketch in sketches.layers.items()}
    tap = Tap(model, layers, sketches)
    (model(x) - target).square().sum(-1).mean().backward()
    tap.stop()
    model(x).sum().backward()
    hidden = model.base_model.model[0](x).detach().requires_grad_()
    (delta,) = torch.autograd.grad((model.base_model.model[2](torch.tanh(hidden)) - target).square().sum(), hidden)
    assert torch.allclose(sketches.layers["0"].inputs, x.T @ (delta @ aim["0"]), atol=1e-4)
    assert int(sketches.layers["0"].tokens) == 7


def test_watching_changes_no_answer_and_no_gradient():
    model, layers = adapted()
    x = torch.randn(7, 6)
    plain = model(x)
    plain.square().sum().backward()
    gradients = [p.grad.clone() for p in model.parameters() if p.requires_grad]
    model.zero_grad()
    tap = Tap(model, layers, Sketches.none(layers, seed=1))
    watched = model(x)
    watched.square().sum().backward()
    tap.stop()
    assert torch.equal(watched, plain)
    assert all(map(torch.equal, gradients, (p.grad for p in model.parameters() if p.requires_grad)))


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_counts_each_pass_once(reentrant: bool):
    model, layers = adapted()
    sketches = Sketches.none(layers, seed=1)
    tap = Tap(model, layers, sketches)
    checkpoint(model, torch.randn(7, 6, requires_grad=True), use_reentrant=reentrant).square().sum().backward()
    tap.stop()
    assert [int(sketch.tokens) for sketch in sketches.layers.values()] == [7, 7]


def test_each_pass_is_judged_by_the_aim_of_those_before_it():
    _, layers = adapted()
    sketch = Sketch.none(layers["0"], seed=1)
    rows = torch.linalg.qr(torch.randn(6, 2))[0].T
    sketch.judge_rows_(rows)
    passes = [(torch.randn(9, 6), torch.randn(9, 5)) for _ in range(3)]
    for x, gradient in passes:
        sketch.add_(x, gradient)
    (x1, d1), (x2, d2), _ = passes
    u = (9 * d1).T @ (x1 @ rows.T)
    u = u / u.norm(dim=0)
    along_u, along_a = 9 * d2 @ u, x2 @ rows.T
    wanted = torch.stack([(along_u * along_a).sum(0), along_u.square().sum(0), along_a.square().sum(0),
                          torch.full((2,), 9.0)])  # fmt: skip
    assert len(sketch.passes) == 2
    assert torch.allclose(sketch.passes[0], wanted, rtol=1e-4)


def test_labels_that_the_loss_is_a_mean_over_are_counted():
    _, layers = adapted()
    sketches = Sketches.none(layers, seed=1)

    class Labelled(nn.Module):
        def forward(self, labels: torch.Tensor) -> None: ...

    outer = Labelled()
    tap = Tap(outer, layers, sketches)
    outer(labels=torch.tensor([[5, 1, -100, 2], [1, -100, -100, 3]]))
    assert float(sketches.labels) == 3  # the first of a row is not predicted
    outer(labels=torch.tensor([1, 0]))
    outer(labels=torch.rand(2, 4))
    assert float(sketches.labels) == 7
    outer.eval()(labels=torch.tensor([1, 0]))
    tap.stop()
    outer.train()(labels=torch.tensor([1, 0]))
    assert float(sketches.labels) == 7
    assert sketches.tokens_per_label(14) == 2


@given(st.integers(20, 3000), st.integers(1, 12), st.integers(1, 12), st.integers(1, 4))
def test_every_event_of_a_plan_has_steps_to_search_and_passes_to_judge(
    steps: int, events: int, probe_steps: int, accumulation: int
):
    shares = {"first": 0.1, "last": 0.6, "probe_steps": probe_steps}
    try:
        plan = plan_moves(steps, 100, events=events, accumulation=accumulation, **shares)
    except ConfigError as refused:
        assert "raise probe_steps" in str(refused)  # noqa: PT017
        assert probe_steps < 8
        return
    assert 1 <= len(plan) <= events
    assert {event.budget for event in plan} == {100}
    for event in plan:
        assert event.probe_from < event.turn <= event.step
        assert (event.step - event.turn + 1) * accumulation >= 4
