"""Where a sweep is kept: the one seam to Optuna, whose SQLite file makes it resumable and shared by processes.

A trial of ours may be several of Optuna's: one that was killed is repeated, under the same folder name, as a new one
that says which it `repeats`. All that is decided from the list of trials is decided under one lock.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ..cards.facts import write_text_atomically
from ..errors import ConfigError
from .holds import Hold, is_abandoned
from .outcome import Run, State, Trial
from .settings import Sweep, dump_sweep, load_sweep, planned
from .space import Choices, Point, Range, Space, point_key

if TYPE_CHECKING:
    import optuna

__all__ = ["Claim", "SweepStore"]

RATE: Final = "training.learning_rate"
MOST_ATTEMPTS: Final = 3
"""Times that a trial which is killed or fails is begun: one that takes the process with it must not do so for ever."""
_KINDS: Final = ("adapters", "full")
ANY_RATE: Final = Range(low=0.0, high=1e6)
"""Optuna's bounds of a reference's rate: wide, since they cannot change when a rate is added."""
SWEEP_FILE: Final = "sweep.yaml"
DATABASE: Final = "trials.db"


@dataclass(slots=True)
class Claim:
    """A trial that this process works on, until `SweepStore.end`."""

    trial: Trial
    """What it is."""
    folder: Path
    """Its folder."""
    hold: Hold
    """What keeps others off it."""
    of_optuna: optuna.Trial
    """Its place in the storage."""
    runs: list[Run] = field(default_factory=list)
    """What is measured so far."""


class SweepStore:
    """The trials of a sweep, in its folder.

    Args:
        sweep: The sweep; a folder that holds another one is refused.
        create: Whether to begin it where the folder is new; else that is an error.

    Raises:
        ConfigError: If the folder holds another sweep or foreign files, or nothing and `create` is off; or if Optuna
            is not installed.
    """

    def __init__(self, sweep: Sweep, create: bool = True) -> None:
        from filelock import FileLock

        self.sweep = sweep
        self.root = Path(sweep.output_dir)
        self._optuna = _import_optuna()
        check_folder(sweep)
        if not create and not (self.root / DATABASE).is_file():
            raise ConfigError(f"output_dir {self.root} holds no sweep yet; run it without --report first")
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(self.root / ".lock")
            with self._lock:
                check_folder(sweep)
                write_text_atomically(self.root / SWEEP_FILE, dump_sweep(sweep))
                self._studies = {kind: self._study(kind) for kind in _KINDS}
        except OSError as error:
            raise ConfigError(
                f"output_dir {self.root} cannot be written ({error.strerror}); choose another output_dir"
            ) from error
        self._failed_before = {
            (kind, t.number) for kind in _KINDS for t in self._latest(kind) if t.state.name == "FAIL"
        }

    def _study(self, kind: str) -> optuna.Study:
        engine = {"connect_args": {"timeout": 60}}
        storage = self._optuna.storages.RDBStorage(f"sqlite:///{self.root / DATABASE}", engine_kwargs=engine)
        # Fewer than four others have no median worth the name.
        pruner = self._optuna.pruners.MedianPruner(n_startup_trials=4)
        study: optuna.Study = self._optuna.create_study(
            study_name=kind, storage=storage, pruner=pruner, load_if_exists=True
        )
        return study

    def trials(self) -> list[Trial]:
        """Return every trial that was begun, the references last."""
        return [self._as_trial(kind, t) for kind in _KINDS for t in self._latest(kind)]

    def is_open(self) -> bool:
        """Return whether a trial is left to begin, or unfinished."""
        begun = [t for t in self.trials() if not t.is_full]
        rates = len(self.trials()) - len(begun)
        whole = len(begun) >= self.sweep.points and rates >= len(self.sweep.full_learning_rates)
        return not whole or any(t.state in ("running", "interrupted") for t in self.trials())

    def claim(self) -> Claim | None:
        """Take the next trial: one that was left behind, else a new one; None where all are done or taken."""
        with self._lock:
            for kind in _KINDS:
                if (claim := self._claim(kind)) is not None:
                    return claim
        return None

    def _claim(self, kind: str) -> Claim | None:
        study, latest = self._studies[kind], self._latest(kind)
        if self._waiting(kind):  # left by a process that was killed between the two steps below
            return self._taken(kind, study.ask())
        for old in latest:
            if self._is_left(kind, old):
                if old.state.name == "RUNNING":
                    study.tell(old.number, state=self._optuna.trial.TrialState.FAIL)
                if old.user_attrs["attempt"] < MOST_ATTEMPTS:
                    again = {"repeats": old.number, "attempt": old.user_attrs["attempt"] + 1}
                    kept = {name: value for name, value in old.user_attrs.items() if name not in ("reason", "runs")}
                    study.enqueue_trial(dict(old.params), user_attrs=kept | again)
                    return self._taken(kind, study.ask(), old.intermediate_values)
        points = self._planned(kind)
        if points is None:
            return self._asked(kind) if len(latest) < self.sweep.points else None
        begun = {t.user_attrs["key"] for t in latest}
        point = next((point for point in points if point_key(point) not in begun), None)
        if point is None:
            return None
        study.enqueue_trial(self._labelled(kind, point), user_attrs=_attributes(kind, len(latest), point))
        return self._taken(kind, study.ask())

    def _planned(self, kind: str) -> Sequence[Point] | None:
        """Return the points that are fixed from the start; None where each depends on the trials before."""
        if kind == "full":
            return [{RATE: rate} for rate in self.sweep.full_learning_rates]
        return planned(self.sweep)

    def _asked(self, kind: str) -> Claim:
        """Take a point that TPE chooses; the same trials before, in the same order, give the same point."""
        study = self._studies[kind]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", self._optuna.exceptions.ExperimentalWarning)  # constant_liar, before 5
            study.sampler = self._optuna.samplers.TPESampler(
                seed=self.sweep.first_seed + len(study.get_trials(deepcopy=False)),
                n_startup_trials=max(2, min(10, self.sweep.points // 3)),  # Optuna's 10 would be most of a short sweep
                constant_liar=True,  # a trial that runs elsewhere counts, so that nobody tries the same
            )
        trial = study.ask()
        point = self._suggested(kind, trial)
        for name, value in _attributes(kind, len(self._latest(kind)), point).items():
            trial.set_user_attr(name, value)
        return self._taken(kind, trial)

    def _taken(self, kind: str, trial: optuna.Trial, seen: dict[int, float] | None = None) -> Claim:
        self._suggested(kind, trial)
        for step, loss in (seen or {}).items():
            trial.report(loss, step)
        folder = self.root / "trials" / trial.user_attrs["folder"]
        frozen = next(t for t in self._latest(kind) if t.number == trial.number)
        hold = Hold(folder)
        return Claim(replace(self._as_trial(kind, frozen), state="running", runs=()), folder, hold, trial)

    def _space(self, kind: str) -> Space:
        return self.sweep.space if kind == "adapters" else {RATE: ANY_RATE}

    def _suggested(self, kind: str, trial: optuna.Trial) -> dict[str, Any]:
        """Tell Optuna each key's distribution; return the point, which is its own or the one that was enqueued."""
        point: dict[str, Any] = {}
        for key, axis in self._space(kind).items():
            if isinstance(axis, Choices):
                values = {_label(value): value for value in axis.values}
                point[key] = values[trial.suggest_categorical(key, list(values))]
                continue
            suggest: Callable[..., float] = trial.suggest_int if axis.is_whole else trial.suggest_float
            point[key] = axis.tidy(suggest(key, axis.low, axis.high, log=axis.log))
        return point

    def _labelled(self, kind: str, point: Point) -> dict[str, Any]:
        space = self._space(kind)
        return {key: _label(value) if isinstance(space[key], Choices) else value for key, value in point.items()}

    def should_prune(self, claim: Claim, step: int, loss: float) -> bool:
        """Keep an intermediate held-out loss; return whether the trial is worse than the median at that step."""
        known = self._studies["adapters"].get_trials(deepcopy=False)[claim.of_optuna.number].intermediate_values
        if step not in known:
            claim.of_optuna.report(loss, step)
        return bool(claim.of_optuna.should_prune())

    def keep(self, claim: Claim, run: Run) -> None:
        """Keep what a run measured."""
        claim.runs.append(run)
        claim.of_optuna.set_user_attr("runs", [asdict(run) for run in claim.runs])

    def end(self, claim: Claim, state: State, reason: str | None = None) -> None:
        """Keep how a trial ended, and let it go; one that is `interrupted` is begun again later."""
        states, study = self._optuna.trial.TrialState, self._studies["full" if claim.trial.is_full else "adapters"]
        if reason is not None:
            claim.of_optuna.set_user_attr("reason", reason)
        if state == "complete":
            study.tell(claim.of_optuna, sum(run.loss for run in claim.runs) / len(claim.runs))
        elif state != "interrupted":
            study.tell(claim.of_optuna, state=states.PRUNED if state == "pruned" else states.FAIL)
        claim.hold.release()

    def _latest(self, kind: str) -> list[optuna.trial.FrozenTrial]:
        """Return the newest of Optuna's trials for each of ours, in the order in which ours were begun."""
        begun = [t for t in self._studies[kind].get_trials(deepcopy=False) if "key" in t.user_attrs]
        repeated = {t.user_attrs.get("repeats") for t in begun}
        return sorted((t for t in begun if t.number not in repeated), key=lambda t: str(t.user_attrs["folder"]))

    def _waiting(self, kind: str) -> bool:
        return any(t.state.name == "WAITING" for t in self._studies[kind].get_trials(deepcopy=False))

    def _is_left(self, kind: str, trial: optuna.trial.FrozenTrial) -> bool:
        if trial.state.name == "FAIL":  # one that failed is tried again by the next process, not by the same
            return (kind, trial.number) in self._failed_before and trial.user_attrs["attempt"] < MOST_ATTEMPTS
        return trial.state.name == "RUNNING" and is_abandoned(self._folder(trial))

    def _folder(self, trial: optuna.trial.FrozenTrial) -> Path:
        return self.root / "trials" / str(trial.user_attrs["folder"])

    def _as_trial(self, kind: str, trial: optuna.trial.FrozenTrial) -> Trial:
        kept = trial.user_attrs
        states: dict[str, State] = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}
        state = states.get(trial.state.name) or ("interrupted" if is_abandoned(self._folder(trial)) else "running")
        point = {k: tuple(v) if isinstance(v, list) else v for k, v in json.loads(kept["key"]).items()}
        return Trial(
            name=kept["folder"],
            point={key: point[key] for key in self._space(kind) if key in point},
            state=state,
            runs=tuple(Run(**run) for run in kept.get("runs", ())),
            reason=kept.get("reason") or ("was killed each time" if state == "failed" else None),
            is_full=kind == "full",
        )


def _attributes(kind: str, number: int, point: Point) -> dict[str, Any]:
    folder = f"{'full-' if kind == 'full' else ''}{number:04d}"
    return {"folder": folder, "attempt": 1, "key": point_key(point)}


def _label(value: Any) -> Any:
    """Return a choice as Optuna stores it: a list, which it does not take, as JSON."""
    return json.dumps(value) if isinstance(value, (tuple, list)) else value


def check_folder(sweep: Sweep) -> None:
    """Refuse a folder that holds another sweep or foreign files; a sweep may be given more trials, references or time.

    Raises:
        ConfigError: With what differs.
    """
    root, file = Path(sweep.output_dir), Path(sweep.output_dir) / SWEEP_FILE
    if root.exists() and not root.is_dir():
        raise ConfigError(f"output_dir {root} is a file, needed a folder; choose another output_dir")
    if not root.exists() or not any(path.name != ".lock" for path in root.iterdir()):
        return
    if not file.is_file():
        raise ConfigError(f"output_dir {root} holds other things, and no sweep of ours; choose another output_dir")
    theirs = load_sweep(file)
    left, right = _identity(theirs), _identity(sweep)
    if left != right:
        wrong = ", ".join(sorted(key for key in left if left[key] != right[key]))
        raise ConfigError(
            f"output_dir {root} holds another sweep, which differs in {wrong}; choose another output_dir, or remove it"
        )


def _identity(sweep: Sweep) -> dict[str, Any]:
    """Return what makes a sweep this one: all but its folder and how far it goes."""
    return asdict(replace(sweep, trials=None, time_limit_minutes=None, full_learning_rates=(), output_dir=""))


def _import_optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise ConfigError("a sweep needs optuna; install it: pip install 'hf_lora_ext[sweep]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # it would say each trial beside our own lines
    return optuna
