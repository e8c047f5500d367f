"""A preset as something to run: a Python script for peft and trl, or a recipe for `hf-lora train`.

Pure. A script makes the calls that `training` makes, with the same `arguments`; a test executes it and holds its
objects against the preset's own, field by field, and loads the recipe back.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from ..adapters.adalora_schedule import ADALORA_SCHEDULE
from ..choices.run import LORAPLUS, LORAPLUS_RATIO
from ..data.forms import FORMS
from ..errors import ConfigError
from ..presets.arguments import adapter_arguments, callback_arguments, quantisation_arguments, training_arguments
from ..strict_yaml import dump_yaml
from .recipe import parse_recipe
from .rewards import MODEL, REWARDS
from .trainer_kinds import COMMON_FIELDS, kind_arguments, trainer_kind

if TYPE_CHECKING:
    from ..presets.configuration import Preset
    from .trainer_kinds import Trainer

__all__ = ["python_script", "recipe_yaml"]

WIDTH: Final = 100
"""Characters of a line; a longer comment goes above its value."""
INDENT: Final = "    "
OURS: Final = "needs hf_lora_ext"


@dataclass(frozen=True, slots=True)
class _Item:
    """One value with its reason."""

    name: str
    value: Any
    why: str = ""


@dataclass(frozen=True, slots=True)
class _Code:
    """An expression that is written as it is."""

    text: str


def python_script(preset: Preset, *, data: str, output_dir: str, transformers: str) -> str:
    """Return a complete script that trains the preset with peft and trl, each value with its reason.

    It needs this package only where a callback of ours is part of the method.

    Args:
        preset: What to write.
        data: The examples: a .jsonl, .json, .csv or .parquet file, or a Hub dataset id.
        output_dir: Folder for checkpoints and adapter.
        transformers: Version of transformers that the script is for, such as "5.23.0".

    Raises:
        ConfigError: If the preset names no model to load, or has a LoraConfig of the user's own.
    """
    model = _model_of(preset)
    kind = {"jsonl": "json", "json": "json", "csv": "csv", "parquet": "parquet"}.get(data.rpartition(".")[2].lower())
    adapter, given = adapter_arguments(preset)
    training = training_arguments(preset, _checkpointing(transformers))
    packed = quantisation_arguments(preset)
    where = "DATA" if kind is None else f"{_literal(kind)}, data_files=DATA"
    parts = [
        _heading(preset, model),
        "\n".join(_imports(preset)),
        f"MODEL = {_literal(model)}\nDATA = {_literal(data)}  # rows with prompt and completion, messages, or text",
        _call("peft_config = ", adapter, _items(preset, given)),
        _call("args = ", "SFTConfig", [_Item("output_dir", output_dir), *_items(preset, training)]),
        *([_call("quantization_config = ", "BitsAndBytesConfig", _items(preset, packed))] if packed else []),
        *([_loraplus_class()] if preset.optimizer == "loraplus" else []),
        _call("trainer = ", "SFTTrainer", _trainer(preset, where)),
        "trainer.train()\ntrainer.save_model()",
    ]
    return "\n\n".join(parts) + "\n"


def recipe_yaml(preset: Preset, *, data: str, output_dir: str, trainer: Trainer = "sft") -> str:
    """Return a recipe that `load_recipe` takes and that gives the same preset, each value with its reason.

    Args:
        preset: What to write.
        data: The examples, as `data.source` of a recipe.
        output_dir: The run folder.
        trainer: How it learns: a name in `trainer_kinds.TRAINER_KINDS`.

    Raises:
        ConfigError: If the preset names no model to load, cannot be said in a recipe, or does not go with the trainer.
    """
    kind = trainer_kind(trainer)
    items = [_Item("model", _model_of(preset)), _Item("output_dir", output_dir)]
    items += [_Item("trainer", trainer, kind.trainer), *([_REWARDS] if kind.has_rewards else [])]
    items.append(
        _Item("data", {"source": data}, f"rows of {', or '.join(' + '.join(FORMS[form]) for form in kind.forms)}")
    )
    adapter = [] if preset.method == "prefix" else ["rank", "alpha", "dropout", "targets"]
    pinned = ["method", "init", *adapter, "optimizer", "attention", "sharding"]
    items += [_Item(name, _plain(getattr(preset, name)), _why(preset, name)) for name in pinned]
    items += [_Item(name, value, _why(preset, name)) for name, value in _where_asked(preset).items()]
    training = _training_of(preset, trainer)
    parse_recipe({**{item.name: item.value for item in items}, "training": {i.name: i.value for i in training}})
    lines = [f"# {line}" for line in _about(preset)]
    lines += ["# Command:  hf-lora train THIS_FILE, on such hardware; the precision follows the device that it finds."]
    lines += [line for item in items for line in _yaml_lines(item, "")]
    lines += ["training:", *(line for item in training for line in _yaml_lines(item, "  "))]
    return "\n".join(lines) + "\n"


def _training_of(preset: Preset, trainer: Trainer) -> list[_Item]:
    """Return the fields of the trainer's configuration, with the reason why one is not what SFT is given."""
    kind = trainer_kind(trainer)
    of_sft = training_arguments(preset, "activation_checkpointing")
    given = kind_arguments(trainer, of_sft, {})
    own = {"learning_rate": kind.source} | dict.fromkeys(
        ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"),
        f"as {kind.trainer} needs it; SFT's would be {{}}",
    )
    return [
        _Item(
            name, given[name], _why(preset, choice) if given[name] == of_sft[name] else own[name].format(of_sft[name])
        )
        for name, choice in _RECIPE_FIELDS.items()
        if name in COMMON_FIELDS or name in kind.fields
    ]


def _where_asked(preset: Preset) -> dict[str, Any]:
    """Return the wishes that a recipe names only where they were made."""
    wished = {
        "experts": bool(preset.experts),
        "new_tokens": list(preset.new_tokens),
        "adaptive_rank": preset.adaptive_rank,
    }
    return {name: value for name, value in wished.items() if value}


_RECIPE_FIELDS: Final = {
    "learning_rate": "learning_rate",
    "lr_scheduler_type": "scheduler",
    "warmup_steps": "warmup_fraction",
    "num_train_epochs": "epochs",
    "per_device_train_batch_size": "micro_batch",
    "per_device_eval_batch_size": "micro_batch",
    "gradient_accumulation_steps": "accumulation",
    "max_length": "max_length",
    "packing": "packing",
    "activation_checkpointing": "activation_checkpointing",
}
"""SFTConfig field of a recipe → the preset's value."""
_REWARDS: Final = _Item(
    "rewards",
    [{"reward": "length", "characters": 200}],
    f"what is a good answer, by one or more of {', '.join(REWARDS)}, {MODEL} (a reward model)",
)
_RENAMED_IN: Final = (5, 23)
"""Release of transformers that renamed gradient_checkpointing to activation_checkpointing."""


def _model_of(preset: Preset) -> str:
    if preset.own_lora_config is not None:
        raise ConfigError(
            "a preset with a LoraConfig of your own cannot be written out; your code has that part already"
        )
    if preset.model_id is None:
        raise ConfigError("a size alone names no model to load; give a Hub id or a folder, e.g. Qwen/Qwen3-8B")
    return preset.model_id


def _about(preset: Preset) -> list[str]:
    """Return what it is, for what hardware, and what it needs there."""
    model = " ".join((preset.model_id or "").split())
    memory = "" if preset.memory_gib is None else f"; it needs {preset.memory_gib:g} GiB of each GPU, estimated"
    lines = [
        f"{model}: {preset.method}, as `hf-lora preset` of hf_lora_ext decided it.",
        f"Hardware: {preset.hardware}{memory}.",
    ]
    return [part for line in lines for part in textwrap.wrap(line, WIDTH - 2, subsequent_indent=" " * 10)]


def _heading(preset: Preset, model: str) -> str:
    shared = preset.sharding != "none"
    launch = "accelerate launch --config_file accelerate.yaml THIS_FILE" if shared else "python THIS_FILE"
    lines = [*_about(preset), f"Command:  {launch}"]
    if shared:
        lines.append("          (`hf-lora plan ... --accelerate-config accelerate.yaml` writes that file)")
    if not callback_arguments(preset):
        lines.append("It uses peft, transformers and trl alone.")
    return "\n".join(f"# {line}" for line in lines)


def _imports(preset: Preset) -> list[str]:
    config, _ = adapter_arguments(preset)
    callbacks = [name for name, _ in callback_arguments(preset)]
    plus = preset.optimizer == "loraplus"
    return [
        *(["import torch"] if plus else []),
        "from datasets import load_dataset",
        *([f"from hf_lora_ext.callbacks import {', '.join(callbacks)}  # {OURS}"] if callbacks else []),
        f"from peft import {config}",
        *(["from peft.optimizers import create_loraplus_optimizer"] if plus else []),
        *(["from transformers import BitsAndBytesConfig"] if preset.bits else []),
        "from trl import SFTConfig, SFTTrainer",
    ]


_REASONS: Final = {
    **{"r": "rank", "target_r": "rank", "lora_alpha": "alpha", "lora_dropout": "dropout", "target_modules": "targets"},
    **{
        "use_rslora": "method",
        "use_dora": "method",
        "init_lora_weights": "init",
        "num_virtual_tokens": "virtual_tokens",
    },
    **{"load_in_4bit": "method", "load_in_8bit": "method", "bnb_4bit_compute_dtype": "dtype"},
    **{"bf16": "dtype", "optim": "optimizer", "activation_checkpointing_kwargs": "reentrant"},
    **_RECIPE_FIELDS,
}
"""Argument → the preset's choice that gives its reason."""
_OWN_REASONS: Final = {
    "init_r": "half as much again, to have rank to move",
    "bnb_4bit_quant_storage": "FSDP shards packed weights only in the dtype of everything else",
    **dict.fromkeys(ADALORA_SCHEDULE, "replaced by the callback"),
}


def _items(preset: Preset, given: Mapping[str, Any]) -> list[_Item]:
    """Return arguments with their reasons, where there is something to say."""
    items = []
    for name, value in given.items():
        known = name.replace("gradient_checkpointing", "activation_checkpointing")
        why = _why(preset, _REASONS[known]) if known in _REASONS else _OWN_REASONS.get(known, "")
        if known == "optim" and preset.optimizer == "loraplus":
            why = "replaced by LoraPlus below"
        items.append(_Item(name, value, why))
    return items


def _checkpointing(transformers: str) -> str:
    """Return how that version names activation checkpointing."""
    release = tuple(int(part) for part in transformers.split(".")[:2])
    return "activation_checkpointing" if release >= _RENAMED_IN else "gradient_checkpointing"


def _trainer(preset: Preset, where: str) -> list[_Item]:
    calls = ", ".join(
        f"{name}({', '.join(f'{k}={_literal(v)}' for k, v in given.items())})"
        for name, given in callback_arguments(preset)
    )
    return [
        _Item("model", _Code("MODEL")),
        _Item("args", _Code("args")),
        _Item("train_dataset", _Code(f'load_dataset({where}, split="train")')),
        _Item("peft_config", _Code("peft_config")),
        *([_Item("quantization_config", _Code("quantization_config"))] if preset.bits else []),
        *([_Item("callbacks", _Code(f"[{calls}]"), OURS)] if calls else []),
        *([_Item("optimizer_cls_and_kwargs", _Code("(LoraPlus, {})"))] if preset.optimizer == "loraplus" else []),
    ]


def _loraplus_class() -> str:
    """Return the optimizer's factory, which the trainer calls with the adapted model."""
    arguments = [
        _Item("lr", _Code("args.learning_rate")),
        _Item("loraplus_lr_ratio", LORAPLUS_RATIO, LORAPLUS),
        _Item("loraplus_weight_decay", _Code("args.weight_decay")),
        _Item("betas", _Code("(args.adam_beta1, args.adam_beta2)")),
        _Item("eps", _Code("args.adam_epsilon")),
    ]
    call = _call("return ", "create_loraplus_optimizer", [_Code("model"), _Code("torch.optim.AdamW"), *arguments])
    return f"""
class LoraPlus:
{INDENT}def __call__(self, model):
{textwrap.indent(call, INDENT * 2)}
"""


def _why(preset: Preset, name: str) -> str:
    return next(choice.why for choice in preset.choices if choice.name == name)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _literal(value: Any) -> str:
    """Return a value as a Python expression."""
    if isinstance(value, _Code):
        return value.text
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, list):
        return f"[{', '.join(map(_literal, value))}]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_literal(key)}: {_literal(given)}" for key, given in value.items()) + "}"
    return repr(value)


def _call(before: str, name: str, items: Iterable[_Item | _Code]) -> str:
    """Return a call with one argument a line, behind what stands before it."""
    lines: list[str] = []
    for item in items:
        if isinstance(item, _Code):
            lines.append(f"{INDENT}{item.text},")
        else:
            lines += _commented(f"{item.name}={_literal(item.value)},", item.why, INDENT)
    return "\n".join([f"{before}{name}(", *lines, ")"])


def _yaml_lines(item: _Item, indent: str) -> list[str]:
    text = dump_yaml({item.name: item.value}).rstrip("\n")
    if "\n" not in text:
        return _commented(text, item.why, indent)
    above = [f"{indent}# {item.why}"] if item.why else []
    return [*above, *textwrap.indent(text, indent).splitlines()]


def _commented(text: str, why: str, indent: str) -> list[str]:
    """Return the text with its reason behind it, or above it where the line would be too long."""
    why = " ".join(why.split())
    line = f"{indent}{text}  # {why}" if why else f"{indent}{text}"
    if len(line) <= WIDTH or not why:
        return [line]
    return [f"{indent}# {part}" for part in textwrap.wrap(why, WIDTH - len(indent) - 2)] + [f"{indent}{text}"]
