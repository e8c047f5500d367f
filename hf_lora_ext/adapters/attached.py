"""A saved adapter on a model, as PEFT loads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft import PeftModel

from ..errors import AdapterError

__all__ = ["attach"]


def attach(model: Any, folder: Path) -> Any:
    """Return a base model with a saved adapter on it, for answering.

    Raises:
        AdapterError: If PEFT cannot load it on this base.
    """
    try:
        return PeftModel.from_pretrained(model, str(folder)).eval()
    except (RuntimeError, ValueError, TypeError, KeyError) as error:
        reason = " ".join(str(error).split())[:300]
        raise AdapterError(f"peft cannot load {folder.name} on {type(model).__name__} ({reason})") from error
