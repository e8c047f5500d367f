"""Metrics for the evaluate library that load without a network: modules named and called as those on the Hub.

The evaluate package ships no metric; `evaluate.load("rouge")` fetches a script. Here the scripts lie beside this file,
and `evaluate.load(path)` takes each as it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ..errors import ConfigError, nearest

if TYPE_CHECKING:
    from evaluate import Metric

__all__ = ["MODULES", "check_installed", "load_metric", "metric_path"]

MODULES: Final = {
    "accuracy": ("evaluate",),
    "exact_match": ("evaluate",),
    "f1": ("evaluate",),
    "rouge": ("evaluate", "rouge_score"),
}
"""Metric's module → the packages that it needs."""


def metric_path(name: str) -> Path:
    """Return the script that `evaluate.load` takes.

    Raises:
        ConfigError: If there is no such metric.
    """
    if name not in MODULES:
        raise ConfigError(f"metric {name!r} is not one of ours; {nearest(name, MODULES)}")
    return Path(__file__).with_name(f"{name}.py")


def check_installed(names: Iterable[str]) -> None:
    """Find out whether metrics can be computed here; names that are none of ours need nothing.

    Raises:
        ConfigError: If a package is not installed.
    """
    for name in names:
        if missing := [package for package in MODULES.get(name, ()) if find_spec(package) is None]:
            raise ConfigError(
                f"metric {name} needs {' and '.join(missing)}, not installed here: pip install 'hf_lora_ext[evaluate]'"
            )


def load_metric(name: str) -> Metric:
    """Return a metric as the evaluate library loads it from its script.

    Args:
        name: A name in `MODULES`.

    Raises:
        ConfigError: If there is no such metric, or a package that it needs is not installed.

    Example::

        load_metric("exact_match").compute(predictions=["a", "b"], references=["a", "c"])
    """
    script = metric_path(name)
    check_installed([name])
    import evaluate

    return evaluate.load(str(script), keep_in_memory=True)
