"""Hashes of what code does, so that a kept result is known to be of the code that is here."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path


@cache
def code_hash(path: Path) -> str:
    """Return a hash of what a file does: comments, docstrings and layout do not count."""
    tree = ast.parse(path.read_text(encoding="utf8"))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [kept for kept in body if not is_text(kept)]  # type: ignore[attr-defined]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


def hash_of_all(files: Iterable[Path], root: Path) -> str:
    """Return one hash of many files, with their places under `root`, in any order."""
    told = sorted(f"{file.relative_to(root).as_posix()} {code_hash(file)}" for file in files)
    return hashlib.sha256("\n".join(told).encode()).hexdigest()


def is_text(node: ast.AST) -> bool:
    """Return whether a statement is nothing but a string."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
