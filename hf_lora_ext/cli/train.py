"""`hf-lora train`: run a recipe."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..errors import ConfigError, LoraExtError, PushError
from ..machine import find_hardware
from ..runs.launching import follow_launcher, processes_of
from ..runs.launching import launch as start
from ..runs.processes import Processes, find_processes, leave
from ..runs.recipe import Recipe, load_recipe
from ..runs.recipe_plan import declared_preset
from ..runs.shipped import recipe_file
from .progress_bar import TerminalBar
from .quiet import quieten_libraries

if TYPE_CHECKING:
    from ..runs.runner import RunResult

__all__ = ["command", "full_disk_explained"]

EPILOG = """
\b
Examples:
  hf-lora train recipes/quickstart.yaml
  hf-lora train quickstart --dry-run
  hf-lora train recipes/quickstart.yaml data.source=mine.jsonl output_dir=out/mine
  hf-lora train recipes/quickstart.yaml training.max_steps=20 seed=1 --json
  hf-lora train recipes/quickstart.yaml --launch ddp2
  hf-lora train recipes/quickstart.yaml push.repo=me/docstrings push.private=true

The same command goes on where a killed run stopped, and says what is there when the run is finished; with push.repo it
pushes that. --launch ddpN is N processes with one log. Exit code 2: something given was wrong, the disk is full, or the
finished run was not pushed; 130: interrupted; 128 + N: signal N killed one of several processes.
"""


@click.command("train", epilog=EPILOG)
@click.argument("recipe", type=click.Path())
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--dry-run", is_flag=True, help="Say what it would do, show the first batch, and do nothing.")
@click.option("--launch", metavar="ddpN", help="Train in N processes, on a GPU each where there are any.")
@click.option(
    "--accelerate-config", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
    help="Write what `accelerate launch --config_file` takes for the hardware that the recipe declares; train nothing.",
)  # fmt: skip
@click.option("--main-process-ip", metavar="ADDRESS", help="Address of the first machine, for --accelerate-config.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on standard output.")
@click.option("--quiet", "-q", is_flag=True, help="Print no progress; errors and --json still show.")
def command(
    recipe: str,
    overrides: tuple[str, ...],
    dry_run: bool,
    launch: str | None,
    accelerate_config: Path | None,
    main_process_ip: str | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Train the LoRA adapter that a recipe describes.

    RECIPE is a YAML file, or the name of one that comes with the package. KEY=VALUE replaces one of its values; keys
    are dotted, values are YAML.
    """
    follow_launcher()
    chosen = load_recipe(recipe_file(recipe), overrides)
    if accelerate_config is not None:
        _write_launch_file(chosen, recipe, accelerate_config, main_process_ip)
        return
    if dry_run:
        _look(chosen, 1 if launch is None else processes_of(launch, find_hardware()), as_json)
        return
    if launch is not None:
        _launch(launch, [recipe, *overrides, *["--json"] * as_json, *["--quiet"] * quiet])
        return

    def say(line: str) -> None:
        if not quiet:
            click.echo(line, err=True)

    here = find_processes()
    _keep_to_one_gpu(here, say)
    if quiet:
        os.environ["TQDM_DISABLE"] = "1"  # read when tqdm is imported, which nothing has done yet
    with full_disk_explained(chosen.output_dir):
        from ..runs.runner import run_recipe

        quieten_libraries()
        draws = sys.stderr.isatty() and here.is_first and not quiet
        with TerminalBar() if draws else nullcontext() as bar:
            result = run_recipe(chosen, bar.say if bar else say, bar=bar)
    leave()
    if not here.is_first:
        return
    _tell(result, recipe, as_json, quiet)


def _tell(result: RunResult, recipe: str, as_json: bool, quiet: bool) -> None:
    """Print what came of a run.

    Raises:
        PushError: If it was to be pushed and was not.
    """
    if as_json:
        pushed = {"push": result.push.to_dict()} if result.push else {}
        told = {"folder": str(result.folder), "status": result.status, "facts": result.facts.to_dict()}
        click.echo(json.dumps(told | pushed))
    elif not quiet:
        _print_result(result, recipe)
    if result.push_problem:
        raise PushError(result.push_problem)


def _look(chosen: Recipe, processes: int, as_json: bool) -> None:
    """Print what a recipe would do."""
    from ..runs.dry_run import dry_run
    from .dry_run import print_dry_run

    quieten_libraries()
    made = dry_run(chosen, processes)
    if as_json:
        click.echo(json.dumps(made.to_dict()))
    else:
        print_dry_run(made)


def _launch(launch: str, arguments: list[str]) -> None:
    """Run this command in several processes and exit as they did."""
    number = processes_of(launch, find_hardware())
    if find_processes().size > 1:
        raise ConfigError("--launch starts the processes itself; leave it out under accelerate launch or torchrun")
    own = [sys.executable, "-m", "hf_lora_ext.cli", "train", *arguments]
    sys.exit(start(own, number, lambda line: click.echo(line, err=True)))


def _keep_to_one_gpu(here: Processes, say: Callable[[str], None]) -> None:
    """Hide the other GPUs from a process that is alone, before torch looks: the trainer would copy the model to all."""
    found = find_hardware()
    if here.size == 1 and found.kind == "cuda" and found.devices > 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
        say(f"GPUs     1 of {found.devices}; --launch ddp{found.devices} uses all")


def _write_launch_file(chosen: Recipe, recipe: str, file: Path, main_process_ip: str | None) -> None:
    """Write accelerate's configuration for the hardware that a recipe declares, and say what to do with it."""
    made = declared_preset(chosen)
    machines = made.hardware.machines
    text = made.accelerate_yaml(main_process_ip=main_process_ip)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"# Written by `hf-lora train {recipe} --accelerate-config`\n{text}", encoding="utf8")
    except OSError as error:
        raise ConfigError(
            f"--accelerate-config {file} cannot be written ({error.strerror}); name another file"
        ) from error
    rank = " --machine_rank N" if machines > 1 else ""
    where = f", on each of the {machines} machines, N from 0 to {machines - 1}" if rank else ""
    click.echo(
        f"wrote {file}; next: accelerate launch --config_file {file}{rank} -m hf_lora_ext.cli train {recipe}{where}"
    )


@contextmanager
def full_disk_explained(output_dir: str) -> Iterator[None]:
    """Turn a disk that filled up while training into one message.

    torch and safetensors report a full disk as errors of their own, so the words are looked at too.
    """
    try:
        yield
    except LoraExtError:
        raise
    except Exception as error:
        full = getattr(error, "errno", None) in {errno.ENOSPC, errno.EDQUOT} or "No space left" in str(error)
        if not full and not _disk_is_full(output_dir):
            raise
        raise LoraExtError(
            f"the disk of output_dir {output_dir} is full ({type(error).__name__}); free some space and run the "
            "same command again: it goes on from the last whole checkpoint"
        ) from error


def _disk_is_full(output_dir: str) -> bool:
    from ..machine import free_disk_bytes

    return free_disk_bytes(Path(output_dir)) < 2**20


def _print_result(result: RunResult, recipe_file: str) -> None:
    """Print the closing tables: losses, samples, cost, and what to do next."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    facts, console = result.facts, Console()
    table = Table(title=f"{result.folder} ({result.status})", box=box.SIMPLE_HEAD, title_justify="left")
    for heading in ("", "base", "adapter"):
        table.add_column(heading, justify="left" if not heading else "right")
    for metric, value in facts.evaluation.get("adapter", {}).items():
        before = facts.evaluation.get("base", {}).get(metric)
        table.add_row(f"held-out {metric}", "" if before is None else f"{before:.3f}", f"{value:.3f}")
    console.print(table)
    for sample in facts.samples:
        shown = Table(box=box.SIMPLE, show_header=False, pad_edge=False)
        shown.add_column(style="bold")
        shown.add_column(overflow="fold")
        for name, text in (
            ("held out", sample.prompt),
            ("base", sample.base),
            ("adapter", sample.adapter),
            *([("real", sample.reference)] if sample.reference else []),
        ):
            shown.add_row(name, _clipped(text))
        console.print(shown)
    for name, text in _cost_lines(result, recipe_file):
        console.print(f"{name:<22} {text}", highlight=False, soft_wrap=True)


def _clipped(text: str, lines: int = 8) -> str:
    from rich.markup import escape

    kept = text.strip().splitlines()
    return escape("\n".join(kept[:lines] + (["…"] if len(kept) > lines else [])))


def _program() -> str:
    """Return how this command was called, so that the next one can be pasted."""
    called = Path(sys.argv[0])
    if called.name != "hf-lora" or shutil.which("hf-lora") == str(called.absolute()):
        return "hf-lora"
    return os.path.relpath(called) if called.is_relative_to(Path.cwd()) or not called.is_absolute() else str(called)


def _cost_lines(result: RunResult, recipe_file: str) -> list[tuple[str, str]]:
    """Return what the run cost and left behind, and what to do next, as (name, text)."""
    run, adapter = result.facts.run, result.facts.adapter
    seconds = int(run.get("train_seconds", 0))
    peaks = ", ".join(
        f"{name.removesuffix('_gib').replace('_', ' ')} {value:g} GiB"
        for name, value in run.get("peak_memory", {}).items()
    )
    folder, of_step = result.folder, run.get("adapter_of_step")
    kept = (
        [("adapter", f"of step {of_step} of {run.get('steps')}, where the held-out loss was lowest")] if of_step else []
    )
    return [
        *kept,
        (
            "training time",
            f"{seconds // 60}:{seconds % 60:02d} min for {run.get('steps')} steps, evaluations included",
        ),
        ("peak memory", peaks),
        ("trainable parameters", f"{adapter.get('trainable_parameters', 0):,}"),
        ("adapter size", f"{adapter.get('bytes', 0) / 2**20:.1f} MiB"),
        ("card and loss curve", f"{folder / 'README.md'}, {folder / 'loss_curve.png'}"),
        *([("on the Hub", f"{result.push.repo_id} at {result.push.commit}, verified")] if result.push else []),
        (
            "next, on your own data",
            f"{_program()} train {recipe_file} data.source=YOURS.jsonl output_dir=out/mine",
        ),
    ]
