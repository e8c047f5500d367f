"""The adapter's model card, rendered from facts alone.

What is unknown has no section: there are no placeholders. The template is `model_cards/adapter.md.jinja`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .facts import Facts, read_facts, write_text_atomically
from .resources import shipped_folder
from .strict_yaml import dump_yaml

__all__ = ["card_metadata", "render_card", "write_card"]


def card_metadata(facts: Facts) -> dict[str, Any]:
    """Return the card's metadata block, in the Hub's keys; only what the facts know."""
    base = facts.base_model
    metadata: dict[str, Any] = {
        "library_name": "peft",
        "pipeline_tag": "text-generation" if facts.adapter.get("task_type") == "CAUSAL_LM" else None,
        "license": base.license if base else None,
        "base_model": base.name if base and base.on_hub else None,
        "base_model_relation": "adapter" if base and base.on_hub else None,
        "tags": ["hf_lora_ext", "lora", *(["qlora"] if facts.quantization else [])],
    }
    return {key: value for key, value in metadata.items() if value is not None}


def render_card(facts: Facts | Mapping[str, Any]) -> str:
    """Return the README.md text of an adapter.

    Args:
        facts: The run's facts, as `Facts` or as read from `facts.json`.

    Raises:
        ConfigError: If a mapping holds no facts of this schema.
    """
    from jinja2 import StrictUndefined
    from jinja2.sandbox import SandboxedEnvironment

    known = Facts.from_dict(facts.to_dict() if isinstance(facts, Facts) else facts)  # unknown facts drop out
    environment = SandboxedEnvironment(
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    environment.filters |= {"cell": _cell, "code": _code, "line": _line, "fence": _fence, "number": _number}
    template = (shipped_folder("model_cards") / "adapter.md.jinja").read_text(encoding="utf8")
    return environment.from_string(template).render(metadata=dump_yaml(card_metadata(known)), facts=known)


def write_card(folder: str | Path) -> Path:
    """Write `README.md` from the `facts.json` in a folder, and return its path.

    It replaces the card that peft or trl wrote there, whose sections are placeholders.

    Raises:
        ConfigError: If the folder has no facts of this schema.
    """
    card = Path(folder) / "README.md"
    write_text_atomically(card, render_card(read_facts(Path(folder) / "facts.json")))
    return card


def _cell(value: Any) -> str:
    """Make a value safe inside one cell of a Markdown table."""
    text = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    text = " ".join(text.split())
    return text.replace("\\", "\\\\").replace("|", "\\|").strip()


def _line(value: Any) -> str:
    """Make a value safe inside a paragraph: one line."""
    return " ".join(str(value).split())


def _code(value: Any) -> str:
    """Return a code span that the value cannot close."""
    text, ticks = _line(value), "`"
    while ticks in text:
        ticks += "`"
    pad = " " if len(ticks) > 1 else ""
    return f"{ticks}{pad}{text}{pad}{ticks}"


def _fence(text: str, language: str = "") -> str:
    """Return a fenced code block that the text cannot close."""
    ticks = "```"
    while ticks in text:
        ticks += "`"
    return f"{ticks}{language}\n{text.rstrip()}\n{ticks}"


def _number(value: float) -> str:
    """Write a number with a thousands separator, or to four significant digits."""
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
