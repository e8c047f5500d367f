"""Emissions: only what codecarbon measured of this very run, and no grams for a country that it guessed."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from hf_lora_ext.cards.emissions import EMISSIONS_FILE, measured_emissions

STARTED = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
COLUMNS = "timestamp,project_name,duration,emissions,energy_consumed,country_name,longitude,latitude"
"""Some of the columns of codecarbon 3.3, in its order."""


def local(moment: datetime) -> str:
    """A moment as codecarbon writes it: in this machine's time, without a zone."""
    return moment.astimezone().strftime("%Y-%m-%dT%H:%M:%S")


def row(after_seconds: float = 90, emissions: str = "0.0123", place: str = "Norway,10.7,59.9") -> str:
    return f"{local(STARTED + timedelta(seconds=after_seconds))},codecarbon,90.0,{emissions},0.45,{place}"


def measured(folder: Path, *rows: str) -> dict:
    (folder / EMISSIONS_FILE).write_text("\n".join([COLUMNS, *rows]) + "\n", encoding="utf8")
    return measured_emissions(folder, STARTED)


def test_the_last_row_is_told_in_grams(tmp_path: Path):
    assert measured(tmp_path, row(-500, "9.9"), row()) == {
        "grams": 12.3,
        "energy_kwh": 0.45,
        "country": "Norway",
        "source": "codecarbon",
        "since": "2026-03-01T12:00:00+00:00",
    }


def test_an_earlier_run_in_the_same_folder_is_not_this_one(tmp_path: Path):
    assert measured(tmp_path, row(-1)) == {}


def test_a_country_that_codecarbon_only_assumed_gives_no_grams(tmp_path: Path):
    found = measured(tmp_path, row(place="Canada,-71.2,46.8"))
    assert found["energy_kwh"] == 0.45
    assert not {"grams", "country"} & set(found)


@pytest.mark.parametrize("content", [(), ("torn",), (row(emissions="much"),), (row(emissions=""),)])
def test_a_file_that_says_nothing_gives_nothing(tmp_path: Path, content: tuple[str, ...]):
    assert measured(tmp_path, *content) == {}


def test_without_codecarbon_there_is_nothing(tmp_path: Path):
    assert measured_emissions(tmp_path, STARTED) == {}
