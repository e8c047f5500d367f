"""The one seam to TRL: builds the objects that peft, transformers, bitsandbytes and trl take for a preset.

Nothing heavy is imported at module top, so that a preset costs nothing until one of its objects is wanted.
"""

from __future__ import annotations

import copy
import logging
import re
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, Final

from .attention import check_packing
from .choices import dtype_for, starting_rank
from .errors import ConfigError, nearest
from .methods import METHOD_FACTS, check_features, init_facts
from .run_choices import LORAPLUS_RATIO
from .targets import token_layers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from peft import PeftConfig
    from transformers import BitsAndBytesConfig, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from .base_models import BaseModel
    from .configuration import Preset
    from .data import Examples

__all__ = [
    "adapter_config",
    "build_trainer",
    "counts_assistant_only",
    "marks_assistant",
    "method_callbacks",
    "model_kwargs",
    "optimizer_cls_and_kwargs",
    "quantization_config",
    "sft_config",
]

logger = logging.getLogger(__name__)


def adapter_config(preset: Preset) -> PeftConfig:
    """Return the preset's adapter as a new peft configuration, or a copy of the user's own."""
    from peft import AdaLoraConfig, LoraConfig

    if preset.own_lora_config is not None:
        own = copy.deepcopy(preset.own_lora_config)
        if init_facts(preset.init).by_callback:
            own.init_lora_weights = True
        return own
    if preset.method == "prefix":
        return _prefix_config(preset)
    common: dict[str, Any] = {
        "task_type": "CAUSAL_LM",
        "lora_alpha": preset.alpha,
        "lora_dropout": preset.dropout,
        "target_modules": preset.targets if isinstance(preset.targets, str) else list(preset.targets),
        "trainable_token_indices": token_layers(preset.shape, preset.new_tokens),
    }
    if preset.method == "adalora":
        return AdaLoraConfig(init_r=starting_rank(preset.rank), target_r=preset.rank, **ADALORA_SCHEDULE, **common)
    return LoraConfig(
        r=preset.rank,
        use_rslora=preset.method == "rslora",
        use_dora=preset.method in ("dora", "qdora"),
        init_lora_weights=True if preset.init == "default" or init_facts(preset.init).by_callback else preset.init,
        **_expert_settings(preset),
        **common,
    )


def _expert_settings(preset: Preset) -> dict[str, Any]:
    """Return what peft takes for experts: their names, and a rank and alpha of their own at the same scale."""
    if not preset.experts:
        return {}
    stacked = {weights.name for weights in preset.shape.expert_weights}
    patterns = [re.escape(name) for name in preset.experts if name in stacked]
    # rsLoRA's alpha is the same at every rank; elsewhere the scale alpha / rank is kept.
    alpha = preset.alpha if preset.method == "rslora" else preset.alpha * preset.expert_rank / preset.rank
    return {
        "target_parameters": list(preset.experts),
        "rank_pattern": dict.fromkeys(patterns, preset.expert_rank),
        "alpha_pattern": dict.fromkeys(patterns, int(alpha) if alpha == int(alpha) else alpha),
    }


ADALORA_SCHEDULE: Final = {"total_step": 1000, "tinit": 100, "tfinal": 300, "deltaT": 10}
"""What peft needs to be told before the run's length is known; the callback replaces it."""
ADALORA_SHARES: Final = {"tinit": 0.1, "tfinal": 0.3}
"""Hold a tenth of the steps, move rank, leave the last three tenths alone (AdaLoRA, section 4.1 and its tables)."""


def _prefix_config(preset: Preset) -> PeftConfig:
    from peft import PrefixTuningConfig

    # Not init_weights="zero": equal virtual tokens get equal gradients and stay one token for ever.
    return PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=preset.virtual_tokens)


def quantization_config(preset: Preset) -> BitsAndBytesConfig | None:
    """Return 4-bit NF4 with double quantisation (QLoRA, section 3), 8 bits, or None, as the method has it."""
    if preset.bits is None:
        return None
    import torch
    from transformers import BitsAndBytesConfig

    if preset.bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    compute = getattr(torch, fitted_to_this_machine(preset).dtype)
    # FSDP shards packed weights only where they are stored in the dtype of everything else.
    storage = {"bnb_4bit_quant_storage": compute} if preset.sharding == "fsdp" else {}
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
        **storage,
    )


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


def optimizer_cls_and_kwargs(preset: Preset, args: SFTConfig) -> tuple[Any, dict[str, Any]] | None:
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
    from . import callbacks

    found: list[TrainerCallback] = []
    if preset.method == "adalora":
        found.append(callbacks.AdaLoraCallback(**ADALORA_SHARES))
    if init_facts(preset.init).changes_base:
        found.append(callbacks.PlainAdapterCallback())
    if preset.bits is not None:
        found.append(callbacks.AdapterPrecisionCallback())
    if preset.init == "eva":
        found.append(callbacks.EvaCallback())
    if preset.init == "loftq":
        found.append(callbacks.LoftqCallback(_weights_of(preset)))
    if preset.new_tokens:
        found.append(callbacks.NewTokensCallback())
    return found


def _weights_of(preset: Preset) -> str:
    if preset.model_id is None:
        raise ConfigError("init loftq reads the unquantised weights; make the preset for a model's folder or Hub id")
    return preset.model_id


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

    from .machine import find_hardware

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
        "fp16": fitted.dtype == "float16" and fitted.bits is None,
        "optim": "adamw_torch_fused" if fitted.optimizer != "paged_adamw_8bit" else fitted.optimizer,
        "packing": fitted.packing,
        "use_cpu": fitted.hardware.kind == "cpu",
        checkpointing: fitted.activation_checkpointing,
        f"{checkpointing}_kwargs": {"use_reentrant": fitted.reentrant},
    }
    asked = {"checkpointing"} if overrides.get(checkpointing) else set()
    asked |= {"packing"} if overrides.get("packing") else set()
    check_features(METHOD_FACTS[fitted.method].features | asked)
    if overrides.get("packing"):
        check_packing(fitted.shape, fitted.attention)
    if not fitted.model_is_loaded:
        attention = {} if fitted.attention == "sdpa" else {"attn_implementation": fitted.attention}
        settings["model_init_kwargs"] = {"dtype": fitted.dtype} | attention
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


def marks_assistant(tokenizer: Any) -> bool:
    """Return whether trl can tell the assistant's turns from the others, each with the token that ends it.

    The chat template marks them (`{% generation %}`), or trl has a marked form of this template.
    """
    from trl.chat_template_utils import (
        get_training_chat_template,
        has_generation_markers,
        is_chat_template_stop_token_trained,
    )

    if not tokenizer.chat_template:
        return False
    try:
        marked = None if has_generation_markers(tokenizer.chat_template) else get_training_chat_template(tokenizer)
        return bool(is_chat_template_stop_token_trained(tokenizer, chat_template=marked))
    except ValueError:  # a template that trl does not know
        return False


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


def build_trainer(
    preset: Preset,
    base: BaseModel,
    examples: Examples,
    args: SFTConfig,
    callbacks: Sequence[TrainerCallback] = (),
    assistant_only: bool | None = None,
) -> SFTTrainer:
    """Return an `SFTTrainer` with the base loaded as the preset wants it and a fresh adapter on it.

    Args:
        preset: The preset.
        base: Where the base is.
        examples: What it learns and is measured on.
        args: The trainer's configuration.
        callbacks: Callbacks beside the preset's own.
        assistant_only: Whether of messages only the assistant's turns count; None where the template allows it.

    Raises:
        ConfigError: If only the assistant's turns are to count and cannot be told from the others.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, set_seed
    from trl import SFTTrainer

    args = copy.copy(args)
    args.model_init_kwargs = None  # the model is loaded here, with these and more
    tokenizer = AutoTokenizer.from_pretrained(base.path, revision=base.revision)
    args.assistant_only_loss = counts_assistant_only(tokenizer, examples.form, assistant_only)
    model = AutoModelForCausalLM.from_pretrained(base.path, revision=base.revision, **model_kwargs(preset))
    model.name_or_path = model.config._name_or_path = base.recorded_name
    set_seed(args.seed)  # the adapter's initial weights are drawn next; not every trl sets the seed before that
    trainer = SFTTrainer(
        model=model,
        args=args,
        processing_class=tokenizer,
        train_dataset=examples.train,
        eval_dataset=examples.held_out,
        peft_config=adapter_config(preset),
        optimizer_cls_and_kwargs=optimizer_cls_and_kwargs(preset, args),
        callbacks=[*method_callbacks(preset), *callbacks],
    )
    trainer.remove_callback(PrinterCallback)  # our own lines say it
    return trainer
