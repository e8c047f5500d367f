"""What a run emitted, where codecarbon measured it: transformers runs it with `report_to="codecarbon"`."""

import csv
from datetime import datetime
from pathlib import Path
from typing import Any, Final

__all__ = ["EMISSIONS_FILE", "measured_emissions"]

_UNKNOWN_PLACE: Final = ("-71.2", "46.8")
"""Longitude and latitude that codecarbon 3 takes where it cannot find its own; the grid is then a guess."""
EMISSIONS_FILE: Final = "emissions.csv"
"""What codecarbon writes into the trainer's output folder, one row a run, when training ends."""


def measured_emissions(folder: Path, started: datetime) -> dict[str, Any]:
    """Return what codecarbon measured since `started`, or nothing.

    Of a resumed run it is the last leg alone, which `since` says. Where codecarbon did not know the country, only the
    energy is told, since grams depend on it.

    Args:
        folder: The trainer's output folder.
        started: When this process began to train, with its time zone.

    Returns:
        `grams` of CO2 equivalents, `energy_kwh`, `country`, `source` and `since`.
    """
    file = folder / EMISSIONS_FILE
    if not file.is_file():
        return {}
    with file.open(encoding="utf8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    try:
        last = rows[-1]
        written = datetime.fromisoformat(last["timestamp"]).astimezone(started.tzinfo)
        if written < started.replace(microsecond=0):  # of an earlier run in the same folder
            return {}
        found: dict[str, Any] = {
            "energy_kwh": _short(last["energy_consumed"]),
            "source": "codecarbon",
            "since": started.isoformat(timespec="seconds"),
        }
        if (last.get("longitude"), last.get("latitude")) != _UNKNOWN_PLACE:
            grams = _short(last["emissions"], 1000)  # codecarbon counts in kilograms, the Hub in grams
            found |= {"grams": grams, "country": last.get("country_name") or None}
    except (IndexError, KeyError, ValueError, TypeError):  # another version's columns, or a torn row
        return {}
    return {key: value for key, value in found.items() if value is not None}


def _short(text: str, factor: float = 1) -> float:
    return float(f"{float(text) * factor:.4g}")
