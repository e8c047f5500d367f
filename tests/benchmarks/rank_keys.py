"""The key of a cell: a hash of all that determines its result, code included."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from code_hashes import code_hash
from rank_tasks import Sizes, Task
from rank_training import Cell

import hf_lora_ext

HERE = Path(__file__).parent
PACKAGE = Path(hf_lora_ext.__file__).parent
RUNNING = ("rank_training.py", "rank_methods.py")
"""Files beside this one that every cell depends on."""


def cell_key(cell: Cell, task: Task, sizes: Sizes, modules: Iterable[str]) -> str:
    """Return the key.

    Args:
        cell: The cell.
        task: Its task.
        sizes: How much it trains.
        modules: Modules of the package that its method depends on.
    """
    told: dict[str, Any] = {
        "cell": asdict(cell), "task": task.settings(), "sizes": asdict(sizes),
        "versions": [library.__version__ for library in (torch, transformers, peft)],
        "code": [code_hash(HERE / name) for name in (*task.sources, *RUNNING)]
        + [code_hash(PACKAGE / f"{name}.py") for name in modules],
    }  # fmt: skip
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]
