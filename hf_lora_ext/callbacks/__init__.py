"""Trainer callbacks: each works in TRL's SFTTrainer and in every other Hugging Face trainer."""

from .adalora import AdaLoraCallback
from .adaptive_rank import AdaptiveRankCallback
from .evaluate_at_end import EvaluateAtEnd
from .facts import FactsCallback
from .plain_adapter import PlainAdapterCallback
from .progress import ProgressLines

__all__ = [
    "AdaLoraCallback",
    "AdaptiveRankCallback",
    "EvaluateAtEnd",
    "FactsCallback",
    "PlainAdapterCallback",
    "ProgressLines",
]
