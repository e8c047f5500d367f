"""Trainer callbacks: each works in TRL's SFTTrainer and in every other Hugging Face trainer."""

from .adalora import AdaLoraCallback
from .evaluate_at_end import EvaluateAtEnd
from .facts import FactsCallback
from .new_tokens import NewTokensCallback
from .plain_adapter import PlainAdapterCallback
from .progress import ProgressLines

__all__ = [
    "AdaLoraCallback",
    "EvaluateAtEnd",
    "FactsCallback",
    "NewTokensCallback",
    "PlainAdapterCallback",
    "ProgressLines",
]
