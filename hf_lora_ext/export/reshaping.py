"""An adapter's factors in another form: one rank and scale for all layers, a rank for each, or cut to a rank.

What PEFT computes with a module is scale · B A, where the scale is alpha / r, or alpha / √r under rsLoRA. Rows of
zeros below A and columns of zeros beside B change no product, so ranks can be made equal; a scale that differs from
the others is multiplied into B.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor

from ..adapters.factors import AdapterFactors, ModuleFactors
from ..adapters.patterns import exact_pattern
from ..adapters.tensor_names import peft_names
from ..choices.methods import stored_init
from ..errors import AdapterError
from ..ranks.low_rank import find_basis, gram_of_columns, gram_of_rows
from .engine_rules import FUSED_WITH, kind_of, serving_rank
from .forms import Form

__all__ = ["Gap", "Reshaped", "check_exportable", "missing_layers", "reshape"]


@dataclass(frozen=True, slots=True)
class Gap:
    """A layer that the adapter could adapt and does not: it gets zeros."""

    name: str
    """Name in the base model."""
    kind: str
    """`linear` or `embedding`."""
    in_features: int
    """Columns of A."""
    out_features: int
    """Rows of B."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reshaped:
    """An adapter in another form."""

    config: dict[str, Any]
    """`adapter_config.json`."""
    tensors: dict[str, Tensor]
    """`adapter_model.safetensors`."""
    rank: int
    """The largest rank in it."""
    precision: torch.dtype = torch.float32
    """What B was rounded to where a scale went into it; float32 where no number of a factor changed."""
    lost: dict[str, float] = field(default_factory=dict)
    """Module → share of its update's squared Frobenius norm that was cut off; of `uniform` alone."""
    lost_in_all: float = 0.0
    """The same share of all updates together."""
    notes: tuple[str, ...] = ()
    """What a reader should know."""


def missing_layers(modules: Iterable[str], all_layers: Mapping[str, Gap]) -> list[Gap]:
    """Return the base's layers of the kinds that the adapter has somewhere, and not here.

    A kind is a name with the layer's number left out, so that a projection of the same name in another part of the
    model, such as a vision tower, stays out. Kinds that an engine fuses with one that is there belong to it.

    Args:
        modules: Names of the adapted modules.
        all_layers: Name → layer of the base.
    """
    there = set(modules)
    kinds = {kind_of(name)[0] for name in there}
    for kind in tuple(kinds):
        block, _, leaf = kind.rpartition(".")
        kinds |= {f"{block}.{companion}" for companion in FUSED_WITH.get(leaf, ())}
    return [gap for name, gap in all_layers.items() if name not in there and kind_of(name)[0] in kinds]


def reshape(adapter: AdapterFactors, form: Form, all_layers: Mapping[str, Gap]) -> Reshaped:
    """Return the adapter in the form.

    Args:
        adapter: The adapter.
        form: `portable`, `compact` or `uniform`.
        all_layers: The base's layers, for the forms that name every layer; may be empty for `compact`.

    Raises:
        AdapterError: If this form cannot hold what the adapter has, with the form that can.
    """
    if form.name == "compact":
        return _compact(adapter)
    _refuse_what_only_peft_reads(adapter, form)
    return _one_rank(adapter, form, all_layers)


def _one_rank(adapter: AdapterFactors, form: Form, all_layers: Mapping[str, Gap]) -> Reshaped:
    wanted = form.rank or max(module.rank for module in adapter.modules.values())
    rank, scale, gaps = serving_rank(wanted), _common_scale(adapter), missing_layers(adapter.modules, all_layers)
    tensors: dict[str, Tensor] = {}
    lost: dict[str, float] = {}
    whole = left_out = 0.0
    for name, module in adapter.modules.items():
        a, b, dtype = module.a, module.b, _dtype(module)
        if form.rank is not None:
            a, b, energy, cut = _cut(a, b, form.rank, _scale_of(module))
            whole, left_out, lost[name] = whole + energy, left_out + cut, cut / energy if energy else 0.0
        b = b if scale else b.double() * _scale_of(module)
        _put(tensors, name, module.kind, _padded(a.to(dtype), b.to(dtype), rank))
    dtype = next(iter(tensors.values())).dtype
    for gap in gaps:
        zeros = torch.zeros(rank, gap.in_features, dtype=dtype), torch.zeros(gap.out_features, rank, dtype=dtype)
        _put(tensors, gap.name, gap.kind, zeros)
    config = _plain_config(adapter.config) | {
        "r": rank,
        "lora_alpha": _number((scale or 1.0) * rank),
        "target_modules": _targets([*adapter.modules, *(gap.name for gap in gaps)], all_layers),
    }
    return Reshaped(
        config=config,
        tensors=tensors,
        rank=rank,
        precision=torch.float32 if scale else dtype,
        lost=lost,
        lost_in_all=left_out / whole if whole else 0.0,
        notes=(*_padding_note(wanted, rank), *_gap_note(gaps), *_scale_note(scale)),
    )


def _compact(adapter: AdapterFactors) -> Reshaped:
    """Return the same factors with one anchored entry a module in the patterns; no entry where ranks are equal."""
    scale, kept = _common_scale(adapter), {name: m for name, m in adapter.modules.items() if m.rank}
    rank = max(module.rank for module in kept.values())
    tensors: dict[str, Tensor] = {}
    for name, module in kept.items():
        b, dtype = module.b, _dtype(module)
        b = b if scale else b.double() * _scale_of(module)
        _put(tensors, name, module.kind, (module.a.to(dtype), b.to(dtype)))
        if (magnitude := module.magnitude) is not None:
            tensors[peft_names(name, module.kind)["magnitude"]] = magnitude
    tensors |= {name: adapter.other(name) for name in _carried(adapter)}
    same = all(module.rank == rank for module in kept.values())
    config = _plain_config(adapter.config) | {
        "r": rank,
        "lora_alpha": _number((scale or 1.0) * rank),
        "target_modules": sorted(kept),
        "rank_pattern": {} if same else {exact_pattern(name): module.rank for name, module in kept.items()},
        "alpha_pattern": {} if same else {exact_pattern(n): _number((scale or 1.0) * m.rank) for n, m in kept.items()},
    }
    return Reshaped(
        config=config,
        tensors=tensors,
        rank=rank,
        precision=torch.float32 if scale else next(iter(tensors.values())).dtype,
        notes=tuple(_scale_note(scale)),
    )


# --- factors -----------------------------------------------------------------------------------------------------


def _scale_of(module: ModuleFactors) -> float:
    if module.scaling is None:
        raise AdapterError(f"the scale of {module.name} is unknown without adapter_config.json; give the whole folder")
    return module.scaling


def _common_scale(adapter: AdapterFactors) -> float | None:
    """Return the scale of all modules; None where they differ, and it goes into B."""
    scales = [_scale_of(module) for module in adapter.modules.values()]
    return scales[0] if max(scales) - min(scales) <= 1e-9 * abs(scales[0]) and scales[0] else None


def _dtype(module: ModuleFactors) -> torch.dtype:
    """Return the precision to write: the stored one, and float32 for what was computed in float64 on reading."""
    return torch.float32 if module.a.dtype == torch.float64 else module.b.dtype


def _cut(a: Tensor, b: Tensor, rank: int, scale: float) -> tuple[Tensor, Tensor, float, float]:
    """Return the best factors of this rank, the update's squared Frobenius norm, and the part that was cut off."""
    basis = find_basis(gram_of_rows(a), gram_of_columns(b), gram_of_rows(a))
    squares = (basis.values * scale).square()
    return *basis.cut(rank).factors(a, b), float(squares.sum()), float(squares[rank:].sum())


def _padded(a: Tensor, b: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    missing = rank - len(a)
    return torch.cat([a, a.new_zeros(missing, a.shape[1])]), torch.cat([b, b.new_zeros(len(b), missing)], dim=1)


def _put(tensors: dict[str, Tensor], name: str, kind: str, pair: tuple[Tensor, Tensor]) -> None:
    names = peft_names(name, kind)
    tensors[names["a"]], tensors[names["b"]] = pair[0].contiguous(), pair[1].contiguous()


# --- config ------------------------------------------------------------------------------------------------------

_RESET: Final = {
    "peft_type": "LORA", "use_rslora": False, "rank_pattern": {}, "alpha_pattern": {}, "exclude_modules": None,
    "layers_to_transform": None, "layers_pattern": None, "init_lora_weights": True, "inference_mode": True,
}  # fmt: skip
_ADALORA_ONLY: Final = {"target_r", "init_r", "tinit", "tfinal", "deltaT", "beta1", "beta2", "orth_reg_weight",
                        "total_step"}  # fmt: skip


def _plain_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config with whatever would change what the tensors mean taken back to PEFT's default."""
    return {key: value for key, value in config.items() if key not in _ADALORA_ONLY} | _RESET


def _targets(adapted: list[str], all_layers: Mapping[str, Gap]) -> list[str]:
    """Return the last parts of the names where those mean exactly these layers, else the whole names."""
    leaves = {name.rpartition(".")[2] for name in adapted}
    meant = {name for name in all_layers if name.rpartition(".")[2] in leaves}
    return sorted(leaves) if meant == set(adapted) else sorted(adapted)


def _number(value: float) -> int | float:
    """Return a whole number as one: `lora_alpha` is an integer in PEFT."""
    return round(value) if abs(value - round(value)) < 1e-9 * abs(value) else value


# --- what a form cannot hold -------------------------------------------------------------------------------------


def check_exportable(adapter: AdapterFactors, form: Form) -> None:
    """Raise AdapterError for what no form holds: an adapter of a changed base, stacked experts, convolutions."""
    init = adapter.config.get("init_lora_weights")
    if (start := stored_init(init)) is not None and start.changes_base_on_load:
        raise AdapterError(
            f"init_lora_weights={init!r}: PEFT changes the base when it loads this adapter, so it is no adapter of the "
            "base itself; export the run's plain_adapter folder, which is"
        )
    if not any(module.rank for module in adapter.modules.values()):
        raise AdapterError("the adapter has left every layer, so there is nothing to export; use the base")
    for name, module in adapter.modules.items():
        if module.kind == "parameter":
            raise AdapterError(
                f"{name} adapts stacked experts (target_parameters), which {form} does not rewrite; give the folder to "
                "PEFT as it is, or merge it there: PeftModel.from_pretrained(base, folder).merge_and_unload()"
            )
        if module.kind == "conv":
            raise AdapterError(
                f"{name} is a convolution, which {form} does not rewrite; give the folder to PEFT as it is"
            )


def _refuse_what_only_peft_reads(adapter: AdapterFactors, form: Form) -> None:
    ways = "use merged, which holds it in the weights, or compact, which PEFT loads"
    if adapter.method == "DoRA":
        raise AdapterError(f"the adapter is a DoRA, whose magnitudes no engine of the {form} form loads; {ways}")
    if carried := _carried(adapter):
        raise AdapterError(
            f"the adapter trains {carried[0]} beside its factors (new tokens, modules_to_save or biases), which no "
            f"engine of the {form} form loads; {ways}"
        )


def _carried(adapter: AdapterFactors) -> list[str]:
    """Return what is trained beside the factors: not the unchanged embedding that PEFT saves beside an adapted one."""
    return [key for key in adapter.others if not key.endswith(".base_layer.weight")]


# --- notes -------------------------------------------------------------------------------------------------------


def _padding_note(wanted: int, rank: int) -> Iterator[str]:
    if wanted != rank:
        yield f"rank {wanted} is padded with zeros to {rank}: LoRAX and TGI scale any but 8 and multiples of 16 wrongly"


def _gap_note(gaps: list[Gap]) -> Iterator[str]:
    if gaps:
        yield f"{len(gaps)} layers without an adapter got zeros, {gaps[0].name} first"


def _scale_note(scale: float | None) -> Iterator[str]:
    if scale is None:
        yield "layers of different scales: each scale is multiplied into its B"
