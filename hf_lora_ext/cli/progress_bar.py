"""The training's line at the foot of a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from types import TracebackType

    from rich.progress import Progress

__all__ = ["TerminalBar"]


class TerminalBar:
    """A bar with step, loss, tokens a second, memory and time left; other lines go above it while it is there.

    Use it as a context, so that a run that fails leaves the terminal as it was.
    """

    def __init__(self) -> None:
        self._progress: Progress | None = None

    def __enter__(self) -> TerminalBar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def show(self, step: int, steps: int, words: str) -> None:
        """Draw the bar, for the first time or again."""
        if self._progress is None:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

            columns = (TextColumn(" "), BarColumn(bar_width=16), MofNCompleteColumn(), TextColumn("{task.description}"))
            self._progress = Progress(*columns, console=Console(stderr=True))
            self._task = self._progress.add_task("", total=steps)
            self._progress.start()
        self._progress.update(self._task, completed=step, description=words)

    def say(self, line: str) -> None:
        """Print a line that stays, above the bar."""
        if self._progress is None:
            click.echo(line, err=True)
        else:
            self._progress.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Leave the bar as it is."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
