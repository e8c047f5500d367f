"""Every way in which one endpoint can fail during a push, and what became of the push: run here, judged here.

A cell is an endpoint, a moment, a kind of fault, and whether the fault passes or stays. The endpoints are met by four
pushes: by Xet, by LFS, to a new branch, and as a pull request.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Final, Literal
from unittest.mock import patch

from git_hub import git_hub_on_loopback
from git_hub_state import Hub
from hub_faults import What
from huggingface_hub.utils import _xet
from push_runs import REPO, push, pushing_to

from hf_lora_ext import PushError
from hf_lora_ext.errors import UnfitError
from hf_lora_ext.push.plan import MESSAGE

ENDPOINTS: Final = {
    **dict.fromkeys(
        ("whoami", "info", "create", "validate-yaml", "preupload", "xet-token", "commit", "commits"), "xet"
    ),
    **dict.fromkeys(("tree", "resolve", "tag", "refs"), "xet"),
    **dict.fromkeys(("lfs-batch", "lfs-put", "lfs-verify"), "lfs"),
    "branch": "branch",
    "discussions": "pull request",
}
"""Endpoint that a push calls → the push that calls it."""
MOMENTS: Final = ("before", "after")
KINDS: Final[tuple[What, ...]] = (503, 429, 403, "drop", "html", "truncate")
ARGUMENTS: Final = {"branch": {"revision": "trial", "tag": "v1"}, "pull request": {"create_pr": True}}
PLACES: Final = {"branch": "trial", "pull request": "refs/pr/1"}
"""What is pushed → where it lands, where that is not main."""
STAYS: Final = 1000


@dataclass(frozen=True, slots=True)
class Cell:
    """One fault."""

    where: str
    when: Literal["before", "after"]
    what: What
    stays: bool

    def __str__(self) -> str:
        return f"{self.where}-{self.when}-{self.what}-{'stays' if self.stays else 'passes'}"


CELLS: Final = tuple(Cell(*c) for c in product(ENDPOINTS, MOMENTS, KINDS, (False, True)))


def chosen(cells: Sequence[Cell] = CELLS) -> list[Cell]:
    """Return the cells that every test run tries: the commit's that pass, and one of each endpoint.

    The n-th endpoint gets the n-th kind, at alternating moments, and passing or staying by turns of two, so that every
    endpoint, every moment and every kind occurs, and both moments either way.
    """
    picked = {(where, MOMENTS[n % 2], KINDS[n % len(KINDS)], bool(n // 2 % 2)) for n, where in enumerate(ENDPOINTS)}
    return [
        cell
        for cell in cells
        if (cell.where, cell.when, cell.what, cell.stays) in picked or (cell.where == "commit" and not cell.stays)
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a push that met a fault."""

    ended: Literal["landed", "refused", "gave up"]
    """Whether it returned, was told no, or gave up after tries."""
    said: str
    """The error's message."""
    struck: bool
    """Whether the fault met a request at all."""
    commits: int
    """Commits of the push on its branch, or pull requests of it, right after."""
    torn: bool
    """Whether a commit held a part of the files, or other bytes."""
    finally_commits: int
    """Commits after the same push was made again without a fault."""

    @property
    def twice(self) -> bool:
        """Whether the adapter was committed more than once."""
        return max(self.commits, self.finally_commits) > 1

    @property
    def untrue(self) -> bool:
        """Whether what was said is not how it is, or the same again does not finish."""
        if self.finally_commits != 1:
            return True
        if self.ended == "landed":
            return self.commits != 1
        if "whether the commit landed is not known" in self.said:
            return False
        return self.commits != ("holds commit" in self.said) or "again: `hf-lora push" not in self.said

    def __str__(self) -> str:
        return f"{self.ended} {self.commits}"


@contextmanager
def _client_for(cell: Cell) -> Iterator[None]:
    """Let the client send by the way that the cell is about, and hf_xet wait little where it is what waits."""
    with ExitStack() as changed:
        changed.enter_context(patch("huggingface_hub.constants.HF_HUB_DISABLE_XET", ENDPOINTS[cell.where] == "lfs"))
        if cell.where == "xet-token":
            changed.enter_context(patch.dict("os.environ", {"HF_XET_CLIENT_RETRY_BASE_DELAY": "20ms"}))
            # A session reads it when it begins, which takes a second; the others share theirs.
            changed.enter_context(patch.object(_xet, "_GLOBAL_XET_HOLDER", _xet.XetSessionHolder()))
        yield


def _landed(hub: Hub, way: str, wanted: dict[str, bytes]) -> tuple[int, bool]:
    """Return how often the push is there, and whether any commit of it is torn."""
    if not hub.exists("model", REPO):
        return 0, False
    place = PLACES.get(way, "main")
    try:
        history = hub.history(REPO, place)
    except Exception:  # no such branch or pull request
        return 0, False
    count = history.count(MESSAGE)
    if way == "pull request":
        count += sum(_is_there(hub, f"refs/pr/{number}") for number in (2, 3))
    files = hub.files(REPO, place)
    whole = {path: files.get(path) for path in wanted} == wanted
    return count, bool(count) != whole


def _is_there(hub: Hub, revision: str) -> bool:
    try:
        return bool(hub.head(REPO, revision))
    except Exception:
        return False


def outcome(cell: Cell, adapter: Path, root: Path) -> Outcome:
    """Push an adapter to a Hub of its own that has the fault, then again without it; return what became of it.

    Args:
        cell: The fault.
        adapter: Folder with an adapter.
        root: Empty folder for the Hub.
    """
    way = ENDPOINTS[cell.where]
    arguments = ARGUMENTS.get(way, {"tag": "v1"})
    with git_hub_on_loopback(root) as hub, pushing_to(hub), _client_for(cell):
        if way in ARGUMENTS:
            hub.create(REPO)
        wanted = {file.name: file.read_bytes() for file in adapter.glob("*.safetensors")}
        fault = hub.faults.add(cell.where, cell.when, cell.what, times=STAYS if cell.stays else 1)
        left = fault.times
        ended, said = _pushed(adapter, arguments)
        struck = fault.times < left
        fault.times = 0
        commits, torn = _landed(hub, way, wanted)
        if ended != "landed":
            push(adapter, **arguments)
        finally_commits, still_torn = _landed(hub, way, wanted)
        if "tag" in arguments and hub.head(REPO, "v1") != hub.head(REPO, PLACES.get(way, "main")):
            still_torn = True
    return Outcome(ended=ended, said=said, struck=struck, commits=commits, torn=torn or still_torn,
                   finally_commits=finally_commits)  # fmt: skip


def _pushed(adapter: Path, arguments: dict[str, object]) -> tuple[Literal["landed", "refused", "gave up"], str]:
    try:
        push(adapter, **arguments)
    except UnfitError:
        raise
    except PushError as error:
        said = str(error)
        return "refused" if re.search(r"refuses \(4|injected 403|403", said) else "gave up", said
    return "landed", ""


def totals(outcomes: Iterable[Outcome]) -> str:
    """Return the one line that counts what must not be."""
    found = list(outcomes)
    counts = {name: sum(getattr(each, name) for each in found) for name in ("torn", "twice", "untrue")}
    idle = sum(not each.struck for each in found)
    return ", ".join([f"{len(found)} cells", *(f"{count} {name}" for name, count in counts.items())]) + (
        f"; in {idle} the fault met no request" if idle else ""
    )
