"""The forms of examples: which columns each has, and what is wrong with a row of it.

Pure. The names are TRL's, where it has one. A trainer takes some of them (`runs.trainer_kinds`); which one data is in
its columns tell.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from ..errors import ConfigError, nearest

__all__ = ["COLUMNS", "FORMS", "ROLES", "TEXT_FORMS", "form_of", "judgement", "row_problem"]

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
ROLES: Final = ("system", "developer", "user", "assistant", "tool")
"""Who says a message. Many chat templates write any other word into the text too, and nothing tells of the slip."""
_OTHER_ROLES: Final = {
    **{"human": "user", "prompter": "user"},
    **{"ai": "assistant", "bot": "assistant", "gpt": "assistant", "model": "assistant"},
    **{"function": "tool", "ipython": "tool", "observation": "tool"},
}
"""What other data sets and templates call a role → the role."""
_JUDGEMENTS: Final = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
"""How a judgement is spelled, in small letters: as JSON and Python do, and as a CSV, which has only text, passes on."""


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
    raise ConfigError(
        f"data {name} has columns {', '.join(columns)}; needed {needed}. "
        f"Rename them, or say in a recipe which is which: data.columns: {{{_example(columns, FORMS[forms[0]])}}}"
    )


def _example(columns: Sequence[str], needed: Sequence[str]) -> str:
    """Return what a recipe could say: of the user's own columns in their order, where there are as many as needed."""
    strange = [column for column in columns if column not in needed]
    missing = [ours for ours in needed if ours not in columns]
    theirs = strange if len(strange) == len(missing) else [f"your_{ours}" for ours in missing]
    return ", ".join(f"{ours}: {column}" for ours, column in zip(missing, theirs, strict=True))


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


def judgement(label: Any) -> bool | None:
    """Return whether a label says that a completion is a good one; None where it says neither.

    >>> judgement("True"), judgement(0), judgement("maybe")
    (True, False, None)
    """
    return _JUDGEMENTS.get(str(label).strip().casefold())


def _label_problem(value: Any, form: str) -> str | None:
    if form == "unpaired preference":
        needed = "true or false, or 1 or 0: whether the completion is a good one"
        return f"label is {value!r}, needed {needed}" if judgement(value) is None else None
    if isinstance(value, str):
        return None if value.strip() else "label is empty, needed the label's name or number"
    return None if isinstance(value, int) else f"label is {_kind(value)}, needed the label's name or number"


def _messages_problem(messages: list[Any]) -> str | None:
    if not messages:
        return "no messages, needed at least one"
    for number, message in enumerate(messages, 1):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            return "a message has no role, needed {role, content}"
        if message["role"] not in ROLES:
            return f"message {number} has the role {message['role']!r}; {nearest(message['role'], ROLES, _OTHER_ROLES)}"
        if not isinstance(message.get("content"), str) and not message.get("tool_calls"):
            return f"the {message['role']} message's content is {_kind(message.get('content'))}, needed text"
    return None


def _kind(value: Any) -> str:
    return "missing" if value is None else f"of type {type(value).__name__}"
