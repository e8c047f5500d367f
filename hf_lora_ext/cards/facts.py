"""Facts of a training run: what is known for certain, as plain JSON, from which the card is rendered.

`FactsCallback` gathers them while training. Nothing in them identifies the machine or its user: local paths
are cut to their last part, tokens are never read.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Final

from ..errors import ConfigError
from .comparisons import Comparison
from .fact_keys import AdapterFacts, EnvironmentFacts, RunFacts
from .plain_values import misfit

__all__ = [
    "BaseModelFacts",
    "DataFacts",
    "Facts",
    "Sample",
    "StatedFacts",
    "json_ready",
    "read_facts",
    "redact",
    "write_text_atomically",
]

SCHEMA_VERSION: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseModelFacts:
    """The model that was adapted."""

    name: str
    """Hub id, or the last part of a local folder's path."""
    on_hub: bool
    """Whether `name` is an id on the Hugging Face Hub."""
    revision: str | None = None
    """Commit on the Hub."""
    sha256: str | None = None
    """Hash of the weight file, where the weights did not come from the Hub."""
    parameters: int | None = None
    """Total parameters."""
    license: str | None = None
    """The base's licence, by its Hub identifier."""
    license_name: str | None = None
    """Its name, where the identifier is `other`."""
    license_link: str | None = None
    """Where it can be read, where the identifier is `other`."""
    note: str | None = None
    """What a reader must know about these weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFacts:
    """The examples that were trained on and held out."""

    name: str
    """Name of the source: Hub id, built-in name, or file name."""
    form: str
    """A name in `data.forms.FORMS`; `tokenised` where only token columns were seen."""
    train_examples: int
    """Examples trained on."""
    fingerprint: str
    """SHA-256 over the training examples' content, in order."""
    eval_examples: int | None = None
    """Examples held out."""
    eval_fingerprint: str | None = None
    """SHA-256 over the held-out examples' content, in order."""
    revision: str | None = None
    """Commit on the Hub."""
    on_hub: bool | None = None
    """Whether `name` is known to be a data set on the Hugging Face Hub."""
    note: str | None = None
    """How the examples were made or split."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One held-out example, answered by the base and by the adapter."""

    prompt: str
    """The input."""
    reference: str
    """The real answer."""
    base: str
    """The base model's answer."""
    adapter: str
    """The adapted model's answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StatedFacts:
    """What only the author can say."""

    language: Sequence[str] = ()
    """Languages, by ISO 639 code of two or three letters, or `code` or `multilingual`."""
    intended_use: str | None = None
    """What the adapter is for."""
    limitations: str | None = None
    """What it is not for, and where it fails."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Everything known about a run; an empty section means unknown and never reaches the card."""

    base_model: BaseModelFacts | None = None
    """The model that was adapted."""
    data: DataFacts | None = None
    """The examples."""
    adapter: Annotated[Mapping[str, Any], AdapterFacts] = field(default_factory=dict)
    """Kind, rank (by layer where it differs), alpha, targets, trainable parameters, bytes, the whole PEFT config."""
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    """Training arguments that shape the result."""
    quantization: Mapping[str, Any] = field(default_factory=dict)
    """How the base was quantised."""
    run: Annotated[Mapping[str, Any], RunFacts] = field(default_factory=dict)
    """Start (UTC), method, steps, tokens, seconds (of all, and the median of a step), peak memory in GiB and beside its
    plan, emissions in grams, whether it finished."""
    loss_history: Sequence[Mapping[str, float]] = ()
    """Rows of `step` with `loss` (training) or `eval_loss` (held out); of what learns from rewards, with those.
    Of a long run, the outline of each curve."""
    evaluation: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """`base` and `adapter` → metric → value, on the held-out examples."""
    comparisons: Sequence[Comparison] = ()
    """Base and adapter on the same rows, with intervals, as `hf-lora evaluate` finds them."""
    samples: Sequence[Sample] = ()
    """Held-out examples answered before and after."""
    environment: Annotated[Mapping[str, Any], EnvironmentFacts] = field(default_factory=dict)
    """`versions` and `hardware`."""
    recipe: str | None = None
    """The recipe as YAML, which reproduces the run."""
    pictures: Sequence[str] = ()
    """Names of the pictures that lie beside the facts."""
    stated: StatedFacts | None = None
    """What the author says of the adapter."""
    repo_id: str | None = None
    """Where on the Hub the adapter is published."""

    def to_dict(self) -> dict[str, Any]:
        """Return the facts as JSON-ready values; unknown facts are left out."""
        known: dict[str, Any] = _without_unknown(asdict(self))
        return {"schema_version": SCHEMA_VERSION} | known

    def to_json(self) -> str:
        """Return the facts as JSON text; a loss that is not a number is written as `null`."""
        return json.dumps(json_ready(self.to_dict()), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Facts:
        """Return the facts in a mapping that `to_dict` wrote.

        Raises:
            ConfigError: If the mapping is of another schema or has unknown sections.
        """
        version = raw.get("schema_version")
        if version != SCHEMA_VERSION:
            raise ConfigError(
                f"facts have schema_version {version!r}, this version reads {SCHEMA_VERSION}; write them anew"
            )
        given = {key: value for key, value in raw.items() if key != "schema_version"}
        if unknown := set(given) - {f.name for f in fields(cls)}:
            raise ConfigError(f"facts have unknown sections: {', '.join(sorted(unknown))}; remove them")
        if problem := misfit(given, cls, "facts"):
            raise ConfigError(f"facts are malformed ({problem}); write them anew")
        for name, kind in (("base_model", BaseModelFacts), ("data", DataFacts)):
            if given.get(name) is not None:
                given[name] = kind(**given[name])
        if given.get("stated") is not None:
            stated = given["stated"]
            given["stated"] = StatedFacts(**{**stated, "language": tuple(stated.get("language", ()))})
        try:
            given["comparisons"] = tuple(map(Comparison.from_dict, given.get("comparisons", ())))
        except TypeError as error:  # a metric that this version does not know
            raise ConfigError(f"facts are malformed ({error}); write them anew") from error
        given["samples"] = tuple(Sample(**sample) for sample in given.get("samples", ()))
        given["loss_history"] = tuple(given.get("loss_history", ()))
        given["pictures"] = tuple(given.get("pictures", ()))
        return cls(**given)


def read_facts(path: Path) -> Facts:
    """Return the facts in a file.

    Raises:
        ConfigError: If the file is missing, is not JSON, or holds other facts.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf8"))
        # JSON may name halves of letters, which a model can write and no file takes: each becomes a question mark
        raw = json.loads(json.dumps(raw, ensure_ascii=False).encode("utf8", "replace"))
    except FileNotFoundError as error:
        raise ConfigError(f"no {path.name} in {path.parent}; it is written while training") from error
    except RecursionError as error:
        raise ConfigError(f"{path} is nested too deeply to be facts; write it anew") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON ({error}); write it anew") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} holds no JSON object; write it anew")
    return Facts.from_dict(raw)


def write_text_atomically(path: Path, text: str) -> None:
    """Write a file so that a reader, or a run killed half-way, sees the old text or the new, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def redact(value: Any, private_folders: Sequence[str] = ()) -> Any:
    """Return a copy of a JSON-like value without local paths.

    A text that is one absolute path keeps its last part only; inside longer texts, paths under one of
    `private_folders` (home, working folder, output folder) do.
    """
    if isinstance(value, str):
        return _redact_text(value, private_folders)
    if isinstance(value, Mapping):
        return {_redact_text(str(k), private_folders): redact(v, private_folders) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [redact(item, private_folders) for item in value]
    return value


_ABSOLUTE_PATH: Final = re.compile(r"(?:/|~[\w.-]*/|[A-Za-z]:[\\/]|\\\\)[^\s]+")


def _redact_text(text: str, private_folders: Sequence[str]) -> str:
    if _ABSOLUTE_PATH.fullmatch(text):
        return _last_part(text)
    before = None
    while text != before:  # what is left of two paths can join to a third
        before = text
        for folder in sorted((f for f in private_folders if len(f) > 1), key=len, reverse=True):
            stem = re.escape(folder.rstrip("/\\"))
            text = re.sub(rf"{stem}(?:[/\\][^\s'\"`,;:)\]}}]*)?(?![\w-])", lambda m: _last_part(m.group()), text)
    return text


def _last_part(path: str) -> str:
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1] or path


def json_ready(value: Any) -> Any:
    """Return the value with None in place of NaN and infinities, which JSON does not know."""
    if isinstance(value, dict):
        return {key: json_ready(item) for key, item in value.items()}
    if isinstance(value, list):
        return [json_ready(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _without_unknown(value: Any) -> Any:
    """Drop None and empty sections, at every depth of mappings."""
    if isinstance(value, Mapping):
        cleaned = {key: _without_unknown(item) for key, item in value.items()}
        return {
            key: item for key, item in cleaned.items() if item is not None and item != {} and item != [] and item != ()
        }
    if isinstance(value, (list, tuple)):
        return [_without_unknown(item) for item in value]
    return value
