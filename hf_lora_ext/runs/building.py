"""The other half of the seam to TRL: a trainer with base, adapter and examples, and a saved adapter loaded again."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, Final

from ..errors import ConfigError
from .rewards import MODEL, named_rewards, passed_as, reward_columns
from .trainer_kinds import TrainerKind, trainer_kind
from .training import (
    adapter_config,
    counts_assistant_only,
    library_class,
    method_callbacks,
    model_kwargs,
    optimizer_cls_and_kwargs,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

    from ..data.examples import Examples
    from ..models.base_models import BaseModel
    from ..models.sizes import ModelShape
    from ..presets.configuration import Preset
    from .trainer_kinds import Trainer

__all__ = ["build_trainer", "check_model", "load_adapted", "load_whole", "without_weights"]

_BOTH: Final = "AutoModelForSeq2SeqLM"


def check_model(trainer: Trainer, shape: ModelShape) -> None:
    """Raise where a model is no such thing as the trainer trains, before it is loaded.

    Raises:
        ConfigError: For an encoder-decoder under anything but seq2seq, or anything else under it.
    """
    if (shape.counted_as == _BOTH) == (trainer_kind(trainer).model == _BOTH):
        return
    found = "an encoder-decoder" if shape.counted_as == _BOTH else "no encoder-decoder"
    fit = "trainer: seq2seq" if shape.counted_as == _BOTH else "trainer: sft"
    raise ConfigError(f"trainer {trainer} does not train a {shape.family or 'model'} like this, {found}; use {fit}")


def build_trainer(
    preset: Preset,
    base: BaseModel,
    examples: Examples,
    args: Any,
    callbacks: Sequence[TrainerCallback] = (),
    assistant_only: bool | None = None,
    *,
    adapted: bool = True,
    trainer: Trainer = "sft",
    rewards: Sequence[Mapping[str, Any]] = (),
) -> Any:
    """Return a trainer with the base loaded as the preset wants it and a fresh adapter on it.

    Where it compares with a reference model (DPO, KTO, and GRPO and RLOO with a `beta`), that is the base with the
    adapter off: nothing is held twice.

    Args:
        preset: The preset.
        base: Where the base is.
        examples: What it learns and is measured on.
        args: The trainer's configuration.
        callbacks: Callbacks beside the preset's own.
        assistant_only: Whether of messages only the assistant's turns count; None where the template allows it.
        adapted: Whether an adapter trains; without, all weights do, in float32, so that small steps do not round away.
        trainer: Its name.
        rewards: What it is rewarded by, as in a recipe.

    Raises:
        ConfigError: If only the assistant's turns are to count and cannot be told from the others.
    """
    from transformers import AutoTokenizer, PrinterCallback, set_seed

    kind, args = trainer_kind(trainer), copy.copy(args)
    tokenizer = AutoTokenizer.from_pretrained(base.path, revision=base.revision)
    given: dict[str, Any] = {"processing_class": tokenizer}
    if kind.is_trl:
        args.model_init_kwargs = None  # the model is loaded here, with these and more
        given |= {"train_dataset": examples.train, "eval_dataset": examples.held_out}
        given["peft_config"] = adapter_config(preset, trainer) if adapted else None
    if trainer == "sft":
        args.assistant_only_loss = counts_assistant_only(tokenizer, examples.form, assistant_only)
    if kind.has_rewards:
        args.reward_weights = [float(reward.get("weight", 1)) for reward in rewards]
        given["reward_funcs"] = named_rewards([_found(reward) for reward in rewards])
        names = {column: passed_as(column) for column in reward_columns(rewards)}
        given |= {part: given[part].rename_columns(names) for part in ("train_dataset", "eval_dataset")}
    loaded_as = model_kwargs(preset) | ({} if adapted else {"dtype": "float32"})
    set_seed(args.seed)  # a new head is drawn while the model is loaded
    model = _load_base(kind, base, tokenizer, examples, loaded_as)
    set_seed(args.seed)  # the adapter's initial weights are drawn next; not every trl sets the seed before that
    if not kind.is_trl:
        given |= _plain_arguments(preset, trainer, model, tokenizer, examples)
        model = given.pop("model")
    built = library_class(kind, kind.trainer)(
        model=model,
        args=args,
        callbacks=[*(method_callbacks(preset) if adapted else []), *callbacks],
        **given,
    )
    if preset.bits is not None:
        _hold_head_as_base_(built.model, loaded_as["dtype"])
    built.optimizer_cls_and_kwargs = optimizer_cls_and_kwargs(preset, args)  # no argument of most of trl's trainers
    built.remove_callback(PrinterCallback)  # our own lines say it
    return built


def _load_base(
    kind: TrainerKind, base: BaseModel, tokenizer: Any, examples: Examples, loaded_as: Mapping[str, Any]
) -> Any:
    """Return the base with the head that its task has."""
    import transformers

    head = _head(kind, examples.labels)
    if head:
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        head["pad_token_id"] = tokenizer.pad_token_id
    model = getattr(transformers, kind.model).from_pretrained(base.path, revision=base.revision, **loaded_as, **head)
    model.name_or_path = model.config._name_or_path = base.recorded_name
    return model


def without_weights(trainer: Trainer, base: BaseModel, labels: Sequence[str] = ()) -> Any:
    """Return the base with the head that a trainer gives it, on the meta device, in its own precision."""
    import torch
    import transformers

    kind = trainer_kind(trainer)
    config = transformers.AutoConfig.from_pretrained(base.path, revision=base.revision, **_head(kind, labels))
    config.quantization_config = None  # packed weights have other shapes, and what trains has not
    with torch.device("meta"):
        return getattr(transformers, kind.model).from_config(config)


def _head(kind: TrainerKind, labels: Sequence[str]) -> dict[str, Any]:
    """Return the settings of a new head: an output for each label, or one that is a reward; none for text."""
    if kind.task_type != "SEQ_CLS":
        return {}
    names = dict(enumerate(labels))
    told = {"id2label": names, "label2id": {name: number for number, name in names.items()}} if names else {}
    return {**told, "num_labels": len(names) or 1}


def _hold_head_as_base_(model: Any, dtype: str) -> None:
    """Give a new head the precision of its input: TRL casts all that trains to bfloat16 over a quantised base."""
    import torch
    from peft.utils import ModulesToSaveWrapper

    for module in model.modules():
        if isinstance(module, ModulesToSaveWrapper):
            module.to(getattr(torch, dtype))


def _found(reward: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a reward with its model where it is on this machine."""
    if reward["reward"] != MODEL:
        return reward
    from ..models.base_models import find_base_model

    return {**reward, MODEL: str(find_base_model(reward[MODEL]).path)}


def _plain_arguments(
    preset: Preset, trainer: Trainer, model: Any, tokenizer: Any, examples: Examples
) -> dict[str, Any]:
    """Return what transformers' own trainers are given: the adapted model, tokens, and how answers are measured."""
    from peft import get_peft_model
    from transformers import DataCollatorForSeq2Seq, DataCollatorWithPadding

    def tokens(row: Mapping[str, Any]) -> dict[str, Any]:
        if trainer == "classification":
            return dict(tokenizer(row["text"], truncation=True, max_length=preset.max_length))
        asked = tokenizer(row["prompt"], truncation=True, max_length=preset.max_length)
        answer = tokenizer(text_target=row["completion"], truncation=True, max_length=preset.max_length)
        return {**asked, "labels": answer["input_ids"]}

    adapted = get_peft_model(model, adapter_config(preset, trainer))
    given: dict[str, Any] = {
        "model": adapted,
        "train_dataset": examples.train.map(tokens),
        "eval_dataset": examples.held_out.map(tokens),
    }
    if trainer == "classification":
        return given | {"compute_metrics": _accuracy, "data_collator": DataCollatorWithPadding(tokenizer)}
    return given | {"data_collator": DataCollatorForSeq2Seq(tokenizer, model=adapted)}


def _accuracy(prediction: Any) -> dict[str, float]:
    """Return the share of texts whose label was told."""
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def load_adapted(
    preset: Preset, base: BaseModel, folder: Path, labels: int | None = None
) -> tuple[PeftModel, PreTrainedTokenizerBase]:
    """Return a saved adapter on its base, loaded as the preset wants it, and the tokenizer beside the adapter.

    Args:
        preset: How the base is held.
        base: Where the base is, whose tokenizer is taken where the adapter has none.
        folder: The adapter.
        labels: How many labels a classifier tells apart; the base's own head is then drawn by chance, the same always.
    """
    from peft import PeftModel
    from transformers import AutoTokenizer

    own = (folder / "tokenizer_config.json").is_file()
    source = {"pretrained_model_name_or_path": str(folder)} if own else {
        "pretrained_model_name_or_path": base.path, "revision": base.revision
    }  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(**source)
    model = _loaded(preset, base.path, labels, revision=base.revision)
    if model.config.pad_token_id is None:  # a classifier finds a text's last token by it
        model.config.pad_token_id = tokenizer.pad_token_id
    return PeftModel.from_pretrained(model, str(folder)), tokenizer


def load_whole(preset: Preset, folder: Path, labels: int | None = None) -> PreTrainedModel:
    """Return a model whose weights all trained, in evaluation mode.

    Args:
        preset: In what precision.
        folder: Where it was saved.
        labels: How many labels a classifier tells apart; None for a model that writes.
    """
    return _loaded(preset, str(folder), labels).eval()


def _loaded(preset: Preset, path: str, labels: int | None, **settings: Any) -> PreTrainedModel:
    """Return a model where this machine computes; bitsandbytes places what it packs itself."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, set_seed

    settings |= model_kwargs(preset)
    if labels is None:
        model = AutoModelForCausalLM.from_pretrained(path, **settings)
    else:
        set_seed(0)
        model = AutoModelForSequenceClassification.from_pretrained(path, num_labels=labels, **settings)
    packed = preset.bits is not None or not torch.accelerator.is_available()
    return model if packed else model.to(torch.accelerator.current_accelerator())
