"""A saved adapter's ranks, looked at without the base model: from its files to the report."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

import torch

from ..adapters.factors import AdapterFactors, ModuleFactors, read_factors
from ..adapters.located import locate_adapter
from ..ranks.low_rank import singular_values
from .edges import edges_of
from .report import RankReport
from .spectra import Spectrum

__all__ = ["rank_report"]


def rank_report(adapter: str | Path, *, revision: str | None = None, token: str | None = None) -> RankReport:
    """Return what each module of a saved adapter does with its rank, and where the rank is too high or too low.

    For LoRA, rsLoRA, DoRA and AdaLoRA, from PEFT or another tool. The base model is not needed. Singular values go
    through QR of the factors in float64; no dense update is built.

    Example::

        report = rank_report("out/quickstart")
        print(report.explain())

    Args:
        adapter: A folder with an adapter, a safetensors file, or a Hub id.
        revision: Branch, tag or commit on the Hub; `main` if left out.
        token: Hub token; the one that is logged in if left out.

    Raises:
        AdapterError: If there is no adapter, or it is broken or of another kind.
        ConfigError: If the Hub has no such model or revision, or is out of reach.
    """
    factors = read_factors(locate_adapter(adapter, revision, token))
    return RankReport(
        adapter=str(adapter),
        method=factors.method,
        base=_printable(factors.config.get("base_model_name_or_path")),
        rslora=bool(factors.config.get("use_rslora")),
        parameters=factors.parameters,
        modules=tuple(_spectrum(module) for module in factors.modules.values()),
        others=tuple(factors.others),
        notes=tuple(_notes(factors)),
    )


def _printable(name: Any) -> str | None:
    """Return a name without what could steer a terminal: the config may be anybody's."""
    return "".join(letter for letter in str(name) if letter.isprintable()) if name else None


def _spectrum(module: ModuleFactors) -> Spectrum:
    shapes = module.shapes
    values = _pooled(module).tolist() if module.rank else []
    size = shapes.out_features, shapes.in_features
    return Spectrum(
        name=module.name,
        kind=module.kind,
        target=shapes.parameter if module.kind == "parameter" else module.name,
        rank=module.rank,
        shape=size,
        parameters=module.parameters,
        scaling=module.scaling,
        values=tuple(values),
        edges=edges_of(module.rank, *size) if any(values) else None,
        experts=module.experts,
    )


def _pooled(module: ModuleFactors) -> torch.Tensor:
    """Return the singular values of ΔW; of experts, the root of the sum of squares of each one's."""
    each = torch.stack([singular_values(a, b) for a, b in module.blocks()])
    return abs(1.0 if module.scaling is None else module.scaling) * torch.linalg.vector_norm(each, dim=0)


def _notes(factors: AdapterFactors) -> Iterator[str]:
    """Yield what the numbers do not say, one line each."""
    modules = factors.modules.values()
    if any(module.scaling is None for module in modules):
        yield "no adapter_config.json, so alpha is unknown: norms are those of B A, and shares hold if all scale alike"
    if factors.method == "DoRA":
        yield "DoRA: these are the spectra of the low-rank part alone; the magnitudes are as stored, and not analysed"
    if any(module.experts > 1 for module in modules):
        yield "experts: one spectrum a weight, the squares of their singular values added, largest with largest"
    if factors.others:
        numbers = sum(prod(shape) for shape in factors.others.values())
        what = "tensor that is no factor" if len(factors.others) == 1 else "tensors that are no factors"
        yield f"not analysed: {len(factors.others)} {what} ({numbers:,} numbers), such as {min(factors.others)}"
