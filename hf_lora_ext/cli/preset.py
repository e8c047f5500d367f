"""`hf-lora preset`: every value for a fine-tune with its reason, and the script or recipe that runs it."""

from __future__ import annotations

import json
from pathlib import PurePath
from typing import Any, Final

import click

from ..choices.methods import METHODS
from ..presets.preset import Preset, preset
from ..runs.trainer_kinds import TRAINERS
from .options import preset_arguments, spoken_as_options, wish_options

__all__ = ["command"]

EPILOG: Final = """
\b
Examples:
  hf-lora preset 7B --gpu 24
  hf-lora preset Qwen/Qwen3-8B --method qlora --gpu 16 --seq 2048 --json
  hf-lora preset Qwen/Qwen3-8B --gpu 24 --emit python --data mine.jsonl > train.py
  hf-lora preset Qwen/Qwen3-8B --gpu 24 --emit yaml --data mine.jsonl > mine.yaml
  hf-lora preset Qwen/Qwen3-8B --gpu 24 --emit yaml --trainer dpo --data pairs.jsonl > pairs.yaml

MODEL is a size such as 7B, a Hub id, or a folder with config.json. Exit code 2: something given was wrong, or
nothing fits; one line on standard error says what would.
"""


@click.command("preset", epilog=EPILOG)
@click.argument("model")
@click.option("--method", metavar=f"[{'|'.join(METHODS)}]", help="Stay with it; else lora, or qlora if it must be.")
@wish_options
@click.option("--json", "as_json", is_flag=True, help="Print the preset as JSON.")
@click.option("--emit", type=click.Choice(["python", "yaml"]), help="Print a script, or a recipe for `hf-lora train`.")
@click.option("--data", default="examples.jsonl", show_default=True, help="The examples that --emit names.")
@click.option("--trainer", metavar=f"[{'|'.join(TRAINERS)}]", help="How the recipe of --emit yaml learns; else sft.")
@click.option("--output-dir", help="The folder that --emit names; else out/ and the model's name.")
def command(
    model: str,
    as_json: bool,
    emit: str | None,
    data: str,
    trainer: str | None,
    output_dir: str | None,
    **wishes: Any,
) -> None:
    """Print a fine-tune's every value, with reason and source."""
    if as_json and emit:
        raise click.UsageError("--json and --emit exclude each other; leave one out")
    if trainer and emit != "yaml":
        raise click.UsageError("--trainer is for --emit yaml; add it, or leave --trainer out")
    with spoken_as_options():
        decided = preset(model, **preset_arguments(wishes), ask_hub=False)
        if emit:
            click.echo(_emitted(decided, emit, data, output_dir, trainer or "sft"), nl=False)
        else:
            click.echo(json.dumps(decided.to_dict()) if as_json else decided.explain())


def _emitted(decided: Preset, form: str, data: str, output_dir: str | None, trainer: Any) -> str:
    from ..runs.emission import python_script, recipe_yaml

    name = PurePath(decided.model_id or "run").name or "run"
    folder = output_dir or f"out/{name}"
    if form == "yaml":
        return recipe_yaml(decided, data=data, output_dir=folder, trainer=trainer)
    from importlib.metadata import version

    return python_script(decided, data=data, output_dir=folder, transformers=version("transformers"))
