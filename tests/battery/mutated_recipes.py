"""Recipes as nobody should write them: every text is a recipe that reads back equal, or refused in words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from calls import Tally, call
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st

__all__ = ["mutate_recipes"]

REPOSITORY: Final = Path(__file__).resolve().parents[2]

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


def shipped() -> list[dict[str, Any]]:
    """Return the recipes of the repository, raw."""
    from hf_lora_ext.strict_yaml import read_yaml

    files = [file for file in sorted((REPOSITORY / "recipes").rglob("*.yaml")) if "sweep" not in file.name]
    return [read_yaml(file.read_text(encoding="utf8"), file.name) for file in files]


@st.composite
def changed_recipes(draw: st.DrawFn, recipes: list[dict[str, Any]]) -> str:
    """A shipped recipe with some of its keys given other values, taken away or added."""
    from hf_lora_ext.strict_yaml import dump_yaml

    def copied(value: Any) -> Any:
        return {key: copied(each) for key, each in value.items()} if isinstance(value, dict) else value

    recipe = copied(draw(st.sampled_from(recipes)))
    for _ in range(draw(st.integers(1, 4))):
        section = draw(st.sampled_from([recipe, *(value for value in recipe.values() if isinstance(value, dict))]))
        key = draw(st.sampled_from([*section, "data", "rank", "push", "training", "output_dir", "nonsense"]))
        if draw(st.booleans()):
            section[key] = draw(VALUES)
        else:
            section.pop(key, None)
    try:
        return dump_yaml(recipe)
    except (ValueError, TypeError):  # a number or text that YAML has no form for
        return repr(recipe)


@st.composite
def broken_texts(draw: st.DrawFn, recipes: list[dict[str, Any]]) -> bytes:
    """A recipe's bytes with a tag put in, a line twice, an end cut off, or bytes changed."""
    data = draw(changed_recipes(recipes)).encode("utf8", "surrogatepass")
    at = draw(st.integers(0, len(data)))
    inserted = draw(
        st.one_of(
            st.just(b""), st.binary(max_size=4), TAGS.map(str.encode), TAGS.map(lambda t: b"\nrank: " + t.encode())
        )
    )
    after = draw(st.sampled_from([data[at:], data[at + 1 :], b"", data]))
    return data[:at] + inserted + after


def mutate_recipes(scratch: Path, count: int, seed: int, caches: Sequence[Path] = ()) -> list[Tally]:
    """Give `hf-lora train --dry-run` and the reader `count` recipes that are changed or broken.

    What is read as a recipe must read back equal from what is written of it.

    Args:
        scratch: Where the files lie; nothing else is to be written.
        count: Recipes, half of them changed in their values, half in their bytes.
        seed: Of the changes.
        caches: Folders of libraries' own that may be written.
    """
    recipes = shipped()
    read, tried = Tally(name="recipes read"), Tally(name="recipes tried (--dry-run)")
    texts = changed_recipes(recipes).map(lambda text: text.encode("utf8", "surrogatepass")) | broken_texts(recipes)

    @seeded(seed)
    @settings(
        max_examples=count, deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=[*HealthCheck],
    )  # fmt: skip
    @given(texts)
    def judge(text: bytes) -> None:
        file = scratch / "recipe.yaml"
        file.write_bytes(text)
        read.add(*_read_back(file))
        before = sorted(scratch.iterdir())
        result = call("train", file, "--dry-run", allowed=caches)
        left = sorted(set(scratch.iterdir()) - set(before))
        tried.add(result.ending if not left else "strayed", f"{text!r}: {result.said} {result.strayed} {left}")

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
