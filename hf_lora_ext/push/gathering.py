"""A folder of our own with what may be published, copied from a folder, a model or a trainer.

A copy, because training may go on writing the original while this one is hashed, sent and compared.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from safetensors import SafetensorError

from ..errors import AdapterError, ConfigError, PushError
from ..runs.run_folder import RECIPE_FILE, RunFolder, last_whole_checkpoint
from .release import CARD, CONFIG, WEIGHTS, LeftOut, sort_out

__all__ = ["Aside", "Gathered", "gathered", "lay_aside_checkpoint", "lay_aside_model"]

_SUBFOLDERS: Final = (".eval_results", "additional_chat_templates")
_SETS: Final = ("target_modules", "exclude_modules")
_TELLS_OF_A_RUN: Final = re.compile(r"facts\.json|rank_history\.json|[\w-]+\.png")
"""What a run leaves in its folder at the end, and an earlier run may have left."""
_PLACEHOLDERS: Final = re.compile(re.escape(CARD))
"""The card in a checkpoint, which is peft's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gathered:
    """What is published, in a folder that nobody else writes to."""

    folder: Path
    """The copy."""
    left_out: tuple[LeftOut, ...]
    """What stays where it is."""
    origins: tuple[Path, ...]
    """Folders that it was copied from; none of their paths may be published."""
    model: Any = None
    """The model in memory, where one was given."""


@dataclass(frozen=True, slots=True)
class Aside:
    """A folder that was laid aside while a run goes on, to be pushed later."""

    folder: Path
    """The folder."""
    origins: tuple[Path, ...]
    """Folders that it is from."""

    def own_(self) -> None:
        """Give the folder weights of its own, where it shares the checkpoint's."""
        weights = self.folder / WEIGHTS
        if weights.is_file() and weights.stat().st_nlink > 1:
            draft = weights.with_suffix(".draft")
            shutil.copyfile(weights, draft)
            draft.replace(weights)

    def remove_(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)


def lay_aside_checkpoint(checkpoint: Path, written: Path, folder: Path) -> Aside:
    """Lay aside what may be published of a checkpoint: its weights as a hard link, the small files as copies.

    Args:
        checkpoint: The checkpoint, which may be rotated away or go on being written beside.
        written: The trainer's output folder, whose card, licence and notice go along.
        folder: Where to; what is there goes.

    Raises:
        AdapterError: If the checkpoint holds no whole adapter.
    """
    origin = _adapter_folder(checkpoint)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    _copy(origin, folder, leave=_PLACEHOLDERS, link_weights=True)
    _settle_config(folder / CONFIG, None)
    _copy(written, folder, leave=_TELLS_OF_A_RUN)
    return Aside(folder, (folder, origin, written))


def lay_aside_model(model: Any, tokenizer: Any, written: Path, folder: Path, *, is_over: bool) -> Aside:
    """Lay aside what may be published of a model in memory and its trainer's output folder.

    Args:
        model: The PeftModel.
        tokenizer: Its tokenizer or processor, if there is one.
        written: The trainer's output folder.
        folder: Where to; what is there goes.
        is_over: Whether the training is, so that what the folder tells of a run is of this one.

    Raises:
        AdapterError: If the model carries no adapter.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with TemporaryDirectory(prefix="hf-lora-push-", ignore_cleanup_errors=True) as temporary:
        origins = _save_all(model, tokenizer, written, Path(temporary), take_plain=is_over)
        for origin in origins:
            _copy(origin, folder, leave=None if is_over or origin != written else _TELLS_OF_A_RUN)
    return Aside(folder, (folder, *origins))


@contextmanager
def gathered(source: Any) -> Iterator[Gathered]:
    """Copy what may be published, and remove the copy afterwards.

    Args:
        source: A folder with an adapter, a run folder, one that was laid aside, a PeftModel, or a trainer of one.

    Raises:
        ConfigError: If there is no such folder, or its run is not finished.
        AdapterError: If there is no adapter.
        PushError: If a file cannot be read, or the copy cannot be written.
    """
    with TemporaryDirectory(prefix="hf-lora-push-", ignore_cleanup_errors=True) as temporary:
        folder, saved = Path(temporary) / "release", Path(temporary) / "saved"
        folder.mkdir()
        if isinstance(source, Aside):
            stays = _copy(_adapter_folder(source.folder), folder)
            yield Gathered(folder=folder, left_out=stays, origins=source.origins)
        elif isinstance(source, (str, os.PathLike)):
            origin = _adapter_folder(Path(source))
            yield Gathered(folder=folder, left_out=_copy(origin, folder), origins=(origin,))
        elif hasattr(source, "processing_class") and hasattr(source, "args"):
            model = source.accelerator.unwrap_model(source.model)
            origins = _save_all(model, source.processing_class, Path(source.args.output_dir), saved)
            stays = tuple(left for origin in origins for left in _copy(origin, folder))
            yield Gathered(folder=folder, left_out=stays, origins=origins, model=model)
        else:
            origin = _save_model(source, saved)
            yield Gathered(folder=folder, left_out=_copy(origin, folder), origins=(origin,), model=source)


def _adapter_folder(folder: Path) -> Path:
    """Return the folder itself, where it holds a whole adapter."""
    if not folder.is_dir():
        raise ConfigError(f"{folder} is no folder; give a folder with {CONFIG} and {WEIGHTS}, a PeftModel or a trainer")
    if (folder / RECIPE_FILE).is_file() and not RunFolder(folder).is_finished:
        raise ConfigError(
            f"the run in {folder} is not finished; `hf-lora train {folder / RECIPE_FILE}` goes on with it"
        )
    if missing := [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]:
        newest = last_whole_checkpoint(folder)
        below = [newest] if newest else []
        below += sorted(file.parent for file in folder.glob(f"*/{WEIGHTS}"))
        found = next((inner for inner in below if (inner / WEIGHTS).is_file() and (inner / CONFIG).is_file()), None)
        hint = f"; {found} has one" if found else "; save the adapter there first"
        raise AdapterError(f"{folder} holds no {' and no '.join(missing)}{hint}")
    return folder


def _save_all(model: Any, tokenizer: Any, written: Path, saved: Path, *, take_plain: bool = True) -> tuple[Path, ...]:
    """Save adapter and tokenizer; return the folders to copy from, of which a later one fills gaps."""
    plain = written / "plain_adapter"  # for the unchanged base, where the initialisation changed it
    origin = plain if take_plain and (plain / CONFIG).is_file() else _save_model(model, saved)
    if tokenizer is not None:
        tokenizer.save_pretrained(str(saved))
    folders = [origin, saved, written]
    return tuple(dict.fromkeys(folder for folder in folders if folder.is_dir()))


def _save_model(model: Any, folder: Path) -> Path:
    name = getattr(model, "active_adapter", None)
    if not isinstance(name, str) or name not in getattr(model, "peft_config", {}):
        raise AdapterError(
            f"{type(model).__name__} carries no PEFT adapter that is active alone; give a PeftModel, a trainer of one, "
            "or a folder"
        )
    with _told(f"saving the adapter to {folder}"):
        model.save_pretrained(str(folder), selected_adapters=[name])
    origin = folder if (folder / CONFIG).is_file() else folder / name
    (origin / CARD).unlink(missing_ok=True)  # peft's own, all placeholders
    _settle_config(origin / CONFIG, getattr(getattr(model, "config", None), "_commit_hash", None))
    return origin


def _settle_config(file: Path, base_commit: str | None) -> None:
    """Put the module names, which peft keeps as a set, in order, and note the commit that the base was loaded at.

    In order, so that the same adapter is the same bytes.
    """
    config = json.loads(file.read_text(encoding="utf8"))
    config |= {key: sorted(value) for key, value in config.items() if key in _SETS and isinstance(value, list)}
    if base_commit and not config.get("revision"):
        config["revision"] = base_commit
    file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf8")


def _copy(
    origin: Path, folder: Path, leave: re.Pattern[str] | None = None, *, link_weights: bool = False
) -> tuple[LeftOut, ...]:
    """Copy what may go and is not there yet, in blocks, but for names to `leave`; return what stays."""
    go, stay = sort_out(_listing(origin))
    for path in go:
        target = folder / path
        if target.exists() or (leave and leave.fullmatch(path)):
            continue
        with _told(f"copying {origin / path} to {target}"):
            target.parent.mkdir(parents=True, exist_ok=True)
            if link_weights and path == WEIGHTS:
                _link(origin / path, target)
            else:
                shutil.copyfile(origin / path, target)
    return tuple(stay)


@contextmanager
def _told(doing: str) -> Iterator[None]:
    """Say what could not be read or written, and what helps.

    Raises:
        PushError: If a file could not be.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        is_full = getattr(error, "errno", None) in {errno.ENOSPC, errno.EDQUOT} or "No space left" in str(error)
        remedy = "free some space, or let TMPDIR be a folder with more" if is_full else "see whether you may read it"
        why = getattr(error, "strerror", None) or error
        raise PushError(f"nothing was pushed: {doing} failed ({why}); {remedy}") from error


def _link(file: Path, target: Path) -> None:
    """Share a file's bytes under a second name, so that they stay when the first goes; copy where that cannot be."""
    try:
        os.link(file, target)
    except OSError:
        shutil.copyfile(file, target)


def _listing(folder: Path) -> list[str]:
    """Return the files of a folder and of the two folders below it that count; other folders as one line each."""
    found = []
    for entry in folder.iterdir():
        if entry.is_dir() and entry.name in _SUBFOLDERS:
            found += [f"{entry.name}/{file.name}" for file in entry.iterdir() if file.is_file()]
        elif entry.is_file():
            found.append(entry.name)
        else:
            found.append(f"{entry.name}/")
    return found
