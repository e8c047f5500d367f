"""Whether the files of a checkpoint can still be read, found out without loading them: no pickle is opened."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

__all__ = ["damage_in"]


def damage_in(checkpoint: Path) -> str | None:
    """Return which file of a checkpoint a resumed run could not read, and why; None if there is none.

    Looked at are the files that going on reads, each by its form: JSON is parsed, of safetensors the header is held
    against the file's length, of what `torch.save` wrote the end of its zip archive is looked for. Numbers that were
    changed within a file are not seen.
    """
    for pattern, problem in _FORMS.items():
        for file in sorted(checkpoint.glob(pattern)):
            try:
                found = problem(file)
            except OSError as error:
                found = error.strerror or str(error)
            if found:
                return f"{file.name}: {found}"
    return None


def _problem_of_json(file: Path) -> str | None:
    try:
        json.loads(file.read_text(encoding="utf8"))
    except (ValueError, RecursionError):
        return "no JSON"
    return None


def _problem_of_tensors(file: Path) -> str | None:
    """Hold a safetensors file's length against what its header says."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        header_bytes = int.from_bytes(stream.read(8), "little")
        if size < 8 + header_bytes:
            return f"{size:,} bytes, which end before its header does"
        try:
            header: Mapping[str, Any] = json.loads(stream.read(header_bytes))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
            wanted = 8 + header_bytes + max(ends, default=0)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
            return "no header of safetensors"
    return None if size == wanted else f"{size:,} bytes, {wanted:,} by its header"


def _problem_of_archive(file: Path) -> str | None:
    return None if zipfile.is_zipfile(file) else "no archive as torch writes it"


_FORMS: Final[Mapping[str, Callable[[Path], str | None]]] = {
    "adapter_config.json": _problem_of_json,
    "*_progress.json": _problem_of_json,
    "*.safetensors": _problem_of_tensors,
    "optimizer.pt": _problem_of_archive,
    "scheduler.pt": _problem_of_archive,
    "rng_state*.pth": _problem_of_archive,
}
"""Files that going on reads → what is wrong with one."""
