"""What of a folder is published with an adapter, and what stays: a list of what may go, never of what may not."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from ..adapters.tensor_names import CONFIG, WEIGHTS

__all__ = [
    "CARD",
    "CONFIG",
    "WEIGHTS",
    "LeftOut",
    "goes_along",
    "is_machine_made",
    "is_text",
    "outdated",
    "sort_out",
    "without_remarks",
]

CARD: Final = "README.md"

_TOKENIZER: Final = r"""
      (tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab|(pre)?processor_config)\.json
    | vocab\.txt | merges\.txt | (tokenizer|spiece|sentencepiece\.bpe)\.model
    | chat_template\.(jinja|json) | additional_chat_templates/[\w.-]+\.jinja
"""
_TERMS: Final = r"(LICENSE|LICENCE|NOTICE|USE_POLICY)(\.(md|txt))?"
_MAY_GO: Final = re.compile(
    rf"""
      adapter_config\.json | adapter_model\.safetensors | README\.md
    | {_TOKENIZER} | {_TERMS}
    | \.eval_results/[\w.-]+\.yaml
    | facts\.json | rank_history\.json | [\w-]+\.png
    """,
    re.VERBOSE,
)
_GOES_ALONG: Final = re.compile(f"{_TOKENIZER} | {_TERMS}", re.VERBOSE)
_WHY_NOT: Final = (
    (re.compile(r"training_args\.bin|.*\.(pkl|pickle|pt|pth|bin|ckpt)"), "can hold code or secrets when it is loaded"),
    (re.compile(r"(.*/)?\.env.*|.*\.(pem|key)"), "usually holds secrets"),
    (
        re.compile(r"(checkpoints|checkpoint-\d+)/|\.lock|trainer_state\.json|(facts|push)_progress\.json"),
        "to resume from, not to publish",
    ),
)
_MADE_ANEW: Final = re.compile(rf"{_TOKENIZER} | facts\.json | rank_history\.json", re.VERBOSE)
_MACHINE_MADE: Final = {CONFIG, "tokenizer_config.json", "facts.json", "rank_history.json"}
_TEXT: Final = re.compile(r".*\.(json|md|txt|jinja|yaml)|LICEN[SC]E|NOTICE|USE_POLICY")
_PNG_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_PNG_PICTURE: Final = {b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"gAMA", b"sRGB", b"pHYs"}


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A file or folder that does not go."""

    path: str
    """Path in the folder."""
    reason: str
    """Why it stays."""


def sort_out(paths: Iterable[str]) -> tuple[list[str], list[LeftOut]]:
    """Return which paths of a folder go to the Hub, and which stay with the reason.

    >>> sort_out(["adapter_config.json", "notes.doc"])
    (['adapter_config.json'], [LeftOut(path='notes.doc', reason='not on the list of what an adapter needs')])
    """
    go: list[str] = []
    stay: list[LeftOut] = []
    for path in sorted(paths):
        if _MAY_GO.fullmatch(path):
            go.append(path)
        else:
            known = (reason for pattern, reason in _WHY_NOT if pattern.fullmatch(path))
            stay.append(LeftOut(path, next(known, "not on the list of what an adapter needs")))
    return go, stay


def goes_along(paths: Iterable[str]) -> list[str]:
    """Return which files of an adapter's folder go with another adapter that is made of it.

    Not its card, facts and pictures, which describe the weights that they lie beside.

    >>> goes_along(["LICENSE", "README.md", "adapter_config.json", "tokenizer.json"])
    ['LICENSE', 'tokenizer.json']
    """
    return sorted(path for path in paths if _GOES_ALONG.fullmatch(path))


def outdated(there: Iterable[str], release: Iterable[str]) -> list[str]:
    """Return the files of an earlier version that would be read together with this one, which has none of the name.

    Only what libraries write with every version: a tokenizer that is not this adapter's, facts of another run.
    Texts, pictures and evaluations may be somebody's own work on the Hub, and stay.

    >>> outdated(["vocab.json", "LICENSE", "README.md"], ["README.md"])
    ['vocab.json']
    """
    return sorted(path for path in set(there) - set(release) if _MADE_ANEW.fullmatch(path))


def is_text(path: str) -> bool:
    """Return whether a file that may go is text."""
    return bool(_TEXT.fullmatch(path))


def is_machine_made(path: str) -> bool:
    """Return whether a library wrote the file, so that private names in it are cut out; a person's text is not."""
    return path in _MACHINE_MADE


def without_remarks(png: bytes) -> bytes:
    """Return a PNG picture without the texts, dates and profiles that programs leave in it.

    Raises:
        ValueError: If it is no whole PNG picture.
    """
    if not png.startswith(_PNG_SIGNATURE):
        raise ValueError("no PNG signature")
    kept, position = [_PNG_SIGNATURE], len(_PNG_SIGNATURE)
    while True:
        end = position + 12 + int.from_bytes(png[position : position + 4])
        kind = png[position + 4 : position + 8]
        if end > len(png) or not kind:
            raise ValueError("it ends in the middle")
        if kind in _PNG_PICTURE:
            kept.append(png[position:end])
        if kind == b"IEND":
            return b"".join(kept)
        position = end
