"""Carries a sweep out: takes trial after trial from the store, and runs each as the recipe that it is."""

from __future__ import annotations

import gc
import math
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ..cards.facts import Facts
from ..errors import ConfigError, LoraExtError
from ..machine import reset_peak_memory
from ..runs.full import run_full
from ..runs.runner import run_recipe
from .forecast import check_fits, forecast
from .outcome import Run, State, best
from .report import Status, SweepResult, write_report
from .settings import Sweep, full_recipe, recipe_at
from .space import spoken
from .store import Claim, SweepStore, check_folder

__all__ = ["report_sweep", "run_sweep"]

Say = Callable[[str], None]


class _Stopped(Exception):
    """Ends a run on the way."""


def run_sweep(sweep: Sweep, say: Say = print) -> SweepResult:
    """Run a sweep, go on with it, or help another process with it; return what is known when nothing is left to take.

    Args:
        sweep: The sweep, as `load_sweep` returns it.
        say: Takes one line of progress.

    Raises:
        ConfigError: If anything about the sweep, its folder or Optuna is wrong, or a trial does not fit, before any
            is begun.
        LoraExtError: If the trials fail one after the other for the same reason; with that.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            "a trial of a sweep runs in one process; start `hf-lora sweep` once for each device instead "
            "(CUDA_VISIBLE_DEVICES=0, 1, …): they share the sweep"
        )
    check_folder(sweep)
    check_fits(forecast(sweep))
    store = SweepStore(sweep)
    whole = sweep.points + len(sweep.full_learning_rates)
    say(f"sweep    {whole} trials of {sweep.seeds} {'seeds' if sweep.seeds > 1 else 'seed'}, into {store.root}")
    is_in_time = _run_trials(store, say)
    return write_report(sweep, store.trials(), _status(store, is_in_time))


def report_sweep(sweep: Sweep) -> SweepResult:
    """Write and return what is known of a sweep by now, without running anything.

    Raises:
        ConfigError: If the folder holds no sweep, or another one.
    """
    store = SweepStore(sweep, create=False)
    return write_report(sweep, store.trials(), "unfinished" if store.is_open() else "finished")


def _status(store: SweepStore, is_in_time: bool) -> Status:
    if not is_in_time:
        return "time is up"
    return "others still work" if store.is_open() else "finished"


def _run_trials(store: SweepStore, say: Say) -> bool:
    """Run what can be taken; return whether all of it was, before the time was up."""
    begun, limit = time.monotonic(), store.sweep.time_limit_minutes
    last_failure: str | None = None
    while (claim := store.claim()) is not None:
        say(f"trial    {_headline(store, claim)}")
        state, reason = _run_trial(store, claim, say)
        say(f"         {state}{f': {reason}' if reason else _loss_words(claim)}")
        gc.collect()  # the trainer's cycles hold the model
        if state == "failed" and reason == last_failure:
            raise LoraExtError(
                f"two trials in a row failed alike: {reason}; mend that, then run the same command again"
            )
        last_failure = reason if state == "failed" else None
        if limit is not None and time.monotonic() - begun > 60 * limit and store.is_open():
            return False
    return True


def _headline(store: SweepStore, claim: Claim) -> str:
    """Return which trial this is of how many, its point, the best so far and the time left."""
    trials = store.trials()
    whole = store.sweep.points + len(store.sweep.full_learning_rates)
    done = [t for t in trials if t.state not in ("running", "interrupted")]
    what = "all weights, " if claim.trial.is_full else ""
    words = f"{len(done) + 1}/{whole}  {claim.trial.name}: {what}{spoken(claim.trial.point)}"
    if (leader := best(t for t in trials if not t.is_full)) is not None:
        words += f"; best {leader.loss:.4f} by {leader.name}"
    if seconds := [t.seconds for t in done if t.runs]:
        left = int(sum(seconds) / len(seconds) * (whole - len(done)))
        words += f"; training left about {left // 60}:{left % 60:02d} min"
    return words


def _loss_words(claim: Claim) -> str:
    return f", loss {sum(run.loss for run in claim.runs) / len(claim.runs):.4f}" if claim.runs else ""


def _run_trial(store: SweepStore, claim: Claim, say: Say) -> tuple[State, str | None]:
    """Run a trial's seeds; keep and return how it ended. What is nobody's fault here is raised, the trial left open."""
    state: State = "interrupted"
    reason: str | None = None
    try:
        for number in range(store.sweep.seeds):
            store.keep(claim, _run_seed(store, claim, number, say))
        state = "complete"
    except _Stopped as stop:
        state, reason = "pruned", str(stop)
    except LoraExtError as error:
        state, reason = "failed", str(error)
    except RuntimeError as error:
        if "out of memory" not in str(error):
            raise
        state, reason = "failed", f"out of memory: {str(error).splitlines()[0]}"
    finally:
        if state in ("complete", "pruned"):  # nothing goes on from these checkpoints, and trials are many
            for checkpoints in claim.folder.glob("seed-*/checkpoints"):
                shutil.rmtree(checkpoints)
        store.end(claim, state, reason)
    return state, reason


def _run_seed(store: SweepStore, claim: Claim, number: int, say: Say) -> Run:
    """Run a trial with one seed; only the first can be pruned, since the others are there to measure its spread."""
    sweep, seed = store.sweep, store.sweep.first_seed + number
    folder = claim.folder / f"seed-{seed}"

    def watch(step: int, steps: int, loss: float) -> None:
        say(f"         seed {seed}  step {step}/{steps}  held-out loss {loss:.4f}")
        if not math.isfinite(loss):
            raise _Stopped(f"the held-out loss is {loss} at step {step}")
        if number == 0 and not claim.trial.is_full and store.should_prune(claim, step, loss):
            if sweep.prune and step < steps:
                raise _Stopped(f"worse than the median at step {step}")

    reset_peak_memory()
    try:
        facts = _trained(claim, sweep, seed, folder, watch, say)
    finally:
        gc.collect()
    return _measured(facts, seed)


def _trained(
    claim: Claim, sweep: Sweep, seed: int, folder: Path, watch: Callable[[int, int, float], None], say: Say
) -> Facts:
    from ..callbacks import HeldOutLoss

    def say_resuming(line: str) -> None:
        if line.startswith("resuming"):
            say(f"         seed {seed}  {line}")

    if claim.trial.is_full:
        rate = claim.trial.point["training.learning_rate"]
        return run_full(full_recipe(sweep, rate, seed, folder), [HeldOutLoss(watch)])
    recipe = recipe_at(sweep, claim.trial.point, seed, folder)
    if recipe.overfitting is None:  # the last step of every trial is compared, as it is of full fine-tuning
        recipe = replace(recipe, overfitting="ignore")
    return run_recipe(recipe, say_resuming, [HeldOutLoss(watch)]).facts


def _measured(facts: Facts, seed: int) -> Run:
    peaks = facts.run.get("peak_memory", {})
    return Run(
        seed=seed,
        loss=facts.evaluation["adapter"]["loss"],
        base_loss=facts.evaluation.get("base", {}).get("loss"),
        parameters=facts.adapter["trainable_parameters"],
        seconds=facts.run["train_seconds"],
        peak_gib=peaks.get("gpu_reserved_gib", peaks.get("process_gib", 0.0)),
        held_out=facts.data.eval_fingerprint if facts.data else None,
    )
