"""What a model says of examples: the loss of each, and what flows through its adapter's layers there.

A model that is asked is left as it was: modes, gradients and what trains.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from ..data.tokens import IGNORED, TokenExample, batches, padded
from ..errors import AdapterError
from ..ranks.lora_layers import LoraFactors
from ..ranks.probes import Moments, Probe

__all__ = ["TokenScores", "at_rest", "example_losses", "example_scores", "watch_examples"]

LOGITS_AT_ONCE: Final = 2**25
"""Logits of one batch at most: 128 MiB in float32, and about three times that while the loss is taken."""


@dataclass(frozen=True, slots=True)
class TokenScores:
    """What a model makes of each example's supervised tokens."""

    nats: tuple[float, ...]
    """Their negative log-likelihood, summed."""
    right: tuple[int, ...]
    """How many of them the model held most likely, each after the true ones before it."""


@contextmanager
def at_rest(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode with nothing to train, and give every part its own mode and flag back."""
    modes = {module: module.training for module in model.modules()}
    trained = {parameter: parameter.requires_grad for parameter in model.parameters()}
    try:
        model.eval()
        for parameter in trained:
            parameter.requires_grad_(False)
        yield
    finally:
        for module, training in modes.items():
            module.training = training
        for parameter, trains in trained.items():
            parameter.requires_grad_(trains)


def example_losses(model: nn.Module, examples: Sequence[TokenExample]) -> list[float]:
    """Return the negative log-likelihood of each example in nats, summed over its supervised tokens."""
    return [*example_scores(model, examples).nats]


def example_scores(
    model: nn.Module, examples: Sequence[TokenExample], tell: Callable[[int], None] = lambda done: None
) -> TokenScores:
    """Return each example's loss, and how many of its tokens the model would have said.

    Args:
        model: The model, in evaluation mode.
        examples: The examples.
        tell: Takes how many are done, after each batch.
    """
    nats, right, done = [0.0] * len(examples), [0] * len(examples), 0
    with torch.no_grad():
        for indices, batch in _batched(model, examples):
            logits, labels = _predicted(model, batch)
            hits = (logits.argmax(-1) == labels).sum(1).tolist()
            totals = _token_nats(logits, labels).double().sum(1).tolist()
            for index, total, hit in zip(indices, totals, hits, strict=True):
                nats[index], right[index] = total, hit
            done += len(indices)
            tell(done)
    return TokenScores(tuple(nats), tuple(right))


def watch_examples(
    model: nn.Module, layers: Mapping[str, LoraFactors], examples: Sequence[TokenExample]
) -> dict[str, Moments]:
    """Return what flows through each layer on the examples, forward and back.

    Raises:
        AdapterError: If no gradient reaches the adapter, so that nothing can be seen.
    """
    probe = Probe(layers)
    rows = [factors.a for factors in layers.values()]
    trains = [row.requires_grad for row in rows]
    try:
        for row in rows:
            row.requires_grad_(True)
        for _, batch in _batched(model, examples):
            counted = int((batch["labels"][:, 1:] != IGNORED).sum())
            loss = _token_nats(*_predicted(model, batch)).sum() / counted
            torch.autograd.grad(loss, rows, allow_unused=True)  # touches no `.grad`
    finally:
        moments = probe.stop()
        for row, trained in zip(rows, trains, strict=True):
            row.requires_grad_(trained)
    if not any(seen.tokens for seen in moments.values()):
        raise AdapterError("no gradient reaches the adapter's layers on these examples; use criterion='svd'")
    return moments


def _batched(model: nn.Module, examples: Sequence[TokenExample]) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    config: Any = model.config
    for indices in batches(examples, max(1, LOGITS_AT_ONCE // config.get_text_config().vocab_size)):
        # A padded position is masked and not supervised, so any token serves.
        yield indices, padded([examples[index] for index in indices], 0, next(model.parameters()).device)


def _predicted(model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the logits of each next token `(batch, tokens - 1, vocabulary)`, and those tokens."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    return logits, batch["labels"][:, 1:].to(logits.device)


def _token_nats(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the negative log-likelihood of each next token `(batch, tokens - 1)`, 0 where it is not supervised."""
    nats = nn.functional.cross_entropy(
        logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return nats.view(labels.shape)
