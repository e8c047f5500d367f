"""Training examples: read, checked, split and fingerprinted before a model is loaded.

The forms that are understood, by their columns, are in `forms`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ..cards.facts import DataFacts
from ..errors import ConfigError, nearest
from .files import is_data_file, read_data_file
from .forms import FORMS, TEXT_FORMS, form_of, row_problem
from .labels import label_names, numbered

if TYPE_CHECKING:
    from datasets import Dataset

    from ..runs.recipe import DataChoice

__all__ = ["Examples", "describe_dataset", "fingerprint", "load_examples", "sample_rows"]

BUILTIN: Final = "builtin:"
_BUILTIN_GROUPS: Final = {
    f"{BUILTIN}{name}": "module" for name in ("python-docstrings", "python-docstring-preferences")
}
"""Built-in source → the column whose values stay together unless the recipe says otherwise."""
_OTHER_FORMS: Final = tuple(form for form in FORMS if form not in TEXT_FORMS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Examples:
    """Examples ready for a trainer."""

    train: Dataset
    """To learn from."""
    held_out: Dataset
    """To measure on."""
    facts: DataFacts
    """Source, counts and fingerprints."""
    labels: tuple[str, ...] = ()
    """Names of the labels of labelled texts, whose rows have their numbers."""

    @property
    def form(self) -> str:
        """A name in `forms.FORMS`."""
        return self.facts.form


def load_examples(choice: DataChoice, forms: Sequence[str] = TEXT_FORMS, keep: Sequence[str] = ()) -> Examples:
    """Return the examples that a recipe chose.

    Args:
        choice: Where they come from and how they are split.
        forms: Names in `forms.FORMS` that will do, in the order in which they are looked for.
        keep: Further columns to keep, each of which must hold something in every row.

    Raises:
        ConfigError: If the source is missing or unreadable, its columns fit no form, a row is malformed, or
            nothing is left to train on or to hold out.
    """
    rows, revision = _read(choice.source, choice)
    group_by = choice.group_by or _BUILTIN_GROUPS.get(choice.source)
    rows = _renamed(rows, choice.columns, _shown_name(choice.source))
    form = form_of(rows.column_names, _shown_name(choice.source), forms)
    rows, notes = _usable(rows, form, choice, choice.source, keep)
    if choice.eval_source:
        train = rows
        held_out = _renamed(_read(choice.eval_source, choice)[0], choice.columns, _shown_name(choice.eval_source))
        held_out, more = _usable(held_out, form, choice, choice.eval_source, keep)
        notes += [*more, f"Held-out examples come from {_shown_name(choice.eval_source)}."]
    else:
        train, held_out = _split(rows, choice, group_by)
        whole = f"`{group_by}`" if group_by else "example"
        notes.append(f"Held out by a hash of the {whole}, so that no {whole} is on both sides.")
    columns = [*dict.fromkeys((*FORMS[form], *keep))]
    train = sample_rows(train, choice.train_examples).select_columns(columns)
    held_out = sample_rows(held_out, choice.eval_examples).select_columns(columns)
    labels: tuple[str, ...] = ()
    if forms[0] == "unpaired preference":
        train, held_out = _mixed(train), _mixed(held_out)
        notes.append("Good and bad completions are mixed by a hash, since KTO reads examples in their order.")
        form = "unpaired preference"
    if form == "labelled text":
        labels = label_names(rows, train, held_out, _shown_name(choice.source))
        train, held_out = (numbered(part, labels) for part in (train, held_out))
    facts = describe_dataset(train, held_out, _shown_name(choice.source), revision, " ".join(notes), form)
    return Examples(train=train, held_out=held_out, facts=facts, labels=labels)


def describe_dataset(
    train: Dataset,
    held_out: Dataset | None,
    name: str,
    revision: str | None = None,
    note: str | None = None,
    form: str | None = None,
) -> DataFacts:
    """Return the facts of datasets in one of the forms; which one, where it is not given, their columns tell.

    Raises:
        ConfigError: If the columns fit no form.
    """
    return DataFacts(
        name=name,
        form=form or form_of(train.column_names, name, (*TEXT_FORMS, *_OTHER_FORMS)),
        train_examples=len(train),
        fingerprint=fingerprint(train),
        eval_examples=len(held_out) if held_out is not None else None,
        eval_fingerprint=fingerprint(held_out) if held_out is not None else None,
        revision=revision,
        note=note,
    )


def fingerprint(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return a SHA-256 over the rows' content, in order; the same on every machine."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(_canonical(row))
        digest.update(b"\n")
    return digest.hexdigest()


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str).encode()


def _shown_name(source: str) -> str:
    return Path(source).name if is_data_file(source) else source


def _read(source: str, choice: DataChoice) -> tuple[Dataset, str | None]:
    """Return the rows of a source, and the revision where it came from the Hub."""
    if source.startswith(BUILTIN):
        return _read_builtin(source.removeprefix(BUILTIN)), None
    if is_data_file(source):
        return read_data_file(Path(source).expanduser()), None
    if Path(source).exists():
        found = Path(source).suffix or "folder"
        raise ConfigError(f"data {source}: found a {found}, needed a .jsonl, .json, .csv or .parquet file; convert it")
    return _read_hub(source, choice)


def _read_builtin(name: str) -> Dataset:
    from datasets import Dataset

    from . import stdlib_docstrings as stdlib

    sources = {
        "python-docstrings": stdlib.docstring_examples,
        "python-docstring-preferences": stdlib.preference_examples,
        "python-packages": stdlib.package_examples,
    }
    if name not in sources:
        raise ConfigError(f"data {BUILTIN}{name} is not known; {nearest(name, sources)}")
    return Dataset.from_list(list(sources[name]()))


def _read_hub(name: str, choice: DataChoice) -> tuple[Dataset, str | None]:
    from ..hub import load_hub_dataset

    return load_hub_dataset(name, choice.split, choice.revision)


def _renamed(rows: Dataset, columns: Mapping[str, str], name: str) -> Dataset:
    """Give the user's columns our names; a column that is in the way of a new name goes."""
    taken = list(columns.values())
    if len(set(taken)) < len(taken):
        raise ConfigError(f"data.columns maps two of {', '.join(columns)} to one column; give each its own")
    for theirs in taken:
        if theirs not in rows.column_names:
            raise ConfigError(f"data {name} has no column {theirs!r}; {nearest(theirs, rows.column_names)}")
    rows = rows.remove_columns([c for c in columns if c in rows.column_names and c not in taken])
    rows = rows.rename_columns({theirs: f"mapped {ours}" for ours, theirs in columns.items()})
    return rows.rename_columns({f"mapped {ours}": ours for ours in columns})


def _usable(
    rows: Dataset, form: str, choice: DataChoice, source: str, keep: Sequence[str]
) -> tuple[Dataset, list[str]]:
    """Check every row, leave out those over the length limit, and return notes on what was left out."""
    name, limit = _shown_name(source), choice.max_characters
    columns = [*dict.fromkeys((*FORMS[form], *keep))]
    for column in columns:
        if column not in rows.column_names:
            found, why = ", ".join(rows.column_names), "a reward needs" if column in keep else "the training data has"
            raise ConfigError(f"data {name} has no column {column!r}, as {why}; found {found}")
    if not len(rows):
        raise ConfigError(f"data {name} has no rows; give at least two examples")
    for number, row in enumerate(rows.select_columns(columns), 1):
        if problem := row_problem(row, form, keep):
            raise ConfigError(f"data {name}, row {number}: {problem}; fix or remove the row")
    if limit is None:
        return rows, []
    short = [i for i, row in enumerate(rows.select_columns(columns)) if _characters(row) <= limit]
    if not short:
        raise ConfigError(f"data {name}: no example has at most {limit} characters; raise data.max_characters")
    if len(short) == len(rows):
        return rows, []
    return rows.select(short), [f"{len(rows) - len(short):,} examples over {limit} characters were left out."]


def _mixed(rows: Dataset) -> Dataset:
    """Return completions with labels, two of a pair, in an order by their content."""
    from datasets import Dataset

    single: list[dict[str, Any]] = []
    for row in rows:
        if "completion" in row:
            single.append(row | {"label": bool(row["label"])})
        else:
            pair = {True: row["chosen"], False: row["rejected"]}
            single += [{"prompt": row["prompt"], "completion": said, "label": good} for good, said in pair.items()]
    return Dataset.from_list(sorted(single, key=_hash_fraction))


def _characters(value: Any) -> int:
    """Count the characters of all texts in a row, at any depth."""
    if isinstance(value, str):
        return len(value)
    items: Iterator[Any] | Iterable[Any] = (
        value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    )
    return sum(map(_characters, items))


def _split(rows: Dataset, choice: DataChoice, group_by: str | None) -> tuple[Dataset, Dataset]:
    """Hold out the groups (or single examples) whose content hashes below the fraction."""
    if group_by and group_by not in rows.column_names:
        near = nearest(group_by, rows.column_names)
        raise ConfigError(f"data {_shown_name(choice.source)} has no column {group_by!r} to group by; {near}")
    keys = [_hash_fraction(key) for key in (rows[group_by] if group_by else rows)]
    if len(set(keys)) < 2:
        unit = f"value of {group_by!r}" if group_by else "example"
        raise ConfigError(
            f"data {_shown_name(choice.source)} has a single distinct {unit}, so none can be held out; "
            "give more data, or data.eval_source"
        )
    lowest = min(keys)  # small data: at least one group is held out, and at least one is not
    highest = max(keys)
    held = [key == lowest or (key < choice.eval_fraction and key != highest) for key in keys]
    train = rows.select([i for i, is_held in enumerate(held) if not is_held])
    return train, rows.select([i for i, is_held in enumerate(held) if is_held])


def _hash_fraction(value: Any) -> float:
    """Map a value to [0, 1) by its content."""
    return int.from_bytes(hashlib.sha256(_canonical(value)).digest()[:6]) / 2**48


def sample_rows(rows: Dataset, limit: int | None) -> Dataset:
    """Keep `limit` rows, chosen and ordered by a hash of their content; without a limit, all as they are."""
    if limit is None or len(rows) <= limit:
        return rows
    order = sorted(range(len(rows)), key=[_hash_fraction(row) for row in rows].__getitem__)
    return rows.select(order[:limit])
