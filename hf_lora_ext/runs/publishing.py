"""A run that its recipe publishes: access asked for before it, pushed on its way, and when it is finished."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from .push_choice import PushChoice

if TYPE_CHECKING:
    from transformers import TrainerCallback

    from ..push.plan import PushResult

__all__ = ["check_push", "publish", "pushing_on_the_way"]

Say = Callable[[str], None]


def check_push(push: PushChoice, say: Say) -> None:
    """Ask the Hub for access before anything is loaded; the rest is found out when the adapter is there.

    Raises:
        PushError: If the Hub would not take it; that it is away is only said.
    """
    from ..hub.failures import HubAway
    from ..push.access import check_access

    try:
        say(f"push     {check_access(push.repo, private=push.private)}, when the run is finished")
    except HubAway as away:
        say(f"push     {push.repo}: nothing could be checked: {away}")


def pushing_on_the_way(push: PushChoice | None, say: Say) -> list[TrainerCallback]:
    """Return the callback that checks the rest and pushes on the way; none where nothing is to be pushed."""
    from ..callbacks import PushOnTheWay

    if push is None:
        return []
    return [PushOnTheWay(push.repo, every_saves=push.every_saves, tag=push.tag, say=say, **push.arguments)]


def publish(push: PushChoice, folder: Path, say: Say) -> PushResult:
    """Push a finished run and return what the Hub holds of it.

    Raises:
        LoraExtError: If it could not be pushed.
    """
    from ..hub import without_bars
    from ..push.push import push_adapter

    with without_bars():
        return push_adapter(folder, push.repo, tag=push.tag, say=lambda step: say(f"push     {step}"), **push.arguments)
