"""Starts of a LoRA that need data or weights: EVA and LoftQ, for an adapter that has not been trained yet.

Every function that ends in `_` writes into the factors in place: shapes, scales and the base stay as they are, so
that an optimizer made before stays right, and what is saved is an ordinary LoRA for the unchanged base.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
from peft import PeftModel
from peft.tuners.lora.layer import LoraLayer, ParamWrapper
from peft.utils.incremental_pca import IncrementalPCA
from peft.utils.integrations import dequantize_module_weight

from ..errors import AdapterError, ConfigError

__all__ = ["is_untrained", "start_eva_", "start_loftq_"]

logger = logging.getLogger(__name__)

CONVERGED: Final = 0.99
"""Cosine between a direction and the same one a batch earlier, from which it counts as found (EVA, section 3)."""


def _layers(model: PeftModel) -> Iterator[tuple[str, LoraLayer, str]]:
    """Yield (name in the base model, layer, adapter's name) for each linear layer with the active adapter."""
    adapter = model.active_adapter
    for name, module in model.get_base_model().named_modules():
        if isinstance(module, LoraLayer) and not isinstance(module, ParamWrapper) and adapter in module.lora_A:
            yield name, module, adapter


def is_untrained(model: PeftModel) -> bool:
    """Return whether the adapter changes nothing yet: every B is 0."""
    return not any(torch.any(layer.lora_B[adapter].weight) for _, layer, adapter in _layers(model))


# --- EVA --------------------------------------------------------------------------------------------------------


class _Directions:
    """The leading principal directions of what enters one layer, found batch by batch."""

    def __init__(self, rank: int, width: int) -> None:
        self.rank = rank
        self.is_found = False
        self._needed = min(2 * rank, width)  # rows of the first batch; the low-rank SVD looks at twice the rank
        self._waiting: list[torch.Tensor] = []
        low_rank = 2 * rank <= width
        self._pca = IncrementalPCA(n_components=rank, lowrank=low_rank, lowrank_seed=42)

    def add(self, rows: torch.Tensor) -> None:
        """Take tokens in, `(tokens, in_features)`."""
        self._waiting.append(rows)
        if sum(map(len, self._waiting)) >= self._needed:
            self._fit()

    def _fit(self) -> None:
        before = getattr(self._pca, "components_", None)
        before = None if before is None else before.clone()
        self._pca.partial_fit(torch.cat(self._waiting).float())
        self._waiting.clear()
        if before is not None:
            cosines = torch.nn.functional.cosine_similarity(self._pca.components_, before)
            self.is_found = bool((cosines >= CONVERGED).all())

    def result(self, name: str) -> torch.Tensor:
        """Return the directions, `(rank, in_features)`."""
        if not hasattr(self._pca, "components_"):
            tokens = sum(map(len, self._waiting))
            raise ConfigError(
                f"init eva finds {self.rank} directions in at least {self._needed} tokens that the loss counts, and "
                f"{tokens} reach {name}; lower the rank, add data, or leave init out"
            )
        return self._pca.components_


def start_eva_(model: PeftModel, batches: Iterable[dict[str, Any]]) -> int:
    """Let each A start as the leading directions of its layer's inputs, and return the batches that it took.

    EVA, arXiv 2410.07170, with equal ranks (its rho = 1): other ranks are other shapes, which an optimizer that
    exists does not know. Layers that read the same tensor share its directions.

    Args:
        model: The model; its adapter is off meanwhile.
        batches: What the trainer's collator makes; tokens whose label is -100, and padding, do not count.

    Raises:
        ConfigError: If a rank exceeds a layer's width, or the batches hold too few tokens.
    """
    layers = {name: (layer, adapter) for name, layer, adapter in _layers(model)}
    for name, (layer, adapter) in layers.items():
        if layer.r[adapter] > layer.in_features:
            raise ConfigError(f"init eva finds at most {layer.in_features} directions in what enters {name}, its rank "
                              f"is {layer.r[adapter]}; lower the rank, or leave init out")  # fmt: skip
    found: dict[str, _Directions] = {}
    used = 0
    for batch in batches:
        used += 1
        with _watched(layers, found, _counted(batch)):
            _run_backbone(model, batch)
        if all(directions.is_found for directions in found.values()):
            break
    with torch.no_grad():
        for name, (layer, adapter) in layers.items():
            if name not in found:
                raise ConfigError(f"init eva: no token reaches {name}; leave it out of the targets, or leave init out")
            a = layer.lora_A[adapter].weight
            a.copy_(found[name].result(name)[: layer.r[adapter]])
            _same_everywhere(a)
    return used


@contextmanager
def _watched(
    layers: dict[str, tuple[LoraLayer, str]], found: dict[str, _Directions], counted: torch.Tensor
) -> Iterator[None]:
    """Feed what enters the layers into `found`, each tensor once however many layers read it."""
    last: list[Any] = [None, ""]  # the tensor itself, so that no other takes its place in memory meanwhile

    def watch(name: str, layer: LoraLayer, adapter: str) -> Callable[..., None]:
        def hook(module: Any, args: tuple[Any, ...]) -> None:
            x = args[0]
            if name not in found:
                shares = x is last[0] and found[last[1]].rank == layer.r[adapter]
                found[name] = found[last[1]] if shares else _Directions(layer.r[adapter], x.shape[-1])
            if x is not last[0] or found[name] is not found[last[1]]:
                rows = x.detach().reshape(-1, x.shape[-1])
                rows = rows[counted.reshape(-1)] if len(rows) == counted.numel() else rows
                if not found[name].is_found:
                    found[name].add(rows)
            last[:] = x, name

        return hook

    handles = [x.register_forward_pre_hook(watch(name, x, adapter)) for name, (x, adapter) in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _counted(batch: dict[str, Any]) -> torch.Tensor:
    """Return which tokens count: those with a label, or all that are not padding."""
    mask = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool()
    labelled = batch["labels"] != -100 if "labels" in batch else mask
    return labelled & mask if (labelled & mask).any() else mask


def _run_backbone(model: PeftModel, batch: dict[str, Any]) -> None:
    """Run the model below its head, whose logits nobody wants, without adapter, dropout or gradient."""
    base = model.get_base_model()
    device = base.get_input_embeddings().weight.device
    inputs = {key: x.to(device) if hasattr(x, "to") else x for key, x in batch.items() if key != "labels"}
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), model.disable_adapter():
            base.base_model(**inputs, use_cache=False)
    finally:
        model.train(training)


def _same_everywhere(weight: torch.Tensor) -> None:
    """Give every process the first one's values: each computed its own, on its own device."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.broadcast(weight, src=0)


# --- LoftQ ------------------------------------------------------------------------------------------------------


def start_loftq_(model: PeftModel, weight_of: Callable[[str], torch.Tensor]) -> tuple[float, float]:
    """Let each B A start as the best approximation of what quantisation took from its layer's weight.

    One step of LoftQ (arXiv 2310.08659, algorithm 1): the quantised base stays as it is. peft's own function leaves
    the adapter's scale out of account, which at alpha = 2 x rank undoes all of the gain.

    Args:
        model: The model on a quantised base.
        weight_of: The unquantised weight of a linear layer, by the layer's name in the base model.

    Returns:
        The relative error of all adapted weights before and after, as Frobenius norms.

    Raises:
        AdapterError: If a weight has another shape than its layer.
    """
    before = after = whole = 0.0
    with torch.no_grad():
        for name, layer, adapter in _layers(model):
            base = layer.get_base_layer()
            packed = _unpacked(base)
            weight = weight_of(name).to(packed.device, torch.float32)
            if getattr(getattr(base, "source_cls", None), "__name__", "") == "Conv1D":
                weight = weight.T
            if weight.shape != packed.shape:
                raise AdapterError(
                    f"the stored weight of {name} has the shape {tuple(weight.shape)}, its layer "
                    f"{tuple(packed.shape)}; give the folder that the model was loaded from"
                )
            residual = weight - packed
            b, a = _factors(residual, layer.r[adapter], layer.scaling[adapter])
            layer.lora_A[adapter].weight.copy_(a)
            layer.lora_B[adapter].weight.copy_(b)
            _same_everywhere(layer.lora_A[adapter].weight)
            _same_everywhere(layer.lora_B[adapter].weight)
            whole += float(weight.square().sum())
            before += float(residual.square().sum())
            after += float((residual - layer.scaling[adapter] * b @ a).square().sum())
    return (before / whole) ** 0.5, (after / whole) ** 0.5


def _unpacked(base: torch.nn.Module) -> torch.Tensor:
    """Return the weight that a quantised layer multiplies by, `(out, in)`, in float32."""
    scales = getattr(base.weight, "SCB", None)
    scales = getattr(base.state, "SCB", None) if scales is None and hasattr(base, "state") else scales
    if scales is None:
        unpacked: torch.Tensor = dequantize_module_weight(base).float()
        return unpacked
    return base.weight.data.float() * scales[:, None] / 127  # LLM.int8(): peft's function loses the scales on a CPU


def _factors(residual: torch.Tensor, rank: int, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return B `(out, rank)` and A `(rank, in)` with `scale` B A the best approximation of the residual.

    Through the eigenvectors of the smaller Gram matrix: as exact as the factors' precision, and much faster than an
    SVD of a wide matrix. B and A share the singular values equally.
    """
    is_tall = residual.shape[0] > residual.shape[1]
    wide = residual.T if is_tall else residual
    u = torch.linalg.eigh(wide @ wide.T).eigenvectors.flip(1)[:, :rank]
    rest = u.T @ wide
    root = rest.norm(dim=1).clamp(min=torch.finfo(rest.dtype).tiny).sqrt()
    left, right = u * root / scale**0.5, rest / root[:, None] / scale**0.5
    return (right.T, left.T) if is_tall else (left, right)
