"""A trained adapter as a smaller one: cut to a budget, written as an ordinary LoRA with a rank for each layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

from safetensors.torch import load_file, save_file
from torch import Tensor

from ..adapters.factors import AdapterFactors, ModuleFactors, read_factors
from ..adapters.peft_seam import describe_saved, load_config
from ..adapters.tensor_names import WEIGHTS
from ..cards.card import render_card
from ..cards.facts import Facts, read_facts, write_text_atomically
from ..errors import AdapterError, BudgetError, ConfigError
from ..new_folder import check_free, copy_chosen, whole_folder
from ..push.release import CARD, goes_along
from ..ranks.lora_layers import lora_layers, ranks_into_config_, trained_adapter
from .budgets import KNEE, as_parameters
from .curve import RankCurve, Reading, calibration_examples, chosen_criterion, encoded, measure_curve
from .passes import at_rest, watch_examples
from .subject import Subject, find_subject
from .truncation import Truncation, TruncationCriterion, truncation

__all__ = ["Compressed", "compress_adapter"]

FACTS: Final = "facts.json"

Row = Mapping[str, Any]
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Compressed:
    """What became of an adapter."""

    folder: Path
    """The smaller one."""
    parameters: int
    """Parameters of its factors."""
    parameters_before: int
    """Those of the whole adapter."""
    ranks: Mapping[str, int]
    """Rank by layer; 0 where the adapter has left."""
    criterion: str
    """How directions were ordered."""
    energy: float
    """Share of the update's squared Frobenius norm, over all layers, that is kept."""
    curve: RankCurve | None = None
    """The curve whose knee it is."""

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON-ready values."""
        told = {name: value for name, value in asdict(self).items() if name != "curve"}
        curve = {} if self.curve is None else {"curve": self.curve.to_dict()}
        return told | {"folder": str(self.folder)} | curve


@dataclass(frozen=True, slots=True)
class _StoredUpdate:
    """One layer's update, as it was read from a file."""

    a: Tensor
    b: Tensor
    scale: float
    is_embedding: bool

    @property
    def rank(self) -> int:
        return len(self.a)

    @property
    def cost(self) -> int:
        return int(self.a.shape[1]) + len(self.b)

    def directions(self) -> tuple[Tensor, Tensor]:
        return self.a, self.b


def compress_adapter(
    adapter: str | Path,
    out: str | Path,
    *,
    budget: int | float | Literal["knee"],
    criterion: TruncationCriterion | None = None,
    base: str | None = None,
    data: str | None = None,
    calibration: str | None = None,
    max_length: int | None = None,
    say: Say = lambda line: None,
) -> Compressed:
    """Write a smaller adapter: the directions of all layers that are worth most, within a budget of parameters.

    What leaves is an ordinary PEFT adapter whose layers differ in rank; a layer that keeps nothing leaves it. Each
    layer's scale stays, the arithmetic is float64, and numbers are stored in the dtype that they had. Whatever else
    the adapter holds (modules trained whole, rows of new tokens, DoRA's magnitudes) goes along as it is; under DoRA
    the remaining update is brought to the same magnitudes, and a layer that leaves answers as the base does.

    Args:
        adapter: A folder with a LoRA or DoRA adapter; of `hf-lora train`, base and rows are known.
        out: A new folder.
        budget: Parameters of all factors, a share of them (a fraction below 1.0), or `knee`, the smallest that is as
            good as the whole within one standard error on held-out rows (`RankCurve.knee`).
        criterion: `svd` reads the adapter alone. `whitened` needs the base and training rows, and is the default for
            the knee where these are known, and where `calibration` is given.
        base: The base model; else the one that the adapter names.
        data: Held-out rows for the knee, as a recipe's `data.source`; else the run's.
        calibration: Training rows for `whitened`, likewise.
        max_length: Tokens of a row to keep; else as in the run.
        say: Takes one line of progress.

    Raises:
        BudgetError: If the budget is nothing, not below what is there, holds no direction, or the knee is the whole.
        AdapterError: If the adapter cannot be read, or has layers whose rank cannot be changed.
        ConfigError: If the folder is taken or cannot be written, or base or rows are missing.

    Example::

        compress_adapter("out/quickstart", "out/half", budget=0.5)
    """
    folder, target = Path(adapter), Path(out)
    if target.resolve() == folder.resolve():
        raise ConfigError(f"{target} is the adapter itself, which is never overwritten; name another folder")
    check_free(target)
    factors = read_factors(folder)
    stored = {name: _stored(module) for name, module in _cuttable(factors).items()}
    wanted = None if budget == KNEE else _below(as_parameters(budget, factors.parameters), factors.parameters)
    curve = None
    if wanted is None or criterion == "whitened" or (calibration is not None and criterion is None):
        subject = find_subject(folder, base=base, data=data, calibration=calibration, max_length=max_length)
        chosen = chosen_criterion(criterion, subject.training is not None)
        cut, curve = _with_model(subject, stored, chosen, measured=wanted is None, say=say)
    else:
        chosen, cut = chosen_criterion(criterion, has_calibration=False), truncation(stored, "svd")
    if wanted is None:
        assert curve is not None
        wanted = _smaller_knee(curve)
    ranks = cut.ranks_for(wanted)
    done = Compressed(
        folder=target, parameters=cut.parameters_at(ranks), parameters_before=cut.parameters, ranks=ranks,
        criterion=chosen, energy=cut.energy(ranks), curve=curve,
    )  # fmt: skip
    _write(factors, cut, done, curve if data is None else None)
    return done


def _cuttable(factors: AdapterFactors) -> Mapping[str, ModuleFactors]:
    """Return the modules, all of which can be cut.

    Raises:
        AdapterError: If one cannot.
    """
    kinds = {module.kind: name for name, module in factors.modules.items()}
    if not kinds:
        raise AdapterError(f"{factors.file.parent} holds no factors, so there is nothing to cut")
    for kind, name in kinds.items():
        if kind in ("conv", "parameter"):
            what = "a convolution" if kind == "conv" else "an expert's parameter"
            raise AdapterError(f"{name} is {what}, whose rank cannot be cut here; compress adapters of linear layers")
    if not factors.config or factors.method == "AdaLoRA" or factors.config.get("lora_bias"):
        what = "has no adapter_config.json" if not factors.config else "is AdaLoRA"
        what = "has biases in B" if factors.config.get("lora_bias") else what
        raise AdapterError(f"{factors.file.parent} {what}; compress an ordinary LoRA or DoRA adapter, saved by peft")
    return factors.modules


def _stored(module: ModuleFactors) -> _StoredUpdate:
    assert module.scaling is not None  # there is a config
    return _StoredUpdate(module.a, module.b, module.scaling, module.kind == "embedding")


def _below(budget: int, whole: int) -> int:
    if budget >= whole:
        raise BudgetError(f"the adapter has {whole:,} parameters, within the budget already; give less")
    return budget


def _smaller_knee(curve: RankCurve) -> int:
    if curve.knee is curve.whole:
        nearest = curve.points[-2] if len(curve.points) > 1 else curve.whole
        raise BudgetError(
            f"the knee is the whole adapter: at {nearest.parameters:,} parameters the loss is {nearest.rise:+.4f} ± "
            f"{nearest.rise_error:.4f} nats a token above the whole's {curve.whole.loss:.4f}; if that is good enough, "
            "give such a budget"
        )
    return curve.knee.parameters


def _with_model(
    subject: Subject,
    stored: Mapping[str, _StoredUpdate],
    criterion: TruncationCriterion,
    *,
    measured: bool,
    say: Say,
) -> tuple[Truncation, RankCurve | None]:
    """Return the directions in order, and the curve where it is wanted."""
    if measured and subject.held_out is None:
        raise ConfigError("the knee is found on held-out rows: give data= (--data), or a budget")
    model, tokenizer = subject.load_()
    layers = lora_layers(model, trained_adapter(model), trains=False)
    if layers.keys() != stored.keys():
        different = sorted(layers.keys() ^ stored.keys())
        raise AdapterError(f"the base has other layers than the adapter, such as {different[0]}; name its own base")
    reading = Reading(tokenizer, subject.max_length, subject.assistant_only)
    held_out = [] if subject.held_out is None else encoded(subject.held_out, reading)
    seen = []
    if criterion == "whitened":
        seen = calibration_examples(subject.training or (), held_out, reading)
    with at_rest(model):
        cut = truncation(stored, criterion, watch_examples(model, layers, seen) if seen else None)
        how = (criterion, len(seen))
        return cut, measure_curve(model, layers, cut, held_out, None, how, say) if measured else None


def _write(factors: AdapterFactors, cut: Truncation, done: Compressed, measured: RankCurve | None) -> None:
    """Write the folder whole or not at all; what is stored beside the adapter goes along.

    Args:
        factors: The whole adapter.
        cut: Its directions.
        done: What is kept.
        measured: What was measured on the run's own held-out rows.
    """
    source = factors.file.parent
    with whole_folder(done.folder) as draft:
        save_file(_tensors(factors, cut, done.ranks), draft / WEIGHTS, metadata={"format": "pt"})
        config = load_config(source)
        ranks_into_config_(config, done.ranks, {name: update.scale for name, update in cut.layers.items()})
        config.save_pretrained(str(draft))
        copy_chosen(source, draft, goes_along)
        if (source / FACTS).is_file():
            _write_facts(read_facts(source / FACTS), draft, done, measured)


def _tensors(factors: AdapterFactors, cut: Truncation, ranks: Mapping[str, int]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = load_file(factors.file)
    for name, rank in ranks.items():
        keys = factors.modules[name].shapes.keys
        if not rank:
            for key in keys.values():
                del tensors[key]
            for key in [key for key in tensors if f"{name}.base_layer." in key]:  # an embedding that peft saved whole
                tensors[key.replace(".base_layer.", ".")] = tensors.pop(key)
        elif rank < cut.layers[name].rank:
            a, b = cut.factors(name, rank)
            tensors[keys["a"]], tensors[keys["b"]] = a.contiguous(), b.contiguous()
    return tensors


def _write_facts(facts: Facts, draft: Path, done: Compressed, measured: RankCurve | None) -> None:
    """Write what is known of the smaller adapter: of the whole one's facts, those that still hold, and a card."""
    old, new = facts.adapter, describe_saved(draft)
    was = {"parameters": done.parameters_before, "rank": old.get("ranks", old.get("rank"))}
    how = {"ordered by": done.criterion, "kept share of the squared norm": round(done.energy, 4)}
    told = {key: value for key, value in old.items() if key not in ("ranks", "layer_ranks", "trained_rank")}
    losses = {} if measured is None else {"base": measured.base_loss, "adapter": measured.knee.loss}
    smaller = replace(
        facts,
        adapter=told | new | {"trainable_parameters": done.parameters, "compressed_from": {**was, **how}},
        evaluation={who: {"loss": round(loss, 6)} for who, loss in losses.items()},
        comparisons=(), samples=(), pictures=(), repo_id=None,
    )  # fmt: skip
    write_text_atomically(draft / FACTS, smaller.to_json())
    write_text_atomically(draft / CARD, render_card(smaller))
