"""Built-in data: functions of Python's own standard library and the first line of their docstrings.

The task is to write the docstring of a function, to prefer it to another function's, or to tell which package it is
from. The text is on every machine that runs Python, and a split by module keeps the held-out modules unseen.
"""

import ast
import sysconfig
from collections.abc import Iterator
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Final

__all__ = ["PACKAGES", "docstring_examples", "examples_in_source", "package_examples", "preference_examples"]

_LEFT_OUT: Final = {
    "site-packages",
    "dist-packages",
    "test",
    "tests",
    "idlelib",
    "lib2to3",
    "turtledemo",
    "ensurepip",
}
PACKAGES: Final = ("asyncio", "email", "tkinter", "unittest")
"""Packages with some hundred documented functions each."""


def docstring_examples() -> Iterator[dict[str, str]]:
    """Yield `module`, `prompt` and `completion` for each documented function, in a fixed order.

    Tests, demos and bundled wheels are left out, and so are docstrings whose summary spans several lines.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    for file in sorted(root.rglob("*.py")):
        module = file.relative_to(root)
        if _LEFT_OUT & set(module.parts):
            continue
        try:
            source = file.read_text(encoding="utf8")
            yield from examples_in_source(source, module.with_suffix("").as_posix().replace("/", "."))
        except (UnicodeDecodeError, SyntaxError):  # sample files in other encodings or of other Pythons
            continue


def examples_in_source(source: str, module: str) -> Iterator[dict[str, str]]:
    """Yield the examples in one module's source, functions in the order of the syntax tree.

    Raises:
        SyntaxError: If the source does not parse.
    """
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) or len(node.body) < 2:
            continue
        summary = (ast.get_docstring(node) or "").strip().partition("\n\n")[0].strip()
        if not summary or "\n" in summary:
            continue
        node.body = node.body[1:]
        question = f"In one line, what does {node.name} do?"
        yield {"module": module, "prompt": f"{ast.unparse(node)}\n\n{question}\n", "completion": summary}


def preference_examples() -> Iterator[dict[str, str]]:
    """Yield `module`, `prompt`, `chosen` and `rejected`: the function's own docstring, and another's of its module.

    The other is the next one in the module that reads differently; the first follows the last.
    """
    for _, examples in groupby(docstring_examples(), key=itemgetter("module")):
        group = list(examples)
        for place, example in enumerate(group):
            others = (other["completion"] for other in group[place + 1 :] + group[:place])
            rejected = next((other for other in others if other != example["completion"]), None)
            if rejected is not None:
                yield {
                    "module": example["module"],
                    "prompt": example["prompt"],
                    "chosen": example["completion"],
                    "rejected": rejected,
                }


def package_examples() -> Iterator[dict[str, str]]:
    """Yield `text`, the first line of a docstring, and `label`, the one of `PACKAGES` that it is from, sorted.

    A line that several of them have counts for the last.
    """
    packages = ((example["module"].partition(".")[0], example["completion"]) for example in docstring_examples())
    lines = {text: package for package, text in packages if package in PACKAGES}
    yield from ({"text": text, "label": package} for text, package in sorted(lines.items()))
