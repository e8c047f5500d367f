"""What callbacks ask of the trainer that they are in."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Final, TypeVar

import torch
from transformers import TrainerCallback
from transformers.trainer_callback import CallbackHandler

from ..errors import ConfigError
from ..ranks.allocation import parameters_of
from ..ranks.optimizer_state import check_optimizer, load_precision_
from ..ranks.probes import from_main

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from ..ranks.storage import AdapterLayers

__all__ = [
    "agreed",
    "come_before_trackers_",
    "come_last_",
    "companion_of",
    "least_ranks",
    "put_precision_back_",
    "refuse",
]

Decision = TypeVar("Decision")
Companion = TypeVar("Companion", bound=TrainerCallback)

OPTIMIZER_FILE: Final = "optimizer.pt"
"""The optimizer's state in a trainer's checkpoint."""


def refuse(args: TrainingArguments, optimizer: torch.optim.Optimizer, mode: str) -> None:
    """Raise for what would hide or keep the shapes that the callback changes, or hide what it compares."""
    check_optimizer(optimizer)
    kind = args.distributed_state.distributed_type.value if args.distributed_state else "NO"
    problem = ""
    if args.fsdp or args.deepspeed or kind not in ("NO", "MULTI_CPU", "MULTI_GPU"):
        problem = "FSDP and DeepSpeed cut parameters into shards that cannot change their shape"
    elif args.world_size > 1 and type(optimizer).__name__ == "Adafactor":
        problem = "under DDP dropped directions are masked, and Adafactor's row means would wake them"
    elif args.n_gpu > 1:
        problem = "DataParallel copies the model for every pass; launch one process for each GPU"
    elif args.torch_compile:
        problem = "torch.compile builds its code for fixed shapes"
    elif mode == "fixed" and args.fp16:
        problem = "mode='fixed' compares gradients with nats, and float16's scaler hides their size; bf16=True has none"
    elif args.push_to_hub:
        problem = "push_to_hub=True would push checkpoints, over the budget or with what only a resumed run needs; "
        problem += "LoraSFTTrainer, or PushMixin before another trainer, pushes what is within it"
    if problem:
        raise ConfigError(f"AdaptiveRankCallback: {problem}; switch it off, or use a plain LoraConfig")


def least_ranks(layers: AdapterLayers, budget: int, processes: int, mode: str) -> dict[str, int]:
    """Return the rank that a layer keeps whatever it is worth; 0 where it is not named.

    Under DDP no parameter goes, and DoRA's magnitude trains on in a layer of rank 0, which would not be in what is
    saved: it keeps a direction.

    Raises:
        ConfigError: If mode `fixed` would have to keep such layers, or the budget does not hold them.
    """
    if processes == 1:
        return {}
    least = {name: 1 for name, factors in layers.carrying.items() if factors.magnitude is not None}
    problem = ""
    if least and mode == "fixed":
        problem = "moves layers in and out of the adapter, which DDP does not allow where DoRA trains magnitudes"
    elif (needed := parameters_of(least, {name: layers.costs[name] for name in least})) > budget:
        problem = f"has a budget of {budget:,} parameters, below the {needed:,} of one direction a layer, which DoRA "
        problem += "keeps under DDP"
    if problem:
        raise ConfigError(f"AdaptiveRankCallback(mode={mode!r}) {problem}; use use_dora=False, or one process")
    return least


def agreed(decide: Callable[[], Decision], args: TrainingArguments) -> Decision:
    """Return what is decided; where several processes train, what the main one decides."""
    return from_main(decide) if args.world_size > 1 else decide()


def put_precision_back_(optimizer: torch.optim.Optimizer, checkpoint: Path) -> None:
    """Give the optimizer, which was loaded from a checkpoint, the precision that its state was saved in."""
    saved = checkpoint / OPTIMIZER_FILE
    if saved.is_file():
        load_precision_(optimizer, torch.load(saved, map_location="cpu", weights_only=True))


def come_before_trackers_(callback: TrainerCallback) -> None:
    """Move the callback ahead of the trackers in its trainer, so that what it adds to a log reaches them.

    A trainer calls its trackers before the user's callbacks. Where its list is not found, the numbers are in
    `log_history` alone.
    """
    if (handler := _handler_of(callback)) is not None:
        handler.callbacks.remove(callback)
        handler.callbacks.insert(1, callback)  # the first one decides when to save, which this one must know


def come_last_(callback: TrainerCallback) -> None:
    """Put the callback behind the others in its trainer, whose files it publishes.

    The list is a new one: the hook that this is called from goes through the old one, and would pass over the next.
    """
    if (handler := _handler_of(callback)) is not None:
        handler.callbacks = [other for other in handler.callbacks if other is not callback] + [callback]


def companion_of(callback: TrainerCallback, kind: type[Companion]) -> Companion | None:
    """Return the callback of a kind that is in the same trainer, or None; asked from within a hook."""
    handler = _handler_of(callback)
    return next((other for other in handler.callbacks if isinstance(other, kind)), None) if handler else None


def _handler_of(callback: TrainerCallback) -> CallbackHandler | None:
    """Return what has called a hook of the callback, and has its trainer's list; a trainer tells a callback neither."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        handler = frame.f_locals.get("self")
        if isinstance(handler, CallbackHandler) and callback in handler.callbacks:
            return handler
        frame = frame.f_back
    return None
