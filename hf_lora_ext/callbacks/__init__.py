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
from .resource_use import ResourceCallback
from .start import EvaCallback, LoftqCallback
from .train_log import TrainLog

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
    "ResourceCallback",
    "TrainLog",
]
