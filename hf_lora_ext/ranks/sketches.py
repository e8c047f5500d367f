"""Where a LoRA layer could grow: a sketch of the loss's gradient, from the passes that the training makes anyway."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from .growth import COLUMNS, candidate_rows
from .lora_layers import LoraFactors

__all__ = ["Sketch", "Sketches", "Tap"]


class Sketch:
    """Sums over the tokens that a layer has seen, first to find rows that A could grow, then to judge them.

    Attributes:
        inputs: `(in_features, COLUMNS)`, the sum of x (Ωᵀδ)ᵀ; empty once the rows are found.
        rows: `(rank + candidates, in_features)`: the layer's own, in the order of their worth, and then those that it
            could grow, orthonormal; none until then.
        slopes: `(out_features, rows)`, the sum of δ (a·x) for each row a; its columns point along u.
        passes: `(passes, 4, rows)`, see `growth.expected_gains`.
        tokens: `()`, how many.
        aim: Ω `(out_features, COLUMNS)`.
    """

    KINDS = ("aim", "inputs", "rows", "slopes", "passes", "tokens")
    """What must be remembered."""
    __slots__ = ("_aimed", *KINDS)

    def __init__(
        self, *, aim: Tensor, inputs: Tensor, rows: Tensor, slopes: Tensor, passes: Tensor, tokens: Tensor
    ) -> None:
        self.aim, self.inputs, self.rows, self.slopes = aim, inputs, rows, slopes
        self.passes, self.tokens = passes, tokens
        self._aimed = bool(slopes.any())

    @classmethod
    def none(cls, factors: LoraFactors, seed: int) -> Sketch:
        """Return empty sums for a layer."""
        device = factors.layer.weight.device
        inputs = torch.zeros(factors.layer.in_features, COLUMNS, device=device)
        none = inputs.new_zeros
        out = factors.layer.out_features
        draw = torch.Generator().manual_seed(zlib.crc32(f"{seed} {factors.name}".encode()))  # alike on all processes
        aim = torch.randn(out, COLUMNS, generator=draw).to(device)
        return cls(aim=aim, inputs=inputs, rows=none(0, len(inputs)), slopes=none(out, 0), passes=none(0, 4, 0),
                   tokens=none(()))  # fmt: skip

    def judge_rows_(self, rows: Tensor) -> None:
        """Turn from finding rows to judging these."""
        self.rows = rows.to(self.inputs)
        self.slopes = self.slopes.new_zeros(len(self.slopes), len(self.rows))
        self.passes = self.passes.new_zeros(0, 4, len(self.rows))
        self.inputs, self.aim = self.inputs.new_zeros(0, COLUMNS), self.aim.new_zeros(0, COLUMNS)

    def add_(self, x: Tensor, gradient: Tensor) -> None:
        """Add the tokens of a micro-batch, in float32, without waiting for the device.

        Which tokens count and how the mean over them is undone is as in `probes.Moments.add_`.

        Args:
            x: The layer's input `(…, in_features)`.
            gradient: Gradient at its output `(…, out_features)`.
        """
        x, gradient = (t.detach().reshape(-1, t.shape[-1]).float() for t in (x, gradient))
        live = gradient.any(-1) & gradient.isfinite().all(-1) & x.isfinite().all(-1)
        count = live.sum()
        x, gradient = (t.masked_fill(~live[:, None], 0) for t in (x, gradient))
        gradient = gradient * count
        self.tokens += count
        if len(self.inputs):
            self.inputs += x.T @ (gradient @ self.aim)
        else:
            self._judge_(x @ self.rows.T, gradient, count)

    def _judge_(self, along_a: Tensor, gradient: Tensor, count: Tensor) -> None:
        """Judge u so far by a pass that it does not know, then let the pass aim it better."""
        slopes = gradient.T @ along_a
        if self._aimed:
            u = self.slopes / self.slopes.norm(dim=0).clamp_min(torch.finfo(torch.float32).tiny)
            sums = ((u * slopes).sum(0), (gradient @ u).square().sum(0), along_a.square().sum(0),
                    count.float().expand(slopes.shape[1]))  # fmt: skip
            self.passes = torch.cat([self.passes, torch.stack(sums)[None]])
        self.slopes = self.slopes + slopes
        self._aimed = True

    def forget_sums_(self) -> None:
        """Keep what to look for alone: another process has what was seen."""
        for total in (self.inputs, self.slopes, self.tokens):
            total.zero_()
        self.passes, self._aimed = self.passes[:0], False


class Sketches:
    """The sketch of each layer that can grow, and what one token of them is worth.

    Attributes:
        layers: Sketches by layer; embeddings have none.
        labels: `()`, labels that the loss was a mean over; 0 where the model is not given any.
    """

    def __init__(self, layers: dict[str, Sketch], labels: Tensor) -> None:
        self.layers, self.labels = layers, labels

    @classmethod
    def none(cls, layers: Mapping[str, LoraFactors], seed: int) -> Sketches:
        """Return empty sums for all layers but embeddings."""
        found = {name: Sketch.none(f, seed) for name, f in layers.items() if not f.is_embedding}
        return cls(found, next((sketch.tokens.clone() for sketch in found.values()), torch.zeros(())))

    @property
    def searching(self) -> bool:
        """Whether the rows are still to be found."""
        return any(len(sketch.inputs) for sketch in self.layers.values())

    def rows(self, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the rows to judge of each layer: its own, if it has any, and what it could grow outside them."""
        none = {
            name: sketch.inputs.new_zeros(0, len(sketch.inputs)).double().cpu() for name, sketch in self.layers.items()
        }
        found = {name: own.get(name, none[name]) for name in self.layers}
        return {name: torch.cat([a, candidate_rows(self.layers[name].inputs, a)]) for name, a in found.items()}

    def judge_rows_(self, rows: Mapping[str, Tensor]) -> None:
        """Turn every sketch from finding rows to judging these."""
        for name, sketch in self.layers.items():
            sketch.judge_rows_(rows[name])

    def tokens_per_label(self, tokens: float) -> float:
        """Return how many tokens with a gradient stand behind one label: prompts and earlier tokens have one too."""
        labels = float(self.labels)
        return tokens / labels if labels and tokens else 1.0

    def pool_on_main_(self) -> None:
        """Add up what all processes have seen; the main one then has it, the others have seen nothing."""
        dist.all_reduce(self.labels)
        box: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(box, {name: sketch.passes.cpu() for name, sketch in self.layers.items()})
        for name, sketch in sorted(self.layers.items()):
            for total in (sketch.inputs, sketch.slopes, sketch.tokens):
                dist.all_reduce(total)
            sketch.passes = torch.cat([one[name] for one in box]).to(sketch.passes)
        if dist.get_rank():
            self.forget_sums_()

    def forget_sums_(self) -> None:
        """Keep what to look for alone: the main process has what was seen."""
        for sketch in self.layers.values():
            sketch.forget_sums_()
        self.labels.zero_()


class Tap:
    """Feeds the sketches from every pass, until it is stopped.

    It hangs on PEFT's layers themselves, so that layers which the adapter has left are seen too. The input is kept
    as autograd keeps what a backward pass needs, so that either kind of activation checkpointing drops and remakes it,
    and each micro-batch counts once.
    """

    def __init__(self, model: nn.Module, layers: Mapping[str, LoraFactors], sketches: Sketches) -> None:
        handles = [model.register_forward_pre_hook(_counting(sketches), with_kwargs=True)]
        handles += [
            layers[name].layer.register_forward_hook(_feeding(sketch), with_kwargs=True)
            for name, sketch in sketches.layers.items()
        ]
        self._handles = handles

    def stop(self) -> None:
        """Take the hooks away."""
        for handle in self._handles:
            handle.remove()
        self._handles = []


def _counting(sketches: Sketches) -> Callable[..., None]:
    """Return a hook that counts the labels that a training pass is given."""

    def count(model: nn.Module, _args: Any, inputs: dict[str, Any]) -> None:
        labels = inputs.get("labels")
        if labels is None or not model.training or not torch.is_grad_enabled():
            return
        if labels.is_floating_point() or labels.dim() < 2 or labels.shape[1] == 1:  # one label a row
            sketches.labels += len(labels)
        else:
            sketches.labels += (labels[:, 1:] != -100).sum()

    return count


def _feeding(sketch: Sketch) -> Callable[..., Tensor | None]:
    """Return a hook that puts a watcher behind a layer's output."""

    def feed(_layer: nn.Module, args: tuple[Any, ...], inputs: dict[str, Any], output: Tensor) -> Tensor | None:
        if not torch.is_grad_enabled():
            return None
        x = args[0] if args else inputs["x"]
        anchor = None if output.requires_grad else torch.zeros((), device=output.device, requires_grad=True)
        watched: Tensor = _Watched.apply(output, x, anchor, sketch)
        return watched

    return feed


class _Watched(torch.autograd.Function):
    """The output as it is; going back, the sketch gets the gradient there with the input."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, x: Tensor, _anchor: Tensor | None, sketch: Sketch) -> Tensor:
        ctx.save_for_backward(x)
        ctx.sketch = sketch
        return output.clone()  # a view could not be changed in place, as some models do

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (x,) = ctx.saved_tensors
        ctx.sketch.add_(x, gradient)
        return gradient, None, None, None
