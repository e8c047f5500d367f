"""An adapter whose base is in parts on several devices (FSDP, ZeRO-3): gathered and saved by all processes together.

Read from transformers and peft, and never run: it needs several GPUs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["is_sharded", "save_sharded"]


def is_sharded(trainer: Any) -> bool:
    """Return whether the trainer's model is in parts."""
    return bool(trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled)


def save_sharded(trainer: Any, folder: Path) -> None:
    """Save the adapter into a folder; every process must call it.

    Args:
        trainer: The trainer that has ended.
        folder: Where the adapter goes.
    """
    if trainer.is_fsdp_enabled:  # checkpoints are in parts; an adapter is whole (peft's examples/sft/train.py)
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    trainer.save_model(str(folder))
    if trainer.is_world_process_zero():
        (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle with this machine's paths
