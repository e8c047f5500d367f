"""EleutherAI's lm-evaluation-harness on base and adapter: the one seam to lm_eval.

Its tasks fetch their own data, most of them from the Hub.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..cards.comparisons import Difference
from ..errors import ConfigError
from .bootstrap import paired_bootstrap
from .scores import mean_statistic

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase

__all__ = ["HarnessRow", "check_harness", "paired_rows", "run_harness"]

Told = Mapping[str, Sequence[Mapping[str, Any]]]
"""Task → what lm_eval logged of each of its documents."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HarnessRow:
    """One metric of one task."""

    task: str
    """lm_eval's name."""
    metric: str
    """lm_eval's name."""
    examples: int
    """Documents."""
    base: float
    """The base's mean over them."""
    adapter: float
    """The adapted model's."""
    change: Difference
    """Between them, with the paired interval."""


def check_harness(tasks: Sequence[str]) -> None:
    """Find out whether tasks can be run here.

    Raises:
        ConfigError: If lm_eval is not installed.
    """
    if tasks and find_spec("lm_eval") is None:
        raise ConfigError("--harness needs lm_eval, which is not installed here: pip install 'hf_lora_ext[harness]'")


def run_harness(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[str],
    *,
    limit: int | None,
    batch_size: int,
    resamples: int,
    say: Callable[[str], None],
) -> tuple[HarnessRow, ...]:
    """Return base and adapter on lm_eval's tasks, each with lm_eval's own settings for it.

    Args:
        model: The adapted model, in evaluation mode; the base answers with the adapter switched off.
        tokenizer: Its tokenizer.
        tasks: Names, or YAML files of tasks; without any, nothing is run.
        limit: Documents of a task at most; None for all.
        batch_size: Documents at once.
        resamples: Draws behind each interval.
        say: Takes one line of progress.

    Raises:
        ConfigError: If lm_eval is not installed, or refuses the tasks.
    """
    if not tasks:
        return ()
    check_harness(tasks)
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    # HFLM takes transformers' model alone, in which peft's layers are; switched off, they leave the base.
    harnessed = HFLM(pretrained=model.get_base_model(), tokenizer=tokenizer, batch_size=batch_size)
    # Its own tasks are thousands of files, which are read only where one of them is asked for by name.
    known = TaskManager(include_defaults=not all(Path(task).is_file() for task in tasks))
    told: dict[str, Told] = {}
    for who, mode in (("base", model.disable_adapter()), ("adapter", nullcontext())):
        say(f"{who:<8} lm_eval {', '.join(tasks)}")
        try:
            with mode:
                found = simple_evaluate(
                    harnessed, tasks=[*tasks], limit=limit, bootstrap_iters=0, log_samples=True, task_manager=known
                )
        except (KeyError, OSError, TypeError, ValueError) as error:  # TypeError: a task's file that lacks a part
            why = (str(error).splitlines() or [type(error).__name__])[0]
            raise ConfigError(f"lm_eval refuses {', '.join(tasks)}: {why}") from error
        told[who] = found["samples"]
    return paired_rows(told["base"], told["adapter"], resamples=resamples)


def paired_rows(base: Told, adapter: Told, *, resamples: int) -> tuple[HarnessRow, ...]:
    """Return each task's metrics that have one number a document, paired by document.

    A metric over all documents together, such as BLEU, has none and is left out.

    Args:
        base: What lm_eval logged of the base.
        adapter: Of the adapted model.
        resamples: Draws behind each interval.
    """
    rows = []
    for task, documents in adapter.items():
        plain, adapted = _by_document(base[task]), _by_document(documents)
        for filtered, metric in sorted({(f, m) for f, _, m in adapted}):
            names = [name for name in adapted if (name[0], name[2]) == (filtered, metric) and name in plain]
            if len(names) < 2:
                continue
            one, other = (mean_statistic([told[name] for name in names]) for told in (plain, adapted))
            everyone = range(len(names))
            change = paired_bootstrap({metric: (one, other)}, len(names), resamples=resamples)[metric]
            words = metric if filtered == "none" else f"{metric} ({filtered})"
            rows.append(
                HarnessRow(
                    task=task,
                    metric=words,
                    examples=len(names),
                    base=one(everyone),
                    adapter=other(everyone),
                    change=change,
                )
            )
    return tuple(rows)


def _by_document(documents: Sequence[Mapping[str, Any]]) -> dict[tuple[str, Any, str], float]:
    """Return (filter, document, metric) → its number."""
    return {
        (str(told.get("filter", "none")), told["doc_id"], metric): float(told[metric])
        for told in documents
        for metric in told.get("metrics", ())
        if isinstance(told.get(metric), (int, float))
    }
