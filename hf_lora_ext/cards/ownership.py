"""Whose a card is: what its user wrote in it, and whether anybody but a program changed the rest.

The user's own text stands between two marks and is carried from card to card. The last line is a seal over the rest, by
which a card that nobody edited is known; so are the cards that peft and trl write by themselves.
"""

import hashlib
import json
import re
from typing import Final

from ..errors import ConfigError
from ..strict_yaml import read_yaml

__all__ = ["is_machine_made", "resealed", "sealed", "text_block", "your_text"]

BEGIN: Final = "<!-- hf_lora_ext: your text begins -->"
END: Final = "<!-- hf_lora_ext: your text ends -->"
_BLOCK: Final = re.compile(rf"^{re.escape(BEGIN)}\n(.*?)^{re.escape(END)}$", re.MULTILINE | re.DOTALL)
_SEAL: Final = re.compile(
    r"^<!-- hf_lora_ext: made from facts\.json, seal ([0-9a-f]{16}) ([0-9a-f]{16}) -->$", re.MULTILINE
)
_FRONT_MATTER: Final = re.compile(r"\A\s*---\n(.*?)\n---[ \t]*(?:\n|\Z)", re.DOTALL)
_PEFT_TAIL: Final = re.compile(r"### Framework versions\n+- PEFT \S+")
_PEFT_KEYS: Final = ("library_name", "tags", "base_model", "pipeline_tag")
"""What `save_pretrained` of peft 0.21 sets in a card that is there already; it adds its version below."""
_PEFT_BODIES: Final = {"56d79f3e021bb2d6"}
"""Digest of the body of peft's own card, which is huggingface_hub's template with nothing filled in."""
_TRL_LINES: Final = re.compile(
    r"# Model Card for .*"
    r"|This model is a fine-tuned version of \[.*\]\(https://huggingface\.co/.*\)( on the \[.*\]\(.*\) dataset)?\."
    r"|It has been trained using \[TRL\]\(https://github\.com/huggingface/trl\)\."
    r"|## (Quick start|Training procedure|Citations)|### Framework versions|```(python|bibtex)?"
    r"|from transformers import pipeline|question = \"If you had a time machine,.*"
    r"|generator = pipeline\(\"text-generation\", model=\".*\", device_map=\"auto\"\)"
    r"|output = generator\(\[\{\"role\": \"user\", \"content\": question\}\], .*"
    r"|print\(output\[\"(generated_text|score)\"\]\)"
    r"|\[<img src=.*|This model was trained with [\w ]+(, a method introduced in \[.*\]\(.*\))?\."
    r"|- (PEFT|TRL|Transformers|Pytorch|Datasets|Tokenizers):? \S+|Cite [\w ]+ as:"
    r"|@\w+\{.*|\w+ *= .*|[^=]*\},?|\s*"
)
"""Every line that trl 1.16 writes into a card."""


def your_text(card: str) -> str:
    """Return what stands between the marks, or nothing."""
    found = _BLOCK.search(_unix(card))
    return found[1].strip("\n") if found else ""


def text_block(text: str) -> str:
    """Return the user's text between its marks, which no page shows."""
    inside = text.strip("\n")
    return f"{BEGIN}\n{inside}\n{END}" if inside else f"{BEGIN}\n{END}"


def sealed(card: str) -> str:
    """Return a card with its seal as the last line."""
    body = card.rstrip("\n")
    return f"{body}\n\n<!-- hf_lora_ext: made from facts.json, seal {' '.join(_digests(body))} -->\n"


def resealed(card: str) -> str:
    """Return a sealed card, changed by a program since, with a seal that fits it again."""
    return sealed(_SEAL.sub("", card))


def is_machine_made(card: str) -> bool:
    """Return whether nobody but hf_lora_ext, peft and trl wrote this card, the text between the marks aside."""
    card = _unix(card)
    seal = _SEAL.search(card)
    if seal is None:
        return _is_peft_s(card) or _is_trl_s(card)
    before, after = card[: seal.start()], card[seal.end() :].strip()
    full, without_peft_s_keys = _digests(before)
    if not after:
        return full == seal[1]
    return _PEFT_TAIL.fullmatch(after) is not None and without_peft_s_keys == seal[2]


def _digests(card: str) -> tuple[str, str]:
    """Return digests of a card without the user's text: as it is, and without the keys that peft sets."""
    bare = _BLOCK.sub(f"{BEGIN}\n{END}", _unix(card)).strip()
    metadata, body = _parts(bare)
    kept = {key: value for key, value in metadata.items() if key not in _PEFT_KEYS}
    return _digest(bare), _digest(json.dumps(kept, sort_keys=True, default=str) + body)


def _parts(card: str) -> tuple[dict[str, object], str]:
    """Return a card's metadata and its body."""
    found = _FRONT_MATTER.match(card)
    if not found:
        return {}, card.strip()
    try:
        metadata = read_yaml(found[1], "the card's metadata")
    except ConfigError:
        metadata = {}
    return metadata if isinstance(metadata, dict) else {}, card[found.end() :].strip()


def _is_peft_s(card: str) -> bool:
    return _digest(_PEFT_TAIL.sub("", _parts(card)[1]).strip()) in _PEFT_BODIES


def _is_trl_s(card: str) -> bool:
    body = _parts(card)[1]
    return "trained using [TRL]" in body and all(_TRL_LINES.fullmatch(line.strip()) for line in body.splitlines())


def _digest(text: str) -> str:
    lines = [line.rstrip() for line in text.splitlines()]
    return hashlib.sha256("\n".join(lines).encode("utf8", "replace")).hexdigest()[:16]


def _unix(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")
