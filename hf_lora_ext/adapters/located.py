"""Where an adapter is: a folder or file here, or a repository of the Hub, of which only the adapter is downloaded."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from ..errors import AdapterError, ConfigError
from ..hub import download_files, model_files
from .factors import pickle_refusal
from .tensor_names import CONFIG, WEIGHTS

__all__ = ["locate_adapter"]

_HUB_ID: Final = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")


def locate_adapter(adapter: str | Path, revision: str | None = None, token: str | None = None) -> Path:
    """Return the folder or file of an adapter, downloaded where it is on the Hub.

    What is here goes before what is there. Where the Hub is out of reach, its cache is looked into.

    Args:
        adapter: A folder, a file, or a Hub id such as `owner/name`.
        revision: Branch, tag or commit on the Hub; `main` if left out.
        token: Hub token; the one that is logged in if left out.

    Raises:
        AdapterError: If it is neither here nor an adapter on the Hub.
        ConfigError: If the Hub answers that there is no such model or revision, or it cannot be had; or if a revision
            is asked of what is here.
    """
    path = Path(adapter).expanduser()
    if path.exists():
        if revision is not None:
            raise ConfigError(f"revision {revision} is asked of {path}, which is here; leave it out, or give a Hub id")
        return path
    if not _HUB_ID.fullmatch(str(adapter)):
        raise AdapterError(f"{path} is not here; give an adapter's folder, its .safetensors file, or a Hub id")
    files = model_files(str(adapter), revision, token)
    if files is None:
        return download_files(str(adapter), (CONFIG, WEIGHTS), revision, token, cached=True)
    if missing := [name for name in (CONFIG, WEIGHTS) if name not in files]:
        if "adapter_model.bin" in files:
            raise AdapterError(f"{adapter} on the Hub: {pickle_refusal('adapter_model.bin')}")
        raise AdapterError(
            f"{adapter} on the Hub has no {' and no '.join(missing)} (found: {', '.join(files[:5]) or 'nothing'}); "
            "give the id of an adapter"
        )
    return download_files(str(adapter), (CONFIG, WEIGHTS), revision, token)
