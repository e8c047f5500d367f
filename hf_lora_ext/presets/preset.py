"""Presets: the LoRA and training configuration for a model, with the reason and the source of every value.

`decide` is pure: a shape, the hardware and the user's wishes in, a frozen `Preset` out. `preset` gathers those
and calls it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from ..choices.adapter import Method, all_choices
from ..choices.run import RunWishes, Sharding, check_run
from ..choices.wishes import LoraWishes, check_stored, check_wishes, stored_method, wish_features
from ..errors import ConfigError
from ..hardware import Hardware, declared_hardware
from ..memory.host_memory import host_choice, host_warnings
from ..models.sizes import ModelShape
from ..models.targets import check_targets, rank_warnings
from .configuration import Preset

if TYPE_CHECKING:
    from peft import LoraConfig

    from ..choices.advice import Advice, Task
    from ..memory.fitting import Fit

__all__ = ["Preset", "decide", "preset"]


def preset(
    model: Any,
    *,
    method: Method | None = None,
    rank: int | Literal["auto"] | None = None,
    alpha: int | None = None,
    dropout: float | None = None,
    targets: str | Sequence[str] | None = None,
    experts: bool | None = None,
    new_tokens: Sequence[int] | None = None,
    adaptive_rank: bool | None = None,
    lora_config: LoraConfig | None = None,
    task: Task | None = None,
    examples: int | None = None,
    tokens: int | None = None,
    init: str | None = None,
    optimizer: str | None = None,
    attention: str | None = None,
    packing: bool | None = None,
    sharding: Sharding | None = None,
    max_length: int | None = None,
    gpu_memory_gib: float | None = None,
    gpus: int | None = None,
    machines: int | None = None,
    host_gib: float | None = None,
    ask_hub: bool = True,
) -> Preset:
    """Return the LoRA and training configuration for a model, with its reasons.

    >>> preset("7B").rank
    8

    Args:
        model: A size key (`"7B"`, `"1.3b"`), a Hub id, a local folder, a config (object or mapping), or a loaded
            model.
        method: `"lora"`, `"rslora"`, `"dora"`, `"adalora"`, `"prefix"`; `"qlora"` or `"qdora"` for a base held in
            4-bit NF4 with double quantisation, `"qlora8"` for one in 8 bits. Left out, `"lora"`, or `"qlora"` where
            only that fits.
        rank: Overrides the rank of the size band; `"auto"` takes `advice.advise`'s for the next three.
        alpha: Overrides alpha = 2 x rank.
        dropout: Overrides the adapter's dropout, from 0 up to 1.
        targets: Overrides the adapted modules: `"all-linear"` or module names.
        experts: Whether the experts of a mixture get an adapter each, of the rank divided by the experts a token
            meets; they stay frozen by default.
        new_tokens: Ids of tokens that you added to tokenizer and model; only their rows of embedding and head train.
        adaptive_rank: Whether the rank is a mean that layers share as they need it; `Preset.callbacks` moves it.
        lora_config: Your own `peft.LoraConfig`; excludes the seven above.
        task: What is learned: `"style"`, `"classification"`, `"chat"`, `"code"` or `"domain"`.
        examples: Training examples.
        tokens: Training tokens that the loss counts.
        init: How the factors start: `"default"`, `"gaussian"`, `"orthogonal"`, `"pissa"`, `"olora"`, `"mica"`;
            `"eva"` and `"loftq"` from data and weights, by `Preset.callbacks`.
        optimizer: `"adamw"`, `"paged_adamw_8bit"`, or `"loraplus"` (see `Preset.optimizer_cls_and_kwargs`).
        attention: `"sdpa"`, `"eager"`, or `"flash_attention_2"` and `_3`, which need a package.
        packing: Whether several examples share a row, kept apart; on by default with flash attention, which computes
            no more for it.
        sharding: `"none"`, `"ddp"`, `"fsdp"` or `"zero3"`; by default `"ddp"` for several devices.
        max_length: Longest example in tokens; longer ones are cut.
        gpu_memory_gib: Memory of one GPU in GiB, to plan for a machine that is not this one.
        gpus: Number of GPUs in one machine, likewise.
        machines: Number of such machines that train together.
        host_gib: Memory of one machine's host in GiB, likewise; what is planned then fits it too.
        ask_hub: Whether a popular model is looked up on the Hub although its config is shipped with this package.

    Raises:
        ConfigError: If the model's size cannot be told, a value cannot be right, or nothing fits the GPUs; then with
            what would.
    """
    from ..machine import find_hardware
    from ..models.base_models import find_shape, is_loaded_model

    asks = rank == "auto"
    _check_question(rank, task, examples, tokens)
    if asks:
        _check_choosable(method, lora_config)
    wishes = LoraWishes(
        rank=None if rank == "auto" else rank,
        alpha=alpha,
        dropout=dropout,
        targets=_as_tuple(targets),
        experts=experts,
        new_tokens=_as_tuple(new_tokens),
        adaptive_rank=adaptive_rank,
    )
    run = RunWishes(
        init=init, optimizer=optimizer, attention=attention, packing=packing, sharding=sharding, max_length=max_length
    )
    check_wishes(method or "lora", wishes, lora_config)
    hardware = declared_hardware(find_hardware(), gpu_memory_gib, gpus, machines=machines, host_gib=host_gib)
    check_run(method or "lora", run, hardware, lora_config, wish_features(wishes))
    shape, model_id = find_shape(model, ask_hub=ask_hub)
    if method is None and shape.packed is not None:
        method = stored_method(shape)
        check_wishes(method, wishes, lora_config)
        check_run(method, run, hardware, lora_config, wish_features(wishes))
    check_stored(method or "lora", shape)
    check_targets(shape, wishes.targets)
    advice = _advice(shape, task, examples, tokens) if asks else None
    found = _found_plan(
        hardware, shape=shape, method=method, adapter=wishes, run=run, lora_config=lora_config, advice=advice
    )
    if found is not None:
        method = method or ("qlora" if found.plan.base == "nf4" else "lora")
        hardware = found.hardware
    decided = decide(
        shape, hardware, method=method or "lora", wishes=wishes, lora_config=lora_config, run=run, advice=advice,
        found=found, model_id=model_id,
    )  # fmt: skip
    return replace(decided, model_is_loaded=is_loaded_model(model))


def _found_plan(hardware: Hardware, **request: Any) -> Fit | None:
    """Ask the planner where there is a GPU of known memory; it is loaded only then."""
    if (
        hardware.kind != "cuda"
        or hardware.memory_gib is None
        or request["method"] == "prefix"
        or request["adapter"].experts
    ):
        return None
    from ..memory.preset_plans import PlanRequest
    from ..memory.remedies import plan_run

    return plan_run(PlanRequest(**request), hardware)


def _advice(shape: ModelShape, task: Task | None, examples: int | None, tokens: int | None) -> Advice:
    from ..choices.advice import advise

    return advise(shape, task=task, examples=examples, tokens=tokens)


def _check_question(rank: Any, task: str | None, examples: int | None, tokens: int | None) -> None:
    """Raise for a question to the advice without `rank="auto"`, or one that cannot be answered."""
    question = {"task": task, "examples": examples, "tokens": tokens}
    given = [name for name, value in question.items() if value is not None]
    if given and rank != "auto":
        raise ConfigError(f"{given[0]} is for rank='auto'; add it, or leave {given[0]} out")
    if given:
        from ..choices.advice import check_question

        check_question(task, examples, tokens)


def _check_choosable(method: Method | None, lora_config: LoraConfig | None) -> None:
    """Raise where there is no rank for the advice to choose."""
    if method == "prefix" or lora_config is not None:
        owner = "method prefix" if method == "prefix" else "lora_config"
        raise ConfigError(f"{owner} leaves no rank to choose; leave rank='auto' out")


def _as_tuple(given: Any) -> Any:
    return given if given is None or isinstance(given, str) else tuple(given)


def decide(
    shape: ModelShape,
    hardware: Hardware,
    *,
    method: Method = "lora",
    wishes: LoraWishes | None = None,
    lora_config: LoraConfig | None = None,
    run: RunWishes | None = None,
    advice: Advice | None = None,
    found: Fit | None = None,
    model_id: str | None = None,
) -> Preset:
    """Return the preset for a shape on given hardware; the pure part of `preset`."""
    run = run or RunWishes()
    shared = replace(run, sharding=found.sharding) if found is not None and found.plan.devices > 1 else run
    choices = all_choices(shape, hardware, method, wishes or LoraWishes(), lora_config, shared, advice)
    if found is None:
        choices = (*choices, host_choice(shape, hardware, choices))
    else:
        from ..memory.preset_plans import overlaid

        choices = overlaid(choices, found, fixed_sharding=run.sharding is not None)
    value = {choice.name: choice.value for choice in choices}
    return Preset(
        model_id=model_id,
        shape=shape,
        hardware=hardware,
        choices=choices,
        warnings=(
            *(advice.warnings if advice else ()),
            *(rank_warnings(shape, value["rank"]) if method != "prefix" else ()),
            *host_warnings(shape, hardware, choices),
        ),
        found=found,
        own_lora_config=lora_config,
        **value,
    )
