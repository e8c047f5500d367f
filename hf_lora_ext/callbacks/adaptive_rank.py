"""AdaptiveRankCallback: the adapter starts wide, and rank leaves the layers where it pays least.

Method card: `adaptive_rank.md`, beside this file.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

import torch
from transformers import TrainerCallback
from transformers.trainer_callback import CallbackHandler

from ..allocation import allocate_ranks
from ..choices import WIDE_START
from ..errors import ConfigError, ResumeError, nearest
from ..facts import write_text_atomically
from ..lora_layers import lora_layers, own_config_, trained_adapter, widened, write_ranks_
from ..low_rank import Basis
from ..optimizer_state import check_optimizer, put_precision_back_
from ..plots import plot_ranks
from ..probes import Moments, Probe, Witness, from_main, pool_on_main_
from ..rank_change import change_ranks_, mask_ranks_
from ..rank_criteria import CRITERIA, Criterion, find_bases
from ..rank_events import RankEvent, check_target, plan_events
from ..rank_storage import AdapterLayers, RankState, load_by_ranks_, read_state, save_with_state_

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments

__all__ = ["AdaptiveRankCallback"]

HISTORY_FILE: Final = "rank_history.json"
PLOT_FILE: Final = "rank_history.png"
OPTIMIZER_FILE: Final = "optimizer.pt"
"""The trainer's, in its checkpoints."""
logger = logging.getLogger(__name__)


class AdaptiveRankCallback(TrainerCallback):
    """Start a LoRA adapter wide and shrink it, layer by layer, to a budget of parameters while it trains.

    Works in SFTTrainer, the other TRL trainers and plain Trainer. Give it to the trainer's constructor, so that the
    adapter is widened before the optimizer is made. What is saved is an ordinary LoRA adapter with a rank for each
    layer; layers of rank 0 are not in it.

    Example::

        trainer = SFTTrainer(..., peft_config=LoraConfig(r=8), callbacks=[AdaptiveRankCallback(target_rank=8)])

    Args:
        target_rank: Mean rank in the end: the budget is what a uniform adapter of this rank would have.
        budget_parameters: The budget itself, instead of a rank.
        start_factor: How many times the budget the adapter starts with, at least; a wider adapter stays as it is.
        criterion: What a direction is worth: `whitened`, `input`, `svd`, `sensitivity` or `random` (see
            `rank_criteria`).
        events: How often ranks change.
        first: Share of the run before which no rank changes.
        last: Share of the run after which no rank changes.
        probe_steps: Steps whose passes are watched before each event.
    """

    def __init__(
        self,
        *,
        target_rank: int | None = None,
        budget_parameters: int | None = None,
        start_factor: float = WIDE_START,
        criterion: Criterion = "whitened",
        events: int = 8,
        first: float = 0.1,
        last: float = 0.6,
        probe_steps: int = 8,
    ) -> None:
        if (target_rank is None) == (budget_parameters is None):
            raise ConfigError("give the budget once: target_rank=8 (a mean rank) or budget_parameters=1_000_000")
        for name, value in (("target_rank", target_rank), ("budget_parameters", budget_parameters)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ConfigError(f"{name}={value!r} must be a whole number from 1")
        if criterion not in CRITERIA:
            raise ConfigError(f"criterion {criterion!r} is not known; {nearest(str(criterion), CRITERIA)}")
        if not start_factor > 1:
            raise ConfigError(f"start_factor={start_factor!r} must be above 1, or there is no rank to drop")
        plan_events(10**6, 2, 1, events=events, first=first, last=last, probe_steps=probe_steps)  # its checks, early
        self.target_rank, self.budget_parameters, self.start_factor = target_rank, budget_parameters, start_factor
        self.criterion, self.events, self.first, self.last = criterion, events, first, last
        self.probe_steps = probe_steps

    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, model: Any, **kwargs: Any
    ) -> None:
        """Widen the adapter before an optimizer meets it, and let checkpoints be loaded by their ranks."""
        adapter = trained_adapter(model)
        own_config_(model, adapter)
        self.layers_ = AdapterLayers(model, adapter, lora_layers(model, adapter))
        uniform = sum(self.layers_.costs.values())
        self.budget_ = self.budget_parameters or uniform * (self.target_rank or 0)
        self.width_ = round(self.start_factor * self.budget_ / uniform)
        self.probe_: Probe | None = None
        self.state_, self.recalled_ = RankState({}), RankState({})
        self.news_: dict[str, Any] = {}
        _come_before_trackers_(self)
        self._widen(args.seed)
        check_target(self.layers_.parameters, self.budget_, max(self.layers_.costs.values()))
        load_by_ranks_(self.layers_, lambda folder: self._recall(folder, args))
        save_with_state_(self.layers_, self._to_save)

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        model: Any,
        optimizer: Any,
        **kwargs: Any,
    ) -> None:
        """Refuse what cannot work, and plan the run or take it up from the checkpoint."""
        if not hasattr(self, "layers_"):
            raise ConfigError(
                "AdaptiveRankCallback came after the trainer was made, when the adapter can no longer be widened; "
                "give it to the trainer's constructor: callbacks=[AdaptiveRankCallback(...)]"
            )
        if model is not self.layers_.model:
            raise ConfigError(
                "the trainer trains another model than the one it was made with (model_init, hyperparameter_search), "
                "which AdaptiveRankCallback has not widened; make a trainer for each run"
            )
        self.optimizer_: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)
        _refuse(args, self.optimizer_)
        settings = self._settings(state.max_steps)
        self.state_ = self._continued(settings) if state.global_step else RankState(settings)
        if state.global_step and (self.recalled_from_ / OPTIMIZER_FILE).is_file():
            put_precision_back_(self.optimizer_, torch.load(self.recalled_from_ / OPTIMIZER_FILE, weights_only=True))
        self.plan_: tuple[RankEvent, ...] = self._plan(state.max_steps, self.state_.settings["start"])

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Watch the passes of the steps before an event."""
        step = state.global_step + 1
        if self.probe_ is None and any(event.probe_from <= step <= event.step for event in self.plan_):
            self.probe_ = Probe(self.layers_.live, self.state_.moments)
            self.witness_ = Witness(self.layers_.model)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take the gradients in, for the criterion that asks for them."""
        if self.probe_ is not None and self.criterion == "sensitivity":
            for name, factors in self.layers_.live.items():
                self.probe_.moments[name].add_sensitivity_(factors)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Change the ranks where the plan says so; gradients are cleared, and no checkpoint is written yet."""
        for event in self.plan_:
            if event.step == state.global_step:
                self._act(event.budget, state, args.world_size)
        if control.should_save and self.probe_ is not None and args.world_size > 1:
            pool_on_main_(self.probe_.moments)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        logs: dict[str, Any],
        **kwargs: Any,
    ) -> None:
        """Add an event's numbers to the next log, before any tracker reads it."""
        logs |= self.news_
        if state.log_history and self.news_:
            state.log_history[-1] |= self.news_
        self.news_ = {}

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, model: Any, **kwargs: Any
    ) -> None:
        """Meet the budget if the run, or its best checkpoint, ended before it was met, and leave the history."""
        self.layers_.compact_()
        if self.layers_.parameters > self.budget_:
            logger.warning(
                "the adapter has %d parameters, over the budget of %d: the run, or its best checkpoint, ended before "
                "the last change of ranks; it is cut now, and was not trained after that",
                self.layers_.parameters, self.budget_,
            )  # fmt: skip
            bases, ranks = self._decide(self.budget_, state.global_step, args.world_size)
            self.layers_.leave_(change_ranks_(model, self.layers_.live, bases, ranks, optimizer=None))
            self._note(state)
        self._stop_watching()
        if state.is_world_process_zero:
            self._leave_history(Path(args.output_dir))

    def _stop_watching(self) -> None:
        if self.probe_ is not None:
            self.probe_.stop()
            self.witness_.stop()
            self.probe_ = None

    def _leave_history(self, folder: Path) -> None:
        """Write the ranks and how they came about, as JSON and as a picture."""
        history = self.state_.history
        told = {"budget": self.budget_, "ranks": self.layers_.ranks, "events": history}
        folder.mkdir(parents=True, exist_ok=True)
        write_text_atomically(folder / HISTORY_FILE, json.dumps(told, indent=2) + "\n")
        start = [(0, self.state_.settings["start_ranks"])]
        title = f"rank of each layer; budget {self.budget_:,} parameters"
        plot_ranks(start + [(event["step"], event["ranks"]) for event in history], folder / PLOT_FILE, title)

    def _widen(self, seed: int) -> None:
        """Bring every layer to the start width, without changing what the model answers."""
        generator = torch.Generator().manual_seed(seed)
        for factors in self.layers_.live.values():
            wanted = min(self.width_, factors.a.shape[1], len(factors.b))
            if factors.rank < wanted:
                factors.replace_(*widened(factors, wanted, generator))
        write_ranks_(self.layers_.model, self.layers_.adapter, self.layers_.ranks)

    def _act(self, budget: int, state: TrainerState, processes: int) -> None:
        """Decide the ranks under the budget, change them, and note it."""
        began = time.perf_counter()
        before = self.witness_.loss()
        bases, ranks = self._decide(budget, state.global_step, processes)
        change = self.layers_.model, self.layers_.live, bases, ranks, self.optimizer_
        if processes > 1:
            mask_ranks_(*change)
        else:
            self.layers_.leave_(change_ranks_(*change))
        seconds = time.perf_counter() - began
        self._note(state, seconds, before, self.witness_.loss())
        self.witness_.stop()

    def _decide(self, budget: int, step: int, processes: int) -> tuple[dict[str, Basis], dict[str, int]]:
        """Return the directions in order, and how many each layer keeps; the same on every process."""
        moments = self.probe_.stop() if self.probe_ is not None else {}
        self.probe_, self.state_.moments = None, {}
        if processes == 1:
            return self._best(moments, budget, step)
        pool_on_main_(moments)
        return from_main(lambda: self._best(moments, budget, step))

    def _best(self, moments: Mapping[str, Moments], budget: int, step: int) -> tuple[dict[str, Basis], dict[str, int]]:
        criterion = self.criterion if moments else "svd"  # an early end may have seen nothing
        bases = find_bases(self.layers_.live, moments, criterion, step)
        worth = {name: (basis.values.square() / 2).tolist() for name, basis in bases.items()}
        return bases, allocate_ranks(worth, self.layers_.costs, budget)

    def _note(
        self,
        state: TrainerState,
        seconds: float | None = None,
        loss_before: float | None = None,
        loss_after: float | None = None,
    ) -> None:
        """Keep an event for the history, and its numbers for the trainer's next log."""
        ranks, parameters = self.layers_.ranks, self.layers_.parameters
        seen = {"probe_loss_before": loss_before, "probe_loss_after": loss_after}
        self.state_.history.append({"step": state.global_step, "parameters": parameters, "ranks": ranks} | seen)
        numbers = {
            "parameters": parameters,
            "highest": max(ranks.values()),
            "layers": sum(rank > 0 for rank in ranks.values()),
            "seconds": seconds,
        }
        self.news_ = {f"adaptive_rank/{name}": n for name, n in (numbers | seen).items() if n is not None}
        logger.info("adaptive rank: %s", self.news_)

    def _settings(self, max_steps: int) -> dict[str, Any]:
        """Return all that the events follow from."""
        names = ("criterion", "events", "first", "last", "probe_steps")
        now = {"budget": self.budget_, "start": self.layers_.parameters, "start_ranks": self.layers_.ranks}
        return now | {name: getattr(self, name) for name in names} | {"max_steps": max_steps}

    def _plan(self, max_steps: int, start: int) -> tuple[RankEvent, ...]:
        if start <= self.budget_:  # a second train(): the ranks are where they should be
            return ()
        return plan_events(max_steps, start, self.budget_, events=self.events, first=self.first, last=self.last,
                           probe_steps=self.probe_steps)  # fmt: skip

    def _recall(self, folder: Path, args: TrainingArguments) -> None:
        """Take the state out of the checkpoint whose adapter was just loaded."""
        self.recalled_from_ = folder
        self._stop_watching()  # what was seen is of other ranks than those just loaded
        devices = {name: factors.a.device for name, factors in self.layers_.live.items()}
        self.recalled_ = read_state(folder, devices.__getitem__)
        if args.world_size > 1:
            self.layers_.give_room_(self.width_)
            if args.process_index:  # the main process has the sums of all
                self.recalled_.moments = {}

    def _continued(self, settings: dict[str, Any]) -> RankState:
        """Return the checkpoint's state, if the run still is the one that wrote it."""
        saved = self.recalled_.settings
        if not saved:
            raise ResumeError("no adapter was loaded; resume with trainer.train(resume_from_checkpoint=...)")
        settings |= {key: saved[key] for key in ("start", "start_ranks")}  # what is live now may have been cut since
        changed = [f"{key} was {saved.get(key)} and is {now}" for key, now in settings.items() if saved.get(key) != now]
        if changed:
            raise ResumeError(f"the run was planned otherwise: {', '.join(changed)}; set it back, or start anew")
        return self.recalled_

    def _to_save(self) -> RankState:
        if self.probe_ is not None:
            self.state_.moments = self.probe_.moments
        return self.state_


def _refuse(args: TrainingArguments, optimizer: torch.optim.Optimizer) -> None:
    """Raise for what would hide or keep the shapes that this callback changes."""
    check_optimizer(optimizer)
    kind = args.distributed_state.distributed_type.value if args.distributed_state else "NO"
    problem = ""
    if args.fsdp or args.deepspeed or kind not in ("NO", "MULTI_CPU", "MULTI_GPU"):
        problem = "FSDP and DeepSpeed cut parameters into shards that cannot change their shape"
    elif args.world_size > 1 and type(optimizer).__name__ == "Adafactor":
        problem = "under DDP dropped directions are masked, and Adafactor's row means would wake them"
    elif args.n_gpu > 1:
        problem = "DataParallel copies the model for every pass; launch one process for each GPU"
    elif args.torch_compile:
        problem = "torch.compile builds its code for fixed shapes"
    elif args.push_to_hub:
        problem = "push_to_hub=True would push checkpoints that are over the budget"
    if problem:
        raise ConfigError(f"AdaptiveRankCallback: {problem}; switch it off, or use a plain LoraConfig")


def _come_before_trackers_(callback: TrainerCallback) -> None:
    """Move the callback ahead of the trackers in its trainer, so that what it adds to a log reaches them.

    A trainer calls its trackers before the user's callbacks and tells a callback neither itself nor the list; the
    list's owner is the one that has called `on_init_end`. Where it is not, the numbers are in `log_history` alone.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        handler = frame.f_locals.get("self")
        if isinstance(handler, CallbackHandler) and callback in handler.callbacks:
            handler.callbacks.remove(callback)
            handler.callbacks.insert(1, callback)  # the first one decides when to save, which this one must know
            return
        frame = frame.f_back
