"""The one seam to PEFT's LoRA layers: their factors, their ranks, and the configuration that says so.

A layer keeps its alpha through every change of rank, and so is scaled as PEFT scales a layer of that rank, while its
update stays. Rank 0 takes the adapter out of the layer, since PEFT knows no `r = 0`; the configuration then names the
layers that are left.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from peft import LoraConfig, PeftModel, PeftType
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import Embedding, ParamWrapper, _ConvNd
from peft.tuners.lora.variants import DoraEmbeddingVariant, DoraLinearVariant
from torch import Tensor, nn

from ..adapters.patterns import alpha_for, exact_pattern
from ..errors import AdapterError, ResumeError

__all__ = [
    "LoraFactors",
    "lora_layers",
    "own_config_",
    "ranks_into_config_",
    "saved_ranks",
    "trained_adapter",
    "widened",
    "without_masked",
    "write_ranks_",
]

_DICTS: Final = ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "lora_dropout", "lora_magnitude_vector",
                 "r", "lora_alpha", "scaling", "use_rslora", "use_dora", "lora_bias", "lora_variant")  # fmt: skip
"""What a layer keeps for each adapter."""


@dataclass(frozen=True, slots=True)
class LoraFactors:
    """One layer's factors under one adapter; alive as long as the layer is."""

    name: str
    """Name of the layer in the base model."""
    layer: Any
    """PEFT's layer."""
    adapter: str
    """Name of the adapter."""

    @property
    def a(self) -> nn.Parameter:
        """A `(rank, in_features)`."""
        found = self.layer.lora_embedding_A if self.is_embedding else self.layer.lora_A
        parameter: nn.Parameter = found[self.adapter] if self.is_embedding else found[self.adapter].weight
        return parameter

    @property
    def b(self) -> nn.Parameter:
        """B `(out_features, rank)`."""
        found = self.layer.lora_embedding_B if self.is_embedding else self.layer.lora_B
        parameter: nn.Parameter = found[self.adapter] if self.is_embedding else found[self.adapter].weight
        return parameter

    @property
    def magnitude(self) -> nn.Parameter | None:
        """DoRA's length of each output's weights `(out_features,)`; None without DoRA."""
        found = self.layer.lora_magnitude_vector
        return found[self.adapter].weight if self.adapter in found else None

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """All that trains here, by its part: `a`, `b` and, under DoRA, `magnitude`."""
        magnitude = {} if self.magnitude is None else {"magnitude": self.magnitude}
        return {"a": self.a, "b": self.b} | magnitude

    @property
    def rank(self) -> int:
        """Directions in use."""
        rank: int = self.layer.r[self.adapter]
        return rank

    @property
    def width(self) -> int:
        """Directions that the parameters have room for; more than `rank` where some are masked."""
        return len(self.a)

    def directions(self) -> tuple[Tensor, Tensor]:
        """Return A `(rank, in_features)` and B `(out_features, rank)`, the directions in use alone, on the CPU."""
        return self.a.detach()[: self.rank].cpu(), self.b.detach()[:, : self.rank].cpu()

    @property
    def cost(self) -> int:
        """Parameters of one direction."""
        return int(self.a.shape[1]) + len(self.b)

    @property
    def scale(self) -> float:
        """What the update is multiplied by: ΔW = scale · B A."""
        return float(self.layer.scaling[self.adapter])

    def scale_at(self, rank: int) -> float:
        """Return what the update is multiplied by at another rank: alpha / rank, or alpha / √rank under rsLoRA."""
        alpha, unit = self.layer.lora_alpha[self.adapter], alpha_for(1.0, rank, self.layer.use_rslora[self.adapter])
        return float(alpha) / unit

    @property
    def is_embedding(self) -> bool:
        """Whether A is looked up, not multiplied by."""
        return isinstance(self.layer, Embedding)

    def replace_(self, a: Tensor, b: Tensor) -> tuple[nn.Parameter, nn.Parameter]:
        """Put factors of another rank in place, and return the new parameters; alpha stays.

        New parameters, never `.data` of another shape: the old one's place in a graph that is still alive would
        keep the old shape.
        """
        new_a, new_b = (
            nn.Parameter(new.detach().to(old.dtype).contiguous(), requires_grad=old.requires_grad)
            for new, old in ((a, self.a), (b, self.b))
        )
        self._hold_(new_a, new_b)
        self._set_rank_(len(a))
        return new_a, new_b

    def _hold_(self, a: nn.Parameter, b: nn.Parameter) -> None:
        if self.is_embedding:
            self.layer.lora_embedding_A[self.adapter], self.layer.lora_embedding_B[self.adapter] = a, b
        else:
            first, second = self.layer.lora_A[self.adapter], self.layer.lora_B[self.adapter]
            first.weight, second.weight = a, b
            first.out_features = second.in_features = len(a)

    @contextmanager
    def cut_meanwhile(self, a: Tensor, b: Tensor) -> Iterator[None]:
        """Answer as the layer will once these factors are saved and loaded; then be bit for bit what it was.

        At rank 0 it answers as its base does.
        """
        layer, adapter, held = self.layer, self.adapter, (self.a, self.b)
        told = {kind: getattr(layer, kind)[adapter] for kind in ("r", "lora_alpha", "scaling")}
        rslora = layer.use_rslora[adapter]
        disabled = layer._disable_adapters
        try:
            if len(a):
                layer.lora_alpha[adapter] = alpha_for(self.scale, len(a), rslora)
                self.replace_(a, b)
            else:
                layer._disable_adapters = True
            yield
        finally:
            layer._disable_adapters = disabled
            self._hold_(*held)
            for kind, value in told.items():
                getattr(layer, kind)[adapter] = value

    def mask_(self, a: Tensor, b: Tensor) -> None:
        """Put factors of another rank in place and leave the parameters their shape: the other directions are 0.

        A row of A and a column of B that are both 0 have gradients of 0, and stay.
        """
        rank = len(a)
        with torch.no_grad():
            self.a.zero_()[:rank] = a
            self.b.zero_()[:, :rank] = b
        self._set_rank_(rank)

    def _set_rank_(self, rank: int) -> None:
        self.layer.r[self.adapter] = rank
        if rank:
            self.layer.scaling[self.adapter] = self.scale_at(rank)

    def begin_(self, a: Tensor) -> None:
        """Start the layer anew with rows of A and a B of 0, so that it answers as the base does."""
        old = self.magnitude
        _, b = self.replace_(a.to(self.a), self.b.new_zeros(len(self.b), len(a)))
        if old is not None:
            holder = self.layer.lora_magnitude_vector[self.adapter]
            holder.update_layer(base_layer=self.layer.get_base_layer(), lora_A=self.a.detach(), lora_B=b.detach(),
                                scaling=self.scale)  # fmt: skip
            holder.weight = nn.Parameter(holder.weight.detach().to(old), requires_grad=old.requires_grad)

    def remove_(self) -> dict[str, Any]:
        """Take the adapter out of the layer, which then answers as the base does; return what `put_back_` needs."""
        removed = {}
        for kind in _DICTS:
            kept = getattr(self.layer, kind)
            if self.adapter in kept:
                removed[kind] = kept[self.adapter]
                del kept[self.adapter]
        return removed

    def put_back_(self, removed: Mapping[str, Any]) -> None:
        """Give the layer its adapter again, as it was."""
        for kind, value in removed.items():
            getattr(self.layer, kind)[self.adapter] = value


def trained_adapter(model: Any) -> str:
    """Return the name of the one LoRA adapter that trains.

    Raises:
        AdapterError: If there is none, more than one, or it is of another kind.
    """
    if not isinstance(model, PeftModel):
        raise AdapterError(
            f"{type(model).__name__} carries no adapter; give the trainer peft_config=LoraConfig(...), or wrap the "
            "model with peft.get_peft_model first"
        )
    names = list(model.active_adapters)
    if len(names) != 1:
        raise AdapterError(f"adapters {names} are active together; activate the one to train with set_adapter")
    kind = model.peft_config[names[0]].peft_type
    if kind != PeftType.LORA:
        raise AdapterError(f"the adapter is {kind.value}, whose rank cannot be moved; use peft_config=LoraConfig(...)")
    return str(names[0])


def lora_layers(model: PeftModel, adapter: str, *, trains: bool = True) -> dict[str, LoraFactors]:
    """Return the layers that carry the adapter, by name in the base model, in the model's order.

    Args:
        model: The model.
        adapter: Name of the adapter.
        trains: Whether the factors must be trainable.

    Raises:
        AdapterError: If there is none, or one is merged or of a kind whose rank cannot be changed.
    """
    found = {factors.name: factors for factors in _layers(model, adapter)}
    if not found:
        raise AdapterError(f"no layer of {type(model.get_base_model()).__name__} carries the adapter {adapter!r}")
    for factors in found.values():
        problem = _problem(factors, trains)
        if problem:
            raise AdapterError(f"{factors.name} {problem}")
    if len({id(factors.a) for factors in found.values()}) < len(found):
        raise AdapterError("two layers share one factor (ensure_weight_tying); leave one of them out of the targets")
    return found


def _layers(model: PeftModel, adapter: str) -> Iterator[LoraFactors]:
    for name, module in model.get_base_model().named_modules():
        if isinstance(module, LoraLayer) and adapter in module.r:
            yield LoraFactors(name, module, adapter)


def _problem(factors: LoraFactors, trains: bool) -> str:
    """Return why the layer's rank cannot be changed, and what to do; empty where it can."""
    layer, adapter = factors.layer, factors.adapter
    if layer.merged:
        return "has the adapter merged into it; call model.unmerge_adapter() before training"
    if isinstance(layer, (_ConvNd, ParamWrapper)):
        return "is a convolution or an expert's parameter, whose rank cannot be moved; leave it out of the targets"
    variant = layer.lora_variant.get(adapter)
    if variant is not None and type(variant) not in (DoraLinearVariant, DoraEmbeddingVariant):
        return f"uses {type(variant).__name__}, whose rank cannot be moved; use plain LoRA or DoRA"
    if layer.lora_bias.get(adapter):
        return "has a bias in B (lora_bias=True), which rank 0 would lose; use lora_bias=False"
    if trains and not (factors.a.requires_grad and factors.b.requires_grad):
        return "has a frozen factor; load the adapter with is_trainable=True, or train A and B"
    return ""


def without_masked(state: Mapping[str, Tensor], layers: Iterable[LoraFactors]) -> dict[str, Tensor]:
    """Return a model's state with the directions in use alone, and nothing of layers that use none."""
    kept = dict(state)
    for factors in layers:
        prefix, adapter = f"base_model.model.{factors.name}.lora_", factors.adapter
        for key in [key for key in kept if key.startswith(prefix) and adapter in key.split(".")]:
            if not factors.rank:
                del kept[key]
            elif "_A." in key:
                kept[key] = kept[key][: factors.rank].contiguous()
            elif "_B." in key:
                kept[key] = kept[key][:, : factors.rank].contiguous()
    return kept


def own_config_(model: PeftModel, adapter: str) -> None:
    """Give the adapter a configuration of its own: TRL's "ref" adapter shares the object."""
    model.peft_config[adapter] = copy.deepcopy(model.peft_config[adapter])


def write_ranks_(model: PeftModel, adapter: str, ranks: Mapping[str, int]) -> None:
    """Write the ranks into the configuration, so that what is saved loads as it is.

    Args:
        model: The model, its layers already of these ranks.
        adapter: Name of the adapter.
        ranks: Rank by layer; 0 where the adapter has left the layer.
    """
    scales = {factors.name: factors.scale for factors in _layers(model, adapter)}
    ranks_into_config_(model.peft_config[adapter], ranks, scales)


def ranks_into_config_(config: Any, ranks: Mapping[str, int], scales: Mapping[str, float]) -> None:
    """Write ranks and scales into a configuration.

    One anchored entry for each layer: PEFT matches patterns as unescaped suffixes and takes the first hit, and
    `rank_pattern` alone would change the scale.

    Args:
        config: A `LoraConfig`.
        ranks: Rank by layer; 0 where the adapter has left the layer, and one of them at least is not.
        scales: Scale of each layer that is left.
    """
    kept = {name: rank for name, rank in ranks.items() if rank}
    config.r = max(kept.values())
    config.target_modules = sorted(kept)
    config.exclude_modules = config.layers_to_transform = config.layers_pattern = None
    config.rank_pattern = {exact_pattern(name): rank for name, rank in kept.items()}
    config.alpha_pattern = {
        exact_pattern(name): alpha_for(scales[name], rank, config.use_rslora) for name, rank in kept.items()
    }
    config.lora_alpha = max(config.alpha_pattern.values())


def saved_ranks(folder: Path, names: Sequence[str]) -> dict[str, int]:
    """Return the rank that a saved adapter has in each of these layers, 0 where it has left one.

    Args:
        folder: An adapter whose configuration `write_ranks_` has written.
        names: Names of layers in the base model.

    Raises:
        ResumeError: If the adapter is not of these layers, or its ranks are not written as ours are.
    """
    patterns = LoraConfig.from_pretrained(str(folder)).rank_pattern or {}
    ours = {exact_pattern(name): name for name in names}
    foreign = [key for key in patterns if key not in ours]
    if foreign or not patterns:
        what = f"has ranks for {', '.join(foreign[:3])}" if foreign else "has one rank for all layers"
        raise ResumeError(
            f"the adapter in {folder.name} {what} and was not written under AdaptiveRankCallback on this model; "
            "resume from a checkpoint that was, or start anew"
        )
    found = {ours[key]: int(rank) for key, rank in patterns.items()}
    return {name: found.get(name, 0) for name in names}


def widened(factors: LoraFactors, rank: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return A and B with more directions, whose scaled product stays.

    A new direction starts as PEFT starts one: the factor that a first layer draws is drawn, at the size that its
    entries have now, and the other is 0.

    Args:
        factors: The layer.
        rank: The rank to reach.
        generator: Where the new entries are drawn from, on the CPU.
    """
    a, b = factors.a.detach(), factors.b.detach()
    missing = rank - factors.width
    drawn, zero = (b.T, a) if factors.is_embedding else (a, b.T)
    new = torch.randn(missing, drawn.shape[1], generator=generator, dtype=torch.float64)
    new *= drawn.double().square().mean().sqrt().cpu()
    drawn = torch.cat([drawn, new.to(drawn)])
    zero = torch.cat([zero, zero.new_zeros(missing, zero.shape[1])]) * (factors.scale / factors.scale_at(rank))
    return (zero, drawn.T) if factors.is_embedding else (drawn, zero.T)
