"""The push's fault matrix, which `tests/fault_cells.py` defines and judges, counted with the rest."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

from calls import Tally
from fault_cells import CELLS, Outcome, outcome
from huggingface_hub.utils import disable_progress_bars, logging

__all__ = ["ending_of", "strike_pushes"]


def strike_pushes(adapter: Path, scratch: Path, count: int, seed: int, say: Callable[[str], None]) -> Tally:
    """Push under each fault of the matrix, or under `count` of them that are drawn."""
    disable_progress_bars()
    logging.set_verbosity_error()
    cells = random.Random(seed).sample(CELLS, count) if 0 < count < len(CELLS) else CELLS
    tally = Tally(name="pushes with a fault of the Hub")
    for number, cell in enumerate(cells):
        found = outcome(cell, adapter, scratch / f"hub-{number}")
        tally.add(ending_of(found), f"{cell}: {found}")
        if number % 50 == 49:
            say(f"  {number + 1} of {len(cells)}")
    return tally


def ending_of(found: Outcome) -> str:
    """Return `done` where the push landed, `refused` where it said that it did not, or what is wrong."""
    faults = [name for name in ("torn", "twice", "untrue") if getattr(found, name)]
    if not found.struck:
        faults.append("met no request")
    return ", ".join(faults) or ("done" if found.ended == "landed" else "refused")
