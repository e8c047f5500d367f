"""The one seam to TRL: builds the objects that peft, transformers, bitsandbytes and trl take for a preset.

Nothing heavy is imported at module top, so that a preset costs nothing until one of its objects is wanted.
"""

from __future__ import annotations

import copy
import logging
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from .errors import ConfigError, nearest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from peft import LoraConfig
    from transformers import BitsAndBytesConfig, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from .base_models import BaseModel
    from .data import Examples
    from .presets import Preset

__all__ = ["build_trainer", "lora_config", "model_kwargs", "quantization_config", "sft_config"]

logger = logging.getLogger(__name__)


def lora_config(preset: Preset) -> LoraConfig:
    """Return the preset's adapter as a new `peft.LoraConfig`, or a copy of the user's own."""
    from peft import LoraConfig

    if preset.own_lora_config is not None:
        return copy.deepcopy(preset.own_lora_config)
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=preset.rank,
        lora_alpha=preset.alpha,
        lora_dropout=preset.dropout,
        target_modules=preset.targets if isinstance(preset.targets, str) else list(preset.targets),
    )


def quantization_config(preset: Preset) -> BitsAndBytesConfig | None:
    """Return 4-bit NF4 with double quantisation (QLoRA, section 3) for `qlora`, else None."""
    if preset.method != "qlora":
        return None
    import torch
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, fitted_to_this_machine(preset).dtype),
    )


def model_kwargs(preset: Preset) -> dict[str, Any]:
    """Return the keyword arguments that load the base as the preset wants it."""
    kwargs: dict[str, Any] = {"dtype": fitted_to_this_machine(preset).dtype}
    if (quantization := quantization_config(preset)) is not None:
        kwargs["quantization_config"] = quantization
    return kwargs


def fitted_to_this_machine(preset: Preset) -> Preset:
    """Return the preset with the precision that this machine computes in.

    A preset declared for a GPU can so be built and tried where there is none; what differs is logged.
    """
    import torch  # noqa: F401 - once loaded, torch is asked for the hardware

    from .machine import find_hardware
    from .presets import decide

    here = find_hardware()
    if here.kind == preset.hardware.kind and here.has_bfloat16 >= (preset.dtype == "bfloat16"):
        return preset
    fitted = decide(preset.shape, here, method=preset.method)
    if fitted.dtype != preset.dtype:
        logger.info("the preset's %s is for %s; here it is %s", preset.dtype, preset.hardware, fitted.dtype)
    return replace(preset, dtype=fitted.dtype, hardware=here, activation_checkpointing=fitted.activation_checkpointing)


def sft_config(preset: Preset, output_dir: str, **overrides: Any) -> SFTConfig:
    """Return a trl `SFTConfig` for the preset on this machine; `overrides` replace its fields.

    Raises:
        ConfigError: If an override is not a field of `SFTConfig`.
    """
    from trl import SFTConfig

    known = {field.name for field in fields(SFTConfig)}
    # Where it exists, the new name wins over the old one, which TRL sets and transformers warns about.
    checkpointing = "activation_checkpointing" if "activation_checkpointing" in known else "gradient_checkpointing"
    overrides = {_renamed(name, checkpointing): value for name, value in overrides.items()}
    for name in overrides:
        if name not in known:
            raise ConfigError(f"{name!r} is not a field of SFTConfig; {nearest(name, known)}")
    fitted = fitted_to_this_machine(preset)
    settings: dict[str, Any] = {
        "output_dir": output_dir,
        "learning_rate": fitted.learning_rate,
        "lr_scheduler_type": fitted.scheduler,
        "warmup_steps": fitted.warmup_fraction,
        "num_train_epochs": fitted.epochs,
        "per_device_train_batch_size": fitted.micro_batch,
        "per_device_eval_batch_size": fitted.micro_batch,
        "gradient_accumulation_steps": fitted.accumulation,
        "max_length": fitted.max_length,
        "bf16": fitted.dtype == "bfloat16",
        # 4-bit adapters are bfloat16 under TRL, which the float16 gradient scaler cannot scale.
        "fp16": fitted.dtype == "float16" and fitted.method == "lora",
        "use_cpu": fitted.hardware.kind == "cpu",
        checkpointing: fitted.activation_checkpointing,
        # Reentrant checkpointing marks LoRA parameters ready twice under DDP (peft issue 313).
        f"{checkpointing}_kwargs": {"use_reentrant": False},
    }
    if not fitted.model_is_loaded:
        settings["model_init_kwargs"] = {"dtype": fitted.dtype}
    try:
        return SFTConfig(**(settings | overrides))
    except ValueError as error:
        raise ConfigError(f"SFTConfig refuses these settings: {str(error).splitlines()[0]}") from error


def _renamed(field: str, checkpointing: str) -> str:
    """Return an override's name as the installed transformers knows it."""
    for name in ("activation_checkpointing", "gradient_checkpointing"):
        if field in {name, f"{name}_kwargs"}:
            return field.replace(name, checkpointing)
    return field


def build_trainer(
    preset: Preset,
    base: BaseModel,
    examples: Examples,
    args: SFTConfig,
    callbacks: Sequence[TrainerCallback] = (),
) -> SFTTrainer:
    """Return an `SFTTrainer` with the base loaded as the preset wants it and a fresh adapter on it."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, set_seed
    from trl import SFTTrainer

    args = copy.copy(args)
    args.model_init_kwargs = None  # the model is loaded here, with these and more
    tokenizer = AutoTokenizer.from_pretrained(base.path, revision=base.revision)
    model = AutoModelForCausalLM.from_pretrained(base.path, revision=base.revision, **model_kwargs(preset))
    model.name_or_path = model.config._name_or_path = base.recorded_name
    set_seed(args.seed)  # the adapter's initial weights are drawn next; not every trl sets the seed before that
    trainer = SFTTrainer(
        model=model,
        args=args,
        processing_class=tokenizer,
        train_dataset=examples.train,
        eval_dataset=examples.held_out,
        peft_config=lora_config(preset),
        callbacks=list(callbacks),
    )
    trainer.remove_callback(PrinterCallback)  # our own lines say it
    return trainer
