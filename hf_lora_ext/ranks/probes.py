"""What flows through each LoRA layer while it trains: the second moments of z = A x and of the gradient there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch import distributed as dist

from .lora_layers import LoraFactors

__all__ = ["Moments", "Probe", "Witness", "from_main", "pool_on_main_"]

Decision = TypeVar("Decision")


class Moments:
    """Sums over the tokens that a layer has seen, on the layer's device.

    Attributes:
        inputs: `(width, width)`, the sum of z zᵀ.
        gradients: `(width, width)`, the sum of ζ ζᵀ, with ζ the loss's gradient at z, the mean over tokens undone.
        tokens: `()`, how many.
        sensitivity: `(width,)`, the sum over optimizer steps of |w · ∂L/∂w|, meaned over each direction's entries.
    """

    __slots__ = ("gradients", "inputs", "sensitivity", "tokens")

    def __init__(self, inputs: Tensor, gradients: Tensor, tokens: Tensor, sensitivity: Tensor) -> None:
        self.inputs, self.gradients, self.tokens, self.sensitivity = inputs, gradients, tokens, sensitivity

    @classmethod
    def none(cls, factors: LoraFactors) -> Moments:
        """Return empty sums for a layer."""
        device = factors.a.device
        dtype = torch.float32 if device.type == "mps" else torch.float64  # Apple's GPUs have no float64
        width = factors.width
        inputs, gradients = (torch.zeros(width, width, dtype=dtype, device=device) for _ in range(2))
        return cls(inputs, gradients, torch.zeros((), dtype=dtype, device=device), torch.zeros_like(inputs[0]))

    def add_(self, z: Tensor, gradient: Tensor) -> None:
        """Add the tokens of a micro-batch, without waiting for the device.

        A token whose gradient is exactly 0 is padding, or comes after the last one that is supervised, and does not
        count; nor does one that overflowed, whose step a float16 scaler skips. A mean over n tokens divides each
        gradient by about n, which is undone; a factor that all layers share does not change which direction goes.

        Args:
            z: `(…, width)`.
            gradient: Gradient at z, of its shape.
        """
        z, gradient = (t.detach().reshape(-1, t.shape[-1]).float() for t in (z, gradient))
        size = gradient.abs().sum(-1)
        live = (size > 0) & (size + z.abs().sum(-1)).isfinite()
        count = live.sum()
        z, gradient = (t.masked_fill(~live[:, None], 0) for t in (z, gradient))
        gradient = gradient * count
        self.inputs += z.T @ z  # float32 within a micro-batch, whose sums are short; float64 from one to the next
        self.gradients += gradient.T @ gradient
        self.tokens += count

    def add_sensitivity_(self, factors: LoraFactors) -> None:
        """Add what the factors' gradients say before an optimizer step: the first-order part of AdaLoRA's score."""
        for parameter, axis in ((factors.a, 1), (factors.b, 0)):
            if parameter.grad is not None:
                self.sensitivity += (parameter.detach() * parameter.grad).abs().mean(axis)

    def means(self) -> tuple[Tensor, Tensor]:
        """Return M = E[z zᵀ] and K = E[ζ ζᵀ], float64 on the CPU."""
        tokens = self.tokens.double().cpu().clamp_min(1)
        return self.inputs.double().cpu() / tokens, self.gradients.double().cpu() / tokens


class Probe:
    """Gathers the moments of every layer from the passes that the training makes anyway.

    z and its gradient are taken together in a tensor hook on z, which fires exactly once for each micro-batch, under
    either kind of activation checkpointing, and never in an evaluation.
    """

    def __init__(self, layers: Mapping[str, LoraFactors], moments: Mapping[str, Moments] | None = None) -> None:
        self.moments = dict(moments or {name: Moments.none(factors) for name, factors in layers.items()})
        self._stop = [_watch(factors, self.moments[name]) for name, factors in layers.items()]

    def stop(self) -> dict[str, Moments]:
        """Take the hooks away and return what was gathered."""
        for stop in self._stop:
            stop()
        self._stop.clear()
        return self.moments


def _watch(factors: LoraFactors, moments: Moments) -> Callable[[], None]:
    """Add each backward pass through z to the moments, and return what ends that."""

    def seen(z: Tensor) -> None:
        if z.requires_grad:
            kept = z.detach()
            z.register_hook(lambda gradient: moments.add_(kept, gradient))

    if factors.is_embedding:
        return _watch_lookup(factors, seen)
    a: nn.Module = factors.layer.lora_A[factors.adapter]
    handle = a.register_forward_hook(lambda _module, _inputs, z: seen(z))
    return lambda: handle.remove()


def _watch_lookup(factors: LoraFactors, seen: Callable[[Tensor], None]) -> Callable[[], None]:
    """Watch an embedding's z, which no module gives: the layer's own lookup is wrapped meanwhile."""
    layer = factors.layer
    lookup = layer._embed

    def watched(*args: Any, **kwargs: Any) -> Any:
        z = lookup(*args, **kwargs)
        seen(z)
        return z

    layer._embed = watched
    return lambda: layer.__dict__.pop("_embed", None)


class Witness:
    """Remembers the last batch that the model trained on, to tell its loss before and after a change of ranks."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._inputs: dict[str, Any] = {}
        self._handle = model.register_forward_pre_hook(self._remember, with_kwargs=True)

    def _remember(self, model: nn.Module, _args: Any, inputs: dict[str, Any]) -> None:
        if model.training and torch.is_grad_enabled():
            self._inputs = inputs

    def loss(self) -> float | None:
        """Return the model's own loss on the batch, without dropout; None where the trainer never asks it for one."""
        if not self._inputs:
            return None
        training = self._model.training
        self._model.eval()
        try:
            with torch.no_grad():
                loss = getattr(self._model(**self._inputs), "loss", None)
        finally:
            self._model.train(training)
        return None if loss is None else float(loss)

    def stop(self) -> None:
        """Forget the batch, and remember no more."""
        self._handle.remove()
        self._inputs = {}


def pool_on_main_(moments: Mapping[str, Moments]) -> None:
    """Add up what all processes have seen; the main one then has the sums, the others have seen nothing."""
    for name in sorted(moments):
        for kind in Moments.__slots__:
            total = getattr(moments[name], kind)
            dist.all_reduce(total)
            if dist.get_rank():
                total.zero_()


def from_main(decide: Callable[[], Decision]) -> Decision:
    """Return on every process what the main process decides."""
    box: list[Any] = [decide() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(box, src=0)
    return cast("Decision", box[0])
