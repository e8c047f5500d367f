"""Right-sized LoRA fine-tuning for the Hugging Face stack.

    from hf_lora_ext import preset

Importing this package, and `preset("7B")`, loads neither torch nor numpy; the names below that need them
are loaded at first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from .configuration import Preset
from .errors import AdapterError, BudgetError, ConfigError, LoraExtError, PushError, ResumeError
from .hardware import Hardware
from .presets import preset
from .sizes import ModelShape

if TYPE_CHECKING:
    from .advice import Advice, advise
    from .callbacks import AdaLoraCallback, AdaptiveRankCallback, FactsCallback, PushAdapterCallback
    from .cards import render_card, write_card
    from .facts import Facts
    from .push import push_adapter
    from .push_plan import PushPlan, PushResult
    from .recipe import Recipe, load_recipe
    from .remedies import DoesNotFit
    from .rollbacks import RolledBack, rollback
    from .runner import RunResult, run_recipe
    from .trainers import LoraSFTTrainer, PushMixin
    from .verification import Verified, verify_push

__all__ = [
    "AdaLoraCallback",
    "AdapterError",
    "AdaptiveRankCallback",
    "Advice",
    "BudgetError",
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
    "Recipe",
    "ResumeError",
    "RolledBack",
    "RunResult",
    "Verified",
    "advise",
    "load_recipe",
    "preset",
    "push_adapter",
    "render_card",
    "rollback",
    "run_recipe",
    "verify_push",
    "write_card",
]

_LAZY: Final = {
    "render_card": "cards",
    "write_card": "cards",
    "Facts": "facts",
    "Recipe": "recipe",
    "load_recipe": "recipe",
    "DoesNotFit": "remedies",
    "Advice": "advice",
    "advise": "advice",
    "AdaLoraCallback": "callbacks",
    "AdaptiveRankCallback": "callbacks",
    "FactsCallback": "callbacks",
    "PushAdapterCallback": "callbacks",
    "RunResult": "runner",
    "run_recipe": "runner",
    "LoraSFTTrainer": "trainers",
    "PushMixin": "trainers",
    "PushPlan": "push_plan",
    "PushResult": "push_plan",
    "push_adapter": "push",
    "RolledBack": "rollbacks",
    "rollback": "rollbacks",
    "Verified": "verification",
    "verify_push": "verification",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_LAZY[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
