"""A folder that appears whole or not at all, and never in the place of another."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from .errors import ConfigError
from .machine import free_disk_bytes

__all__ = ["check_free", "copy_chosen", "whole_folder"]


def check_free(folder: Path) -> None:
    """Raise ConfigError if there is something where a folder is to be written; an empty one may be there."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} is there already, and nothing is overwritten; name a new folder, or remove it")


@contextmanager
def whole_folder(folder: Path, needed_bytes: int = 0) -> Iterator[Path]:
    """Yield a folder beside the one to write, which takes its place in the end, or is removed.

    Args:
        folder: The folder to write.
        needed_bytes: The most that it may take on the disk.

    Raises:
        ConfigError: If the place is taken, the disk is too small, or something cannot be read or written.
    """
    check_free(folder)
    if (free := free_disk_bytes(folder)) < needed_bytes:
        raise ConfigError(
            f"the disk of {folder} has {free / 2**20:.0f} MiB free, and this may need {needed_bytes / 2**20:.0f}; free "
            "some, or name a folder on another disk"
        )
    # Not a temporary folder of the standard library, which nobody else may read, then and later.
    draft = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.unfinished")
    try:
        draft.mkdir(parents=True)
        yield draft
        if folder.exists():
            folder.rmdir()
        draft.rename(folder)
    except (OSError, SafetensorError) as error:
        raise ConfigError(
            f"{folder} cannot be written ({error}); nothing is left of it: name another folder"
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def copy_chosen(source: Path, target: Path, choose: Callable[[Iterable[str]], Iterable[str]]) -> None:
    """Copy those files of a folder that are chosen by their paths in it."""
    for name in choose(path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, target / name)
