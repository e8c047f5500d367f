"""What a classifier says of texts: the label that it holds most likely, and the loss of the true one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import AdapterError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Labelling", "classify", "labels_of"]


@dataclass(frozen=True, slots=True)
class Labelling:
    """A classifier's answers."""

    predicted: tuple[int, ...]
    """The most likely label of each text."""
    nats: tuple[float, ...]
    """Negative log-likelihood of each true label."""


def labels_of(folder: Path, config: Mapping[str, Any]) -> int:
    """Return how many labels an adapter's own head tells apart.

    Args:
        folder: The adapter.
        config: Its PEFT config.

    Raises:
        AdapterError: If no head was saved with it.
    """
    from ..adapters.stored_adapter import read_stored_adapter

    whole = set(config.get("modules_to_save") or ())
    shapes = read_stored_adapter(folder / "adapter_model.safetensors").shapes
    heads = [shape[0] for name, shape in shapes.items() if whole & set(name.split(".")) and name.endswith("weight")]
    if not heads:
        raise AdapterError(f"{folder} has no head of a classifier, which PEFT saves with task_type SEQ_CLS; train one")
    return min(heads)  # of a head in two layers the last is the narrower


def classify(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    truth: Iterable[int],
    *,
    max_length: int | None,
    batch_size: int,
    tell: Callable[[int], None] = lambda done: None,
) -> Labelling:
    """Return a classifier's answers to texts, in their order; texts of similar length share a batch.

    Args:
        model: The classifier, in evaluation mode.
        tokenizer: Its tokenizer.
        texts: The texts.
        truth: Their true labels.
        max_length: Tokens of a text to keep.
        batch_size: Texts at once.
        tell: Takes how many are done, after each batch.
    """
    import torch

    true = list(truth)
    tokens = [tokenizer(text, truncation=max_length is not None, max_length=max_length).input_ids for text in texts]
    order = sorted(range(len(texts)), key=lambda index: (-len(tokens[index]), index))
    predicted, nats = [0] * len(texts), [0.0] * len(texts)
    filler = model.config.get_text_config().pad_token_id or 0
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        width = max(len(tokens[index]) for index in batch)
        padding = [width - len(tokens[index]) for index in batch]
        ids = [[*tokens[index], *[filler] * gap] for index, gap in zip(batch, padding, strict=True)]
        mask = [[1] * (width - gap) + [0] * gap for gap in padding]
        device = next(model.parameters()).device
        with torch.no_grad():
            logits = model(
                input_ids=torch.tensor(ids, device=device), attention_mask=torch.tensor(mask, device=device)
            ).logits
        likely = logits.double().log_softmax(-1)
        for place, index in enumerate(batch):
            predicted[index], nats[index] = int(likely[place].argmax()), -float(likely[place, true[index]])
        tell(start + len(batch))
    return Labelling(tuple(predicted), tuple(nats))
