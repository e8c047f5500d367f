"""When a training run pushes: each so many saves, the best so far, the end."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import ConfigError

__all__ = ["PushSchedule", "schedule_of_strategy"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PushSchedule:
    """Which saves of a run go to the Hub."""

    every_saves: int | None = None
    """Push each time so many checkpoints were written; None pushes none for being its turn."""
    best: bool = False
    """Push a checkpoint that is the best so far."""
    at_end: bool = True
    """Push what the training ends with."""

    def __post_init__(self) -> None:
        every = self.every_saves
        if every is not None and (isinstance(every, bool) or not isinstance(every, int) or every < 1):
            raise ConfigError(f"every_saves={every!r} must be a whole number from 1")
        if every and self.best:
            raise ConfigError(
                "every_saves and best exclude each other: a later save would lie over the best; leave one out, or use "
                "two callbacks with a revision each"
            )
        if not (every or self.best or self.at_end):
            raise ConfigError("nothing would ever be pushed; give every_saves=, best=True or at_end=True")

    def reason(self, save: int, is_best: bool) -> str | None:
        """Return why a save goes, in words for a commit's title, or None where it stays.

        Args:
            save: Its number in the run, from 1.
            is_best: Whether it is the best so far.

        >>> PushSchedule(every_saves=2).reason(4, is_best=False)
        'on the way'
        """
        if self.best and is_best:
            return "best so far"
        return "on the way" if self.every_saves and save % self.every_saves == 0 else None


def schedule_of_strategy(strategy: str) -> PushSchedule:
    """Return the schedule that a Trainer's `hub_strategy` asks for.

    `checkpoint` and `all_checkpoints` would upload optimizer states and pickles, so of their saves the adapter goes.
    """
    return PushSchedule(every_saves=None if strategy == "end" else 1)
