"""Which factors a weights file holds, from the sizes of its tensors and the adapter's config. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

from ..errors import AdapterError
from .patterns import rank_of, scaling_of
from .tensor_names import CONFIG, Part, TensorName, parse_name, peft_names
from .wrapped_parameters import Wrapped, find_wrapped

__all__ = ["FactorShapes", "find_modules"]

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FactorShapes:
    """One module's factors, without their numbers."""

    name: str
    """Name in the base model."""
    kind: Literal["linear", "embedding", "conv", "parameter"]
    """What the module is."""
    rank: int
    """Directions; of experts, those of each."""
    in_features: int
    """Columns of A; of a convolution, all entries of a kernel."""
    out_features: int
    """Rows of B."""
    keys: Mapping[Part, str]
    """Part → tensor in the file."""
    scaling: float | None
    """What B A is multiplied by; None where alpha is not known."""
    parameters: int
    """Numbers in the factors."""
    experts: int = 1
    """Updates side by side."""
    groups: int = 1
    """Groups of a convolution."""
    parameter: str | None = None
    """Full name of the wrapped parameter, where the config says which it is."""

    def not_as_peft_names_it(self) -> str | None:
        """Return a tensor of a name that another tool gave it, under which PEFT would pass it over."""
        own = peft_names(self.name, self.kind)
        return next((key for part, key in self.keys.items() if key != own.get(part, key)), None)


@dataclass(frozen=True, slots=True)
class _Found:
    """A module's tensors, before it is known what they are."""

    name: str
    keys: dict[Part, str]


def find_modules(
    shapes: Mapping[str, Shape], config: Mapping[str, Any], scalar: Callable[[str], float]
) -> tuple[list[FactorShapes], list[str]]:
    """Return the modules that a file has factors of, by name, and the names of its other tensors.

    Args:
        shapes: Tensor → sizes.
        config: The adapter's config; empty where it is not known.
        scalar: Reads the one number of a tensor.

    Raises:
        AdapterError: If a factor stands alone, two do not fit each other or the config, two adapters are mixed, or
            the file holds parts of another method.
    """
    found, others = _grouped(shapes)
    _check_config(config)
    rows = {name: shapes[module.keys["a"]] for name, module in found.items() if "a" in module.keys}
    wrapped = find_wrapped({name: shape[0] if shape else 0 for name, shape in rows.items()}, config)
    modules = []
    for name in sorted(found, key=_in_order):
        module = found[name]
        _check_whole(module, shapes)
        if name in wrapped:
            modules.append(_parameter(module, shapes, wrapped[name]))
        else:
            modules.append(_module(module, shapes, config, scalar))
    return modules, sorted(others)


def _in_order(name: str) -> list[tuple[int, int, str]]:
    """Return what sorts names with numbers as people do: layer 2 before layer 10."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in name.split(".")]


def _grouped(shapes: Iterable[str]) -> tuple[dict[str, _Found], list[str]]:
    """Return the tensors of each module with factors, and all others."""
    if strange := next((key for key in shapes if not key.isprintable()), None):
        raise AdapterError(
            f"a tensor's name is {strange!r}, no name of a module; the file was not written by a trainer"
        )
    names = {key: parse_name(key) for key in shapes}
    if foreign := next((key for key in sorted(names) if names[key].is_foreign), None):
        raise AdapterError(
            f"{foreign} is no factor of a LoRA, DoRA or AdaLoRA; this adapter's method cannot be analysed"
        )
    _check_one_adapter(names)
    with_factors = {name.module for name in names.values() if name.part in ("a", "b")}
    found: dict[str, _Found] = {}
    others = []
    for key, name in names.items():
        if name.part is None or name.module not in with_factors:
            others.append(key)
            continue
        module = found.setdefault(name.module, _Found(name.module, {}))
        if name.part in module.keys:
            raise AdapterError(f"{module.keys[name.part]} and {key} are one factor twice; keep one of the two adapters")
        module.keys[name.part] = key
    if not found:
        raise AdapterError(
            f"no LoRA factor among {len(names)} tensors, the first is {min(names)}; give an adapter, not a whole model"
        )
    return found, others


def _check_one_adapter(names: Mapping[str, TensorName]) -> None:
    adapters = sorted({name.adapter for name in names.values() if name.adapter and name.part})
    if len(adapters) > 1:
        raise AdapterError(f"the file mixes the adapters {', '.join(adapters)}; save one of them alone")


def _check_config(config: Mapping[str, Any]) -> None:
    """Raise where what a scaling is made of is no number."""
    if not config:
        return
    needed = ("lora_alpha", "init_r" if config.get("peft_type") == "ADALORA" else "r")
    values = {key: config.get(key) for key in needed} | {
        f"{pattern}[{key!r}]": value
        for pattern in ("rank_pattern", "alpha_pattern")
        if config.get("peft_type") != "ADALORA"  # whose rank_pattern is a list of kept directions
        for key, value in _mapping(config, pattern).items()
    }
    listed = config.get("target_parameters") or []
    if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
        raise AdapterError(f"{CONFIG} says target_parameters={listed!r}, names were needed; save the adapter again")
    for key, value in values.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e9:
            raise AdapterError(f"{CONFIG} says {key}={value!r}, a number was needed; save the adapter again")


def _mapping(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = config.get(key) or {}
    if not isinstance(value, dict):
        raise AdapterError(f"{CONFIG} says {key}={value!r}, a mapping was needed; save the adapter again")
    for pattern in value:
        try:
            re.compile(pattern)
        except re.error as error:
            raise AdapterError(
                f"{CONFIG} says {key}[{pattern!r}], no regular expression ({error}); save the adapter again"
            ) from error
    return value


def _check_whole(module: _Found, shapes: Mapping[str, Shape]) -> None:
    if missing := {"a", "b"} - module.keys.keys():
        raise AdapterError(f"{module.name} has no factor {missing.pop().upper()}; save the adapter again")
    if parse_name(module.keys["a"]).is_embedding != parse_name(module.keys["b"]).is_embedding:
        raise AdapterError(f"{module.keys['a']} is not of one layer with {module.keys['b']}; save the adapter again")
    for part in ("alpha", "ranknum"):
        if part in module.keys and prod(shapes[module.keys[part]]) != 1:
            raise AdapterError(f"{module.keys[part]} is {shapes[module.keys[part]]}, one number was needed")
    a, b = (shapes[module.keys[part]] for part in ("a", "b"))
    if len(a) < 2 or len(a) != len(b) or any(size != 1 for size in b[2:]) or not prod(a[1:]) or not b[0]:
        raise AdapterError(
            f"{module.name}: factors of shapes {a} and {b} do not multiply; a factor that was sharded when it was "
            "saved must be gathered first"
        )


def _module(
    module: _Found, shapes: Mapping[str, Shape], config: Mapping[str, Any], scalar: Callable[[str], float]
) -> FactorShapes:
    """Return a layer's factors: linear, embedding or convolution."""
    a, b = (shapes[module.keys[part]] for part in ("a", "b"))
    rank, groups = a[0], 1
    if b[1] != rank:
        groups = rank // b[1] if len(a) > 2 and b[1] and not rank % b[1] else 0
        if not groups or b[0] % groups:
            raise AdapterError(
                f"{module.name}: factors of shapes {a} and {b} do not multiply, their ranks are {rank} and {b[1]}; "
                "save the adapter again"
            )
    if "e" in module.keys and prod(shapes[module.keys["e"]]) != rank:
        raise AdapterError(f"{module.name} has rank {rank}, its E {shapes[module.keys['e']]}; save the adapter again")
    _check_rank(module.name, rank, config)
    return FactorShapes(
        name=module.name,
        kind="embedding" if parse_name(module.keys["a"]).is_embedding else "conv" if len(a) > 2 else "linear",
        rank=rank,
        in_features=prod(a[1:]),
        out_features=b[0],
        keys=module.keys,
        scaling=_scaling(module, rank, config, scalar),
        parameters=_parameters(module, shapes),
        groups=groups,
    )


def _check_rank(name: str, rank: int, config: Mapping[str, Any]) -> None:
    if not config:
        return
    if config["peft_type"] == "ADALORA":
        if rank > config["init_r"]:
            raise AdapterError(f"{name} has rank {rank}, {CONFIG} starts with {config['init_r']}; save both together")
    elif rank != (wanted := rank_of(config, name)):
        raise AdapterError(
            f"{name} has rank {rank}, {CONFIG} says {wanted}; config and weights are of two adapters: save both "
            "together"
        )


def _scaling(module: _Found, rank: int, config: Mapping[str, Any], scalar: Callable[[str], float]) -> float | None:
    if "alpha" in module.keys and not config:  # kohya's tools write it beside the factors
        return scalar(module.keys["alpha"]) / max(rank, 1)
    if "ranknum" in module.keys and config.get("peft_type") == "ADALORA":  # not written by PEFT itself
        config = {**config, "init_r": scalar(module.keys["ranknum"])}
    return scaling_of(config, module.name, max(rank, 1)) if config else None


def _parameters(module: _Found, shapes: Mapping[str, Shape]) -> int:
    return sum(prod(shapes[key]) for part, key in module.keys.items() if part in ("a", "b", "e"))


def _parameter(module: _Found, shapes: Mapping[str, Shape], wrapped: Wrapped) -> FactorShapes:
    """Return the factors of a wrapped parameter."""
    a, b = (shapes[module.keys[part]] for part in ("a", "b"))
    if a[0] != b[1]:
        raise AdapterError(f"{module.name}: factors of shapes {a} and {b} do not multiply; save the adapter again")
    return FactorShapes(
        name=module.name,
        kind="parameter",
        rank=wrapped.rank,
        in_features=a[1],
        out_features=b[0],
        keys=module.keys,
        scaling=wrapped.scaling,
        parameters=_parameters(module, shapes),
        experts=a[0] // wrapped.rank,
        parameter=wrapped.parameter,
    )
