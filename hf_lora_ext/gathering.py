"""A folder of our own with what may be published, copied from a folder, a model or a trainer.

A copy, because training may go on writing the original while this one is hashed, sent and compared.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from .errors import AdapterError, ConfigError
from .release import CARD, CONFIG, WEIGHTS, LeftOut, sort_out
from .run_folder import RECIPE_FILE, RunFolder, last_whole_checkpoint

__all__ = ["Gathered", "gathered"]

_SUBFOLDERS: Final = (".eval_results", "additional_chat_templates")
_SETS: Final = ("target_modules", "exclude_modules")


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


@contextmanager
def gathered(source: Any) -> Iterator[Gathered]:
    """Copy what may be published, and remove the copy afterwards.

    Args:
        source: A folder with an adapter, a run folder, a PeftModel, or a trainer that trained one.

    Raises:
        ConfigError: If there is no such folder, or its run is not finished.
        AdapterError: If there is no adapter.
    """
    with TemporaryDirectory(prefix="hf-lora-push-", ignore_cleanup_errors=True) as temporary:
        folder, saved = Path(temporary) / "release", Path(temporary) / "saved"
        folder.mkdir()
        if isinstance(source, (str, os.PathLike)):
            origin = _adapter_folder(Path(source))
            yield Gathered(folder=folder, left_out=_copy(origin, folder), origins=(origin,))
        elif hasattr(source, "processing_class") and hasattr(source, "args"):
            model = source.accelerator.unwrap_model(source.model)
            origins = _save_trainer(source, model, saved)
            stays = [left for origin in origins for left in _copy(origin, folder)]
            yield Gathered(folder=folder, left_out=tuple(stays), origins=origins, model=model)
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
        hint = f"; {newest} has one" if newest and (newest / WEIGHTS).is_file() else "; save the adapter there first"
        raise AdapterError(f"{folder} holds no {' and no '.join(missing)}{hint}")
    return folder


def _save_trainer(trainer: Any, model: Any, saved: Path) -> tuple[Path, ...]:
    """Save a trainer's adapter and tokenizer; return the folders to copy from, of which a later one fills gaps."""
    written = Path(trainer.args.output_dir)
    plain = written / "plain_adapter"  # for the unchanged base, where the initialisation changed it
    origin = plain if (plain / CONFIG).is_file() else _save_model(model, saved)
    if trainer.processing_class is not None:
        trainer.processing_class.save_pretrained(str(saved))
    folders = [origin, saved, written]
    return tuple(dict.fromkeys(folder for folder in folders if folder.is_dir()))


def _save_model(model: Any, folder: Path) -> Path:
    name = getattr(model, "active_adapter", None)
    if not isinstance(name, str) or name not in getattr(model, "peft_config", {}):
        raise AdapterError(
            f"{type(model).__name__} carries no PEFT adapter that is active alone; give a PeftModel, a trainer of one, "
            "or a folder"
        )
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


def _copy(origin: Path, folder: Path) -> tuple[LeftOut, ...]:
    """Copy what may go and is not there yet, in blocks, and return what stays."""
    go, stay = sort_out(_listing(origin))
    for path in go:
        target = folder / path
        if target.exists():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(origin / path, target)
    return tuple(stay)


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
