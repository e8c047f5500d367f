"""The one seam to PEFT's AdaLoRA: its allocator, its regulariser, its masks, and the way to plain LoRA.

While it trains under our callback an adapter keeps its full width and holds dropped directions as zeros in E, and
the pattern of kept directions stays out of the config. PEFT would cut every checkpoint by that pattern, after which
none can be resumed.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from peft import AdaLoraModel, LoraConfig, PeftModel, get_peft_model_state_dict
from peft.tuners.adalora.layer import AdaLoraLayer, SVDConv2d
from safetensors.torch import save_file

from ..errors import AdapterError, ConfigError
from .orthogonality import orthogonality_gradients
from .patterns import exact_pattern

if TYPE_CHECKING:
    from peft import AdaLoraConfig

    from .adalora_schedule import RankSchedule

__all__ = [
    "RankPattern",
    "add_regulariser_gradient_",
    "allocate_",
    "carries_adalora",
    "config_of",
    "cut_to_target_",
    "export_lora",
    "layer_ranks",
    "mute_own_regulariser_",
    "restart_allocator_",
    "restore_scores_",
    "restore_width_",
    "save_as_itself_",
    "save_as_lora_",
    "scores",
    "set_schedule_",
    "target_total",
    "trainable_adalora",
]

RankPattern = dict[str, list[bool]]
"""Which directions each layer keeps, by the name of its E."""


def trainable_adalora(model: Any) -> AdaLoraModel:
    """Return the AdaLoRA tuner of a model whose adapter can train.

    Raises:
        AdapterError: If there is none, it was loaded for inference, is merged, or adapts a convolution.
    """
    if not carries_adalora(model):
        raise AdapterError(
            f"{type(model).__name__} carries no AdaLoRA adapter; give the trainer peft_config=AdaLoraConfig(...), "
            "or leave AdaLoraCallback out"
        )
    tuner = model.base_model
    if not hasattr(tuner, "rankallocator"):
        raise AdapterError(
            "the AdaLoRA adapter was loaded for inference; load it with PeftModel.from_pretrained(..., "
            "is_trainable=True)"
        )
    for name, layer in _layers(tuner):
        if layer.merged:
            raise AdapterError(f"the adapter is merged into {name}; call model.unmerge_adapter() before training")
        if isinstance(layer, SVDConv2d):
            raise AdapterError(f"{name} is a convolution, which AdaLoraCallback cannot export; leave it out")
    return tuner


def carries_adalora(model: Any) -> bool:
    """Return whether a model has an AdaLoRA adapter, trainable or not."""
    return isinstance(model, PeftModel) and isinstance(model.base_model, AdaLoraModel)


def config_of(tuner: AdaLoraModel) -> AdaLoraConfig:
    """Return the trainable adapter's live configuration."""
    return tuner.peft_config[tuner.trainable_adapter_name]


def _layers(tuner: AdaLoraModel) -> Iterator[tuple[str, Any]]:
    """Yield (name in the base model, layer) for each layer with the trainable adapter."""
    for name, module in tuner.model.named_modules():
        if isinstance(module, AdaLoraLayer) and tuner.trainable_adapter_name in module.lora_E:
            yield name, module


def layer_ranks(tuner: AdaLoraModel) -> dict[str, int]:
    """Return each layer's rank in use: the number of its singular values that are not 0."""
    adapter = tuner.trainable_adapter_name
    return {name: int(torch.count_nonzero(layer.lora_E[adapter])) for name, layer in _layers(tuner)}


def target_total(tuner: AdaLoraModel) -> int:
    """Return the final budget: the sum of all ranks."""
    target: int = config_of(tuner).target_r
    return target * sum(1 for _ in _layers(tuner))


# --- width and schedule -----------------------------------------------------------------------------------------


def restore_width_(tuner: AdaLoraModel) -> None:
    """Give every layer its `init_r` directions back, the new ones zero: the function is unchanged.

    PEFT cuts a saved adapter to its ranks when it loads it, but neither its allocator nor the next load knows.
    A direction whose A, B and E are all zero has a zero gradient and the score 0, so that it never comes back.
    The parameters stay the same objects, so that an optimizer built on them stays right.
    """
    adapter, width = tuner.trainable_adapter_name, config_of(tuner).init_r
    config_of(tuner).rank_pattern = None
    for _, layer in _layers(tuner):
        missing = width - layer.lora_A[adapter].shape[0]
        if missing <= 0:
            continue
        for factors, dim in ((layer.lora_A, 0), (layer.lora_E, 0), (layer.lora_B, 1)):
            factor = factors[adapter]
            shape = [missing if axis == dim else size for axis, size in enumerate(factor.shape)]
            factor.data = torch.cat([factor.data, factor.data.new_zeros(shape)], dim)
        layer.r[adapter] = width
        layer.ranknum[adapter].data.fill_(float(width))  # PEFT leaves 0 where a whole layer was dropped


def restart_allocator_(tuner: AdaLoraModel) -> None:
    """Forget all scores and count the adapter's directions anew.

    Raises:
        ConfigError: If the adapter is narrower than its config says.
    """
    config = config_of(tuner)
    narrow = [name for name, layer in _layers(tuner) if len(layer.lora_A[tuner.trainable_adapter_name]) < config.init_r]
    if narrow:
        raise ConfigError(
            f"{narrow[0]} was cut below init_r={config.init_r} when the adapter was loaded; give AdaLoraCallback to "
            "the trainer's constructor (callbacks=[...]), which restores the width before the optimizer is made"
        )
    config.rank_pattern = None
    tuner.rankallocator.reset_ipt()
    tuner.rankallocator._set_budget_scheduler(tuner.model)


def set_schedule_(tuner: AdaLoraModel, schedule: RankSchedule) -> None:
    """Write the phases into the configuration, which the allocator reads."""
    config = config_of(tuner)
    config.total_step, config.tinit, config.tfinal = schedule.total_steps, schedule.tinit, schedule.tfinal


# --- every step -------------------------------------------------------------------------------------------------


def mute_own_regulariser_(tuner: AdaLoraModel) -> None:
    """Take the regulariser out of the model's forward.

    There it depends on the trainer: once per micro-batch under the plain Trainer, never under TRL's, and it
    raises the evaluation loss.
    """
    tuner.forward = MethodType(_forward, tuner)


def _forward(tuner: AdaLoraModel, *args: Any, **kwargs: Any) -> Any:
    return tuner.model.forward(*args, **kwargs)


def add_regulariser_gradient_(tuner: AdaLoraModel) -> None:
    """Add `orth_reg_weight` times the orthogonal regulariser's gradient to the gradients of A and B."""
    weight, adapter = config_of(tuner).orth_reg_weight, tuner.trainable_adapter_name
    if not weight:
        return
    with torch.no_grad():
        a = [layer.lora_A[adapter] for _, layer in _layers(tuner)]
        b = [layer.lora_B[adapter] for _, layer in _layers(tuner)]
        gradients = orthogonality_gradients([*(p.detach() for p in a), *(p.detach().T for p in b)])
        for p, gradient in zip([*a, *b], [*gradients[: len(a)], *(g.T for g in gradients[len(a) :])], strict=True):
            gradient = (weight * gradient).to(p.dtype)
            p.grad = gradient.contiguous() if p.grad is None else p.grad.add_(gradient)


def allocate_(tuner: AdaLoraModel, step: int, pattern: RankPattern | None) -> RankPattern | None:
    """Update the scores, drop directions as the schedule says, and return the pattern then in force.

    Belongs after the optimizer's step and before the gradients are cleared.

    Args:
        tuner: The AdaLoRA tuner.
        step: Number of the step just made, from 1.
        pattern: The pattern so far; kept where this step decides nothing.
    """
    config, adapter = config_of(tuner), tuner.trainable_adapter_name
    if step < config.total_step - config.tfinal:
        factors = [group[adapter] for _, x in _layers(tuner) for group in (x.lora_A, x.lora_E, x.lora_B)]
        for p in factors:
            if p.grad is None:  # a layer that this batch did not reach; the optimizer is already past it
                p.grad = torch.zeros_like(p)
        if not torch.nn.utils.get_total_norm([p.grad for p in factors]).isfinite():
            return pattern  # float16 overflowed and the optimizer skipped its step; one NaN would stay in the scores
    config.rank_pattern = pattern
    try:
        tuner.update_and_allocate(step)
        decided: RankPattern | None = config.rank_pattern
        return decided
    finally:
        config.rank_pattern = None


def cut_to_target_(tuner: AdaLoraModel) -> RankPattern:
    """Drop the directions of least score until the final budget is met, at once, and return the pattern."""
    pattern: RankPattern = tuner.rankallocator.mask_to_budget(tuner.model, target_total(tuner))
    return pattern


def scores(tuner: AdaLoraModel) -> dict[str, torch.Tensor]:
    """Return the allocator's running means, by kind and parameter name, as a file can hold them."""
    allocator = tuner.rankallocator
    kinds = {"importance": allocator.exp_avg_ipt, "uncertainty": allocator.exp_avg_unc}
    return {f"{kind}/{name}": t.detach().cpu().contiguous() for kind, by in kinds.items() for name, t in by.items()}


def restore_scores_(tuner: AdaLoraModel, saved: dict[str, torch.Tensor]) -> None:
    """Put back what `scores` returned."""
    allocator, parameters = tuner.rankallocator, dict(tuner.model.named_parameters())
    allocator.reset_ipt()
    kinds = {"importance": allocator.exp_avg_ipt, "uncertainty": allocator.exp_avg_unc}
    for key, tensor in saved.items():
        kind, _, name = key.partition("/")
        kinds[kind][name] = tensor.to(parameters[name].device)
        allocator.ipt[name] = torch.zeros_like(kinds[kind][name])  # its presence tells that there are scores


# --- what leaves ------------------------------------------------------------------------------------------------


def export_lora(model: PeftModel, folder: str | Path) -> Path:
    """Write the model's AdaLoRA adapter as an ordinary LoRA adapter, and return the folder.

    Each layer gets its own rank; E and AdaLoRA's scale are folded into A and B in equal parts, so that
    alpha = rank everywhere. A layer of rank 0 leaves the adapter. PEFT alone loads it.

    Example::

        trainer.train()
        export_lora(trainer.model, "adapter")

    Raises:
        AdapterError: If the model has no trainable AdaLoRA adapter, or every rank is 0.
    """
    folder = Path(folder)
    tuner = trainable_adalora(model)
    adapter = tuner.trainable_adapter_name
    ranks = {name: rank for name, rank in layer_ranks(tuner).items() if rank}
    if not ranks:
        raise AdapterError("every rank of the adapter is 0, so there is nothing to export; train it first")
    every_layer = tuple(f"base_model.model.{name}.lora_" for name, _ in _layers(tuner))
    weights = {
        key: tensor.detach().cpu().contiguous()
        for key, tensor in get_peft_model_state_dict(model, adapter_name=adapter).items()
        if not key.startswith(every_layer)  # modules_to_save and biases go along
    }
    for name, layer in _layers(tuner):
        if name in ranks:
            a, b = _folded(layer, adapter)
            weights[f"base_model.model.{name}.lora_A.weight"] = a
            weights[f"base_model.model.{name}.lora_B.weight"] = b
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    _lora_config(model, config_of(tuner), ranks).save_pretrained(str(folder))
    return folder


def _folded(layer: Any, adapter: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return LoRA's A `(rank, in)` and B `(out, rank)` for one layer, its kept directions alone."""
    kept = layer.lora_E[adapter].detach().view(-1) != 0
    value = layer.lora_E[adapter].detach().view(-1)[kept].double() * layer.scaling[adapter]
    value = value / (layer.ranknum[adapter].detach().double() + 1e-5)
    root = value.abs().sqrt()
    a = layer.lora_A[adapter].detach()[kept].double() * root[:, None]
    b = layer.lora_B[adapter].detach()[:, kept].double() * (root * value.sign())
    dtype = layer.lora_A[adapter].dtype
    return a.to(dtype).cpu().contiguous(), b.to(dtype).cpu().contiguous()


def _lora_config(model: PeftModel, config: AdaLoraConfig, ranks: dict[str, int]) -> LoraConfig:
    # Anchored, one per layer: patterns are matched as unescaped suffixes, and the first hit wins.
    pattern = {exact_pattern(name): rank for name, rank in ranks.items()}
    base = config.base_model_name_or_path or getattr(model.get_base_model(), "name_or_path", None)
    return LoraConfig(
        task_type=config.task_type,
        base_model_name_or_path=base,
        revision=config.revision,
        r=max(ranks.values()),
        lora_alpha=max(ranks.values()),
        rank_pattern=pattern,
        alpha_pattern=dict(pattern),  # with rank_pattern alone the scale would change with the rank
        target_modules=sorted(ranks),
        lora_dropout=config.lora_dropout,
        bias=config.bias,
        modules_to_save=config.modules_to_save,
        fan_in_fan_out=config.fan_in_fan_out,
        inference_mode=True,
    )


def save_as_lora_(model: PeftModel) -> None:
    """Make the model's own `save_pretrained` write an ordinary LoRA adapter from now on.

    The trainer's `save_model` and every push go through it.
    """
    model.save_pretrained = MethodType(_save_lora, model)


def save_as_itself_(model: PeftModel) -> None:
    """Make `save_pretrained` write AdaLoRA's own format again, which a checkpoint needs."""
    vars(model).pop("save_pretrained", None)


def _save_lora(model: PeftModel, save_directory: str, is_main_process: bool = True, **kwargs: Any) -> None:
    if is_main_process:
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        model.create_or_update_model_card(save_directory)
        export_lora(model, save_directory)
