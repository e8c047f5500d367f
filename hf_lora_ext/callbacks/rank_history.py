"""What adaptive rank leaves in the output folder: the ranks and how they came about, as JSON and as a picture."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from ..cards.facts import write_text_atomically
from ..plots import plot_ranks
from ..ranks.storage import RankState

__all__ = ["leave_history"]

HISTORY_FILE: Final = "rank_history.json"
PLOT_FILE: Final = "rank_history.png"


def leave_history(folder: Path, budget: int, ranks: Mapping[str, int], state: RankState) -> None:
    """Write both files.

    Args:
        folder: Where to; it is made if it is not there.
        budget: Parameters that the adapter may have.
        ranks: Rank of each layer now.
        state: The run's events and settings.
    """
    told = {"budget": budget, "ranks": ranks, "events": state.history}
    folder.mkdir(parents=True, exist_ok=True)
    write_text_atomically(folder / HISTORY_FILE, json.dumps(told, indent=2) + "\n")
    start = [(0, state.settings["start_ranks"])]
    title = f"rank of each layer; budget {budget:,} parameters"
    plot_ranks(start + [(event["step"], event["ranks"]) for event in state.history], folder / PLOT_FILE, title)
