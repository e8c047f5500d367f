"""Several processes of one run: who they are, what the first does for all, and what each waits for.

Under `accelerate launch`, torchrun and `hf-lora train --launch` each process finds its number in the environment. With
one process alone everything here does its work at once, and nothing is loaded.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, TypeVar

from ..errors import LoraExtError

__all__ = ["Processes", "by_first", "find_processes", "first_then_others", "leave"]

Result = TypeVar("Result")
PATIENCE: Final = timedelta(hours=2)
"""How long processes wait for one that reads data, downloads or pushes; torch's 10 to 30 minutes end a 70B download."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Processes:
    """Which process this is, of how many."""

    rank: int = 0
    """This process's number among all, from 0."""
    size: int = 1
    """Processes of the run."""
    local_rank: int = 0
    """This process's number on its machine."""
    local_size: int = 1
    """Processes on each machine."""

    @property
    def is_first(self) -> bool:
        """Whether this process writes, says and pushes for all."""
        return self.rank == 0

    @property
    def machines(self) -> int:
        """Machines that take part, as many processes on each."""
        return max(1, self.size // self.local_size)


def find_processes(environment: Mapping[str, str] = os.environ) -> Processes:
    """Return which process this is, by the names that torch gives its environment.

    Schedulers set some of them for a machine; only what starts a process sets its LOCAL_RANK.
    """
    if "LOCAL_RANK" not in environment:
        return Processes()
    names = {"rank": "RANK", "size": "WORLD_SIZE", "local_rank": "LOCAL_RANK", "local_size": "LOCAL_WORLD_SIZE"}
    return Processes(**{ours: int(environment[theirs]) for ours, theirs in names.items() if theirs in environment})


def by_first(work: Callable[[], Result]) -> Result:
    """Return in every process what the first one's work gives; only the first does it.

    Raises:
        LoraExtError: What it raises there, with the same words in every process.
    """
    here = find_processes()
    if here.size == 1:
        return work()
    import torch.distributed

    _join()
    told: list[Any] = [None, None]
    error: LoraExtError | None = None
    if here.is_first:
        try:
            told[0] = work()
        except LoraExtError as raised:
            error, told[1] = raised, str(raised)
    torch.distributed.broadcast_object_list(told, src=0)
    if told[1] is not None:
        raise error or LoraExtError(told[1])
    result: Result = told[0]
    return result


def first_then_others(work: Callable[[], Result]) -> Result:
    """Do work in every process, on each machine in one before the others, which then find what it downloaded.

    Raises:
        LoraExtError: What it raises in any of those that go first, in every process.
    """
    here = find_processes()
    if here.size == 1:
        return work()
    import torch.distributed

    _join()
    results: list[Result] = []
    error: LoraExtError | None = None
    if here.local_rank == 0:
        try:
            results.append(work())
        except LoraExtError as raised:
            error = raised
    told: list[Any] = [None] * here.size
    torch.distributed.all_gather_object(told, None if error is None else str(error))
    if failed := [words for words in told if words is not None]:
        raise error or LoraExtError(failed[0])
    return results[0] if results else work()


def _join() -> None:
    """Join the other processes as accelerate does, so that the trainer finds them joined."""
    import torch.cuda
    from accelerate import PartialState

    PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)


def leave() -> None:
    """Part from the other processes, if this one has joined them."""
    if find_processes().size == 1:
        return
    import torch.distributed

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
