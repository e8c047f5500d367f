"""A task whose best ranks are known: learn a small random Llama to which updates of low rank were added.

The teacher is the base plus one random update in each linear layer, of rank 0, 0, 1, 2, 4 or 8. The multiset of
ranks is the same for every seed; which layer gets which rank, and how large its update is, is drawn. The student
sees random tokens and, at each, one token drawn from the teacher's distribution (or, noise-free, the distribution
itself). What is measured is the KL divergence from the teacher to the student on tokens that were not trained on.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rank_tasks import Prepared, Sizes
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

RANKS = (0, 0, 1, 2, 4, 8)
"""True ranks, dealt out in turn and then shuffled over the layers."""
DECAY = 0.8
"""Ratio of one planted singular value to the one before it."""
STRENGTH = 0.25
"""Size of a planted update against the layer's weight, before the layer's own factor."""
SPREAD = 1.2
"""The layer's own factor is log-uniform between exp(-SPREAD) and exp(SPREAD)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlantedShape:
    """Size of the random Llama."""

    vocabulary: int = 256
    hidden: int = 128
    intermediate: int = 256
    layers: int = 4
    heads: int = 4


@dataclass(frozen=True, slots=True)
class Planted:
    """A base, the teacher that it should become, and the rank of the difference by layer."""

    base: Any
    teacher: Any
    true_ranks: dict[str, int]


def plant(seed: int, shape: PlantedShape) -> Planted:
    """Return the base and the teacher of a seed; the same for every call."""
    generator = torch.Generator().manual_seed(1000 + seed)
    base = random_llama(shape, generator)
    names = [name for name, layer in base.named_modules() if isinstance(layer, nn.Linear) and name != "lm_head"]
    ranks = [RANKS[index % len(RANKS)] for index in range(len(names))]
    random.Random(seed).shuffle(ranks)
    true_ranks = dict(zip(names, ranks, strict=True))
    teacher = copy.deepcopy(base)
    with torch.no_grad():
        for name, rank in true_ranks.items():
            if rank:
                weight = teacher.get_submodule(name).weight
                weight += update(weight, rank, generator)
    return Planted(base, teacher.requires_grad_(False), true_ranks)


def random_llama(shape: PlantedShape, generator: torch.Generator) -> Any:
    """Return a Llama with inputs of very different variance by direction, as real ones have."""
    config = LlamaConfig(
        vocab_size=shape.vocabulary, hidden_size=shape.hidden, intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads, num_key_value_heads=shape.heads,
        max_position_embeddings=64, tie_word_embeddings=False, use_cache=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config).float().eval()
    with torch.no_grad():
        for name, layer in model.named_modules():
            if isinstance(layer, nn.Linear) and name != "lm_head":
                layer.weight.normal_(0, 1 / math.sqrt(layer.in_features), generator=generator)
        spectrum = torch.logspace(0, -1, shape.hidden)
        turn, _ = torch.linalg.qr(torch.randn(shape.hidden, shape.hidden, generator=generator))
        drawn = torch.randn(shape.vocabulary, shape.hidden, generator=generator)
        model.model.embed_tokens.weight.copy_(drawn * spectrum @ turn)
        model.lm_head.weight.normal_(0, 2 / math.sqrt(shape.hidden), generator=generator)
    return model


def update(weight: Tensor, rank: int, generator: torch.Generator) -> Tensor:
    """Return a random update of a rank, with singular values that fall by DECAY."""
    out_features, in_features = weight.shape
    left, _ = torch.linalg.qr(torch.randn(out_features, rank, generator=generator))
    right, _ = torch.linalg.qr(torch.randn(in_features, rank, generator=generator))
    own = math.exp((torch.rand(1, generator=generator).item() * 2 - 1) * SPREAD)
    size = STRENGTH * own * weight.norm() / math.sqrt(max(RANKS))
    return (left * DECAY ** torch.arange(rank)) @ right.T * size


@dataclass(frozen=True, slots=True, kw_only=True)
class PlantedTask:
    """The task, as the benchmark runs it."""

    length: int = 32
    """Tokens of a row."""
    noise_free: bool = False
    """Whether the student sees the teacher's distribution instead of a token drawn from it."""
    held_out_rows: int = 512
    """Rows measured on."""
    targets: str = "all-linear"
    shape: PlantedShape = PlantedShape()
    folder: Path | None = None
    """Where the teacher's tokens are kept from cell to cell; nowhere if None."""
    device: str = "cpu"
    """Where the student and its teacher run; the data are always made on the CPU."""

    name = "planted"
    measure = "KL to the teacher (nats per token)"
    sources = ("planted.py", "rank_tasks.py")

    def settings(self) -> dict[str, Any]:
        """Return all that determines the task."""
        return {"task": self.name, "length": self.length, "noise_free": self.noise_free, "device": self.device,
                "held_out_rows": self.held_out_rows, "targets": self.targets, "shape": asdict(self.shape)}  # fmt: skip

    def prepare(self, seed: int, sizes: Sizes) -> Prepared:
        """Return the seed's model, data and measure."""
        planted = plant(seed, self.shape)
        count = sizes.steps * sizes.batch
        inputs, drawn = self._kept_rows(planted.teacher, seed, count)
        teacher = planted.teacher.to(self.device)
        return Prepared(
            base=planted.base,
            rows=[{"input_ids": x, "labels": x if self.noise_free else y} for x, y in zip(inputs, drawn, strict=True)],
            collate=collate,
            loss=distilled(teacher) if self.noise_free else drawn_tokens,
            measure=lambda model: {"value": divergence(model, teacher, self._held_out(seed))},
            supervised_tokens=count * self.length,
            true_ranks=planted.true_ranks,
        )

    def _kept_rows(self, teacher: Any, seed: int, count: int) -> tuple[Tensor, Tensor]:
        """Return the training rows, from the folder if they were made before."""
        if self.folder is None:
            return self._rows(teacher, seed, count)
        told = json.dumps([asdict(self.shape), self.length, count, torch.__version__])
        file = self.folder / f"planted-{seed}-{hashlib.sha256(told.encode()).hexdigest()[:12]}.pt"
        if not file.is_file():
            self.folder.mkdir(parents=True, exist_ok=True)
            draft = file.with_suffix(f".{random.SystemRandom().randrange(10**9)}")
            torch.save(self._rows(teacher, seed, count), draft)
            draft.replace(file)
        inputs, drawn = torch.load(file)
        return inputs, drawn

    def _rows(self, teacher: Any, seed: int, count: int) -> tuple[Tensor, Tensor]:
        """Return tokens `(count, length)` and, for each, a token that the teacher draws."""
        generator = torch.Generator().manual_seed(7 * seed + 3)
        inputs = self._tokens(count, generator)
        drawn = [
            torch.multinomial(logits.softmax(-1).flatten(0, 1), 1, generator=generator).view(logits.shape[:2])
            for logits in answers(teacher, inputs)
        ]
        return inputs, torch.cat(drawn)

    def _held_out(self, seed: int) -> Tensor:
        return self._tokens(self.held_out_rows, torch.Generator().manual_seed(99_991 + seed))

    def _tokens(self, count: int, generator: torch.Generator) -> Tensor:
        """Return rows of tokens whose frequencies fall by a power, as words' do."""
        odds = torch.arange(1, self.shape.vocabulary + 1).float() ** -0.7
        return torch.multinomial(odds, count * self.length, True, generator=generator).view(count, self.length)


def collate(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return rows of one length as a batch."""
    return {key: torch.stack([row[key] for row in rows]) for key in rows[0]}


def answers(model: Any, inputs: Tensor, at_once: int = 64) -> Iterator[Tensor]:
    """Yield the logits of a few rows at a time, on the model's device."""
    device = next(model.parameters()).device
    for chunk in inputs.split(at_once):
        with torch.no_grad():  # ends before the yield, or it would hold for whoever asks
            logits = model(input_ids=chunk.to(device)).logits.float()
        yield logits


def drawn_tokens(outputs: Any, labels: Tensor, **_: Any) -> Tensor:
    """Return the loss on the tokens that the teacher drew; they stand where the inputs stand, unshifted."""
    return nn.functional.cross_entropy(outputs.logits.flatten(0, 1), labels.flatten())


def distilled(teacher: Any) -> Callable[..., Tensor]:
    """Return the loss against the teacher's distribution, without the noise of a draw; labels are the inputs."""

    def loss(outputs: Any, labels: Tensor, **_: Any) -> Tensor:
        (wanted,) = answers(teacher, labels, len(labels))
        return kl(wanted, outputs.logits)

    return loss


def kl(wanted: Tensor, found: Tensor) -> Tensor:
    """Return the mean over tokens of KL(wanted ‖ found), from logits, in nats."""
    log_wanted, log_found = wanted.log_softmax(-1), found.log_softmax(-1)
    return (log_wanted.exp() * (log_wanted - log_found)).sum(-1).mean()


def divergence(model: Any, teacher: Any, inputs: Tensor) -> float:
    """Return KL(teacher ‖ model) over rows of tokens, in nats per token."""
    was_training = model.training
    model.eval()
    parts = [float(kl(wanted, found)) * len(wanted)
             for wanted, found in zip(answers(teacher, inputs), answers(model, inputs), strict=True)]  # fmt: skip
    model.train(was_training)
    return sum(parts) / len(inputs)
