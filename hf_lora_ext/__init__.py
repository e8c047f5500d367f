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
    from .analysis.rank_report import rank_report
    from .analysis.report import RankReport
    from .callbacks import (
        AdaLoraCallback,
        AdaptiveRankCallback,
        FactsCallback,
        OverfitCallback,
        PushAdapterCallback,
        ResourceCallback,
    )
    from .cards.card import render_card, write_card
    from .cards.facts import Facts
    from .choices.advice import Advice, advise
    from .evaluation.evaluation import Evaluation, evaluate_adapter
    from .export.engines import check_engine
    from .export.export import Exported, export_adapter
    from .memory.remedies import DoesNotFit
    from .push.plan import PushPlan, PushResult
    from .push.push import push_adapter
    from .push.rollbacks import RolledBack, rollback
    from .push.verification import Verified, verify_push
    from .runs.recipe import Recipe, load_recipe
    from .runs.runner import RunResult, run_recipe
    from .sweep.report import SweepResult
    from .sweep.settings import Sweep, load_sweep
    from .sweep.sweeper import run_sweep
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
    "Evaluation",
    "Exported",
    "Facts",
    "FactsCallback",
    "Hardware",
    "LoraExtError",
    "LoraSFTTrainer",
    "ModelShape",
    "OverfitCallback",
    "Preset",
    "PushAdapterCallback",
    "PushError",
    "PushMixin",
    "PushPlan",
    "PushResult",
    "RankCurve",
    "RankReport",
    "Recipe",
    "ResourceCallback",
    "ResumeError",
    "RolledBack",
    "RunResult",
    "Sweep",
    "SweepResult",
    "Verified",
    "advise",
    "check_engine",
    "compress_adapter",
    "evaluate_adapter",
    "export_adapter",
    "load_recipe",
    "load_sweep",
    "preset",
    "push_adapter",
    "rank_curve",
    "rank_report",
    "render_card",
    "rollback",
    "run_recipe",
    "run_sweep",
    "verify_push",
    "write_card",
]

_LAZY: Final = {
    "RankReport": "analysis.report",
    "rank_report": "analysis.rank_report",
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
    "Evaluation": "evaluation.evaluation",
    "evaluate_adapter": "evaluation.evaluation",
    "check_engine": "export.engines",
    "Exported": "export.export",
    "export_adapter": "export.export",
    "AdaLoraCallback": "callbacks",
    "AdaptiveRankCallback": "callbacks",
    "FactsCallback": "callbacks",
    "OverfitCallback": "callbacks",
    "PushAdapterCallback": "callbacks",
    "ResourceCallback": "callbacks",
    "RunResult": "runs.runner",
    "run_recipe": "runs.runner",
    "SweepResult": "sweep.report",
    "Sweep": "sweep.settings",
    "load_sweep": "sweep.settings",
    "run_sweep": "sweep.sweeper",
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
