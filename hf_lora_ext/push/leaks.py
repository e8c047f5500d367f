"""Secrets and private names in text: found by line, and cut out of what a library wrote.

The formats of tokens are those that their makers document or that public scanners agree on: a table of our own, because
detect-secrets 1.5 knows no Hugging Face token and takes hashes for secrets. The text of a finding never holds one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from ..cards.facts import redact

__all__ = ["Leak", "PrivateNames", "find_private_names", "find_secrets", "redacted_json"]


@dataclass(frozen=True, slots=True)
class Leak:
    """One place that must not be published."""

    file: str
    """Path in the folder."""
    line: int
    """Line, from 1; 0 for what has no lines."""
    kind: str
    """What it is, without its value."""
    is_secret: bool = True
    """Whether nobody can allow it."""

    def __str__(self) -> str:
        return f"{self.file}{f':{self.line}' if self.line else ''}: {self.kind}"


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivateNames:
    """What identifies this machine, its user and their data."""

    secrets: Mapping[str, str]
    """Value → what it is, such as the environment's own tokens."""
    folders: tuple[str, ...] = ()
    """Absolute paths whose mention is private: home, working folder, the folder that is pushed."""
    people: tuple[str, ...] = ()
    """The user's login and the machine's names."""
    datasets: tuple[str, ...] = ()
    """Ids of datasets that not everybody may see."""
    allowed: frozenset[str] = frozenset()
    """Names and paths that may be published all the same, as their owner says; never a secret."""


_TOKENS: Final = {
    "a Hugging Face token": r"\b(?:hf|api_org)_[A-Za-z0-9]{20,}",
    "an OpenAI key": (
        r"\bsk-(?:proj-|svcacct-|admin-|None-)?[\w-]{0,160}T3BlbkFJ[\w-]{10,}|\bsk-(?:proj|svcacct|admin)-[\w-]{20,}"
    ),
    "an Anthropic key": r"\bsk-ant-[\w-]{20,}",
    "a key that begins with sk-": r"\bsk-(?:or-v1-)?[A-Za-z0-9]{32,}",
    "a GitHub token": r"\bgh[pousr]_[A-Za-z0-9]{30,}|\bgithub_pat_\w{22,}",
    "a GitLab token": r"\bgl(?:pat|ptt|dt|rt|soat|agent|cbt|ft)-[\w-]{20,}",
    "an AWS access key": r"\b(?:AKIA|ASIA|ABIA|ACCA)[0-9A-Z]{16}\b",
    "a Google key": r"\bAIza[\w-]{35}|\bya29\.[\w-]{20,}|\bGOCSPX-[\w-]{20,}",
    "a Slack token": r"\bxox[abeoprs]-[\w-]{10,}|https://hooks\.slack\.com/services/T\w+/B\w+/\w+",
    "a Stripe key": r"\b[rs]k_(?:live|test)_[A-Za-z0-9]{16,}",
    "a PyPI token": r"\bpypi-AgE[\w-]{40,}",
    "an npm token": r"\bnpm_[A-Za-z0-9]{30,}",
    "a SendGrid key": r"\bSG\.[\w-]{16,}\.[\w-]{16,}",
    "a Mailchimp key": r"\b[0-9a-f]{32}-us\d{1,2}\b",
    "a Twilio key": r"\bSK[0-9a-f]{32}\b",
    "a Telegram token": r"\b\d{8,10}:AA[\w-]{33}\b",
    "a Discord token": r"\b[MNO][\w-]{23,25}\.[\w-]{6}\.[\w-]{27,}",
    "an Azure storage key": r"AccountKey=[A-Za-z0-9+/=]{60,}",
    "a Databricks token": r"\bdapi[0-9a-f]{32}\b",
    "a Groq or xAI key": r"\b(?:gsk_|xai-)[A-Za-z0-9]{40,}",
    "a Replicate token": r"\br8_[A-Za-z0-9]{30,}",
    "a DigitalOcean token": r"\bdo[opr]_v1_[0-9a-f]{64}\b",
    "a Weights & Biases key": r"\bwandb_v1_\w{20,}",
    "a private key": r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----",
    "a JSON web token": r"\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}",
    "a password in an address": r"\b[a-z][a-z0-9+.-]{1,20}://[^\s/:@'\"<>]+:[^\s/@'\"<>]{3,}@[\w.-]+",
}
_ASSIGNED: Final = re.compile(
    r"""(?ix)
    (?: (?:api|access|secret|private|auth)[_-]?(?:key|token) | passw(?:or)?d | client_secret | _token )
    ["']? \s{0,4} [:=] \s{0,4} ["']?
    (?P<value> [^\s"',;`<>{}()\[\]]{16,} )
    """
)
"""A name that says secret, and a value."""
_PATHS: Final = re.compile(
    r"""(?x)
    (?<! [\w.~/-] ) (?:file://)?
      /(?: home | Users | root | scratch | lscratch | workspace | mnt | data | tmp | var | opt | srv | content | kaggle
         | gpfs | lustre | nfs | net | fsx | private | media | run | etc | dbfs | autofs )
      /[^\s'"`,;:)\]}>|]+
    | \b [A-Za-z] : \\{1,2} [^\s\\'"`]+ \\ [^\s'"`]*
    | (?<! [\\\w] ) \\{2,4} [A-Za-z][\w.-]+ \\{1,2} [\w$.-]+
    | (?<! [\w/] ) ~[\w-]{0,40} /[\w.-]+
    """
)
"""A path on somebody's machine: below a folder where people, jobs and mounts have theirs."""
_COMMON_LOGINS: Final = frozenset(
    "admin administrator colab data default dev docker ec2-user guest home jovyan lora main model nobody paperspace "
    "peft root runner sagemaker-user student test train ubuntu user users vscode work".split()
)
"""Logins and hosts that name nobody."""


def find_secrets(file: str, text: str, private: PrivateNames, *, assigned: bool = True) -> list[Leak]:
    """Return every line that holds a secret: of a known format, the environment's own, or under a telling name.

    Args:
        file: What the findings call the text.
        text: The text.
        private: What is private here.
        assigned: Whether what stands under a telling name counts; in a vocabulary neighbours mean nothing.
    """
    return list(_leaks(file, text, _secrets_in(private, assigned)))


def find_private_names(
    file: str, text: str, private: PrivateNames, *, people: bool = True, paths: bool = True
) -> list[Leak]:
    """Return every line that names a path, the user, the machine or a private dataset.

    Args:
        file: What the findings call the text.
        text: The text.
        private: What is private here.
        people: Whether logins and host names count; in a vocabulary or a licence they are words like any other.
        paths: Whether any local path counts, not only this machine's own.
    """
    named = _names_in(private, people)
    found = _leaks(file, text, [*named, ("a local path", _PATHS)] if paths else named, private.allowed)
    return [replace(leak, is_secret=False) for leak in found]


_Search = list[tuple[str, re.Pattern[str]]]


def _leaks(file: str, text: str, search: _Search, allowed: frozenset[str] = frozenset()) -> Iterator[Leak]:
    for kind, pattern in search:
        for match in pattern.finditer(text):
            if "value" in pattern.groupindex and not _looks_random(match["value"]):
                continue
            if _is_allowed(match.group(), allowed):
                continue
            yield Leak(file, text.count("\n", 0, match.start()) + 1, kind)


def _secrets_in(private: PrivateNames, assigned: bool) -> _Search:
    own = [(kind, re.compile(re.escape(value))) for value, kind in private.secrets.items() if len(value) >= 8]
    known = [(kind, re.compile(pattern)) for kind, pattern in _TOKENS.items()]
    return [*own, *known, ("a value under a name that says secret", _ASSIGNED)] if assigned else own + known


def _names_in(private: PrivateNames, people: bool) -> _Search:
    named = [("a path on this machine", _word(folder)) for folder in private.folders if len(folder) > 3]
    named += [("a private dataset's name", _word(name)) for name in private.datasets]
    if people:
        named += [("the name of this machine or its user", _word(name)) for name in private.people if _tells(name)]
    return named


def _is_allowed(found: str, allowed: frozenset[str]) -> bool:
    """Return whether a name or path is one of those allowed; a full stop after it belongs to the sentence."""
    return found in allowed or found.rstrip(".") in allowed


def _word(name: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![\w.-]){re.escape(name)}(?![\w-])")


def _tells(name: str) -> bool:
    """Return whether a login or host name says who it is."""
    return len(name) >= 4 and name.lower() not in _COMMON_LOGINS and not name.lower().startswith(("localhost", "ip-"))


def _looks_random(value: str) -> bool:
    """Tell a secret from a word, a number or a reference to one: it mixes digits and letters."""
    if value.startswith(("$", "os.", "env", "http")):
        return False
    return bool(re.search(r"\d", value) and re.search(r"[A-Za-z]", value)) and not re.fullmatch(r"[\w.]+\.\w+", value)


def redacted_json(text: str, private: PrivateNames) -> tuple[str, bool]:
    """Return a library's JSON with local paths cut to their last part and private names cut out, and whether any was.

    Logins, hosts and datasets that are allowed stay; a path is always cut.

    Numbers, order and layout are kept where nothing is cut.

    Raises:
        ValueError: If it is not JSON.
    """
    value = json.loads(text)
    clean = _without_names(redact(value, private.folders), private)
    if clean == value:
        return text, False
    return json.dumps(clean, indent=2, ensure_ascii=False) + "\n", True


def _without_names(value: Any, private: PrivateNames) -> Any:
    if isinstance(value, Mapping):
        return {_without_names(key, private): _without_names(item, private) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_names(item, private) for item in value]
    if not isinstance(value, str):
        return value
    for name in private.datasets:
        if name not in private.allowed:
            value = _word(name).sub("a private dataset", value)
    value = _PATHS.sub(lambda match: re.split(r"[/\\]", match.group().rstrip("/\\"))[-1], value)
    for name in filter(_tells, private.people):
        if name not in private.allowed:
            value = _word(name).sub("private", value)
    return value
