"""Which trackers a recipe may report to, and whether they are installed. Nothing of them is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, Final

from ..errors import ConfigError

__all__ = ["TRACKERS", "check_trackers", "trackers_in"]

NONE: Final = "none"
TRACKERS: Final[dict[str, tuple[str, ...]]] = {
    "tensorboard": ("tensorboard", "tensorboardX"),
    "wandb": ("wandb",),
    "trackio": ("trackio",),
    "mlflow": ("mlflow",),
}
"""Name in `report_to` → packages, of which one is enough."""


def trackers_in(report_to: Any) -> tuple[str, ...]:
    """Return the trackers that a `report_to` names: a name, several, or `none`."""
    named = (report_to,) if isinstance(report_to, str) else tuple(report_to or ())
    return tuple(name for name in named if name != NONE)


def check_trackers(report_to: str | Sequence[str] | None) -> None:
    """Raise for a tracker whose package is not installed.

    Raises:
        ConfigError: With what to install.
    """
    for name in trackers_in(report_to):
        packages = TRACKERS[name]
        if not any(find_spec(package) for package in packages):
            raise ConfigError(
                f"training.report_to: {name} is not installed; pip install {packages[0]}, or leave report_to out "
                "(the run folder has train.log in any case)"
            )
