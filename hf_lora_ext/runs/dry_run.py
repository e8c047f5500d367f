"""A recipe looked at before it runs: its plan, what trains, steps and tokens, and the first batch as the loss sees it.

Tokenizer, config and examples are read; no weight is loaded and nothing is written into the run folder.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from math import ceil, prod
from typing import TYPE_CHECKING, Any, Final

from ..data.examples import Examples, load_examples
from ..data.tokens import IGNORED, TokenExample, encode_examples
from ..errors import ConfigError
from ..models.base_models import BaseModel, find_base_model
from ..presets.configuration import Preset
from .building import check_model, check_prompts, prompts_at_a_time, without_weights
from .recipe import Recipe
from .recipe_plan import MemoryNeed, declared_preset, memory_need, preset_here
from .rewards import reward_columns
from .run_folder import owned_folder
from .trainer_kinds import Trainer, config_fields, trainer_kind

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["DryRun", "Piece", "dry_run"]

MOST_ROWS: Final = 2_000
"""Training examples that are counted token by token; of more, the rest is estimated from these."""
_SHOWN_TRAINER: Final = "sft"
"""The trainer whose tokens and labels are known here."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Consecutive tokens of an example, as text."""

    text: str
    """The text."""
    counted: bool
    """Whether the loss counts it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DryRun:
    """What a recipe would do."""

    recipe: Recipe
    """The recipe."""
    preset: Preset
    """The plan."""
    note: str
    """What this machine lacks of what the recipe is written for; empty if nothing. What does not fit here is planned
    for the hardware that the recipe declares."""
    need: MemoryNeed
    """Memory that it takes."""
    train_examples: int
    """Examples to train on."""
    held_out_examples: int
    """Examples held out."""
    form: str
    """Their form."""
    trained: Mapping[str, tuple[int, ...]]
    """Shape of each parameter that trains, by its name."""
    trained_at_start: int
    """Parameters that train before adaptive rank drops some."""
    steps: int
    """Optimizer steps."""
    examples_per_step: int
    """Examples that an optimizer step sees."""
    tokens: int | None
    """Tokens of one pass over the training examples, cut to the longest length; None where that is not known."""
    counted_tokens: int | None
    """Those of them that the loss counts."""
    is_estimated: bool
    """Whether the tokens are estimated from a part of the examples."""
    batch: tuple[tuple[Piece, ...], ...]
    """The first batch of the first process, as far as `batch_note` does not say otherwise."""

    @property
    def trained_parameters(self) -> int:
        """Parameters that train."""
        return sum(map(prod, self.trained.values()))

    @property
    def epochs(self) -> float:
        """Passes over the training examples."""
        return self.steps * self.examples_per_step / self.train_examples

    @property
    def batch_note(self) -> str:
        """Why the first batch that trains is not here, or may be another; empty if it is this one."""
        if self.recipe.trainer != _SHOWN_TRAINER:
            return f"not shown: tokens are known here for trainer {_SHOWN_TRAINER}, not {self.recipe.trainer}"
        if self.recipe.training.get("packing", self.preset.packing):
            return "before packing puts several examples into a row"
        if self.is_estimated:
            return "if no example is so long that nothing counted is left of it"
        return ""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON takes."""
        return {
            "model": self.recipe.model,
            "parameters": self.preset.shape.parameters,
            "trained_parameters": self.trained_parameters,
            "trained_at_start": self.trained_at_start,
            "trained_shapes": {name: list(shape) for name, shape in self.trained.items()},
            "memory": asdict(self.need),
            "hardware_note": self.note or None,
            "steps": self.steps,
            "epochs": round(self.epochs, 3),
            "examples_per_step": self.examples_per_step,
            "train_examples": self.train_examples,
            "held_out_examples": self.held_out_examples,
            "form": self.form,
            "tokens_per_epoch": self.tokens,
            "counted_tokens_per_epoch": self.counted_tokens,
            "tokens_are_estimated": self.is_estimated,
            "batch_note": self.batch_note or None,
            "first_batch": [[asdict(piece) for piece in example] for example in self.batch],
            "preset": self.preset.to_dict(),
        }


def dry_run(recipe: Recipe, processes: int = 1) -> DryRun:
    """Return what a recipe would do in so many processes on this machine.

    Raises:
        ConfigError: For everything that would stop the run itself before its model is loaded.
    """
    from transformers import AutoTokenizer

    from .training import config_among

    owned_folder(recipe)
    kind = trainer_kind(recipe.trainer)
    examples = load_examples(recipe.data, kind.forms, reward_columns(recipe.rewards or ()))
    base = find_base_model(recipe.model, recipe.revision)
    chosen, note, processes = _planned(recipe, base, len(examples.train), processes)
    check_model(recipe.trainer, chosen.shape)
    tokenizer = AutoTokenizer.from_pretrained(base.path, revision=base.revision)
    fields = config_fields(recipe.trainer, recipe.training)
    args = config_among(processes, chosen, recipe.trainer, recipe.output_dir, fields)
    if kind.has_rewards:
        check_prompts(recipe.trainer, args, len(examples.train), processes)
    each_step, per_epoch = _step_sizes(args, len(examples.train), processes, samples=kind.has_rewards)
    trained, at_start = _trained(chosen, base, recipe.trainer, examples.labels)
    tokens, counted, batch = _tokens(recipe, examples, tokenizer, args)
    return DryRun(
        recipe=recipe,
        preset=chosen,
        note=note,
        need=memory_need(chosen, recipe),
        train_examples=len(examples.train),
        held_out_examples=len(examples.held_out),
        form=examples.form,
        trained=trained,
        trained_at_start=at_start,
        steps=args.max_steps if args.max_steps > 0 else ceil(per_epoch * args.num_train_epochs),
        examples_per_step=each_step,
        tokens=tokens,
        counted_tokens=counted,
        is_estimated=len(examples.train) > MOST_ROWS,
        batch=tuple(tuple(_pieces(example, tokenizer)) for example in batch),
    )


def _planned(recipe: Recipe, base: BaseModel, examples: int, processes: int) -> tuple[Preset, str, int]:
    """Return the plan for this machine, else for the one that the recipe declares; what to say of it; processes."""
    try:
        return *preset_here(recipe, base.path, examples, gpus=processes), processes
    except ConfigError as refusal:
        if recipe.hardware is None:
            raise
        chosen = declared_preset(recipe)
        note = f"{refusal}. What follows is for the declared hardware"
        return chosen, note, chosen.hardware.devices


def _trained(
    chosen: Preset, base: BaseModel, trainer: Trainer, labels: Sequence[str]
) -> tuple[dict[str, tuple[int, ...]], int]:
    """Return what trains in the end, by shape, and how many parameters do at the start."""
    from ..adapters.unloaded import trained_shapes
    from .training import adapter_config

    def shapes_of(preset: Preset) -> dict[str, tuple[int, ...]]:
        return trained_shapes(without_weights(trainer, base, labels), adapter_config(preset, trainer))

    try:
        shapes = shapes_of(chosen)
    except ValueError as error:
        raise ConfigError(f"peft refuses this adapter: {str(error).splitlines()[0]}") from error
    if chosen.start_factor == 1:
        return shapes, sum(map(prod, shapes.values()))
    wide = shapes_of(replace(chosen, rank=chosen.rank * chosen.start_factor))
    return shapes, sum(map(prod, wide.values()))


def _step_sizes(args: Any, examples: int, processes: int, *, samples: bool) -> tuple[int, int]:
    """Return the examples that an optimizer step sees, and the steps of one pass over all.

    Args:
        args: The trainer's configuration.
        examples: Examples to train on.
        processes: How many share the work.
        samples: Whether a batch is of completions, several of a prompt, as TRL's RepeatSampler gives them out.
    """
    batch, accumulation = args.per_device_train_batch_size * processes, args.gradient_accumulation_steps
    each_step, passes = batch * accumulation, ceil(examples / batch)
    if samples:
        passes = examples // prompts_at_a_time(args, processes) * args.num_iterations * args.steps_per_generation
        each_step //= args.num_generations
    return each_step, max(1, ceil(passes / accumulation))


def _tokens(
    recipe: Recipe, examples: Examples, tokenizer: PreTrainedTokenizerBase, args: Any
) -> tuple[int | None, int | None, Sequence[TokenExample]]:
    """Return the tokens of a pass, those that the loss counts, and the first batch, as far as they are known here."""
    from .training import assistant_template, counts_assistant_only

    if recipe.trainer != _SHOWN_TRAINER:
        return None, None, ()
    longest, size = args.max_length, args.per_device_train_batch_size
    alone = counts_assistant_only(tokenizer, examples.form, recipe.training.get("assistant_only_loss"))
    all_count = recipe.training.get("completion_only_loss") is False

    def encoded(rows: Iterable[Mapping[str, Any]]) -> list[TokenExample]:
        template = (lambda: assistant_template(tokenizer)) if alone else (lambda: None)
        found = encode_examples(rows, tokenizer, max_length=longest, assistant_template=template)
        return [TokenExample(one.input_ids, one.input_ids) for one in found] if all_count else found

    rows, number = examples.train, len(examples.train)
    if number > MOST_ROWS:
        seen = encoded(rows.select(range(0, number, ceil(number / MOST_ROWS))))
        batch = encoded(rows.select(_first_drawn(number, recipe.seed, size)))
        share = number / len(range(0, number, ceil(number / MOST_ROWS)))
    else:
        seen = encoded(rows)
        batch = [seen[i] for i in _first_drawn(len(seen), recipe.seed, size)]
        share = 1.0
    return (
        round(share * sum(len(one.input_ids) for one in seen)),
        round(share * sum(one.supervised for one in seen)),
        batch,
    )


def _first_drawn(number: int, seed: int, size: int) -> list[int]:
    """Return the indices of the first batch, as accelerate's SeedableRandomSampler draws them."""
    import torch

    drawn: list[int] = torch.randperm(number, generator=torch.Generator().manual_seed(seed)).tolist()
    return drawn[:size]


def _pieces(example: TokenExample, tokenizer: PreTrainedTokenizerBase) -> Iterable[Piece]:
    """Yield an example as text, cut where the loss begins or ceases to count; its first token is never counted."""
    labels = (IGNORED, *example.labels[1:])
    pairs = zip(example.input_ids, labels, strict=True)
    for counted, group in groupby(pairs, key=lambda pair: pair[1] != IGNORED):
        yield Piece(str(tokenizer.decode([token for token, _ in group])), counted)
