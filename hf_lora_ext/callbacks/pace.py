"""How fast a run trains: seconds of its steps, without those of evaluating and saving, and tokens."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from statistics import median
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from transformers import TrainerState

__all__ = ["Pace"]

STEPS: Final = 1_000
"""Steps whose median is told: the last ones."""


class Pace:
    """A stopwatch for steps and a counter for tokens, whose numbers go into a checkpoint.

    Args:
        counter: What trl's counter of tokens, which goes on from one `train()` to the next, stands at.
    """

    def __init__(self, counter: int = 0) -> None:
        self._steps: deque[float] = deque(maxlen=STEPS)
        self._since: float | None = None
        self._begun_at, self._tokens_before = counter, 0
        self.counter = counter
        self._told = (0.0, 0)
        self.seconds = 0.0
        self.tokens: int | None = None

    def begin_step(self) -> None:
        """Take the time, where it was not taken at the end of the step before."""
        if self._since is None:
            self._since = time.perf_counter()

    def end_step(self) -> None:
        """Count a step, with the loading of its data."""
        now = time.perf_counter()
        if self._since is not None:
            self._steps.append(now - self._since)
            self.seconds += self._steps[-1]
        self._since = now

    def pause(self) -> None:
        """Leave out what happens until the next step begins."""
        self._since = None

    def count(self, logs: Mapping[str, Any], state: TrainerState) -> None:
        """Take the tokens that the trainer has counted: all of the run, or trl's, which are those of this process."""
        if state.num_input_tokens_seen:
            self.tokens = state.num_input_tokens_seen
        elif "num_tokens" in logs:
            self.counter = int(logs["num_tokens"])
            self.tokens = self._tokens_before + self.counter - self._begun_at

    @property
    def step_seconds(self) -> float | None:
        """Median seconds of a step."""
        return median(self._steps) if self._steps else None

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens of the run by its seconds of training."""
        return self.tokens / self.seconds if self.tokens and self.seconds else None

    def lap(self) -> float | None:
        """Return tokens a second since the last lap, and begin another."""
        seconds, tokens = self.seconds - self._told[0], (self.tokens or 0) - self._told[1]
        self._told = self.seconds, self.tokens or 0
        return tokens / seconds if seconds > 0 and tokens > 0 else None

    def to_dict(self) -> dict[str, Any]:
        """Return what a resumed run must know."""
        steps = [round(seconds, 5) for seconds in self._steps]
        return {"steps": steps, "seconds": self.seconds, "tokens": self.tokens}

    def take_up(self, saved: Mapping[str, Any]) -> None:
        """Go on from what `to_dict` gave."""
        self._steps.extend(saved["steps"])
        self.seconds, self.tokens = saved["seconds"], saved["tokens"]
        self._tokens_before = saved["tokens"] or 0
        self._told = self.seconds, self._tokens_before
