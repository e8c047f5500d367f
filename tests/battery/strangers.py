"""What a stranger may plant where this library reads: templates, pickles, names. None of it runs or gets out."""

from __future__ import annotations

import io
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any, Final

from calls import Tally, call
from forked import ending_of, finished, load_libraries, start
from git_hub_state import Hub
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


def plant_templates(pristine: Path, scratch: Path) -> Tally:
    """Render a card by each template; what comes out holds nothing of Python's."""
    tally = Tally(name="templates that reach out of a card")
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


def plant_names(pristine: Path, hub: Hub) -> Tally:
    """Push to, verify and roll back each name that is no repository's: refused in words before the Hub is asked for it.

    Args:
        pristine: An adapter.
        hub: The Hub that is met; who is asking it may be told.
    """
    tally = Tally(name="names that are no repository's")
    for name in NAMES:
        for arguments in (
            ["push", pristine, "--dry-run", "--license", "mit", "--", name],
            ["verify", "--", name],
            ["rollback", "--to", "v1", "--", name],
        ):
            hub.faults.log.clear()
            result = call(*arguments, allowed=[])
            asked = [logged.path for logged in hub.faults.log if logged.where != "whoami"]
            ending = "accepted" if result.code == 0 else "asked" if asked else result.ending
            tally.add(ending, f"{arguments}: {result.said} {asked} {result.strayed}")
    return tally


class _Runs:
    """A pickle that leaves a folder where it is loaded."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


def _archived(planted: object, like: Path) -> bytes:
    """Return a pickle in an archive such as torch writes, without torch, which must not compute here."""
    made = io.BytesIO()
    with zipfile.ZipFile(like) as whole, zipfile.ZipFile(made, "w") as archive:
        for name in whole.namelist():
            archive.writestr(name, pickle.dumps(planted, 2) if name.endswith("/data.pkl") else whole.read(name))
    return made.getvalue()


def plant_pickles(model: Path, scratch: Path, say: Callable[[str], None]) -> Tally:
    """Put a pickle in the place of each file of a checkpoint, and into each archive of torch's; go on from there.

    None of them is run.
    """
    load_libraries()
    recipe, tally = recipe_for(model, scratch), Tally(name="pickles in a checkpoint")
    finished(["train", recipe], scratch / "whole.log")
    checkpoints = sorted((scratch / "whole" / "checkpoints").glob("checkpoint-*"), key=lambda path: int(path.name[11:]))
    shutil.rmtree(checkpoints.pop())  # of a run's last step, of which little is read
    (scratch / "whole" / "facts.json").unlink()  # so that it is not finished
    files = sorted(path for path in checkpoints[-1].iterdir() if path.is_file())
    for file, archived in product(files, (False, True)):
        if archived and not zipfile.is_zipfile(file):
            continue
        name = f"{'archive' if archived else 'pickle'}-{file.name}"
        planted = _Runs(scratch / f"ran-{name}")
        folder = shutil.copytree(scratch / "whole", scratch / f"planted-{name}")
        target = folder / "checkpoints" / file.parent.name / file.name
        target.write_bytes(_archived(planted, file) if archived else pickle.dumps(planted))
        child = start(["train", recipe, f"output_dir={folder}"], scratch / f"{name}.log")
        ending = ending_of(child)
        if planted.folder.exists():
            ending = "ran"
        tally.add(ending, f"{name}: {child.said()[-1500:]}")
        say(f"  {name}: {ending}")
        if ending in ("done", "refused"):
            shutil.rmtree(folder)
    return tally
