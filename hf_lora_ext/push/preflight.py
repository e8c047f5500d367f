"""Everything that is found out about a release before the Hub is written to: what goes, what was cut, what is wrong."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from ..adapters.peft_seam import describe_saved
from ..adapters.stored_adapter import StoredAdapter, check_against_config, read_config, read_stored_adapter
from ..cards.facts import BaseModelFacts, Facts, read_facts
from ..cards.licences import LICENCE_TERMS
from ..errors import AdapterError, ConfigError, PushError, UnfitError
from ..hub import HubModel
from ..hub.landing import RemoteFile
from ..hub.repository import is_public_dataset, stored_token
from ..machine import private_folders, private_people, secrets_of_environment
from .base_terms import NOT_SAID, copy_agreement, find_base, find_terms
from .gathering import Gathered
from .leaks import Leak, PrivateNames, find_private_names, find_secrets, redacted_json
from .plan import PushRequest
from .release import CARD, CONFIG, WEIGHTS, LeftOut, is_machine_made, is_text, without_remarks
from .release_card import base_metadata, card_for, card_metadata_of, card_problems, tags_without_paths, with_metadata
from .release_terms import Terms, find_doubts, find_missing, notice_for

__all__ = ["Release", "ReleasedFile", "identified", "prepare"]

_VOCABULARY: Final = re.compile(r"tokenizer\.json|vocab\.(json|txt)|merges\.txt|added_tokens\.json|.*\.model")
"""Files whose words are the language's own: there only whole secrets and this machine's own folders are looked for."""
_NAMELESS: Final = re.compile(
    r"adapter_config\.json|LICEN[SC]E.*|NOTICE.*|USE_POLICY.*|tokenizer_config\.json|.*\.jinja"
)
"""Files in which a login is a word like any other: module names, copyright holders, templates."""
_DATASET: Final = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")
_SHOWN_PROBLEMS: Final = 20
_TITLE: Final = "the commit's message"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleasedFile:
    """A file that goes, by its content."""

    size: int
    """Bytes."""
    sha256: str
    """SHA-256 of the content."""
    blob: str
    """Git's blob id of the content."""

    @property
    def as_remote(self) -> RemoteFile:
        """The file as the Hub would list it."""
        return RemoteFile(self.blob, self.sha256)


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """What is published, checked."""

    folder: Path
    """Where the files are, as they go."""
    files: Mapping[str, ReleasedFile]
    """Path → content."""
    left_out: tuple[LeftOut, ...]
    """What stays where it is."""
    changes: tuple[str, ...]
    """What was cut or added, one line each."""
    base: BaseModelFacts | None
    """The base."""
    terms: Terms
    """The licence."""
    stored: StoredAdapter
    """The weights, without their numbers."""
    doubts: tuple[str, ...] = ()
    """What could not be checked, one line each."""
    is_base_gated: bool = False
    """Whether the base's owner decides who may load it."""

    @property
    def wanted(self) -> dict[str, RemoteFile | None]:
        """The files as the Hub is to list them."""
        return {path: file.as_remote for path, file in self.files.items()}


def prepare(gathered: Gathered, request: PushRequest, token: str | None, *, may_guess: bool = False) -> Release:
    """Return the release, its folder made fit to publish.

    Args:
        gathered: A folder that nobody else writes to; its files are changed here.
        request: What was asked for, with the whole id of the repository, and its visibility where it is there.
        token: The token that was given, which must not be in any file.
        may_guess: Whether nothing is pushed, so that what the Hub alone could tell is a doubt and no error.

    Raises:
        AdapterError: If weights and config are no whole adapter.
        ConfigError: If the licence is not known or a file cannot be read.
        UnfitError: If a secret, a private name or a missing duty forbids it; all of them at once.
        PushError: If the Hub cannot be asked who may see a dataset.
    """
    folder = gathered.folder
    config = read_config(folder / CONFIG)
    stored = read_stored_adapter(folder / WEIGHTS)
    own = _text(folder, CARD) if (folder / CARD).is_file() else None
    hidden_data, doubts = _hidden_datasets(gathered, may_guess=may_guess)
    private = _private_names(gathered, token, frozenset(request.allow), hidden_data)
    _check_weights(folder, stored, config, private)
    changes, facts = _cut(folder, config, private)
    recorded = config.get("base_model_name_or_path")
    said = card_metadata_of(own) if own else {}
    base, agreed, online = find_terms(
        find_base(config, facts), recorded, said, request.terms, token, private.allowed, may_guess=may_guess
    )
    if agreed is NOT_SAID:
        doubts += ("nothing here says what licence the base has; a push that finds none asks for license= (--license)",)
    changes += _add_texts(folder, base, recorded, agreed, token)
    told = replace(facts, base_model=base) if facts else Facts(base_model=base, adapter=describe_saved(folder))
    told = replace(told, repo_id=request.repo_id)
    card, origin = card_for(own, told, is_of_a_run=facts is not None)
    if facts:
        (folder / "facts.json").write_text(told.to_json(), encoding="utf8")
    must = base_metadata(base) | {"library_name": "peft"} | agreed.metadata() | tags_without_paths(card)
    card, amended = with_metadata(card, must)
    changes += [f"{CARD}: {origin}" + (f"; metadata set: {', '.join(amended)}" if amended else "")]
    (folder / CARD).write_text(card, encoding="utf8", newline="")
    leaks = [*_scan(folder, stored, private), *_leaks_in(_TITLE, request.message, private)]
    problems = [*map(str, _in_the_users_lines(leaks, own, card)), *card_problems(card)]
    problems += _undone(folder, request.repo_id, base, agreed, card)
    hidden = _hidden_base(online, request)
    if problems or hidden:
        may_be_allowed = not all(leak.is_secret for leak in leaks)
        raise UnfitError(_refusal([*problems, *hidden], may_be_allowed=may_be_allowed))
    files = {path: identified(folder / path) for path in _listed(folder)}
    return Release(
        folder=folder,
        files=files,
        left_out=gathered.left_out,
        changes=tuple(changes),
        base=base,
        terms=agreed,
        stored=stored,
        doubts=(*doubts, *_doubts(base, agreed, is_seen=online is not None)),
        is_base_gated=online is not None and online.is_gated,
    )


def _text(folder: Path, path: str) -> str:
    """Return a text file's content, which could not be searched in another encoding.

    Raises:
        ConfigError: If it is not UTF-8.
    """
    try:
        text = (folder / path).read_bytes().decode("utf8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 ({error.reason}); save it as UTF-8, or remove it") from error
    if "\0" in text:
        raise ConfigError(f"{path} holds zero bytes, as UTF-16 does; save it as UTF-8, or remove it")
    return text


def _doubts(base: BaseModelFacts | None, terms: Terms, *, is_seen: bool) -> tuple[str, ...]:
    """Return what nobody here knows, one line each."""
    doubts = []
    if base and base.on_hub and not is_seen:
        doubts.append(f"the Hub did not show {base.name}: whether everybody may know of it was not checked")
    return (*doubts, *(find_doubts(base.name, base.license, terms) if base else ()))


def _hidden_base(online: HubModel | None, request: PushRequest) -> list[str]:
    """Return why the base's name must not go where it would: it is private, and the adapter is not known to be."""
    if online is None or not online.is_private or request.private or online.name in request.allow:
        return []
    seen = "public" if request.private is False else "public, unless your account's default or private= says otherwise"
    return [
        f"the base {online.name} is private and {request.repo_id} is {seen}: {CARD} and {CONFIG} would tell its name; "
        "push to a private repository (private=True, --private), or let the name be public: allow= (--allow) "
        f"{online.name}"
    ]


def _private_names(
    gathered: Gathered, token: str | None, allowed: frozenset[str], datasets: tuple[str, ...]
) -> PrivateNames:
    secrets = secrets_of_environment()
    for value, name in ((stored_token(), "the token that is logged in"), (token, "the token of this push")):
        if value:
            secrets[value] = name
    told = {value: f"the value of {name}" if name.isupper() else name for value, name in secrets.items()}
    return PrivateNames(
        secrets=told,
        folders=tuple(private_folders(*gathered.origins)),
        people=tuple(private_people()),
        datasets=datasets,
        allowed=allowed,
    )


def _hidden_datasets(gathered: Gathered, *, may_guess: bool) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the ids of the datasets that facts or card name and not everybody can see, and what is not known of that.

    Raises:
        PushError: If the Hub does not tell, and it must.
    """
    ids = _datasets(gathered)
    try:
        return tuple(name for name in ids if not is_public_dataset(name)), ()
    except PushError:
        if not may_guess:
            raise
        return (), tuple(f"the Hub did not tell whether everybody may know of the dataset {name}" for name in ids)


def _datasets(gathered: Gathered) -> list[str]:
    """Return the ids of the datasets that facts or card name."""
    named: set[str] = set()
    facts, card = gathered.folder / "facts.json", gathered.folder / CARD
    if facts.is_file():
        known = read_facts(facts)
        named |= {one.data for one in known.comparisons} | ({known.data.name} if known.data else set())
    if card.is_file():
        listed = card_metadata_of(card.read_text(encoding="utf8")).get("datasets") or ()
        named.update(map(str, listed if isinstance(listed, list) else [listed]))
    return sorted(name for name in named if _DATASET.fullmatch(name))


def _cut(folder: Path, config: dict[str, Any], private: PrivateNames) -> tuple[list[str], Facts | None]:
    """Cut private names out of what libraries wrote; return what was cut, and the facts as they are now."""
    facts = read_facts(folder / "facts.json") if (folder / "facts.json").is_file() else None
    known, changes = _base_in_config(config, find_base(config, facts))
    if changes:
        text = json.dumps(config | known, indent=2, ensure_ascii=False) + "\n"
        (folder / CONFIG).write_text(text, encoding="utf8")
    for path in filter(is_machine_made, _listed(folder)):
        nameless = replace(private, people=()) if _NAMELESS.fullmatch(path) else private
        try:
            text, was_cut = redacted_json((folder / path).read_text(encoding="utf8"), nameless)
        except ValueError as error:
            raise ConfigError(f"{path} is not JSON ({error}); remove it, or save it again") from error
        if was_cut:
            (folder / path).write_text(text, encoding="utf8")
            changes.append(f"{path}: private names and paths cut")
    for picture in sorted(folder.glob("*.png")):
        _clean_picture(picture)
    return changes, read_facts(folder / "facts.json") if facts else None


def _base_in_config(config: Mapping[str, Any], base: BaseModelFacts | None) -> tuple[dict[str, str], list[str]]:
    """Return the keys of an adapter's config that its base changes, and what is said of that.

    With its `revision`, peft's AutoPeftModel loads the base at the commit that the adapter was trained on.
    """
    known, changes = {}, []
    if base and config.get("base_model_name_or_path") != base.name:
        known["base_model_name_or_path"] = base.name
        changes.append(f"{CONFIG}: base_model_name_or_path, a local path, became {base.name}")
    if base and base.on_hub and base.revision and not config.get("revision"):
        known["revision"] = base.revision
        changes.append(f"{CONFIG}: the base's revision, {base.revision}, added")
    return known, changes


def _clean_picture(file: Path) -> None:
    try:
        file.write_bytes(without_remarks(file.read_bytes()))
    except ValueError as error:
        raise ConfigError(f"{file.name} is no PNG picture ({error}); remove it from the folder") from error


def _add_texts(folder: Path, base: BaseModelFacts | None, recorded: Any, terms: Terms, token: str | None) -> list[str]:
    """Add the agreement and the notice that the licence asks for, where the folder has none."""
    binding = _binding(base, terms)
    added = [f"{name}: the base's own" for name in copy_agreement(base, recorded, binding, folder, token)]
    notice = notice_for(binding)
    if notice and not any(folder.glob("NOTICE*")):
        (folder / "NOTICE").write_text(notice, encoding="utf8")
        added.append("NOTICE: the attribution that the licence asks for")
    return added


def _binding(base: BaseModelFacts | None, terms: Terms) -> str:
    """Return the licence whose duties hold: the base's, whatever the adapter's own is."""
    return base.license if base and base.license and base.license in LICENCE_TERMS else terms.id


def _in_the_users_lines(leaks: Iterable[Leak], own: str | None, card: str) -> Iterator[Leak]:
    """Give leaks in the card the lines that they have in the folder's own card, whose metadata may be shorter."""
    shift = card.count("\n") - own.count("\n") if own is not None else 0
    for leak in leaks:
        yield replace(leak, line=max(1, leak.line - shift)) if leak.file == CARD else leak


def _check_weights(folder: Path, stored: StoredAdapter, config: dict[str, Any], private: PrivateNames) -> None:
    """Check weights and config; what is wrong with them is told only if nothing private is in its words."""
    try:
        check_against_config(folder / WEIGHTS, stored, config)
    except AdapterError as error:
        if any(_leaks_in(WEIGHTS, str(error), private)):
            leaks = list(_scan(folder, stored, private))
            may_be_allowed = not all(leak.is_secret for leak in leaks)
            raise UnfitError(_refusal([*map(str, leaks)], may_be_allowed=may_be_allowed)) from None
        raise


def _scan(folder: Path, stored: StoredAdapter, private: PrivateNames) -> Iterator[Leak]:
    """Yield every secret and private name in what goes."""
    for path in _listed(folder):
        if path == WEIGHTS:
            text = "\n".join([*stored.metadata, *stored.metadata.values(), *stored.shapes])
            yield from (replace(leak, line=0) for leak in _leaks_in(path, text, private))
        elif is_text(path):
            yield from _leaks_in(path, _text(folder, path), private)
        elif _VOCABULARY.fullmatch(path):
            yield from _leaks_in(path, (folder / path).read_bytes().decode("utf8", "replace"), private)


def _leaks_in(path: str, text: str, private: PrivateNames) -> Iterator[Leak]:
    is_vocabulary = bool(_VOCABULARY.fullmatch(path))
    yield from find_secrets(path, text, private, assigned=not is_vocabulary)
    people = not is_vocabulary and not _NAMELESS.fullmatch(path)
    yield from find_private_names(path, text, private, people=people, paths=not is_vocabulary)


def _undone(folder: Path, repo_id: str, base: BaseModelFacts | None, terms: Terms, card: str) -> list[str]:
    """Return what the licence asks for and is missing."""
    binding = _binding(base, terms)
    notices = "\n".join(file.read_text(encoding="utf8", errors="replace") for file in folder.glob("NOTICE*"))
    missing = find_missing(binding, repo_id.rpartition("/")[2], _listed(folder), card, notices)
    return [f"licence {binding} asks for {what}" for what in missing]


def _refusal(problems: list[str], may_be_allowed: bool) -> str:
    """Return all problems as one message, with the way to let a name or path pass."""
    distinct = list(dict.fromkeys(problems))
    shown = distinct[:_SHOWN_PROBLEMS]
    more = [f"and {len(distinct) - len(shown)} more"] if len(distinct) > len(shown) else []
    way = ["a name or path that may be public: allow= (--allow), word for word; a secret never is"] * may_be_allowed
    return "nothing was pushed; first mend\n  " + "\n  ".join([*shown, *more]) + "".join(f"\n{line}" for line in way)


def _listed(folder: Path) -> list[str]:
    return sorted(str(file.relative_to(folder).as_posix()) for file in folder.rglob("*") if file.is_file())


def identified(file: Path) -> ReleasedFile:
    """Return a file's size and hashes, read in blocks."""
    size = file.stat().st_size
    sha256, blob = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    with file.open("rb") as stream:
        while block := stream.read(2**20):
            sha256.update(block)
            blob.update(block)
    return ReleasedFile(size=size, sha256=sha256.hexdigest(), blob=blob.hexdigest())
