"""Held-out loss at every budget, from one trained adapter: the rank curve, and the knee in it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ..data.tokens import TokenExample, encode_examples
from ..errors import ConfigError
from ..plots import CurveLine, plot_rank_curves
from ..ranks.lora_layers import LoraFactors, lora_layers, trained_adapter
from .budgets import as_parameters
from .knee import find_knee, geometric_budgets, loss_a_token
from .passes import at_rest, example_losses, watch_examples
from .truncation import TRUNCATIONS, Truncation, TruncationCriterion, cut_meanwhile, truncation

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "CurvePoint",
    "RankCurve",
    "Reading",
    "calibration_examples",
    "chosen_criterion",
    "encoded",
    "measure_curve",
    "rank_curve",
]

POINTS: Final = 12
"""Budgets looked at where none are given: each about twice the one before on adapters of some million parameters."""
CALIBRATION_EXAMPLES: Final = 64
"""Training examples looked at for `whitened`, at most: as many as `AdaptiveRankCallback` sees in 8 steps of 8 rows."""

Row = Mapping[str, Any]
Say = Callable[[str], None]


def _silent(line: str) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Reading:
    """How rows become tokens."""

    tokenizer: PreTrainedTokenizerBase | None
    """The model's."""
    max_length: int | None
    """Tokens to keep of a row."""
    assistant_only: bool | None
    """Whether of messages only the assistant's turns count; None where the template allows it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CurvePoint:
    """The adapter at one budget. Losses are in nats a supervised token, errors are standard errors over examples."""

    parameters: int
    """Parameters of its factors."""
    ranks: Mapping[str, int]
    """Rank by layer; 0 where the adapter is not."""
    loss: float
    """Held-out loss."""
    error: float
    """Of the loss."""
    rise: float
    """How far the loss is above the whole adapter's."""
    rise_error: float
    """Of the rise, paired over examples."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankCurve:
    """Held-out loss by budget."""

    points: tuple[CurvePoint, ...]
    """By ascending parameters; the last is the whole adapter."""
    base_loss: float
    """The model's held-out loss without the adapter."""
    gain_error: float
    """Standard error of the whole adapter's gain over it, paired over examples."""
    criterion: str
    """How directions were ordered."""
    examples: int
    """Held-out examples."""
    tokens: int
    """Their supervised tokens."""
    calibration_examples: int
    """Training examples that were looked at to order the directions."""

    @property
    def whole(self) -> CurvePoint:
        """The adapter as it is."""
        return self.points[-1]

    @property
    def knee(self) -> CurvePoint:
        """The smallest budget whose loss is within one standard error of the whole adapter's (`find_knee`)."""
        return self.points[find_knee([point.rise for point in self.points], self.gain_error)]

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON-ready values, with the knee's parameters."""
        return asdict(self) | {"knee_parameters": self.knee.parameters}

    def plot(self, path: str | Path, title: str = "", *, beside: Sequence[RankCurve] = ()) -> None:
        """Draw the curve into a PNG.

        Args:
            path: File to write.
            title: Line above the plot.
            beside: Curves of the same adapter on the same examples by other criteria.
        """
        lines = [
            CurveLine(
                label=curve.criterion,
                parameters=tuple(point.parameters for point in curve.points),
                losses=tuple(point.loss for point in curve.points),
                errors=tuple(point.rise_error for point in curve.points),
                knee=curve.points.index(curve.knee),
            )
            for curve in (self, *beside)
        ]
        plot_rank_curves(lines, self.base_loss, self.gain_error, Path(path), title)


def rank_curve(
    model: PeftModel,
    eval_data: Iterable[Row],
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    budgets: Iterable[int | float] | None = None,
    calibration: Iterable[Row] | None = None,
    criterion: TruncationCriterion | None = None,
    max_length: int | None = None,
    assistant_only: bool | None = None,
    say: Say = _silent,
) -> RankCurve:
    """Return the held-out loss at every budget of parameters, from one trained adapter.

    The directions of all layers are put into one order of worth, and at each budget only the first are kept; nothing
    is trained. The model is left bit for bit as it was, also where this is interrupted.

    Args:
        model: A causal language model with one active LoRA or DoRA adapter, on any device.
        eval_data: Held-out rows of `prompt` + `completion`, `messages`, `text`, or `input_ids` and `labels`.
        tokenizer: The model's; not needed for rows of `input_ids`.
        budgets: Parameters of all factors (whole numbers), or shares of them (fractions up to 1). Else 12 at equal
            ratios from a single direction to the whole. The whole is always there.
        calibration: Training rows, of which the first 64 are looked at; never held-out ones.
        criterion: `whitened` needs calibration, `svd` needs nothing; else the first where there is calibration.
        max_length: Tokens to keep of a row.
        assistant_only: Whether of messages only the assistant's turns count; None where the template allows it.
        say: Takes one line of progress.

    Raises:
        ConfigError: If rows are in none of these forms, are too few, or are in both sets; or the criterion lacks data.
        BudgetError: If a budget is above the whole, or below one direction.
        AdapterError: If the model carries no adapter whose rank can be changed.

    Example::

        curve = rank_curve(model, held_out, tokenizer=tokenizer, calibration=train)
        print(curve.knee.parameters, curve.knee.loss)
        curve.plot("rank_curve.png")
    """
    chosen = chosen_criterion(criterion, calibration is not None)
    layers = lora_layers(model, trained_adapter(model), trains=False)
    reading = Reading(tokenizer, max_length, assistant_only)
    examples = encoded(eval_data, reading)
    seen: list[TokenExample] = []
    if chosen == "whitened":
        seen = calibration_examples(calibration or (), examples, reading)
    with at_rest(model):
        cut = truncation(layers, chosen, watch_examples(model, layers, seen) if seen else None)
        return measure_curve(model, layers, cut, examples, budgets, (chosen, len(seen)), say)


def chosen_criterion(criterion: str | None, has_calibration: bool) -> TruncationCriterion:
    """Return the criterion, `whitened` where it was left open and there is calibration.

    Raises:
        ConfigError: If there is no such criterion, or it needs calibration.
    """
    found = criterion or ("whitened" if has_calibration else "svd")
    for known in TRUNCATIONS:
        if found == known:
            if known == "whitened" and not has_calibration:
                raise ConfigError(
                    "criterion 'whitened' looks at training examples: give calibration=, or take criterion='svd'"
                )
            return known
    raise ConfigError(f"criterion {found!r} is not known; valid: {', '.join(TRUNCATIONS)}")


def calibration_examples(rows: Iterable[Row], held_out: Sequence[TokenExample], reading: Reading) -> list[TokenExample]:
    """Return the first training rows as tokens and labels.

    Raises:
        ConfigError: If one of them is held out.
    """
    found = encoded(islice(rows, CALIBRATION_EXAMPLES), reading)
    if twice := set(found) & set(held_out):
        raise ConfigError(
            f"{len(twice)} of {len(found)} calibration examples are held out too, so the losses would flatter; give "
            "calibration= rows that the adapter was trained on"
        )
    return found


def encoded(rows: Iterable[Row], reading: Reading) -> list[TokenExample]:
    """Return rows as tokens and labels; of messages the turns count that count in a recipe's run.

    Raises:
        ConfigError: If rows are in no known form, none has a supervised token, or the turns cannot be told apart.
    """

    def template() -> str | None:
        from ..runs.training import assistant_template, counts_assistant_only

        tokenizer = reading.tokenizer
        counted = counts_assistant_only(tokenizer, "messages", reading.assistant_only)
        return assistant_template(tokenizer) if counted else None

    return encode_examples(rows, reading.tokenizer, max_length=reading.max_length, assistant_template=template)


def measure_curve(
    model: PeftModel,
    layers: Mapping[str, LoraFactors],
    cut: Truncation,
    examples: Sequence[TokenExample],
    budgets: Iterable[int | float] | None,
    how: tuple[TruncationCriterion, int],
    say: Say = _silent,
) -> RankCurve:
    """Measure a model at rest at each budget.

    Args:
        model: The model.
        layers: Its layers.
        cut: Their directions.
        examples: Held-out examples.
        budgets: As `rank_curve` takes them.
        how: The criterion, and how many training examples were looked at.
        say: Takes one line of progress.

    Raises:
        ConfigError: If there are less than two examples.
        BudgetError: If a budget is above the whole, or below one direction.
    """
    if len(examples) < 2:
        raise ConfigError("1 held-out example has no standard error; give at least 2, better 50")
    ladder = _ladder(cut, budgets)
    tokens = [example.supervised for example in examples]
    with model.disable_adapter():
        alone = example_losses(model, examples)
    base = loss_a_token(alone, tokens).mean
    say(f"{'base':>12}             loss {base:.4f}")
    whole = example_losses(model, examples)
    gain = loss_a_token([before - after for before, after in zip(alone, whole, strict=True)], tokens)
    points = []
    for ranks in ladder[:-1]:
        with cut_meanwhile(layers, cut, ranks):
            points.append(_point(cut, ranks, example_losses(model, examples), whole, tokens))
        say(f"{points[-1].parameters:>12,} parameters  loss {points[-1].loss:.4f}")
    points.append(_point(cut, ladder[-1], whole, whole, tokens))
    say(f"{points[-1].parameters:>12,} parameters  loss {points[-1].loss:.4f}, the whole")
    criterion, seen = how
    return RankCurve(
        points=tuple(points), base_loss=base, gain_error=gain.error, criterion=criterion, examples=len(examples),
        tokens=sum(tokens), calibration_examples=seen,
    )  # fmt: skip


def _ladder(cut: Truncation, budgets: Iterable[int | float] | None) -> list[dict[str, int]]:
    """Return the ranks at each budget, ascending, the whole last; budgets that keep the same are one."""
    whole = cut.parameters
    wanted = [as_parameters(budget, whole) for budget in budgets or ()]
    wanted = wanted or geometric_budgets(max(cut.costs.values()), whole, POINTS)
    found = {cut.parameters_at(ranks): ranks for ranks in map(cut.ranks_for, {*wanted, whole})}
    return [found[parameters] for parameters in sorted(found)]


def _point(
    cut: Truncation, ranks: Mapping[str, int], nats: Sequence[float], whole: Sequence[float], tokens: Sequence[int]
) -> CurvePoint:
    loss = loss_a_token(nats, tokens)
    rise = loss_a_token([here - there for here, there in zip(nats, whole, strict=True)], tokens)
    return CurvePoint(
        parameters=cut.parameters_at(ranks), ranks=ranks, loss=loss.mean, error=loss.error, rise=rise.mean,
        rise_error=rise.error,
    )  # fmt: skip
