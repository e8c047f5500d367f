"""Whether what was exported answers as what was trained: both loaded anew, asked the same, and compared."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from ..adapters.attached import attach
from ..errors import AdapterError
from ..machine import free_memory_bytes
from .base import Base

__all__ = ["Difference", "compare", "fits_memory"]

ROUNDING: Final = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""What rounding the weights to a precision may change of the answers, relative to the largest one. Above float32's
sums in another order, and well below what a wrong scale or a lost layer does (tests/test_export.py plants both)."""
ROWS: Final = 2
TOKENS: Final = 16


@dataclass(frozen=True, slots=True)
class Difference:
    """How far two models' answers lie apart."""

    largest: float
    """The largest difference of two numbers."""
    scale: float
    """The largest number of the trained model's answers."""

    @property
    def relative(self) -> float:
        """The difference relative to the largest answer."""
        return self.largest / self.scale if self.scale else self.largest

    def check(self, precision: torch.dtype, what: str) -> None:
        """Raise AdapterError where rounding to this precision does not explain the difference."""
        allowed = ROUNDING.get(precision, ROUNDING[torch.float32])
        if not self.relative <= allowed:
            raise AdapterError(
                f"{what} answers otherwise than the trained adapter: the largest difference is {self.largest:.3g}, the "
                f"largest answer {self.scale:.3g}, and rounding explains {allowed:g} of it; nothing was written; is "
                "this the base that it was trained on?"
            )


def fits_memory(base: Base) -> bool:
    """Return whether the base in float32 fits the memory that is free now, with a fifth to spare."""
    needed = 4 * sum(parameter.numel() for parameter in base.outline().parameters())
    return bool(needed * 1.2 < free_memory_bytes())


def compare(base: Base, adapter: Path, exported: Path, *, is_merged: bool, tokens: tuple[int, ...] = ()) -> Difference:
    """Return how far the answers of an export lie from those of the adapter that it was made of.

    Both run in float32 on the CPU, one after the other, on the same random tokens.

    Args:
        base: The base model.
        adapter: Folder of the adapter.
        exported: Folder of the export.
        is_merged: Whether that is a whole model.
        tokens: Tokens that must be among those asked, because the adapter trains them.
    """
    trained = _answers(attach(base.open(torch.float32), adapter), tokens)
    model = base.open(torch.float32, exported) if is_merged else attach(base.open(torch.float32), exported)
    answers = _answers(model, tokens)
    return Difference(float((answers - trained).abs().max()), float(trained.abs().max()))


def _answers(model: Any, tokens: tuple[int, ...]) -> Tensor:
    rows = model.get_input_embeddings().weight.shape[0]
    drawn = torch.randint(0, rows, (ROWS, TOKENS), generator=torch.Generator().manual_seed(0))
    asked = torch.tensor(tokens[:TOKENS], dtype=torch.long)
    drawn[0, : len(asked)] = asked
    found = []
    for row in drawn.split(1):  # one at a time: a classifier without a padding token takes no more
        given = {"input_ids": row, "attention_mask": torch.ones_like(row)}
        if getattr(model.config, "is_encoder_decoder", False):
            given["decoder_input_ids"] = row
        with torch.no_grad():
            found.append(model(**given)[0].float())
    return torch.cat(found)
