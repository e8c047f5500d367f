"""The rank curves of a saved adapter, on the rows of its run or on others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from .curve import RankCurve, chosen_criterion, rank_curve
from .subject import find_subject
from .truncation import TRUNCATIONS

__all__ = ["curves_of"]


def curves_of(
    adapter: str | Path, criterion: str | None, say: Callable[[str], None] = lambda line: None, **given: Any
) -> list[RankCurve]:
    """Return an adapter's curve by one criterion, or by each.

    Args:
        adapter: The folder.
        criterion: `whitened`, `svd`, or `both`; None leaves it to what rows there are.
        say: Takes one line of progress.
        **given: Base and rows, as `find_subject` takes them.

    Raises:
        ConfigError: If there are no rows to measure on, or none for the criterion.
        AdapterError: If there is no adapter whose rank can be changed.
    """
    subject = find_subject(adapter, **given)
    if subject.held_out is None:
        raise ConfigError(f"{adapter} tells no rows that it held out: give held-out rows with data= (--data)")
    wanted = [*TRUNCATIONS] if criterion == "both" else [chosen_criterion(criterion, subject.training is not None)]
    for each in wanted:
        chosen_criterion(each, subject.training is not None)
    model, tokenizer = subject.load_()
    curves = []
    for each in wanted:
        say(each)
        rows = subject.training if each == "whitened" else None
        curves.append(
            rank_curve(
                model,
                subject.held_out,
                tokenizer=tokenizer,
                calibration=rows,
                criterion=each,
                max_length=subject.max_length,
                assistant_only=subject.assistant_only,
                say=say,
            )
        )
    return curves
