"""Built-in data: functions of Python's own standard library and the first line of their docstrings.

The task is to write the docstring of a function. The text is on every machine that runs Python, and a split by
module keeps the held-out modules unseen.
"""

import ast
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Final

__all__ = ["docstring_examples", "examples_in_source"]

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
