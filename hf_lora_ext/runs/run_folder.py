"""Run folders: who owns one, what is in it, and where a run can go on.

A folder belongs to the recipe that first wrote into it. Only that recipe may go on in it; anything else is
refused before a byte is changed. Layout::

    recipe.yaml                    the recipe, complete
    adapter_config.json, adapter_model.safetensors, tokenizer files
    facts.json, README.md, loss_curve.png
    train.log                      what the trainer logged, a JSON object a line
    rank_history.json, rank_history.png   where rank moved
    checkpoints/checkpoint-N/      to resume from
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from ..cards.facts import read_facts, write_text_atomically
from ..errors import ConfigError, ResumeError
from ..machine import free_disk_bytes
from .checkpoint_files import damage_in
from .recipe import Recipe, dump_recipe, load_recipe

__all__ = ["RunFolder", "checkpoint_to_resume", "claimed", "last_whole_checkpoint", "owned_folder"]

RECIPE_FILE: Final = "recipe.yaml"
LOG_FILE: Final = "train.log"
_OURS: Final = {".lock"}
_TOLD_ELSEWHERE: Final = {"output_dir", "training.report_to"}
"""What a run is called and where it is reported, which do not make it another run."""


@dataclass(frozen=True, slots=True)
class RunFolder:
    """A folder that belongs to one recipe."""

    root: Path
    """The folder."""

    @property
    def checkpoints(self) -> Path:
        """Where the trainer keeps its checkpoints."""
        return self.root / "checkpoints"

    @property
    def facts(self) -> Path:
        """The facts file."""
        return self.root / "facts.json"

    @property
    def card(self) -> Path:
        """The model card."""
        return self.root / "README.md"

    @property
    def log(self) -> Path:
        """What the trainer logged."""
        return self.root / LOG_FILE

    @property
    def loss_curve(self) -> Path:
        """The plot of the losses."""
        return self.root / "loss_curve.png"

    @property
    def is_finished(self) -> bool:
        """Whether the run ended and everything was written; the facts that say so are written last."""
        return self.facts.is_file() and bool(read_facts(self.facts).run.get("finished"))


def owned_folder(recipe: Recipe) -> RunFolder:
    """Return the recipe's run folder, new or its own; nothing is written.

    Raises:
        ConfigError: If the folder holds another run or foreign files.
        ResumeError: If it holds a recipe that this version cannot read.
    """
    root = Path(recipe.output_dir)
    _check_owner(root, recipe)
    return RunFolder(root)


@contextmanager
def claimed(recipe: Recipe, needed_bytes: int = 0) -> Iterator[RunFolder]:
    """Hold the recipe's run folder for this process, making it if it is new.

    Raises:
        ConfigError: If the folder holds another run or foreign files, is in use, cannot be written, or its disk
            has less than `needed_bytes` free.
        ResumeError: If it holds a recipe that this version cannot read.
    """
    from filelock import FileLock, Timeout

    root = owned_folder(recipe).root
    if (free := free_disk_bytes(root)) < needed_bytes:
        raise ConfigError(
            f"the disk of output_dir {root} has {free / 2**20:,.0f} MiB free, the run needs about "
            f"{needed_bytes / 2**20:,.0f}; free some, or choose another output_dir"
        )
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = FileLock(root / ".lock", timeout=0)
        lock.acquire()
    except Timeout as error:
        raise ConfigError(f"output_dir {root} is in use by another run; wait for it, or choose another") from error
    except OSError as error:
        raise ConfigError(
            f"output_dir {root} cannot be written ({error.strerror}); choose another output_dir"
        ) from error
    try:
        _check_owner(root, recipe)
        if not (root / RECIPE_FILE).exists() or _is_only_claimed(root):
            write_text_atomically(root / RECIPE_FILE, dump_recipe(recipe))
        yield RunFolder(root)
    finally:
        lock.release()


def _check_owner(root: Path, recipe: Recipe) -> None:
    """Refuse a folder that is not this recipe's."""
    if root.is_symlink() and not root.exists():
        raise ConfigError(f"output_dir {root} is a broken link; choose another output_dir")
    if root.exists() and not root.is_dir():
        raise ConfigError(f"output_dir {root} is a file, needed a folder; choose another output_dir")
    if not root.exists():
        return
    file = root / RECIPE_FILE
    if not file.exists():
        foreign = sorted(
            p.name for p in root.iterdir() if p.name not in _OURS and not p.name.startswith(f".{RECIPE_FILE}.")
        )
        if foreign:
            shown = ", ".join(foreign[:3]) + (", …" if len(foreign) > 3 else "")
            raise ConfigError(f"output_dir {root} already holds {shown}, and no run of ours; choose another output_dir")
        return
    try:
        theirs = load_recipe(file)
    except ConfigError as error:
        raise ResumeError(f"{file} cannot be read by this version ({error}); choose another output_dir") from error
    if (differences := _differences(theirs, recipe)) and not _is_only_claimed(root):
        raise ConfigError(
            f"output_dir {root} already holds another run, which differs in {', '.join(differences)}; "
            "choose another output_dir=, or remove the folder"
        )


def _is_only_claimed(root: Path) -> bool:
    """Return whether a run failed here before its first checkpoint, so that a mended recipe may have the folder."""
    only_claimed = {path.name for path in root.iterdir()} <= {RECIPE_FILE, ".lock", "checkpoints", LOG_FILE}
    return only_claimed and last_whole_checkpoint(root / "checkpoints") is None


def _differences(theirs: Recipe, ours: Recipe) -> list[str]:
    """Name the dotted keys in which two runs differ; the folder's name, the Hub and the hardware do not count."""
    left, right = (_flat(asdict(replace(recipe, push=None, hardware=None))) for recipe in (theirs, ours))
    both = (left.keys() | right.keys()) - _TOLD_ELSEWHERE
    keys = sorted(key for key in both if left.get(key) != right.get(key))
    return [f"{key} ({left.get(key)!r} there, {right.get(key)!r} here)" for key in keys]


def _flat(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def last_whole_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint that was written to its end, or None.

    The Trainer writes `trainer_state.json` last, so a checkpoint without a readable one is a torn write.
    """
    numbered = [
        (int(p.name.removeprefix("checkpoint-")), p) for p in folder.glob("checkpoint-*") if p.name[11:].isdecimal()
    ]
    for _, checkpoint in sorted(numbered, reverse=True):
        try:
            json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf8"))
        except (OSError, ValueError):
            continue
        return checkpoint
    return None


def checkpoint_to_resume(folder: Path, processes: int) -> Path | None:
    """Return the newest whole checkpoint, or None, for a run in so many processes.

    Raises:
        ResumeError: If as many have not written it: order of the data and size of the batch would be others. If a
            file of it cannot be read, which was whole when the checkpoint was written to its end.
    """
    checkpoint = last_whole_checkpoint(folder)
    if checkpoint is None:
        return None
    each = len([*checkpoint.glob("rng_state_*.pth")])  # one alone writes rng_state.pth
    if each != (processes if processes > 1 else 0):
        then, now = (f"{n} processes" if n > 1 else "one process" for n in (each, processes))
        how = f"--launch ddp{each}, or accelerate launch --num_processes {each}" if each else "one process"
        raise ResumeError(f"{checkpoint} was written by {then}, and here {now} would go on with it; use {how}")
    if (damage := damage_in(checkpoint)) is not None:
        raise ResumeError(
            f"{checkpoint} was damaged after it was written ({damage}); put the file back, or remove that folder, and "
            "the same command goes on from the checkpoint before it, or from the start"
        )
    return checkpoint
