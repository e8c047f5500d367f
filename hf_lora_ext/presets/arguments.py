"""What peft, bitsandbytes and trl are given for a preset: the names of their classes, and plain arguments.

Pure, and the one place for it: `training` builds the objects, `emission` writes the same calls into a script.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..adapters.adalora_schedule import ADALORA_SCHEDULE, ADALORA_SHARES
from ..choices.adapter import starting_rank
from ..choices.methods import METHOD_FACTS, init_facts
from ..errors import ConfigError
from ..models.targets import token_layers

if TYPE_CHECKING:
    from .configuration import Preset

__all__ = [
    "adapter_arguments",
    "callback_arguments",
    "overfit_arguments",
    "quantisation_arguments",
    "training_arguments",
    "watch_arguments",
]

Call = tuple[str, Mapping[str, Any]]


def adapter_arguments(preset: Preset) -> Call:
    """Return peft's configuration class for the preset's adapter, and what differs from its defaults."""
    task = {"task_type": "CAUSAL_LM"}
    if preset.method == "prefix":
        # Not init_weights="zero": equal virtual tokens get equal gradients and stay one token for ever.
        return "PrefixTuningConfig", task | {"num_virtual_tokens": preset.virtual_tokens}
    common: dict[str, Any] = {
        **task,
        "lora_alpha": preset.alpha,
        "lora_dropout": preset.dropout,
        "target_modules": preset.targets if isinstance(preset.targets, str) else list(preset.targets),
    }
    if (tokens := token_layers(preset.shape, preset.new_tokens)) is not None:
        common["trainable_token_indices"] = tokens
    if preset.method == "adalora":
        ranks = {"init_r": starting_rank(preset.rank), "target_r": preset.rank}
        return "AdaLoraConfig", {**ranks, **common, **ADALORA_SCHEDULE}
    given = {"r": preset.rank, **common}
    brings = METHOD_FACTS[preset.method].features
    if "rslora" in brings:
        given["use_rslora"] = True
    if "dora" in brings:
        given["use_dora"] = True
    if preset.init != "default" and not init_facts(preset.init).by_callback:
        given["init_lora_weights"] = preset.init
    return "LoraConfig", given | _expert_arguments(preset)


def _expert_arguments(preset: Preset) -> dict[str, Any]:
    """Return what peft takes for experts: their names, and a rank and alpha of their own at the same scale."""
    if not preset.experts:
        return {}
    stacked = {weights.name for weights in preset.shape.expert_weights}
    patterns = [re.escape(name) for name in preset.experts if name in stacked]
    # rsLoRA's alpha is the same at every rank; elsewhere the scale alpha / rank is kept.
    has_one_alpha = "rslora" in METHOD_FACTS[preset.method].features
    alpha = preset.alpha if has_one_alpha else preset.alpha * preset.expert_rank / preset.rank
    return {
        "target_parameters": list(preset.experts),
        "rank_pattern": dict.fromkeys(patterns, preset.expert_rank),
        "alpha_pattern": dict.fromkeys(patterns, int(alpha) if alpha == int(alpha) else alpha),
    }


def quantisation_arguments(preset: Preset) -> dict[str, Any] | None:
    """Return the arguments of `BitsAndBytesConfig`: NF4, double quantised (QLoRA, section 3), 8 bits, or None."""
    if preset.bits is None:
        return None
    if preset.bits == 8:
        return {"load_in_8bit": True}
    given = {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": preset.dtype,
    }
    # FSDP shards packed weights only where they are stored in the dtype of everything else.
    return given | ({"bnb_4bit_quant_storage": preset.dtype} if preset.sharding == "fsdp" else {})


def training_arguments(preset: Preset, checkpointing: str) -> dict[str, Any]:
    """Return the arguments of `SFTConfig`, without its folder.

    Args:
        preset: The preset, for the machine that trains.
        checkpointing: How the installed transformers names activation checkpointing.
    """
    given: dict[str, Any] = {
        "learning_rate": preset.learning_rate,
        "lr_scheduler_type": preset.scheduler,
        "warmup_steps": preset.warmup_fraction,
        "num_train_epochs": preset.epochs,
        "per_device_train_batch_size": preset.micro_batch,
        "per_device_eval_batch_size": preset.micro_batch,
        "gradient_accumulation_steps": preset.accumulation,
        "max_length": preset.max_length,
        "packing": preset.packing,
        checkpointing: preset.activation_checkpointing,
        f"{checkpointing}_kwargs": {"use_reentrant": preset.reentrant},
        "bf16": preset.dtype == "bfloat16",
        # 4-bit adapters are bfloat16 under TRL, which the float16 gradient scaler cannot scale.
        "fp16": preset.dtype == "float16" and preset.bits is None,
        "optim": "adamw_torch_fused" if preset.optimizer != "paged_adamw_8bit" else preset.optimizer,
        "use_cpu": preset.hardware.kind == "cpu",
    }
    if not preset.model_is_loaded:
        attention = {} if preset.attention == "sdpa" else {"attn_implementation": preset.attention}
        given["model_init_kwargs"] = {"dtype": preset.dtype} | attention
    return given


def callback_arguments(preset: Preset) -> list[Call]:
    """Return the callbacks of `hf_lora_ext.callbacks` that the method and the initialisation need."""
    found: list[Call] = []
    if preset.method == "adalora":
        found.append(("AdaLoraCallback", ADALORA_SHARES))
    if init_facts(preset.init).changes_base:
        found.append(("PlainAdapterCallback", {}))
    if preset.bits is not None:
        found.append(("AdapterPrecisionCallback", {}))
    if preset.init == "eva":
        found.append(("EvaCallback", {}))
    if preset.init == "loftq":
        found.append(("LoftqCallback", {"model_id": _weights_of(preset)}))
    if preset.adaptive_rank:
        found.append(("AdaptiveRankCallback", {"target_rank": preset.rank, "start_factor": preset.start_factor}))
    if preset.new_tokens:
        found.append(("NewTokensCallback", {}))
    return found


def watch_arguments(preset: Preset) -> list[Call]:
    """Return the callbacks that watch a run: one for a risk that the advice sees, one for a memory plan to check.

    The method works without them.
    """
    risks = {warning.name for warning in preset.warnings}
    watched = [overfit_arguments(preset.method, preset.sharding)] if "overfitting" in risks else []
    return [*watched, ("ResourceCallback", {"plan": preset.found})] if preset.found is not None else watched


def overfit_arguments(method: str, sharding: str, action: str | None = None) -> Call:
    """Return the callback that watches for overfitting: by default it keeps the best adapter, where that can be.

    That is what stopping early is for, and it never is worse on the examples held out. AdaLoRA's ranks, and a learned
    prefix, cannot be brought back from the middle of a run, nor can an adapter in shards.
    """
    default = "warn" if method in ("adalora", "prefix") or sharding in ("fsdp", "zero3") else "best"
    return "OverfitCallback", {"action": action or default}


def _weights_of(preset: Preset) -> str:
    if preset.model_id is None:
        raise ConfigError("init loftq reads the unquantised weights; make the preset for a model's folder or Hub id")
    return preset.model_id
