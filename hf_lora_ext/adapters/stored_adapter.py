"""A saved adapter's weights, read in blocks: whether they are whole, finite, and those that the config promises."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open

from ..errors import AdapterError
from .factor_shapes import find_modules
from .tensor_names import CONFIG, parse_name

__all__ = ["StoredAdapter", "check_against_config", "read_config", "read_stored_adapter", "read_tensor"]

FLOATS: Final = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""The dtypes that an adapter trains in, by safetensors' names."""
HEADER_BYTES: Final = 2**25
"""The longest header that is read: some 150,000 tensors, as an adapter of every expert of a large mixture has."""
CONFIG_BYTES: Final = 2**24
"""The longest config that is read; one with a pattern for each of those modules is shorter."""
BLOCK_ELEMENTS: Final = 2**22
"""Elements looked at together: 16 MiB in float32."""
_EXTRA: Final = re.compile(r"(?P<module>.+)\.(?:lora_[AB]\.bias|token_adapter)\b.*")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredAdapter:
    """What a weights file holds, without its numbers."""

    shapes: Mapping[str, tuple[int, ...]]
    """Tensor → sizes."""
    dtypes: tuple[str, ...]
    """The dtypes found, by safetensors' names."""
    metadata: Mapping[str, str]
    """Free text in the header."""

    @property
    def parameters(self) -> int:
        """Numbers stored."""
        return sum(prod(shape) for shape in self.shapes.values())


def read_config(file: Path) -> dict[str, Any]:
    """Return an adapter's `adapter_config.json`.

    Raises:
        AdapterError: If it is not there, too long to be one, no JSON object, or names no peft_type.
    """
    try:
        if (size := file.stat().st_size) > CONFIG_BYTES:
            raise AdapterError(
                f"{file.name} has {size:,} bytes, a config at most {CONFIG_BYTES:,}; save the adapter again"
            )
        config = json.loads(file.read_text(encoding="utf8"))
    except OSError as error:
        raise AdapterError(f"{file} cannot be read ({error.strerror}); save the adapter again") from error
    except (ValueError, RecursionError) as error:
        raise AdapterError(f"{CONFIG} is not JSON ({error}); save the adapter again") from error
    if not isinstance(config, dict) or not config.get("peft_type"):
        raise AdapterError(f"{CONFIG} names no peft_type, so it is no adapter's; save the adapter again")
    return config


def read_tensor(file: Path, name: str) -> torch.Tensor:
    """Return one tensor of a weights file, in memory of its own.

    Raises:
        AdapterError: If the file no longer is what it was.
    """
    try:
        with safe_open(file, framework="pt") as stored:
            tensor: torch.Tensor = stored.get_tensor(name).clone()
    except (SafetensorError, OSError) as error:
        raise AdapterError(f"{file.name} has changed since it was opened ({error}); run this again") from error
    return tensor


def read_stored_adapter(file: Path) -> StoredAdapter:
    """Return what a weights file holds, after a look at every number in blocks of a bounded size.

    safetensors itself refuses shapes that do not add up to the bytes, gaps and overlaps.

    Raises:
        AdapterError: If the file is no whole safetensors file, is empty, or has a NaN, an infinity or a dtype that no
            adapter trains in.
    """
    try:
        _refuse_long_header(file)
        with safe_open(file, framework="pt") as stored:
            slices = {name: stored.get_slice(name) for name in stored.keys()}
            shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
            dtypes = {name: part.get_dtype() for name, part in slices.items()}
            metadata = dict(stored.metadata() or {})
        _refuse_foreign_dtypes(file, dtypes)
        if (bad := _first_not_finite(file)) is not None:
            raise AdapterError(
                f"{file.name}: {bad} has a NaN or an infinity, so the training diverged; take an earlier checkpoint"
            )
    except (SafetensorError, OSError) as error:
        raise AdapterError(f"{file.name} is no whole safetensors file ({error}); save the adapter again") from error
    if not shapes:
        raise AdapterError(f"{file.name} holds no tensors; save the adapter again")
    return StoredAdapter(shapes=shapes, dtypes=tuple(sorted(set(dtypes.values()))), metadata=metadata)


def _refuse_long_header(file: Path) -> None:
    """Look at the header's length before anything reads it: parsed, it takes many times its size."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
    if HEADER_BYTES < length < file.stat().st_size:  # one beyond the file's end is a torn file
        raise AdapterError(
            f"{file.name} has a header of {length:,} bytes, an adapter's has at most {HEADER_BYTES:,}; save the "
            "adapter alone, without the base"
        )


def _refuse_foreign_dtypes(file: Path, dtypes: Mapping[str, str]) -> None:
    if foreign := sorted(name for name, dtype in dtypes.items() if dtype not in FLOATS):
        raise AdapterError(
            f"{file.name}: {foreign[0]} is {dtypes[foreign[0]]}, an adapter's weights are {', '.join(sorted(FLOATS))}; "
            "save the adapter alone, without the base"
        )


def _first_not_finite(file: Path) -> str | None:
    """Return the first tensor with a NaN or an infinity, of a file that safetensors has found whole.

    Read with `read`, because what safetensors maps counts as the process's memory until the file is closed.
    """
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length))
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            dtype, (start, end) = FLOATS[entry["dtype"]], entry["data_offsets"]
            stream.seek(8 + length + start)
            for at in range(start, end, BLOCK_ELEMENTS * dtype.itemsize):
                block = bytearray(stream.read(min(BLOCK_ELEMENTS * dtype.itemsize, end - at)))
                if not bool(torch.isfinite(torch.frombuffer(block, dtype=dtype)).all()):
                    return str(name)
    return None


def check_against_config(file: Path, stored: StoredAdapter, config: Mapping[str, Any]) -> None:
    """Check that a LoRA's tensors are those of its config: both factors, under PEFT's names, the rank, the modules.

    Other kinds of adapters are not looked into.

    Args:
        file: The weights.
        stored: What they hold.
        config: The adapter's config.

    Raises:
        AdapterError: If a factor stands alone, has another rank or a name that PEFT does not look for, or belongs to a
            module that the config does not name.
    """
    if config.get("peft_type") != "LORA":
        return
    if any(parse_name(name).part in ("a", "b") for name in stored.shapes):
        _check_factors(file, stored, config)
    elif not config.get("trainable_token_indices"):
        raise AdapterError("the config says LORA, and the weights hold no factor A or B; save the adapter again")
    _check_modules(stored, config)


def _check_factors(file: Path, stored: StoredAdapter, config: Mapping[str, Any]) -> None:
    # PEFT's variants of LoRA keep more beside their factors; and no alpha decides a rank.
    shapes = {name: shape for name, shape in stored.shapes.items() if not parse_name(name).is_foreign}
    modules, _ = find_modules(shapes, {**config, "alpha_pattern": {}}, lambda key: float(read_tensor(file, key)))
    for module in modules:
        if (strange := module.not_as_peft_names_it()) is not None:
            raise AdapterError(
                f"PEFT does not look for {strange}, which it names otherwise, and would pass it over; save the adapter "
                "with PEFT"
            )
        if not module.rank:
            raise AdapterError(f"{module.name} has rank 0, which PEFT does not know; save the adapter without it")


def _check_modules(stored: StoredAdapter, config: Mapping[str, Any]) -> None:
    targets = config.get("target_modules")
    if isinstance(targets, str) or targets is None:  # a regular expression over names that only the base knows
        return
    named = [*targets, *(config.get("modules_to_save") or ()), *(config.get("target_parameters") or ())]
    for name in stored.shapes:
        parsed, extra = parse_name(name), _EXTRA.fullmatch(name)
        if extra and "token_adapter" in name:
            continue
        module = parsed.module if parsed.part else extra["module"] if extra else name.rpartition(".")[0]
        if not any(_is_part(module, target) for target in named) and not config.get("target_parameters"):
            raise AdapterError(
                f"the weights hold {name}, whose module adapter_config.json does not name; config and weights are of "
                "two adapters: save both together"
            )


def _is_part(module: str, target: str) -> bool:
    return f".{module}.".find(f".{target}.") >= 0
