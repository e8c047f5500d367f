"""AdaptiveRankCallback: rank leaves the layers where it pays least, from a wide start or for others that need it.

Method card: `adaptive_rank.md`, beside this file.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback

from ..choices.adapter import WIDE_START
from ..errors import ConfigError, ResumeError, nearest
from ..ranks.allocation import allocate_ranks
from ..ranks.change import change_ranks_, mask_ranks_
from ..ranks.criteria import CRITERIA, Criterion, find_bases
from ..ranks.events import (
    LAST_EVENT,
    Mode,
    RankEvent,
    check_mode,
    check_target,
    plan_events,
    plan_moves,
    short_run_warning,
)
from ..ranks.lora_layers import lora_layers, own_config_, trained_adapter, widened, write_ranks_
from ..ranks.low_rank import Basis
from ..ranks.moves import apply_moves_, decide_moves, groups_of, rows_to_judge
from ..ranks.probes import Moments, Probe, Witness, from_main, pool_on_main_
from ..ranks.sketches import Sketches, Tap
from ..ranks.storage import AdapterLayers, RankState, load_by_ranks_, read_state, save_with_state_
from .rank_history import leave_history
from .trainer_fit import agreed, come_before_trackers_, least_ranks, put_precision_back_, refuse

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments

__all__ = ["AdaptiveRankCallback"]

logger = logging.getLogger(__name__)


class AdaptiveRankCallback(TrainerCallback):
    """Move the rank of a LoRA adapter, layer by layer, to where it pays most, to a budget of parameters.

    Works in SFTTrainer, the other TRL trainers and plain Trainer. Give it to the trainer's constructor, so that the
    adapter is widened before the optimizer is made. What is saved is an ordinary LoRA adapter with a rank for each
    layer; layers of rank 0 are not in it. Each layer keeps its alpha, so that a learning rate for the adapter as it was
    given need not be lowered for the wide start. In mode `anneal` the adapter starts wide and shrinks to the budget. In
    mode `fixed` it never is over the budget: the directions that pay least leave, and new ones grow in layers,
    embeddings apart, where more can be won.

    Example::

        trainer = SFTTrainer(..., peft_config=LoraConfig(r=8), callbacks=[AdaptiveRankCallback(target_rank=8)])

    Args:
        target_rank: Mean rank in the end: the budget is what a uniform adapter of this rank would have.
        budget_parameters: The budget itself, instead of a rank.
        mode: `anneal` or `fixed`.
        start_factor: How many times the budget the adapter starts with in `anneal`, at least (8 if None); a wider
            adapter stays as it is.
        criterion: What a direction is worth: `whitened`, `input`, `svd`, `sensitivity` or `random` (see
            `rank_criteria`). In `fixed` it must be `whitened`, which alone compares with what a new one wins.
        events: How often ranks change.
        first: Share of the run before which no rank changes.
        last: Share of the run after which no rank changes (0.3 if None, 0.6 in `fixed`).
        probe_steps: Steps whose passes are watched before each event.
    """

    def __init__(
        self,
        *,
        target_rank: int | None = None,
        budget_parameters: int | None = None,
        mode: Mode = "anneal",
        start_factor: float | None = None,
        criterion: Criterion = "whitened",
        events: int = 8,
        first: float = 0.1,
        last: float | None = None,
        probe_steps: int = 8,
    ) -> None:
        if (target_rank is None) == (budget_parameters is None):
            raise ConfigError("give the budget once: target_rank=8 (a mean rank) or budget_parameters=1_000_000")
        for name, value in (("target_rank", target_rank), ("budget_parameters", budget_parameters)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ConfigError(f"{name}={value!r} must be a whole number from 1")
        if criterion not in CRITERIA:
            raise ConfigError(f"criterion {criterion!r} is not known; {nearest(str(criterion), CRITERIA)}")
        check_mode(mode, start_factor, criterion)
        last = LAST_EVENT[mode] if last is None else last
        plan_events(10**6, 2, 1, events=events, first=first, last=last, probe_steps=probe_steps)  # its checks, early
        self.target_rank, self.budget_parameters, self.mode = target_rank, budget_parameters, mode
        self.start_factor = WIDE_START if start_factor is None else start_factor
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
        self.costs_ = self.layers_.costs
        self.width_ = round(self.start_factor * self.budget_ / uniform)
        self.probe_: Probe | None = None
        self.tap_: Tap | None = None
        self.state_, self.recalled_ = RankState({}), RankState({})
        self.news_: dict[str, Any] = {}
        come_before_trackers_(self)
        if self.mode == "anneal":
            self._widen(args.seed, self.width_)
        elif self._parameters_at(self.budget_ // uniform) <= self.budget_:
            self._widen(args.seed, self.budget_ // uniform)
        check_target(self.layers_.parameters, self.budget_, max(self.costs_.values()), self.mode)
        if self.mode == "fixed":
            self.width_ = max(self.width_, *self.layers_.ranks.values())
            if args.world_size > 1:
                self.layers_.give_room_(self.width_)
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
        refuse(args, self.optimizer_, self.mode)
        self.least_ = least_ranks(self.layers_, self.budget_, args.world_size, self.mode)
        settings, known = self._settings(state.max_steps), self.state_.groups
        self.state_ = self._continued(settings) if state.global_step else RankState(settings, groups=known)
        if state.global_step:
            put_precision_back_(self.optimizer_, self.recalled_from_)
        self.state_.groups |= groups_of(self.optimizer_, self.layers_.carrying)
        self.plan_: tuple[RankEvent, ...] = self._plan(state.max_steps, args)
        warning = short_run_warning(state.max_steps, self.plan_[-1].step, self.mode) if self.plan_ else None
        if warning and not state.global_step and state.is_world_process_zero:
            logger.warning(warning)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Watch the passes of the steps before an event."""
        step = state.global_step + 1
        event = next((event for event in self.plan_ if event.probe_from <= step <= event.step), None)
        if event is None:
            return
        if self.probe_ is None:
            self.probe_ = Probe(self.layers_.live, self.state_.moments)
            self.witness_ = Witness(self.layers_.model)
        if self.mode == "fixed":
            self._sketch(event, step, args)

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
                self._act(event.budget, state, args)
        if control.should_save:
            self._pool(args)

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
        if self.is_over_budget:
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
            leave_history(Path(args.output_dir), self.budget_, self.layers_.ranks, self.state_)

    @property
    def is_over_budget(self) -> bool:
        """Whether the adapter still has to lose directions."""
        return self.layers_.parameters > self.budget_

    def _stop_watching(self) -> None:
        if self.probe_ is not None:
            self.witness_.stop()
        self._stop_probe()

    def _stop_probe(self) -> None:
        if self.probe_ is not None:
            self.probe_.stop()
            self.probe_ = None
        if self.tap_ is not None:
            self.tap_.stop()
            self.tap_ = None

    def _sketch(self, event: RankEvent, step: int, args: TrainingArguments) -> None:
        """Watch where layers could grow: half of the steps to find rows, the others to judge them."""
        assert self.probe_ is not None
        moments, layers = self.probe_.moments, self.layers_.every
        sketches = self.state_.sketches = self.state_.sketches or Sketches.none(layers, args.seed + event.step)
        if self.tap_ is None:
            self.tap_ = Tap(self.layers_.model, layers, sketches)
        if step >= event.turn and sketches.searching:
            self._pool(args)
            sketches.judge_rows_(agreed(lambda: rows_to_judge(self.layers_.live, moments, sketches), args))

    def _pool(self, args: TrainingArguments) -> None:
        """Let the main process have what all have seen."""
        if self.probe_ is not None and args.world_size > 1:
            pool_on_main_(self.probe_.moments)
            if self.state_.sketches is not None:
                self.state_.sketches.pool_on_main_()

    def _parameters_at(self, width: int) -> int:
        """Return the parameters that the adapter would have, were it widened."""
        return sum(f.cost * max(f.rank, min(width, f.a.shape[1], len(f.b))) for f in self.layers_.live.values())

    def _widen(self, seed: int, width: int) -> None:
        """Bring every layer to the start width, without changing what the model answers."""
        generator = torch.Generator().manual_seed(seed)
        for factors in self.layers_.live.values():
            wanted = min(width, factors.a.shape[1], len(factors.b))
            if factors.rank < wanted:
                factors.replace_(*widened(factors, wanted, generator))
        write_ranks_(self.layers_.model, self.layers_.adapter, self.layers_.ranks)

    def _act(self, budget: int, state: TrainerState, args: TrainingArguments) -> None:
        """Decide the ranks under the budget, change them, and note it."""
        began = time.perf_counter()
        before = self.witness_.loss()
        if self.mode == "fixed":
            moved = self._exchange(budget, args)
        else:
            moved = self._shrink(budget, state.global_step, args.world_size)
        seconds = time.perf_counter() - began
        self._note(state, seconds, before, self.witness_.loss(), **moved)
        self.witness_.stop()

    def _shrink(self, budget: int, step: int, processes: int) -> dict[str, int]:
        bases, ranks = self._decide(budget, step, processes)
        change = self.layers_.model, self.layers_.live, bases, ranks, self.optimizer_
        if processes > 1:
            mask_ranks_(*change)
        else:
            self.layers_.leave_(change_ranks_(*change))
        return {}

    def _exchange(self, budget: int, args: TrainingArguments) -> dict[str, int]:
        """Let directions leave and others grow, and return how many did."""
        assert self.probe_ is not None
        assert self.state_.sketches is not None
        moments, sketches, masked = self.probe_.moments, self.state_.sketches, args.world_size > 1
        settings = self.costs_, moments, sketches, budget, args.gradient_accumulation_steps
        self._pool(args)
        moves = agreed(lambda: decide_moves(self.layers_.live, *settings, self.width_ if masked else budget), args)
        self._stop_probe()
        self.state_.moments, self.state_.sketches = {}, None
        before = self.layers_.ranks
        apply_moves_(self.layers_, moves, self.optimizer_, self.state_.groups, in_place=masked)
        left = sum(before[name] - kept for name, kept in moves.kept.items())
        return {"left": left, "grown": sum(map(len, moves.rows.values()))}

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
        worths = {name: basis.worths for name, basis in bases.items()}
        return bases, allocate_ranks(worths, self.layers_.costs, budget, least=self.least_)

    def _note(
        self,
        state: TrainerState,
        seconds: float | None = None,
        loss_before: float | None = None,
        loss_after: float | None = None,
        **moved: int,
    ) -> None:
        """Keep an event for the history, and its numbers for the trainer's next log."""
        ranks, parameters = self.layers_.ranks, self.layers_.parameters
        seen = {"probe_loss_before": loss_before, "probe_loss_after": loss_after}
        event = {"step": state.global_step, "parameters": parameters, "ranks": ranks}
        self.state_.history.append(event | seen | moved)
        numbers = {
            "parameters": parameters,
            "highest": max(ranks.values()),
            "layers": sum(rank > 0 for rank in ranks.values()),
            "seconds": seconds,
        }
        self.news_ = {f"adaptive_rank/{name}": n for name, n in (numbers | seen | moved).items() if n is not None}
        logger.info("adaptive rank: %s", self.news_)

    def _settings(self, max_steps: int) -> dict[str, Any]:
        """Return all that the events follow from, and what the factors' size goes by: before, it was the scale."""
        names = ("mode", "criterion", "events", "first", "last", "probe_steps")
        now = {"budget": self.budget_, "start": self.layers_.parameters, "start_ranks": self.layers_.ranks}
        now |= {name: getattr(self, name) for name in names}
        return now | {"max_steps": max_steps, "keeps": "alpha"}

    def _plan(self, max_steps: int, args: TrainingArguments) -> tuple[RankEvent, ...]:
        start = self.state_.settings["start"]
        if self.mode == "fixed":
            return plan_moves(max_steps, self.budget_, events=self.events, first=self.first, last=self.last,
                              probe_steps=self.probe_steps, accumulation=args.gradient_accumulation_steps)  # fmt: skip
        if start <= self.budget_:  # a second train(): the ranks are where they should be
            return ()
        return plan_events(max_steps, start, self.budget_, events=self.events, first=self.first, last=self.last,
                           probe_steps=self.probe_steps)  # fmt: skip

    def _recall(self, folder: Path, args: TrainingArguments) -> None:
        """Take the state out of the checkpoint whose adapter was just loaded."""
        self.recalled_from_ = folder
        self._stop_watching()  # what was seen is of other ranks than those just loaded
        devices = {name: factors.layer.weight.device for name, factors in self.layers_.every.items()}
        self.recalled_ = read_state(folder, devices.__getitem__)
        if args.world_size > 1:
            self.layers_.give_room_(self.width_)
            if args.process_index:  # the main process has the sums of all
                self.recalled_.moments = {}
                if self.recalled_.sketches is not None:
                    self.recalled_.sketches.forget_sums_()

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
