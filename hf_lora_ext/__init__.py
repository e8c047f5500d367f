"""Right-sized LoRA fine-tuning for the Hugging Face stack.

    from hf_lora_ext import preset

Importing this package, and `preset("7B")`, loads neither torch nor numpy; the names below that need them
are loaded at first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from .errors import AdapterError, BudgetError, ConfigError, LoraExtError, PushError, ResumeError
from .hardware import Hardware
from .models.sizes import ModelShape
from .presets.configuration import Preset
from .presets.preset import preset

if TYPE_CHECKING:
    from .analysis.compress import Compressed, compress_adapter
    from .analysis.curve import RankCurve, rank_curve
    from .callbacks import AdaLoraCallback, AdaptiveRankCallback, FactsCallback, PushAdapterCallback
    from .cards.card import render_card, write_card
    from .cards.facts import Facts
    from .choices.advice import Advice, advise
    from .memory.remedies import DoesNotFit
    from .push.plan import PushPlan, PushResult
    from .push.push import push_adapter
    from .push.rollbacks import RolledBack, rollback
    from .push.verification import Verified, verify_push
    from .runs.recipe import Recipe, load_recipe
    from .runs.runner import RunResult, run_recipe
    from .trainers import LoraSFTTrainer, PushMixin

__all__ = [
    "AdaLoraCallback",
    "AdapterError",
    "AdaptiveRankCallback",
    "Advice",
    "BudgetError",
    "Compressed",
    "ConfigError",
    "DoesNotFit",
    "Facts",
    "FactsCallback",
    "Hardware",
    "LoraExtError",
    "LoraSFTTrainer",
    "ModelShape",
    "Preset",
    "PushAdapterCallback",
    "PushError",
    "PushMixin",
    "PushPlan",
    "PushResult",
    "RankCurve",
    "Recipe",
    "ResumeError",
    "RolledBack",
    "RunResult",
    "Verified",
    "advise",
    "compress_adapter",
    "load_recipe",
    "preset",
    "push_adapter",
    "rank_curve",
    "render_card",
    "rollback",
    "run_recipe",
    "verify_push",
    "write_card",
]

_LAZY: Final = {
    "Compressed": "analysis.compress",
    "compress_adapter": "analysis.compress",
    "RankCurve": "analysis.curve",
    "rank_curve": "analysis.curve",
    "render_card": "cards.card",
    "write_card": "cards.card",
    "Facts": "cards.facts",
    "Recipe": "runs.recipe",
    "load_recipe": "runs.recipe",
    "DoesNotFit": "memory.remedies",
    "Advice": "choices.advice",
    "advise": "choices.advice",
    "AdaLoraCallback": "callbacks",
    "AdaptiveRankCallback": "callbacks",
    "FactsCallback": "callbacks",
    "PushAdapterCallback": "callbacks",
    "RunResult": "runs.runner",
    "run_recipe": "runs.runner",
    "LoraSFTTrainer": "trainers",
    "PushMixin": "trainers",
    "PushPlan": "push.plan",
    "PushResult": "push.plan",
    "push_adapter": "push.push",
    "RolledBack": "push.rollbacks",
    "rollback": "push.rollbacks",
    "Verified": "push.verification",
    "verify_push": "push.verification",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_LAZY[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
