"""What `hf-lora preset` and `hf-lora plan` can be asked for: the same options, and what they become."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import click

from ..choices.advice import TASKS
from ..choices.methods import INITS
from ..choices.run import ATTENTIONS, OPTIMIZERS, SHARDINGS
from ..errors import ConfigError

__all__ = ["as_options", "preset_arguments", "spoken_as_options", "wish_options"]


def _rank(context: click.Context, parameter: click.Parameter, value: str | None) -> int | str | None:
    """Return a whole number, or `auto`."""
    if value is None or value == "auto":
        return value
    try:
        return int(value)
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is neither a whole number nor auto") from error


class _Gib(click.ParamType[float]):
    """A number of GiB."""

    name = "float"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> float:
        """Return the number."""
        try:
            return float(value)
        except ValueError:
            self.fail(f"{value!r} is not a number of GiB; write it without a unit, e.g. 24", parameter, context)


def _words(words: tuple[str, ...]) -> str:
    return f"[{'|'.join(words)}]"


_OPTIONS: Final = (
    click.option(
        "--rank",
        callback=_rank,
        metavar="INTEGER|auto",
        help="LoRA rank, or auto for the advice; by the model's size if left out.",
    ),
    click.option("--alpha", type=int, help="LoRA alpha; else 2 x rank."),
    click.option("--dropout", type=float, help="Dropout on the adapter's input."),
    click.option("--targets", metavar="NAMES", help="Module names, separated by commas; else all-linear."),
    click.option("--init", metavar=_words(tuple(i for i in INITS if not INITS[i].refusal)), help="Adapter's start."),
    click.option("--experts", is_flag=True, default=None, help="Adapt a mixture's experts too."),
    click.option("--new-tokens", metavar="IDS", help="Ids of tokens that you added, separated by commas."),
    click.option("--adaptive-rank", is_flag=True, default=None, help="Rank moves to the layers that need it."),
    click.option("--optimizer", metavar=_words(OPTIMIZERS), help="Optimizer."),
    click.option("--attention", metavar=_words(ATTENTIONS), help="Attention kernel."),
    click.option("--packing/--no-packing", default=None, help="Whether several examples share a row."),
    click.option("--sharding", metavar=_words(SHARDINGS), help="How several devices share the work."),
    click.option("--seq", "--max-length", "max_length", type=int, help="Tokens an example; else at most 1024."),
    click.option("--task", metavar=_words(TASKS), help="What is learned, for --rank auto."),
    click.option("--examples", type=int, help="Training examples, for --rank auto."),
    click.option("--tokens", type=int, help="Training tokens that the loss counts, for --rank auto."),
    click.option("--gpu", "gpu_memory_gib", type=_Gib(), help="GiB of one GPU; else what is found here."),
    click.option("--gpus", type=int, help="Number of such GPUs in one machine."),
    click.option("--machines", type=int, help="Number of such machines."),
    click.option("--host-gib", type=_Gib(), help="GiB of one machine's host memory, which the plan then fits too."),
)
"""All but the method, whose names differ between the verbs."""
_SPOKEN: Final = {"gpu_memory_gib": "--gpu", "max_length": "--seq", "host_gib": "--host-gib"}
"""Argument of `preset` → option, where it is not just the name with two dashes."""
_ARGUMENTS: Final = (
    *("rank", "alpha", "dropout", "targets", "experts", "new_tokens", "adaptive_rank", "init", "optimizer"),
    *("attention", "packing", "sharding", "max_length"),
    *("task", "examples", "tokens", "gpu_memory_gib", "gpus", "machines", "host_gib", "method"),
)


def wish_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a verb with the options, in their order."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def preset_arguments(given: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of `preset` for the options that were given."""
    arguments = {name: given[name] for name in _ARGUMENTS if given.get(name) is not None}
    if "new_tokens" in arguments:
        arguments["new_tokens"] = _token_ids(arguments["new_tokens"])
    if "targets" in arguments and arguments["targets"] != "all-linear":
        arguments["targets"] = [name.strip() for name in arguments["targets"].split(",") if name.strip()]
    return arguments


def _token_ids(listed: str) -> list[int]:
    try:
        return [int(token) for token in listed.split(",")]
    except ValueError:
        raise ConfigError(f"--new-tokens {listed} must be token ids separated by commas, such as 49152,49153") from None


@contextmanager
def spoken_as_options() -> Iterator[None]:
    """Turn the arguments that an error names into the options that were given."""
    try:
        yield
    except ConfigError as error:
        error.args = (as_options(str(error)),)
        raise


def as_options(message: str) -> str:
    """Return a message about arguments of `preset` as one about options.

    >>> as_options("gpus=0 must be a whole number from 1")
    '--gpus 0 must be a whole number from 1'
    """
    names = "|".join(sorted(_ARGUMENTS, key=len, reverse=True))

    def spoken(match: re.Match[str]) -> str:
        option = _SPOKEN.get(match[1]) or f"--{match[1]}"
        return f"{option} {match[2].strip(chr(39))}" if match[2] else option

    said = re.sub(rf"(?<![\w.-])({names})=('[^']*'|[^\s;,)]*)", spoken, message)
    return said.replace("main_process_ip", "--main-process-ip")
