"""A preset as a table that people read: every value, why it was chosen, and its source."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from ..choices.adapter import short_count

if TYPE_CHECKING:
    from ..decisions import Choice
    from .configuration import Preset

__all__ = ["explain", "warning_lines"]

WIDTHS: Final = (24, 20, 44, 6)
"""Characters of the columns at most; with two spaces between them a line has 100."""


def explain(preset: Preset) -> str:
    """Return the table for a preset; its sources are numbered and listed below it."""
    about = preset.model_id or "a model of this size"
    head = f"preset for {about}: {short_count(preset.shape.parameters)} parameters, from {preset.shape.source}"
    sources = _numbered([*preset.choices, *preset.warnings])
    rows: list[tuple[str, ...]] = [("setting", "value", "why", "source")]
    rows += [_row(choice, sources) for choice in preset.choices]
    if preset.warnings:
        rows += [("", "", "", ""), ("look out for", "", "", "")]
        rows += [_row(warning, sources) for warning in preset.warnings]
    lines = [
        *textwrap.wrap(head, 100),
        *textwrap.wrap(f"hardware: {preset.hardware}", 100),
        "",
        *_table(rows),
        "",
        "sources",
    ]
    lines += [f"[{number}] {source}" for source, number in sources.items()]
    return "\n".join(lines)


def warning_lines(preset: Preset) -> list[str]:
    """Return what to look out for in a preset, one line each."""
    return [f"{warning.name} ({_shown(warning.value)}): {warning.why}" for warning in preset.warnings]


def _numbered(choices: Sequence[Choice]) -> dict[str, int]:
    """Return each source with its number, in the order in which they are cited."""
    cited = [source for choice in choices for source in choice.source.split("; ")]
    return {source: number for number, source in enumerate(dict.fromkeys(cited), start=1)}


def _row(choice: Choice, sources: dict[str, int]) -> tuple[str, ...]:
    numbers = ", ".join(str(sources[source]) for source in choice.source.split("; "))
    return choice.name, _shown(choice.value), choice.why, numbers


def _shown(value: Any) -> str:
    if value is None:
        return "unknown"
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Lay rows out in columns, wrapping cells."""
    fitted = [min(width, max(len(row[i]) for row in rows)) for i, width in enumerate(WIDTHS)]
    lines: list[str] = []
    for row in rows:
        cells = [textwrap.wrap(cell, width) or [""] for cell, width in zip(row, fitted, strict=True)]
        for i in range(max(map(len, cells))):
            parts = (cell[i] if i < len(cell) else "" for cell in cells)
            lines.append("  ".join(part.ljust(width) for part, width in zip(parts, fitted, strict=True)).rstrip())
    return lines
