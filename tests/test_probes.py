"""What flows through a LoRA layer: counted once a token, padding and overflow left out."""

import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from hf_lora_ext.ranks.lora_layers import lora_layers
from hf_lora_ext.ranks.probes import Moments, Probe


def adapted() -> tuple[nn.Module, dict]:
    torch.manual_seed(0)
    model = get_peft_model(nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4)), LoraConfig(
        r=3, lora_alpha=6, target_modules=["0", "2"], init_lora_weights=False))  # fmt: skip
    return model, lora_layers(model, "default")


def test_the_moments_are_those_of_z_and_of_the_summed_losss_gradient_there():
    model, layers = adapted()
    x, target = torch.randn(7, 6), torch.randn(7, 4)
    probe = Probe(layers)
    (model(x) - target).square().sum(-1).mean().backward()
    moments = probe.stop()["2"]
    factors = layers["2"]
    hidden = torch.tanh(model.base_model.model[0](x)).detach().requires_grad_()
    z = hidden @ factors.a.T
    out = model.base_model.model[2].base_layer(hidden) + factors.scale * z @ factors.b.T
    (zeta,) = torch.autograd.grad((out - target).square().sum(), z)
    inputs, gradients = moments.means()
    assert torch.allclose(inputs, (z.T @ z / 7).double(), atol=1e-5)
    assert torch.allclose(gradients, (zeta.T @ zeta / 7).double(), atol=1e-5)
    assert int(moments.tokens) == 7


def test_nothing_is_seen_without_gradients_or_after_the_stop():
    model, layers = adapted()
    probe = Probe(layers)
    with torch.no_grad():
        model(torch.randn(7, 6))
    moments = probe.stop()
    model(torch.randn(7, 6)).sum().backward()
    assert not any(int(seen.tokens) for seen in moments.values())


def test_padding_and_overflow_do_not_count():
    _, layers = adapted()
    z, gradient = torch.ones(4, 3), torch.ones(4, 3)
    gradient[0] = 0
    gradient[1, 2] = torch.inf
    z[2, 0] = torch.nan
    moments = Moments.none(layers["0"])
    moments.add_(z, gradient)
    assert int(moments.tokens) == 1
    assert torch.equal(moments.inputs, torch.ones(3, 3).double())
    assert torch.equal(moments.gradients, torch.ones(3, 3).double())
