"""What a stranger may plant where this library reads: templates, pickles, names. None of it runs or gets out."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from calls import Tally, call
from forked import finished, load_libraries, start
from kills import recipe_for

__all__ = ["plant_names", "plant_pickles", "plant_templates"]

TEMPLATES: Final = (
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ self.__init__.__globals__ }}",
    "{{ cycler.__init__.__globals__.os.system('touch strayed') }}",
    "{{ lipsum.__globals__['os'].popen('touch strayed').read() }}",
    "{{ namespace.__init__.__globals__ }}",
    "{% for x in ().__class__.__base__.__subclasses__() %}{{ x }}{% endfor %}",
    "{{ (1).__class__.__base__ }}",
    "{{ 'a'.format.__self__.__class__ }}",
    "{{ '{0.__class__.__mro__}'.format('') }}",
    "{{ ''|attr('__class__') }}",
    "{{ request.application.__globals__ }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}{{ os }}",
    "{{ range(10**9)|list }}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{{",
    "{% if %}",
    "{{ 1 / 0 }}",
    "{{ undefined_name.x }}",
)
"""Jinja that reaches for Python, for files, or for ever."""
NAMES: Final = (
    "../outside", "../../outside", "/etc/outside", "me/../outside", "me/..", "..", ".", "me/a/b", "me//a", "me/a b",
    "me/-a", "me/a.git", "me/a--b", "me/" + "a" * 200, "me/a\x00b", "me/a\nb", "\x1b[2Jme/a", "https://a.b/me/x", "me/",
    "C:\\me\\x", "~/me", "me/a?b=c", "me/a#b", "me/%2e%2e", "ｍｅ/ａ", "me/\u202ea",
)  # fmt: skip
"""Repository ids that are none."""


def plant_templates(pristine: Path, scratch: Path, say: Callable[[str], None]) -> Tally:
    """Render a card by each template; what comes out holds nothing of Python's."""
    tally = Tally(name="templates")
    for number, template in enumerate(TEMPLATES):
        folder = scratch / f"template-{number}"
        shutil.copytree(pristine, folder)
        file = scratch / f"{number}.jinja"
        file.write_text(template, encoding="utf8")
        result = call("card", folder, "--template", file, allowed=[folder])
        card = (folder / "README.md").read_text(encoding="utf8")
        leaked = next((word for word in ("<class", "root:", "__globals__") if word in card.replace(template, "")), None)
        tally.add("leaked" if leaked else result.ending, f"{template}: {leaked} {result.said} {result.strayed}")
    return tally


def plant_names(pristine: Path, scratch: Path, say: Callable[[str], None]) -> Tally:
    """Push to, and verify, each name that is no repository's: refused in words before anything is asked or written."""
    tally = Tally(name="names of repositories")
    for name in NAMES:
        for arguments in (
            ["push", pristine, "--dry-run", "--", name],
            ["verify", "--", name],
            ["rollback", "--to", "v1", "--", name],
        ):
            result = call(*arguments, allowed=[scratch / "tmp"])
            ending = "accepted" if result.code == 0 else result.ending
            tally.add(ending, f"{arguments}: {result.said} {result.strayed}")
    return tally


class _Runs:
    """A pickle that leaves a file where it is loaded."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.file),)


def plant_pickles(model: Path, scratch: Path, say: Callable[[str], None]) -> Tally:
    """Put a pickle in the place of each file of a checkpoint, and resume: none of them is run."""
    load_libraries()
    recipe, tally = recipe_for(model, scratch), Tally(name="pickles in a checkpoint")
    finished(["train", recipe], scratch / "whole.log")
    last = max((scratch / "whole" / "checkpoints").glob("checkpoint-*"), key=lambda path: int(path.name[11:]))
    for name in sorted(path.name for path in last.iterdir() if path.is_file()):
        folder = scratch / f"planted-{name}"
        shutil.copytree(scratch / "whole", folder)
        (folder / "facts.json").unlink()  # so that it is not finished
        target = folder / "checkpoints" / last.name / name
        target.write_bytes(pickle.dumps(_Runs(scratch / f"ran-{name}")))
        child = start(["train", recipe, f"output_dir={folder}"], scratch / f"{name}.log")
        code = child.wait()
        ran = (scratch / f"ran-{name}").exists()
        clear = code == 0 or (code == 2 and "Traceback" not in child.said())
        ending = "ran" if ran else ("done" if code == 0 else "refused") if clear else f"exit {code}"
        tally.add(ending, f"{name}: {child.said()[-1500:]}")
        say(f"  {name}: {ending}")
        if ending in ("done", "refused"):
            shutil.rmtree(folder)
    return tally
