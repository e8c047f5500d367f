"""Trainer callbacks: each works in TRL's SFTTrainer and in every other Hugging Face trainer."""

from .evaluate_at_end import EvaluateAtEnd
from .facts import FactsCallback
from .plain_adapter import PlainAdapterCallback
from .progress import ProgressLines

__all__ = ["EvaluateAtEnd", "FactsCallback", "PlainAdapterCallback", "ProgressLines"]
