"""The recipes that come with the package: found by name, described by their own headers and our planner."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from ..cards.facts import write_text_atomically
from ..data.files import is_data_file
from ..errors import ConfigError, nearest
from ..presets.configuration import Preset
from ..resources import shipped_folder
from .recipe import Recipe, load_recipe
from .recipe_plan import declared_preset, memory_need

__all__ = [
    "ShippedRecipe",
    "memory_words",
    "recipe_file",
    "recipes_page",
    "shipped_recipe",
    "shipped_recipes",
    "with_memory_line",
    "write_told",
]

GIB: Final = 2**30
_FIELD: Final = re.compile(r"(Hardware|Memory|Command): +(.*)")
_MEMORY_LINE: Final = re.compile(r"^# Memory:.*\n", re.MULTILINE)
_COMMAND_LINE: Final = re.compile(r"^(?=# Command:)", re.MULTILINE)
_SWEEP: Final = "sweep_"


@dataclass(frozen=True)
class ShippedRecipe:
    """A recipe that comes with the package."""

    name: str
    """Its path below `recipes/`, without suffix."""
    file: Path
    """Where it is."""

    @cached_property
    def header(self) -> dict[str, tuple[str, ...]]:
        """What its leading comment says: the lines of `purpose`, `hardware`, `memory` and `command`."""
        return _header(self.file.read_text(encoding="utf8"))

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe."""
        return load_recipe(self.file)

    @cached_property
    def preset(self) -> Preset | None:
        """What our planner makes of it on the hardware that it declares; None where it declares none."""
        return None if self.recipe.hardware is None else declared_preset(self.recipe)

    @property
    def memory(self) -> str:
        """What our planner says that it takes of the declared hardware; empty without."""
        return "" if self.preset is None else memory_words(self.preset, self.recipe)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON takes."""
        recipe, made = self.recipe, self.preset
        needed = None if made is None else memory_need(made, recipe).needed_gib
        return {
            "name": self.name,
            "purpose": " ".join(self.header["purpose"]),
            "trainer": recipe.trainer,
            "model": recipe.model,
            "method": recipe.method,
            "rank": recipe.rank if made is None else made.rank,
            "hardware": None if recipe.hardware is None else str(recipe.hardware),
            "memory": self.memory or None,
            "needed_gib": None if needed is None else round(needed, 2),
            "command": list(self.header["command"]),
            "file": str(self.file),
        }


def _header(text: str) -> dict[str, tuple[str, ...]]:
    found: dict[str, list[str]] = {"purpose": [], "hardware": [], "memory": [], "command": []}
    now: str | None = "purpose"
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        said = line[1:].strip()
        if match := _FIELD.fullmatch(said):
            now, said = match[1].lower(), match[2]
        elif not said:
            now = None
        if now is not None:
            found[now].append(said)
    return {name: tuple(lines) for name, lines in found.items()}


def memory_words(chosen: Preset, recipe: Recipe) -> str:
    """Return what a recipe takes, as its header says it."""
    need = memory_need(chosen, recipe)
    if need.needed_gib is None:
        return "not known to our planner"
    if need.is_lower_bound:
        return f"at least {need.needed_gib:.1f} GiB of host memory, for base and adapter without activations"
    each = "the GPU" if chosen.hardware.devices == 1 else "each GPU"
    host = f", and {chosen.found.host / GIB:.0f} GiB of host memory" if chosen.found is not None else ""
    return f"{need.needed_gib:.1f} of {need.available_gib:g} GiB on {each}, margin included{host}"


def with_memory_line(text: str, words: str) -> str:
    """Return a recipe's text with what it takes of memory told in one line of its header, before its command.

    Args:
        text: The recipe, as it is in its file.
        words: What our planner says; empty for a recipe that declares no hardware, which has no such line.
    """
    line = f"# Memory:   {words}.\n" if words else ""
    return _COMMAND_LINE.sub(lambda found: line, _MEMORY_LINE.sub("", text), count=1)


def write_told() -> list[Path]:
    """Write what our planner says into the recipes and the page beside them; return the files that changed.

    Raises:
        OSError: If one cannot be written, as in an installation of somebody else's.
    """
    told = {
        shipped.file: with_memory_line(shipped.file.read_text(encoding="utf8"), shipped.memory)
        for shipped in shipped_recipes()
    }
    told[shipped_folder("recipes") / "README.md"] = recipes_page()
    changed = [file for file, text in told.items() if not file.is_file() or file.read_text(encoding="utf8") != text]
    for file in changed:
        write_text_atomically(file, told[file])
    return changed


def shipped_recipes() -> tuple[ShippedRecipe, ...]:
    """Return every recipe of a run that comes with the package, by name; sweeps are none."""
    folder = shipped_folder("recipes")
    files = (file for file in sorted(folder.rglob("*.yaml")) if not file.name.startswith(_SWEEP))
    return tuple(ShippedRecipe(file.relative_to(folder).with_suffix("").as_posix(), file) for file in files)


def shipped_recipe(name: str) -> ShippedRecipe:
    """Return the recipe of a name.

    Raises:
        ConfigError: If there is none, with the nearest.
    """
    known = {recipe.name: recipe for recipe in shipped_recipes()}
    if name not in known:
        raise ConfigError(f"no recipe {name!r} comes with this package; {nearest(name, known)}; see `hf-lora recipes`")
    return known[name]


def recipe_file(given: str) -> Path:
    """Return the file that `hf-lora train` is given: a file, or where there is none a recipe's bare name.

    A name that could be a path is one, so that a misspelt file is never taken for another recipe; a folder in the way
    of a recipe's name, such as the last run's, is none.

    Raises:
        ConfigError: If no recipe has that name, or it is a file of examples.
    """
    if is_data_file(given):
        raise ConfigError(
            f"{given} is a file of examples, needed a recipe; `hf-lora train quickstart data.source={given} "
            "output_dir=out/mine` trains on it"
        )
    is_bare = not given.endswith((".yaml", ".yml")) and "\\" not in given and not given.startswith((".", "/", "~"))
    known = {recipe.name for recipe in shipped_recipes()}
    taken = Path(given).is_file() or (Path(given).exists() and given not in known)
    return Path(given) if taken or not is_bare else shipped_recipe(given).file


def recipes_page() -> str:
    """Return `recipes/README.md`: every recipe with what our planner says of it, sweeps and scripts."""
    return "\n".join(
        [
            "# Recipes",
            "",
            "Written by `make recipes`, from the recipes themselves and our memory planner. `hf-lora train NAME` runs",
            "one, `hf-lora init NAME` copies one, to be changed. The commands below are for a checkout. Recipes for a",
            "GPU were never run on one, as their comments say; in the tests, each trains two steps on a tiny model of",
            "its architecture.",
            "",
            *_overview(),
            *(line for recipe in shipped_recipes() for line in _section(recipe)),
            *_more(),
            "",
        ]
    )


def _overview() -> Iterator[str]:
    yield "| recipe | trainer | model | method | rank | written for | memory by our planner |"
    yield "|---|---|---|---|---:|---|---|"
    for shipped in shipped_recipes():
        told = shipped.to_dict()
        name = f"[{shipped.name}](#{shipped.name.replace('/', '')})"
        cells = [name, *(str(told[key] or "") for key in ("trainer", "model", "method", "rank", "hardware", "memory"))]
        yield f"| {' | '.join(cells)} |"


def _section(shipped: ShippedRecipe) -> Iterator[str]:
    yield from ("", f"## {shipped.name}", "", *shipped.header["purpose"], "", "```", *shipped.header["command"], "```")


def _more() -> Iterator[str]:
    yield from ("", "## Sweeps and scripts", "")
    folder = shipped_folder("recipes")
    for file in [*sorted(folder.rglob(f"{_SWEEP}*.yaml")), *sorted(folder.rglob("*.py"))]:
        first = file.read_text(encoding="utf8").splitlines()[0].strip('#" ')
        yield f"- `{file.relative_to(folder).as_posix()}`: {first}"
