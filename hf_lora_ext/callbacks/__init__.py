"""Trainer callbacks: each works in TRL's SFTTrainer and in every other Hugging Face trainer."""

from .adalora import AdaLoraCallback
from .adapter_precision import AdapterPrecisionCallback
from .adaptive_rank import AdaptiveRankCallback
from .evaluate_at_end import EvaluateAtEnd
from .facts import FactsCallback
from .held_out_loss import HeldOutLoss
from .new_tokens import NewTokensCallback
from .overfit import OverfitCallback
from .plain_adapter import PlainAdapterCallback
from .progress import ProgressLines
from .push_adapter import PushAdapterCallback, PushOnTheWay
from .start import EvaCallback, LoftqCallback

__all__ = [
    "AdaLoraCallback",
    "AdapterPrecisionCallback",
    "AdaptiveRankCallback",
    "EvaCallback",
    "EvaluateAtEnd",
    "FactsCallback",
    "HeldOutLoss",
    "LoftqCallback",
    "NewTokensCallback",
    "OverfitCallback",
    "PlainAdapterCallback",
    "ProgressLines",
    "PushAdapterCallback",
    "PushOnTheWay",
]
