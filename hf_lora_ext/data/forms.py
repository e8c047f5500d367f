"""The forms of examples: which columns each has, and what is wrong with a row of it.

Pure. The names are TRL's, where it has one. A trainer takes some of them (`runs.trainer_kinds`); which one data is in
its columns tell.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from ..errors import ConfigError

__all__ = ["COLUMNS", "FORMS", "TEXT_FORMS", "form_of", "row_problem"]

FORMS: Final[Mapping[str, tuple[str, ...]]] = {
    "prompt-completion": ("prompt", "completion"),
    "messages": ("messages",),
    "text": ("text",),
    "preference": ("prompt", "chosen", "rejected"),
    "implicit preference": ("chosen", "rejected"),
    "unpaired preference": ("prompt", "completion", "label"),
    "prompt-only": ("prompt",),
    "labelled text": ("text", "label"),
}
"""Form → its columns. In an implicit preference `chosen` and `rejected` begin with the same prompt."""
TEXT_FORMS: Final = ("prompt-completion", "messages", "text")
"""What is learned token by token, in the order in which they are looked for."""
COLUMNS: Final = frozenset(column for columns in FORMS.values() for column in columns)
"""Every column that has a meaning here."""
_LISTS: Final = frozenset({"messages"})
"""Columns that are never plain text."""


def form_of(columns: Sequence[str], name: str, forms: Sequence[str] = TEXT_FORMS) -> str:
    """Return the first of some forms whose columns are all there.

    Args:
        columns: Columns of the data.
        name: What the data is called, for the error.
        forms: Names in `FORMS` that will do.

    Raises:
        ConfigError: If none is.
    """
    for form in forms:
        if set(FORMS[form]) <= set(columns):
            return form
    needed = ", or ".join(_listed(FORMS[form]) for form in forms)
    first = FORMS[forms[0]]
    example = ", ".join(f"{ours}: your_{ours}" for ours in first)
    raise ConfigError(
        f"data {name} has columns {', '.join(columns)}; needed {needed}. "
        f"Name yours in the recipe, e.g. data.columns: {{{example}}}"
    )


def _listed(columns: Sequence[str]) -> str:
    return columns[0] if len(columns) == 1 else f"{', '.join(columns[:-1])} and {columns[-1]}"


def row_problem(row: Mapping[str, Any], form: str, filled: Iterable[str] = ()) -> str | None:
    """Return what is wrong with a row, or None.

    Args:
        row: The row.
        form: Its form, a name in `FORMS`.
        filled: Further columns that must hold something.
    """
    columns = FORMS[form]
    problem = next((told for column in columns if (told := _column_problem(row, column, form))), None)
    texts = [column for column in columns if column != "label"]
    if problem is None and len({isinstance(row[column], str) for column in texts}) > 1:
        problem = f"{_listed(texts)} are of different kinds, needed all as text or all as messages"
    if problem is None and form == "messages" and not any(m["role"] == "assistant" for m in row["messages"]):
        problem = "messages have no assistant turn, so there is nothing to learn"
    if problem is None and "rejected" in columns and row["chosen"] == row["rejected"]:
        problem = "chosen and rejected are the same, so there is nothing to prefer"
    if problem is None:
        problem = next(
            (f"{column} is empty, needed a value" for column in filled if row.get(column) in (None, "")), None
        )
    return problem


def _column_problem(row: Mapping[str, Any], column: str, form: str) -> str | None:
    value = row[column]
    if column == "label":
        return _label_problem(value, form)
    if isinstance(value, str) and column not in _LISTS:
        return None if value.strip() else f"{column} is empty, needed text"
    if column == "text" or not isinstance(value, list):
        return f"{column} is {_kind(value)}, needed {'a list of messages' if column in _LISTS else 'text'}"
    problem = _messages_problem(value)
    return None if problem is None else f"{column}: {problem}"


def _label_problem(value: Any, form: str) -> str | None:
    if form == "unpaired preference":
        fits = isinstance(value, bool) or value in (0, 1)
        return None if fits else f"label is {value!r}, needed true or false: whether the completion is a good one"
    if isinstance(value, str):
        return None if value.strip() else "label is empty, needed the label's name or number"
    return None if isinstance(value, int) else f"label is {_kind(value)}, needed the label's name or number"


def _messages_problem(messages: list[Any]) -> str | None:
    if not messages:
        return "no messages, needed at least one"
    for message in messages:
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            return "a message has no role, needed {role, content}"
        if not isinstance(message.get("content"), str) and not message.get("tool_calls"):
            return f"the {message['role']} message's content is {_kind(message.get('content'))}, needed text"
    return None


def _kind(value: Any) -> str:
    return "missing" if value is None else f"of type {type(value).__name__}"
