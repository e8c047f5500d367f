"""What an adapter of a model would train, without the model's weights or its own."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from peft import get_peft_model

if TYPE_CHECKING:
    from peft import PeftConfig

__all__ = ["trained_shapes"]


def trained_shapes(model: Any, config: PeftConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of each parameter that would train, by its name; the model is wrapped.

    Args:
        model: A transformers model on the meta device.
        config: The adapter.
    """
    plain = copy.deepcopy(config)
    if getattr(plain, "init_lora_weights", None) is not None:
        plain.init_lora_weights = True  # others look at weights, and none change a shape
    adapted = get_peft_model(model, plain, low_cpu_mem_usage=True)
    return {name: tuple(weight.shape) for name, weight in adapted.named_parameters() if weight.requires_grad}
