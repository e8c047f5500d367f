"""A preset as a table that people read: every value, why it was chosen, and its source."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .choices import short_count

if TYPE_CHECKING:
    from .presets import Preset

__all__ = ["explain"]


def explain(preset: Preset) -> str:
    """Return the table for a preset."""
    about = preset.model_id or "a model of this size"
    head = f"preset for {about}: {short_count(preset.shape.parameters)} parameters, from {preset.shape.source}"
    rows = [("setting", "value", "why", "source")]
    rows += [(c.name, _shown(c.value), c.why, c.source) for c in preset.choices]
    if preset.warnings:
        rows += [("", "", "", ""), ("look out for", "", "", "")]
        rows += [(c.name, _shown(c.value), c.why, c.source) for c in preset.warnings]
    return f"{head}\nhardware: {preset.hardware}\n\n{_table(rows, widths=(24, 20, 46, 44))}"


def _shown(value: Any) -> str:
    if value is None:
        return "unknown"
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _table(rows: Sequence[tuple[str, ...]], widths: tuple[int, ...]) -> str:
    """Lay rows out in columns of at most `widths` characters, wrapping cells."""
    fitted = [min(width, max(len(row[i]) for row in rows)) for i, width in enumerate(widths)]
    lines: list[str] = []
    for row in rows:
        cells = [textwrap.wrap(cell, width) or [""] for cell, width in zip(row, fitted, strict=True)]
        for i in range(max(map(len, cells))):
            parts = (cell[i] if i < len(cell) else "" for cell in cells)
            lines.append("  ".join(part.ljust(width) for part, width in zip(parts, fitted, strict=True)).rstrip())
    return "\n".join(lines)
