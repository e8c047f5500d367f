"""`LoraSFTTrainer`, and the mixin that gives any trainer of an adapter the same `push_to_hub`."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any, Final

from trl import SFTTrainer

from .callbacks import PushAdapterCallback
from .callbacks.own_card import is_own
from .errors import ConfigError, nearest
from .push.gathering import lay_aside_model
from .push.plan import PushResult
from .push.push import push_adapter
from .push.release import CARD
from .push.schedule import schedule_of_strategy

if TYPE_CHECKING:
    from transformers import TrainingArguments

__all__ = ["LoraSFTTrainer", "PushMixin"]

OURS: Final = frozenset(
    {"allow", "create_pr", "dry_run", "license", "license_link", "license_name", "repo_id", "say", "tag", "verify"}
)
"""Arguments of `push_adapter` that `push_to_hub` passes on."""
OF_THE_STOCK_CARD: Final = frozenset(
    {"dataset", "dataset_args", "dataset_name", "dataset_tags", "finetuned_from", "language", "model_name", "tags",
     "tasks"}
)  # fmt: skip
"""What the stock `push_to_hub` passes to `create_model_card`, in transformers 5.23 and trl 1.16."""
logger = logging.getLogger(__name__)


class PushMixin:
    """Lets a trainer push its adapter through `push_adapter`, wherever the stock trainer would upload a folder.

    `class MyTrainer(PushMixin, DPOTrainer)`. With `push_to_hub=True` a `PushAdapterCallback` is added, by
    `hub_strategy`, `hub_model_id`, `hub_private_repo`, `hub_token` and `hub_revision`. The strategies `checkpoint` and
    `all_checkpoints` push each save's adapter too; checkpoints themselves, which hold pickles, stay where they are.
    """

    args: TrainingArguments

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not self.args.push_to_hub:
            return
        handler: Any = self.callback_handler  # type: ignore[attr-defined]
        if any(isinstance(callback, PushAdapterCallback) for callback in handler.callbacks):
            raise ConfigError("push_to_hub=True and a PushAdapterCallback would both push; leave one of them out")
        self.add_callback(callback_for(self.args))  # type: ignore[attr-defined]

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Name the repository. It is made by the first push, not before anything is trained."""
        self.hub_model_id = _repo_of(self.args)
        self.push_in_progress = None

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write the stock card, unless the one that is there is a person's: trl writes one at each save."""
        if not is_own(Path(self.args.output_dir) / CARD):
            super().create_model_card(*args, **kwargs)  # type: ignore[misc]

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train, with the callback in place of the stock pushes of checkpoints."""
        with _without_stock_pushes(self.args):
            return super().train(*args, **kwargs)  # type: ignore[misc]

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> PushResult | Future[PushResult]:
        """Push the adapter through `push_adapter`.

        Args:
            commit_message: Title of the commit.
            blocking: Whether to return only when the Hub is known to hold it.
            token: Hub token; else `hub_token`, else the one that is logged in.
            revision: Branch; else `hub_revision`, else `main`.
            private: Whether a new repository is private; else `hub_private_repo`.
            kwargs: Further arguments of `push_adapter`; those of the stock card are told to be unused.

        Returns:
            What the Hub holds; with `blocking=False` its future.

        Raises:
            ConfigError: If an argument is not known.
            PushError: As `push_adapter`; in the future, where it is not waited for.
        """
        chosen = _chosen(self.args, kwargs) | {"message": commit_message}
        for name, value in (("token", token), ("revision", revision), ("private", private)):
            chosen |= {name: value} if value is not None else {}
        trainer: Any = self
        trainer.callback_handler.on_push_begin(self.args, trainer.state, trainer.control)
        if blocking or not trainer.is_world_process_zero():
            return push_adapter(self, **chosen)
        folder = Path(mkdtemp(prefix="hf-lora-push-"))
        model = trainer.accelerator.unwrap_model(trainer.model)
        aside = lay_aside_model(model, trainer.processing_class, Path(self.args.output_dir), folder, is_over=True)
        pool = ThreadPoolExecutor(1, "hf-lora-push")
        pushed = pool.submit(push_adapter, aside, **chosen)
        pushed.add_done_callback(lambda done: aside.remove_() if done.exception() is None else None)
        pool.shutdown(wait=False)
        return pushed


class LoraSFTTrainer(PushMixin, SFTTrainer):
    """TRL's SFTTrainer whose pushes go through `push_adapter`."""


def callback_for(args: TrainingArguments) -> PushAdapterCallback:
    """Return the callback that pushes as training arguments ask for it."""
    strategy = str(getattr(args.hub_strategy, "value", args.hub_strategy))
    if strategy in ("checkpoint", "all_checkpoints"):
        logger.info("hub_strategy=%s: each save's adapter goes; checkpoints hold pickles, and stay", strategy)
    if args.hub_always_push:
        logger.warning("hub_always_push=True is not followed: a newer push takes the place of one that waits")
    schedule = schedule_of_strategy(strategy)
    return PushAdapterCallback(
        **_of_arguments(args), every_saves=schedule.every_saves, best=schedule.best, at_end=schedule.at_end
    )


def _of_arguments(args: TrainingArguments) -> dict[str, Any]:
    return {
        "repo_id": _repo_of(args),
        "private": args.hub_private_repo,
        "token": args.hub_token,
        "revision": args.hub_revision,
    }


def _repo_of(args: TrainingArguments) -> str:
    return args.hub_model_id or Path(args.output_dir).absolute().name


def _chosen(args: TrainingArguments, more: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of `push_adapter`."""
    for name in more:
        if name not in OURS | OF_THE_STOCK_CARD:
            raise ConfigError(f"push_to_hub knows no {name}; {nearest(name, OURS)}")
    if unused := sorted(set(more) & OF_THE_STOCK_CARD):
        logger.warning(
            "push_to_hub: %s of the stock card is not used; the card is made of facts (FactsCallback, write_card)",
            ", ".join(unused),
        )
    return _of_arguments(args) | {name: value for name, value in more.items() if name in OURS}


@contextmanager
def _without_stock_pushes(args: TrainingArguments) -> Iterator[None]:
    """Let the arguments say meanwhile that the trainer itself pushes nothing, which holds."""
    wished, args.push_to_hub = args.push_to_hub, False
    try:
        yield
    finally:
        args.push_to_hub = wished
