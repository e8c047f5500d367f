"""Examples as tokens and labels, made as TRL's SFTTrainer makes them, and in batches of similar length."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from ..errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

__all__ = ["TokenExample", "batches", "encode_examples", "padded"]

IGNORED: Final = -100
"""Label of a token that the loss does not count."""


@dataclass(frozen=True, slots=True)
class TokenExample:
    """One example."""

    input_ids: tuple[int, ...]
    """Its tokens."""
    labels: tuple[int, ...]
    """The same, and `IGNORED` where a token is no target; the first token never is one."""

    @property
    def supervised(self) -> int:
        """Tokens that the loss counts."""
        return sum(label != IGNORED for label in self.labels[1:])


def encode_examples(
    rows: Iterable[Mapping[str, Any]],
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    max_length: int | None = None,
    assistant_template: Callable[[], str | None] = lambda: None,
) -> list[TokenExample]:
    """Return rows as tokens and labels; a row without a supervised token is left out.

    The rules are those of TRL's SFTTrainer: a completion and a plain text end with the end-of-sequence token, of a
    prompt and its completion the completion counts, of messages all tokens or the assistant's turns.

    Args:
        rows: Rows of `prompt` + `completion`, of `messages`, of `text`, or of `input_ids` and, if they are not all
            tokens, `labels`.
        tokenizer: The model's; not needed for rows of `input_ids`.
        max_length: Tokens to keep of a row, from its start.
        assistant_template: Gives the chat template that marks the assistant's turns, which then alone count; None
            where all turns do. Asked for messages only.

    Raises:
        ConfigError: If a row is in none of these forms, needs a tokenizer, or no row has a supervised token.
    """
    found: list[TokenExample] = []
    marked: str | None = None
    count = 0
    for row in rows:
        if not count and "messages" in row:
            marked = assistant_template()
        count += 1
        tokens, labels = _encoded(row, count, tokenizer, marked)
        example = TokenExample(tuple(tokens[:max_length]), tuple(labels[:max_length]))
        if example.supervised:
            found.append(example)
    if not found:
        raise ConfigError(f"none of {count} rows has a token that the loss counts; give others, or a higher max_length")
    return found


def _encoded(
    row: Mapping[str, Any], number: int, tokenizer: PreTrainedTokenizerBase | None, marked: str | None
) -> tuple[list[int], list[int]]:
    if "input_ids" in row:
        tokens = list(row["input_ids"])
        return tokens, list(row.get("labels", tokens))
    if not {"messages", "text", "prompt"} & set(row):
        found = ", ".join(row)
        raise ConfigError(f"row {number} has {found}; needed prompt and completion, messages, text, or input_ids")
    if tokenizer is None:
        raise ConfigError("the rows are text: give tokenizer=, the one that the model was trained with")
    if "prompt" in row:
        return _prompt_completion(row["prompt"], row["completion"], tokenizer)
    if "messages" in row:
        return _messages(row["messages"], tokenizer, marked)
    tokens = tokenizer(_ended(row["text"], tokenizer)).input_ids
    return tokens, tokens


def _prompt_completion(prompt: Any, completion: Any, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    if isinstance(prompt, str):
        before = tokenizer(prompt).input_ids
        tokens = tokenizer(prompt + _ended(completion, tokenizer)).input_ids
    else:
        before = _chat(tokenizer, list(prompt), add_generation_prompt=True)["input_ids"]
        tokens = _chat(tokenizer, [*prompt, *completion])["input_ids"]
    same = next((i for i, pair in enumerate(zip(before, tokens, strict=False)) if pair[0] != pair[1]), None)
    start = min(len(before), len(tokens)) if same is None else same
    return tokens, [IGNORED] * start + tokens[start:]


def _messages(
    messages: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase, marked: str | None
) -> tuple[list[int], list[int]]:
    if marked is None:
        tokens = _chat(tokenizer, list(messages))["input_ids"]
        return tokens, tokens
    made = _chat(tokenizer, list(messages), chat_template=marked, return_assistant_tokens_mask=True)
    tokens, mask = made["input_ids"], made["assistant_masks"]
    return tokens, [token if counts else IGNORED for token, counts in zip(tokens, mask, strict=True)]


def _chat(tokenizer: PreTrainedTokenizerBase, messages: list[Any], **settings: Any) -> dict[str, list[int]]:
    made: dict[str, list[int]] = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True, **settings)
    return made


def _ended(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    end = tokenizer.eos_token or ""
    return text if text.endswith(end) else text + end


def batches(examples: Sequence[TokenExample], most_tokens: int) -> Iterator[list[int]]:
    """Yield the examples' indices in batches of similar length, each of at most so many tokens, padding included.

    An example with more tokens has a batch of its own.
    """
    batch: list[int] = []
    for index in sorted(range(len(examples)), key=lambda i: (-len(examples[i].input_ids), i)):
        width = len(examples[batch[0] if batch else index].input_ids)
        if batch and (len(batch) + 1) * width > most_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def padded(examples: Sequence[TokenExample], pad_token: int, device: Any = None) -> dict[str, Tensor]:
    """Return `input_ids`, `attention_mask` and `labels`, each `(batch, tokens)`, padded on the right."""
    import torch

    width = max(len(example.input_ids) for example in examples)

    def filled(values: Sequence[int], filler: int) -> list[int]:
        return [*values, *[filler] * (width - len(values))]

    columns = {
        "input_ids": [filled(example.input_ids, pad_token) for example in examples],
        "attention_mask": [filled([1] * len(example.input_ids), 0) for example in examples],
        "labels": [filled(example.labels, IGNORED) for example in examples],
    }
    return {name: torch.tensor(rows, device=device) for name, rows in columns.items()}
