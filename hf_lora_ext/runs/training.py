"""One half of the seam to TRL: the objects that peft, transformers, bitsandbytes and trl take for a preset.

`building` puts them together to a trainer. Nothing heavy is imported at module top, so that a preset costs nothing
until one of its objects is wanted.
"""

from __future__ import annotations

import copy
import logging
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from ..choices.adapter import dtype_for
from ..choices.methods import METHOD_FACTS, check_features, init_facts
from ..choices.run import LORAPLUS_RATIO
from ..errors import ConfigError, nearest
from ..models.attention import check_packing
from ..presets.arguments import (
    adapter_arguments,
    callback_arguments,
    quantisation_arguments,
    training_arguments,
    watch_arguments,
)
from .trainer_kinds import TrainerKind, kind_arguments, trainer_kind
from .trainer_rules import OTHER_NAMES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from peft import PeftConfig
    from transformers import BitsAndBytesConfig, TrainerCallback, TrainingArguments
    from trl import SFTConfig

    from ..presets.configuration import Preset
    from .trainer_kinds import Trainer

__all__ = [
    "adapter_config",
    "all_callbacks",
    "assistant_template",
    "config_among",
    "counts_assistant_only",
    "library_class",
    "marks_assistant",
    "method_callbacks",
    "model_kwargs",
    "optimizer_cls_and_kwargs",
    "quantization_config",
    "sft_config",
    "training_config",
]

logger = logging.getLogger(__name__)


def adapter_config(preset: Preset, trainer: Trainer = "sft") -> PeftConfig:
    """Return the preset's adapter for a trainer as a new peft configuration, or a copy of the user's own."""
    if preset.own_lora_config is not None:
        own = copy.deepcopy(preset.own_lora_config)
        if init_facts(preset.init).by_callback:
            own.init_lora_weights = True
        return own
    import peft

    kind, given = adapter_arguments(preset)
    return getattr(peft, kind)(**{**given, "task_type": trainer_kind(trainer).task_type})


def quantization_config(preset: Preset) -> BitsAndBytesConfig | None:
    """Return what the method holds the base in: 4-bit NF4, 8 bits, or None for its own precision."""
    if preset.bits is None:
        return None
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(**quantisation_arguments(fitted_to_this_machine(preset)) or {})


class LoraPlus:
    """LoRA+ as the trainer's optimizer factory: called with the model, returns AdamW with a faster B.

    The trainer builds it where it builds its own, before it loads the optimizer's state, so a run resumes.
    Given as a ready optimizer (`optimizers=`), it would hold the parameters of a model not yet wrapped or placed.
    """

    def __call__(self, model: Any, **kwargs: Any) -> Any:
        """Return the optimizer for a PeftModel."""
        import torch
        from peft.optimizers import create_loraplus_optimizer

        return create_loraplus_optimizer(model, torch.optim.AdamW, **kwargs)


def optimizer_cls_and_kwargs(preset: Preset, args: TrainingArguments) -> tuple[Any, dict[str, Any]] | None:
    """Return the trainer's argument of this name for LoRA+, and None for what `args.optim` names."""
    if preset.optimizer != "loraplus":
        return None
    return LoraPlus, {
        "lr": args.learning_rate,
        "loraplus_lr_ratio": LORAPLUS_RATIO,
        "loraplus_weight_decay": args.weight_decay,
        "betas": (args.adam_beta1, args.adam_beta2),
        "eps": args.adam_epsilon,
    }


def method_callbacks(preset: Preset) -> list[TrainerCallback]:
    """Return new callbacks that method, initialisation and new tokens need."""
    return _made(callback_arguments(preset))


def all_callbacks(preset: Preset) -> list[TrainerCallback]:
    """Return the same, behind those that watch the run."""
    return [*_made(watch_arguments(preset)), *method_callbacks(preset)]


def _made(calls: Sequence[tuple[str, Mapping[str, Any]]]) -> list[TrainerCallback]:
    from .. import callbacks

    return [getattr(callbacks, kind)(**given) for kind, given in calls]


def model_kwargs(preset: Preset) -> dict[str, Any]:
    """Return the keyword arguments that load the base as the preset wants it."""
    kwargs: dict[str, Any] = {"dtype": fitted_to_this_machine(preset).dtype}
    if preset.attention != "sdpa":
        kwargs["attn_implementation"] = preset.attention
    if (quantization := quantization_config(preset)) is not None:
        kwargs["quantization_config"] = quantization
    return kwargs


def fitted_to_this_machine(preset: Preset) -> Preset:
    """Return the preset with the precision that this machine computes in.

    A preset declared for a GPU can so be built and tried where there is none; what differs is logged.
    """
    import torch  # noqa: F401 - once loaded, torch is asked for the hardware

    from ..machine import find_hardware

    here = find_hardware()
    if here.kind == preset.hardware.kind and here.has_bfloat16 >= (preset.dtype == "bfloat16"):
        return preset
    dtype, _ = dtype_for(here)
    if dtype != preset.dtype:
        logger.info("the preset's %s is for %s; here it is %s", preset.dtype, preset.hardware, dtype)
    checkpointing = preset.activation_checkpointing and here.kind == "cuda"  # elsewhere memory is ample
    return replace(preset, dtype=dtype, hardware=here, activation_checkpointing=checkpointing)


def sft_config(preset: Preset, output_dir: str, **overrides: Any) -> SFTConfig:
    """Return a trl `SFTConfig` for the preset on this machine; `overrides` replace its fields.

    Raises:
        ConfigError: If an override is not a field of `SFTConfig`.
    """
    return training_config(preset, "sft", output_dir, **overrides)


def training_config(preset: Preset, trainer: Trainer, output_dir: str, **overrides: Any) -> Any:
    """Return the configuration that a trainer takes, for the preset on this machine.

    Args:
        preset: The preset.
        trainer: A name in `trainer_kinds.TRAINER_KINDS`.
        output_dir: Folder for checkpoints.
        **overrides: Fields of the configuration that replace the preset's.

    Raises:
        ConfigError: If the trainer is not known or does not work with the preset, or an override is not a field.
    """
    return config_among(None, preset, trainer, output_dir, overrides)


def config_among(
    processes: int | None, preset: Preset, trainer: Trainer, output_dir: str, overrides: Mapping[str, Any]
) -> Any:
    """Return the same, checked for so many processes that will share the work; None for as many as do.

    Raises:
        ConfigError: As `training_config`.
    """
    kind = trainer_kind(trainer)
    config = library_class(kind, kind.config)
    if processes is not None:
        config = _as_seen_by(config, processes)
    known = {field.name for field in fields(config)}
    # Where it exists, the new name wins over the old one, which TRL sets and transformers warns about.
    checkpointing = "activation_checkpointing" if "activation_checkpointing" in known else "gradient_checkpointing"
    overrides = {_renamed(name, checkpointing): value for name, value in overrides.items()}
    for name in overrides:
        if name not in known:
            raise ConfigError(f"{name!r} is not a field of {kind.config}; {nearest(name, known, OTHER_NAMES)}")
    fitted = fitted_to_this_machine(preset)
    asked = {"checkpointing"} if overrides.get(checkpointing) else set()
    asked |= {"packing"} if overrides.get("packing") else set()
    asked |= {f"trainer {trainer}", f"init {fitted.init}"} | ({"adaptive rank"} if fitted.adaptive_rank else set())
    check_features(METHOD_FACTS[fitted.method].features | asked)
    if overrides.get("packing"):
        check_packing(fitted.shape, fitted.attention)
    of_sft = training_arguments(fitted, checkpointing)
    settings = {name: value for name, value in kind_arguments(trainer, of_sft, overrides).items() if name in known}
    try:
        return config(**({"output_dir": output_dir} | settings | overrides))
    except ValueError as error:
        raise ConfigError(f"{kind.config} refuses these settings: {str(error).splitlines()[0]}") from error


def _as_seen_by(config: Any, processes: int) -> Any:
    """Return a class of configurations that check themselves as they will in so many processes."""
    return type(config.__name__, (config,), {"world_size": property(lambda self: processes)})


def library_class(kind: TrainerKind, name: str) -> Any:
    """Return a class of the library that the kind's trainer is from."""
    if kind.is_trl:
        import trl

        return getattr(trl, name)
    import transformers

    return getattr(transformers, name)


def _renamed(field: str, checkpointing: str) -> str:
    """Return an override's name as the installed transformers knows it."""
    for name in ("activation_checkpointing", "gradient_checkpointing"):
        if field in {name, f"{name}_kwargs"}:
            return field.replace(name, checkpointing)
    return field


def marks_assistant(tokenizer: Any) -> bool:
    """Return whether trl can tell the assistant's turns from the others, each with the token that ends it.

    The chat template marks them (`{% generation %}`), or trl has a marked form of this template.
    """
    return assistant_template(tokenizer) is not None


def assistant_template(tokenizer: Any) -> str | None:
    """Return the chat template that marks the assistant's turns, each with the token that ends it; None without one."""
    from trl.chat_template_utils import (
        get_training_chat_template,
        has_generation_markers,
        is_chat_template_stop_token_trained,
    )

    own: str | None = getattr(tokenizer, "chat_template", None)
    if not own:
        return None
    try:
        marked: str = own if has_generation_markers(own) else get_training_chat_template(tokenizer)
        return marked if is_chat_template_stop_token_trained(tokenizer, chat_template=marked) else None
    except ValueError:  # a template that trl does not know
        return None


def counts_assistant_only(tokenizer: Any, form: str, wished: bool | None) -> bool:
    """Return whether the loss counts the assistant's turns alone: for messages, wherever that can be had.

    Training on the answers alone did better than on questions too (QLoRA, table 10).

    Args:
        tokenizer: The model's tokenizer.
        form: `prompt-completion`, of which trl counts the completion; `messages`; or `text`.
        wished: What the user said; None leaves it to the template.

    Raises:
        ConfigError: If it was asked for and cannot be had.
    """
    if wished is not None and not wished:
        return False
    can = form == "messages" and marks_assistant(tokenizer)
    if wished and not can:
        why = (
            "the chat template does not mark the assistant's turns ({% generation %}), and trl has no marked form of it"
        )
        raise ConfigError(
            f"assistant_only_loss: {why if form == 'messages' else f'the data is {form}, not messages'}; leave it out"
        )
    return can
