r"""Text in Markdown: whatever it says, it stays text, and opens no heading, table, link or HTML.

Rules: CommonMark 0.31 and GitHub's tables; on the Hub, `$$` and `\\(` begin mathematics too.
"""

import re
import unicodedata
from typing import Any, Final
from urllib.parse import quote

__all__ = ["cell", "code", "code_cell", "fence", "flat", "hub_link", "inline", "number", "paragraphs", "prose", "text"]

_ENTITIES: Final = {"\\": "&#92;", "|": "&#124;", "$": "&#36;", "&": "&amp;"}
"""What a backslash before it would not disarm: in a table, on the Hub, or as a backslash itself."""
_SPECIAL: Final = re.compile(r"[\\|$&]|[`*\[\]<>~#]|(?<![^\W_])_|_(?![^\W_])")
_NUMBERED: Final = re.compile(r"\d{1,9}(?=[.)](\s|$))")
_HIDDEN: Final = {"Cc", "Cs", "Co", "Cn"}
_TURNING: Final = {*map(chr, range(0x202A, 0x202F)), *map(chr, range(0x2066, 0x206A)), "\ufeff"}
"""Characters that change the direction of what follows, and the byte-order mark: invisible, and never needed."""


def flat(value: Any) -> str:
    """Return a value as one line without control characters; lists become words with commas."""
    joined = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    line = " ".join(joined.split())
    return "".join("\ufffd" if unicodedata.category(c) in _HIDDEN else c for c in line if c not in _TURNING).strip()


def inline(value: Any) -> str:
    r"""Return a value as text in the middle of a line: in a heading, a link's name, a table's cell.

    >>> inline("a|b <i>")
    'a&#124;b \\<i\\>'
    """
    return _escaped(flat(value))


def text(value: Any) -> str:
    """Return a value as text that may begin a line, where it opens no list, table or heading either."""
    return _at_line_start(inline(value))


def _escaped(line: str) -> str:
    return _SPECIAL.sub(lambda found: _ENTITIES.get(found[0], f"\\{found[0]}"), line)


def _at_line_start(escaped: str) -> str:
    if item := _NUMBERED.match(escaped):
        return f"{item[0]}\\{escaped[item.end() :]}"
    return f"\\{escaped}" if escaped[:1] in {"-", "+", "=", ":"} else escaped


def prose(value: Any) -> str:
    r"""Return a sentence of ours as text, in which names stand in backticks.

    >>> prose("Split by `a_*` and *b*")
    'Split by `a_*` and \\*b\\*'
    """
    parts = re.split(r"(`[^`]+`)", flat(value))
    told = "".join(part if index % 2 else _escaped(part) for index, part in enumerate(parts))
    return told if told.startswith("`") else _at_line_start(told)


def cell(value: Any) -> str:
    """Return a value as text in one cell of a table; whole numbers get their separators."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else inline(value)


def code(value: Any) -> str:
    """Return a code span that the value cannot close, outside a table."""
    line, ticks = flat(value), "`"
    while ticks in line:
        ticks += "`"
    pad = " " if len(ticks) > 1 else ""
    return f"{ticks}{pad}{line}{pad}{ticks}" if line else ""


def code_cell(value: Any) -> str:
    """Return a code span in a table's cell; as plain text where a bar, a backtick or a backslash is in it."""
    return inline(value) if set("|`\\") & set(flat(value)) else code(value)


def paragraphs(value: str) -> str:
    """Return a text of several paragraphs, kept apart as they are."""
    return "\n\n".join(text(part) for part in re.split(r"\n\s*\n", value.replace("\r\n", "\n")) if flat(part))


def fence(value: str, language: str = "") -> str:
    """Return a fenced code block that the text cannot close."""
    body = value.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "\ufffd")
    ticks = "```"
    while ticks in body:
        ticks += "`"
    return f"{ticks}{language}\n{body.rstrip()}\n{ticks}"


def hub_link(name: str, kind: str = "") -> str:
    """Return a link to a repository on the Hub; `kind` is `datasets/` for a data set."""
    return f"[{inline(name)}](https://huggingface.co/{kind}{quote(flat(name), safe='/')})"


def number(value: float) -> str:
    """Write a number with a thousands separator, or to four significant digits."""
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
