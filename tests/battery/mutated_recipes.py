"""Recipes as nobody should write them: every text is a recipe that reads back equal, or refused in words."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from calls import Tally, call
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st

__all__ = ["mutate_recipes"]

PLAIN: Final = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=12),
    st.sampled_from([
        "../../outside", "/etc/passwd", "~/.ssh/id_rsa", "CON", "a\x00b", "\x1b[2J", "{{ 7*7 }}", "1e-4", "0o17", "yes",
        "builtin:../x", "name\nother: 1", "a/b/c/d", "me/model@x", "x" * 300,
    ]),
)  # fmt: skip
VALUES: Final = st.recursive(
    PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8) | PLAIN, inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
TAGS: Final = st.sampled_from([
    "!!python/object/apply:os.system ['touch strayed']", "!!python/name:os.system", "!!python/object/new:type [a]",
    "!!binary aGk=", "!!timestamp 2001-99-99", "&a [*a, *a]", "*nowhere", "<<: {a: 1}", "!!set {a, b}",
    "!unknown {a: 1}", "&b [&a [x,x,x,x,x,x,x,x], *a, *a, *a, *a, *a, *a, *a, *a]", "[" * 2000, "{a: " * 500,
    "!!int 0x" + "f" * 5000,
])  # fmt: skip
"""YAML that constructs objects, refers in circles, or does not end."""


LIKELY: Final = st.one_of(
    st.integers(0, 9),
    st.booleans(),
    st.sampled_from([1e-4, 0.5, 1.0, "auto", "lora", "qlora", "dora", "adalora", "all"]),
)
"""What a key may well be given, so that some changed recipes are recipes still."""
KEYS: Final = (
    "data", "rank", "alpha", "dropout", "method", "init", "targets", "trainer", "push", "training", "output_dir",
    "adaptive_rank", "seed", "nonsense",
)  # fmt: skip


def shipped() -> list[dict[str, Any]]:
    """Return the recipes that come with the package, raw."""
    from hf_lora_ext.resources import shipped_folder
    from hf_lora_ext.strict_yaml import read_yaml

    files = [file for file in sorted(shipped_folder("recipes").rglob("*.yaml")) if "sweep" not in file.name]
    return [read_yaml(file.read_text(encoding="utf8"), file.name) for file in files]


def at_hand(recipes: list[dict[str, Any]], model: Path, folder: Path) -> list[dict[str, Any]]:
    """Return recipes with a model and rows that are here, so that a dry run of them gets to its end.

    Args:
        recipes: The recipes, raw.
        model: Folder of the base.
        folder: Where the rows of each trainer are written.
    """
    from trainer_rows import rows_for

    found = []
    for recipe in recipes:
        trainer = recipe.get("trainer", "sft")
        file = folder / f"{trainer}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows_for(trainer)), encoding="utf8")
        without = {key: value for key, value in recipe.items() if key not in ("revision", "hardware")}
        found.append(without | {"model": str(model), "data": {"source": str(file)}})
    return found


@st.composite
def changed_recipes(draw: st.DrawFn, recipes: list[dict[str, Any]]) -> str:
    """A recipe with some of its keys given other values, taken away or added."""
    from hf_lora_ext.strict_yaml import dump_yaml

    recipe = {key: dict(value) if isinstance(value, dict) else value
              for key, value in draw(st.sampled_from(recipes)).items()}  # fmt: skip
    for _ in range(draw(st.integers(0, 3))):
        section = draw(st.sampled_from([recipe, *(value for value in recipe.values() if isinstance(value, dict))]))
        key = draw(st.sampled_from([*section, *KEYS]))
        if draw(st.integers(0, 3)):
            section[key] = draw(VALUES | LIKELY)
        else:
            section.pop(key, None)
    try:
        return dump_yaml(recipe)
    except (ValueError, TypeError):  # a number or text that YAML has no form for
        return repr(recipe)


@st.composite
def broken_texts(draw: st.DrawFn, recipes: list[dict[str, Any]]) -> bytes:
    """A recipe's bytes with a tag or bytes put in, a part twice, or an end cut off."""
    data = draw(changed_recipes(recipes)).encode("utf8", "surrogatepass")
    at = draw(st.integers(0, len(data)))
    inserted = draw(
        st.one_of(
            st.just(b""), st.binary(max_size=4), TAGS.map(str.encode), TAGS.map(lambda t: b"\nrank: " + t.encode())
        )
    )
    after = draw(st.sampled_from([data[at:], data[at + 1 :], b"", data]))
    return data[:at] + inserted + after


def mutate_recipes(model: Path, scratch: Path, count: int, seed: int, caches: Sequence[Path] = ()) -> list[Tally]:
    """Give `hf-lora train --dry-run` and the reader `count` recipes that are changed or broken.

    What is read as a recipe must read back equal from what is written of it. A dry run may write into the caches alone.

    Args:
        model: Folder of a base that most recipes name; the rest name those of the Hub.
        scratch: New folder for the files.
        count: Recipes, half of them changed in their values, half in their bytes.
        seed: Of the changes.
        caches: Folders of libraries' own that may be written.
    """
    (scratch / "rows").mkdir(parents=True)
    file, here = scratch / "recipe.yaml", at_hand(shipped(), model, scratch / "rows")
    recipes = [*here, *here, *shipped()]
    read, tried = Tally(name="recipes, read"), Tally(name="recipes, `train --dry-run`")

    @seeded(seed)
    @settings(
        max_examples=count, deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=[*HealthCheck],
    )  # fmt: skip
    @given(changed_recipes(recipes).map(lambda text: text.encode("utf8", "surrogatepass")) | broken_texts(recipes))
    def judge(text: bytes) -> None:
        file.write_bytes(text)
        read.add(*_read_back(file))
        result = call("train", file, "--dry-run", allowed=caches)
        tried.add(result.ending, f"{text!r}: {result.said} {result.strayed}")

    judge()
    return [read, tried]


def _read_back(file: Path) -> tuple[str, str]:
    """Return how reading a recipe ended, and what there is to tell of it."""
    from hf_lora_ext.errors import ConfigError
    from hf_lora_ext.runs.recipe import dump_recipe, load_recipe, parse_recipe
    from hf_lora_ext.strict_yaml import read_yaml

    try:
        recipe = load_recipe(file)
    except ConfigError:
        return "refused", ""
    except Exception as error:  # whatever gets out is what is looked for
        return "traceback", f"{file.read_bytes()!r}: {error!r}"
    again = parse_recipe(read_yaml(dump_recipe(recipe), "dump"))
    return ("done", "") if again == recipe else ("reads back otherwise", repr(file.read_bytes()))
