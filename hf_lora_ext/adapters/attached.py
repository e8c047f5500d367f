"""A saved adapter on a model, as PEFT loads it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from peft import PeftModel
from safetensors import safe_open

from ..errors import AdapterError
from .tensor_names import WEIGHTS, parse_name

__all__ = ["attach"]


def attach(model: Any, folder: Path) -> Any:
    """Return a base model with a saved adapter on it, for answering.

    Raises:
        AdapterError: If PEFT cannot load it on this base, or passes over factors that have no place in it, of which
            it would only warn.
    """
    try:
        attached = PeftModel.from_pretrained(model, str(folder)).eval()
        with safe_open(folder / WEIGHTS, framework="pt") as stored:
            factors = _places(stored.keys())
    except Exception as error:  # peft trusts a config, and fails on a strange one in any way
        reason = " ".join(str(error).split())[:300]
        raise AdapterError(f"peft cannot load {folder.name} on {type(model).__name__} ({reason})") from error
    if homeless := sorted(factors - _places(attached.state_dict())):
        raise AdapterError(
            f"the base has no place for the adapter's {homeless[0][0]}, which peft passes over; give the base that it "
            "was trained on"
        )
    return attached


def _places(keys: Iterable[str]) -> set[tuple[str, str]]:
    """Return the (module, part) of each tensor that is part of a LoRA, by its name in a file or a model."""
    names = (parse_name(key) for key in keys)
    return {(name.module, name.part) for name in names if name.part}
