"""PushAdapterCallback: a run's adapter goes to the Hub while it trains, and when it ends."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from transformers import TrainerCallback

from ..cards.facts import write_text_atomically
from ..choices.methods import stored_init
from ..errors import ConfigError, LoraExtError, PushError
from ..hub import without_bars
from ..hub.failures import NO_TOKEN, HubAway
from ..push.gathering import Aside, lay_aside_checkpoint, lay_aside_model
from ..push.plan import MAIN, PushPlan, PushRequest, PushResult
from ..push.push import push_adapter
from ..push.queue import Outcome, Parcel, PushQueue, remove_unfinished
from ..push.release import CONFIG, WEIGHTS
from ..push.schedule import PushSchedule
from ..ranks.storage import over_budget
from .own_card import OwnCard
from .trainer_fit import come_last_

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments

__all__ = ["PushAdapterCallback", "PushOnTheWay"]

ASIDE: Final = "to_push"
"""Folder in the output folder for what waits to be pushed."""
PROGRESS_FILE: Final = "push_progress.json"
WAIT_SECONDS: Final = 480.0
"""Less than the 600 s after which torch's process groups give up on the process that is waited for
(torch.distributed.init_process_group, `timeout` for NCCL)."""
TOLD_EVERY_SECONDS: Final = 10.0
logger = logging.getLogger(__name__)
_AWAY: Final = "the Hub is away, so what it alone knows was not checked; pushes are tried when they are due: %s"


class PushAdapterCallback(TrainerCallback):
    """Push the adapter to the Hub through `push_adapter`: each so many saves, the best so far, the end.

    Works in SFTTrainer, the other TRL trainers and plain Trainer. Everything that can be known is checked when the
    training begins. A push runs in a thread, from a folder that is laid aside, so that training and the rotation of
    checkpoints go on; one at a time, and a newer one takes the place of one that waits. A push that fails is logged,
    its folder kept in `to_push` of the output folder, and the training ends as it would. A README.md that you wrote in
    the output folder is what goes; trl's own, written over it at each save, is put aside.

    Example::

        trainer = SFTTrainer(..., callbacks=[FactsCallback(dataset), PushAdapterCallback("me/sql", tag="v1")])

    Args:
        repo_id: `owner/name`; a bare name is one in your own account.
        every_saves: Push every so many checkpoints.
        best: Push each checkpoint that is the best so far by the trainer's `metric_for_best_model`; what is pushed at
            the end is the best one too.
        at_end: Push the adapter when the training ends.
        private: Whether a new repository is private. For one that exists it must agree with what it is.
        revision: Branch, `main` if left out.
        tag: Name that the last commit gets after it is verified.
        token: Hub token; the one that is logged in if left out.
        verify: Download each commit, compare every byte, and load it with peft.
        license: The adapter's licence by its Hub identifier; else the card's, else the base's.
        license_name: Its name, where `license` is `other`.
        license_link: Where its text is, where `license` is `other`.
        allow: Logins, hosts, dataset ids, a private base's id and paths that may be published, word for word.
        wait_seconds: How long the end of the training waits for the last push, at most.
        say: Takes one line of what happens.

    Raises:
        ConfigError: If the arguments contradict each other.
    """

    def __init__(
        self,
        repo_id: str,
        *,
        every_saves: int | None = None,
        best: bool = False,
        at_end: bool = True,
        private: bool | None = None,
        revision: str | None = None,
        tag: str | None = None,
        token: str | None = None,
        verify: bool = True,
        license: str | None = None,
        license_name: str | None = None,
        license_link: str | None = None,
        allow: Sequence[str] = (),
        wait_seconds: float = WAIT_SECONDS,
        say: Callable[[str], None] = print,
    ) -> None:
        self.schedule = PushSchedule(every_saves=every_saves, best=best, at_end=at_end)
        if tag and not at_end:
            raise ConfigError("a tag is for what the training ends with; leave at_end=False or the tag out")
        if not wait_seconds > 0:
            raise ConfigError(f"wait_seconds={wait_seconds!r} must be above 0")
        self.repo_id, self.tag, self.token = repo_id, tag, token
        self.wanted: dict[str, Any] = {
            "private": private, "revision": revision, "verify": verify,
            "license": license, "license_name": license_name, "license_link": license_link, "allow": tuple(allow),
        }  # fmt: skip
        self.wait_seconds, self.say = wait_seconds, say
        self._request(is_last=True)  # its checks, early

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Come after the callbacks whose facts and ranks are published."""
        come_last_(self)

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        model: Any,
        processing_class: Any = None,
        **kwargs: Any,
    ) -> None:
        """Find out, before the first step, whether the Hub would take what this run publishes."""
        self.queue_: PushQueue | None = None
        if not state.is_world_process_zero:
            return
        self.card_ = OwnCard(Path(args.output_dir))
        self.saves_ = _saves_until(Path(args.output_dir), state.global_step)
        self.results_: list[PushResult] = []
        self.last_: Outcome | None = None
        self.only_the_end_ = _why_only_the_end(model)
        self._refuse(args, model)
        folder = Path(args.output_dir) / ASIDE
        remove_unfinished(folder)
        self._rehearse(model, processing_class, folder / "start", is_new=state.global_step == 0)
        if self.only_the_end_ and (self.schedule.every_saves or self.schedule.best):
            self.say(f"push: no checkpoint goes to {self.repo_id} on the way: {self.only_the_end_}")
        self.queue_ = PushQueue(self._send)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Count the save, and lay it aside where it is one that goes."""
        checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if self.queue_ is None or not checkpoint.is_dir():
            return
        self.card_.put_back_()
        self.saves_ += 1
        write_text_atomically(checkpoint / PROGRESS_FILE, json.dumps({"saves": self.saves_}))
        self._tell()
        reason = self.schedule.reason(self.saves_, is_best=state.best_global_step == state.global_step)
        if reason is not None and not self.only_the_end_:
            self._put_checkpoint(f"Step {state.global_step}, {reason}", checkpoint)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Tell what became of pushes meanwhile."""
        self._tell()

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        model: Any,
        processing_class: Any = None,
        **kwargs: Any,
    ) -> None:
        """Push what the training ends with, and wait for it."""
        if self.queue_ is None:
            return
        self.card_.put_back_(is_over=True)
        if self.schedule.at_end:
            self._put_end(args, state, model, processing_class)
        self._wait()

    def _put_end(self, args: TrainingArguments, state: TrainerState, model: Any, tokenizer: Any) -> None:
        """Push the best checkpoint, or the adapter in memory, which is the best one where the trainer has loaded it."""
        best = Path(state.best_model_checkpoint or "")
        if self.schedule.best and not args.load_best_model_at_end and best.name:
            if best.is_dir() and not self._is_over_budget(best):
                self._put_checkpoint(f"End of training, the best of it: {best.name}", best, is_last=True)
                return
            self.say(f"push: {best.name}, the best, cannot be pushed; the adapter as the training leaves it goes")
        written = Path(args.output_dir)
        folder = written / ASIDE / "end"
        self._put(f"End of training, step {state.global_step}", folder, is_last=True,
                  lay=lambda: lay_aside_model(model, tokenizer, written, folder, is_over=True))  # fmt: skip

    def _put_checkpoint(self, title: str, checkpoint: Path, *, is_last: bool = False) -> None:
        """Push a checkpoint, if its ranks are those that the run is to end with."""
        if self._is_over_budget(checkpoint):
            return
        folder = checkpoint.parent / ASIDE / ("end" if is_last else checkpoint.name.replace("checkpoint", "step"))
        self._put(title, folder, is_last=is_last,
                  lay=lambda: lay_aside_checkpoint(checkpoint, checkpoint.parent, folder))  # fmt: skip

    def _request(self, is_last: bool) -> PushRequest:
        return PushRequest(
            repo_id=self.repo_id,
            private=self.wanted["private"],
            revision=self.wanted["revision"] or MAIN,
            tag=self.tag if is_last else None,
            verify=self.wanted["verify"],
            terms={name: value for name, value in self.wanted.items() if name.startswith("license")},
            allow=self.wanted["allow"],
        )

    def _refuse(self, args: TrainingArguments, model: Any) -> None:
        """Raise for what could never be pushed as it is asked for."""
        problem = ""
        if args.fsdp or args.deepspeed:
            problem = "FSDP and DeepSpeed keep the adapter in shards; push the folder that the trainer saves"
        elif self.schedule.best and not args.metric_for_best_model:
            problem = "best=True needs to know what is best; set metric_for_best_model (such as 'loss') and evaluate"
        elif self.schedule.best and self.only_the_end_ and not args.load_best_model_at_end:
            problem = f"best=True needs load_best_model_at_end=True here: {self.only_the_end_}"
        elif _changes_base(model) and not (Path(args.output_dir) / "initial_adapter").is_dir():
            problem = f"give the trainer PlainAdapterCallback too: {self.only_the_end_}"
        if problem:
            raise ConfigError(f"PushAdapterCallback: {problem}")

    def _rehearse(self, model: Any, tokenizer: Any, folder: Path, *, is_new: bool) -> None:
        """Do all of a push but the writing, with the adapter as it is now."""
        aside = lay_aside_model(model, tokenizer, folder.parent.parent, folder, is_over=False)
        tag = self.tag if is_new else None  # a resumed run may have set it before it was killed
        try:
            tried = push_adapter(aside, self.repo_id, token=self.token, tag=tag, dry_run=True, **self.wanted)
            unasked = tried.plan and tried.plan.unasked
            if unasked == NO_TOKEN:  # to look needs none, to push does
                raise PushError(NO_TOKEN)
            if unasked:
                logger.warning(_AWAY, unasked)
        except HubAway as away:
            logger.warning(_AWAY, away)
        except LoraExtError as error:
            text = str(error).partition("\nagain: ")[0]
            raise type(error)(f"this run could not be pushed to {self.repo_id}: {text}") from error
        finally:
            aside.remove_()

    def _is_over_budget(self, checkpoint: Path) -> bool:
        """Return whether a checkpoint's ranks still have to fall, and say so: a reader would take it for the result."""
        if (over := over_budget(checkpoint)) is None:
            return False
        self.say(f"push: {checkpoint.name} stays here: {over[0]:,} parameters, over the budget of {over[1]:,}")
        return True

    def _put(self, title: str, folder: Path, *, lay: Callable[[], Aside], is_last: bool) -> None:
        """Lay aside what is pushed, and give it to the thread."""
        assert self.queue_ is not None
        try:
            aside = lay()
        except (LoraExtError, OSError) as error:
            logger.warning("%s was not laid aside to be pushed, and training goes on: %s", title, error)
            return
        command = self._request(is_last).command(folder)
        replaced = self.queue_.put(Parcel(aside=aside, title=title, command=command, is_last=is_last))
        if replaced is not None:
            self.say(f"push: {replaced.title}: skipped, {title} takes its place")

    def _send(self, parcel: Parcel, at: Callable[[str], None]) -> PushResult:
        """Push a parcel; runs in the queue's thread."""
        with without_bars():
            return push_adapter(
                parcel.aside,
                self.repo_id,
                token=self.token,
                tag=self.tag if parcel.is_last else None,
                message=parcel.title,
                confirm=None if parcel.is_last else _is_another_adapter,
                say=at,
                **self.wanted,
            )

    def _tell(self) -> None:
        """Say what became of pushes since the last time."""
        outcomes = self.queue_.outcomes() if self.queue_ is not None else []
        for outcome in outcomes:
            if outcome.result is None:
                logger.warning(outcome.line)
            else:
                self.results_.append(outcome.result)
                self.say(f"push: {outcome.line}")
            self.last_ = outcome

    def _wait(self) -> None:
        """Wait for the pushes, say how they go, and end with a line that says what is where."""
        assert self.queue_ is not None
        began = time.monotonic()
        self._tell()
        while not self.queue_.wait(min(TOLD_EVERY_SECONDS, max(0.0, self.wait_seconds - time.monotonic() + began))):
            self._tell()
            waited = time.monotonic() - began
            if waited >= self.wait_seconds:
                parcel = self.queue_.abandon()
                command = parcel.command if parcel else ""
                logger.warning("the push to %s is not done after %.0f s", self.repo_id, waited)
                self.say(f"push: goes on while this process lives; if that ends first: {command}")
                return
            self.say(f"push: {self.queue_.step}, since {waited:.0f} s of at most {self.wait_seconds:.0f}")
        self._tell()
        if (last := self.last_) is not None and last.problem is not None:
            self.say(f"push: {self.repo_id} does not hold this run's last adapter; it is kept: {last.parcel.command}")


class PushOnTheWay(PushAdapterCallback):
    """Pushes on the way alone: what the training ends with is pushed by who finishes its folder."""

    def _put_end(self, args: TrainingArguments, state: TrainerState, model: Any, tokenizer: Any) -> None:
        """Push nothing."""


def _is_another_adapter(plan: PushPlan) -> bool:
    """Return whether the Hub's weights are others: what a resumed run saves once more is not pushed once more."""
    return not {CONFIG, WEIGHTS} <= set(plan.unchanged)


def _saves_until(written: Path, step: int) -> int:
    """Return how many saves the run had made by the checkpoint that it goes on from."""
    file = written / f"checkpoint-{step}" / PROGRESS_FILE
    return int(json.loads(file.read_text(encoding="utf8"))["saves"]) if step and file.is_file() else 0


def _why_only_the_end(model: Any) -> str:
    """Return why the checkpoints of a model are no adapters to publish; nothing where they are."""
    config = _config_of(model)
    if getattr(getattr(config, "peft_type", None), "value", None) == "ADALORA":
        return "AdaLoRA's checkpoints are wide and in its own format; at the end it is a plain LoRA"
    if _changes_base(model):
        return f"init {config.init_lora_weights} changes the base; at the end there is an adapter for the unchanged one"
    return ""


def _changes_base(model: Any) -> bool:
    """Return whether the adapter's start changed the weights below it."""
    init = stored_init(getattr(_config_of(model), "init_lora_weights", None))
    return init is not None and init.changes_base


def _config_of(model: Any) -> Any:
    name = getattr(model, "active_adapter", None)
    return getattr(model, "peft_config", {}).get(name) if isinstance(name, str) else None
