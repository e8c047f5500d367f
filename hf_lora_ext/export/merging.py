"""A whole model with an adapter in its weights, written one part after the other."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ..adapters.factors import AdapterFactors
from ..cards.facts import read_facts
from ..errors import AdapterError, ConfigError
from ..models.stored_weights import tensor_files
from .base import Base
from .weight_changes import Changes, find_changes

__all__ = ["DTYPES", "merge_into", "split_into_files"]

DTYPES: Final = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""What `--dtype` takes."""
FILE_BYTES: Final = 4 * 2**30
"""The most of a weights file, so that a merge needs no more memory than that and one tensor in float32."""
_FLOATS: Final = {"F64", "F32", "F16", "BF16"}
_BESIDE: Final = (
    "generation_config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt",
    "*.model", "chat_template*", "preprocessor_config.json", "processor_config.json", "LICENSE*", "NOTICE*",
)  # fmt: skip
"""What goes with a model's weights and config; the tokenizer's files are taken from the adapter where it has them."""


def split_into_files(sizes: Mapping[str, int], most: int = FILE_BYTES) -> list[list[str]]:
    """Return the tensors of each file, in order; a tensor larger than `most` has a file of its own.

    Args:
        sizes: Tensor → bytes.
        most: Bytes of a file.
    """
    files: list[list[str]] = []
    room = 0
    for name, size in sizes.items():
        if not files or size > room:
            files.append([])
            room = most
        files[-1].append(name)
        room -= size
    return files


def merge_into(
    out: Path, base: Base, adapter: AdapterFactors, dtype: torch.dtype | None
) -> tuple[tuple[str, ...], torch.dtype]:
    """Write the merged model into a folder; return what a reader should know, and the coarsest precision written.

    Args:
        out: An empty folder.
        base: The unquantised base.
        adapter: The adapter.
        dtype: Precision of the weights; None for each tensor's own in the base.

    Raises:
        ConfigError: If the base's weights are not here.
        AdapterError: If they are packed, or have no place for something that the adapter holds.
    """
    folder = base.folder()
    _refuse_packed_config(base)
    files = tensor_files(folder)
    if not files:
        raise ConfigError(
            f"{folder} holds no *.safetensors; save the base with save_pretrained, and give base= (--base)"
        )
    outline = base.outline()
    changes = find_changes(adapter, outline, files)
    sizes = _sizes(files, changes, dtype, adapter)
    parts = split_into_files(sizes)
    where: dict[str, str] = {}
    total, coarsest = 0, torch.float32
    for number, names in enumerate(parts, 1):
        file = "model.safetensors" if len(parts) == 1 else f"model-{number:05}-of-{len(parts):05}.safetensors"
        tensors = dict(_tensors(names, files, changes, dtype))
        save_file(tensors, out / file, metadata={"format": "pt"})
        where |= dict.fromkeys(names, file)
        total += sum(tensor.nbytes for tensor in tensors.values())
        floats = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
        coarsest = max({coarsest, *floats}, key=lambda dtype: torch.finfo(dtype).eps)
    if len(parts) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": where}
        (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf8")
    _write_config(out, base, outline, changes, dtype)
    for source in (folder, adapter.file.parent):
        _copy_beside(source, out)
    return _notes(changes, adapter), coarsest


def _refuse_packed_config(base: Base) -> None:
    packing = base.stored_config().get("quantization_config")
    if packing:
        method = packing.get("quant_method", "unknown")
        raise AdapterError(
            f"the base {base.name} is stored packed ({method}), into which nothing can be merged without loss; give "
            "base= (--base) the unquantised model that it was made from"
        )


def _sizes(
    files: Mapping[str, Path], changes: Changes, dtype: torch.dtype | None, adapter: AdapterFactors
) -> dict[str, int]:
    """Return tensor → the most bytes that it takes, in the order of writing."""
    sizes: dict[str, int] = {}
    for file in sorted(set(files.values())):
        with safe_open(file, "pt") as stored:
            for key in stored.keys():
                part = stored.get_slice(key)
                if part.get_dtype() not in _FLOATS and key in changes.changed:
                    raise AdapterError(
                        f"{key} of the base is stored as {part.get_dtype()}, into which nothing can be merged without "
                        "loss; give base= (--base) the unquantised model that it was made from"
                    )
                sizes[key] = prod(part.get_shape()) * 4
    for name, (source, _) in changes.added.items():
        sizes[name] = sizes[source] if source else max(prod(shape) for shape in adapter.others.values()) * 4
    width = 4 if dtype is None else dtype.itemsize
    return {name: size * width // 4 for name, size in sizes.items()}


def _tensors(
    names: list[str], files: Mapping[str, Path], changes: Changes, dtype: torch.dtype | None
) -> Iterator[tuple[str, torch.Tensor]]:
    for name in names:
        source, change = changes.added.get(name, (name, changes.changed.get(name)))
        weight = torch.empty(0)
        if source is not None:
            with safe_open(files[source], "pt") as stored:
                weight = stored.get_tensor(source)
        own = dtype or (weight.dtype if source is not None else None)
        if change is not None:
            merged = change(weight)
            yield name, merged.to(own or merged.dtype).contiguous()
        else:
            yield name, weight.to(own) if weight.is_floating_point() else weight


def _write_config(out: Path, base: Base, outline: Any, changes: Changes, dtype: torch.dtype | None) -> None:
    """Write the base's `config.json` with what has changed: precision, class, labels, and whether the head is tied."""
    config = base.stored_config()
    if dtype is not None:
        config.pop("torch_dtype", None)
        config["dtype"] = str(dtype).removeprefix("torch.")
    if changes.unties:
        for part in (config, config.get("text_config") or {}):
            if part is config or "tie_word_embeddings" in part:
                part["tie_word_embeddings"] = False
    config["architectures"] = [type(outline).__name__]
    if base.labels is not None:
        config["id2label"], config["label2id"] = outline.config.id2label, outline.config.label2id
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf8")


def _copy_beside(source: Path, out: Path) -> None:
    for pattern in _BESIDE:
        for file in source.glob(pattern):
            if file.is_file():
                shutil.copyfile(file, out / file.name)


def _notes(changes: Changes, adapter: AdapterFactors) -> tuple[str, ...]:
    notes = []
    if changes.unties:
        notes.append(
            "head and embedding were one tensor in the base, the adapter changes one of them: they are two now"
        )
    if packing := _trained_on(adapter.file.parent):
        notes.append(
            f"trained on a base in {packing}, merged into the unquantised weights: answers differ from those seen in "
            "training by what the packing rounded"
        )
    return tuple(notes)


def _trained_on(folder: Path) -> str:
    """Return how the base was quantised in training, as the run's facts tell; empty where they do not."""
    try:
        packing = read_facts(folder / "facts.json").quantization or {}
    except ConfigError:
        return ""
    return str(packing.get("bnb_4bit_quant_type") or ("8 bits" if packing.get("load_in_8bit") else ""))
