"""Answers to held-out prompts, by the base and by the adapted model, greedily and in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from ..cards.facts import Sample

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["BATCH_SIZE", "MAX_NEW_TOKENS", "Answer", "Question", "answer_samples", "answers_to", "questions_in"]

MAX_NEW_TOKENS: Final = 40
"""Of a sample that is only looked at."""
BATCH_SIZE: Final = 8


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked, and the real answer."""

    prompt: str
    """As the model sees it."""
    reference: str
    """The real answer."""
    has_specials: bool
    """Whether a chat template has put the special tokens into the prompt already."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model said."""

    text: str
    """Its words."""
    is_cut: bool
    """Whether it had no tokens left to end."""


def answer_samples(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Iterable[Mapping[str, Any]],
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> tuple[Sample, ...]:
    """Return each row's prompt and reference with the greedy answers of the base and of the adapter.

    Args:
        model: The adapted model; the base answers with the adapter switched off.
        tokenizer: The model's tokenizer.
        rows: `prompt` + `completion` or `messages`; plain `text` has no prompt and gives no samples.
        max_new_tokens: Tokens that an answer can have.
    """
    asked = questions_in(rows, tokenizer)
    was_training = model.training
    model.eval()
    try:
        adapted = answers_to(model, tokenizer, asked, max_new_tokens)
        with model.disable_adapter():
            plain = answers_to(model, tokenizer, asked, max_new_tokens)
    finally:
        model.train(was_training)
    return samples_of(asked, plain, adapted)


def samples_of(asked: Sequence[Question], base: Sequence[Answer], adapter: Sequence[Answer]) -> tuple[Sample, ...]:
    """Return questions with both models' answers."""
    return tuple(
        Sample(prompt=question.prompt, reference=question.reference, base=plain.text, adapter=adapted.text)
        for question, plain, adapted in zip(asked, base, adapter, strict=True)
    )


def questions_in(rows: Iterable[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase) -> list[Question]:
    """Return what rows ask: of messages, all before the assistant's last turn; of plain `text`, nothing."""
    return [question for row in rows if (question := _question(row, tokenizer)) is not None]


def _question(row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> Question | None:
    if "messages" in row:
        messages: Sequence[Mapping[str, Any]] = row["messages"]
        last = max(i for i, message in enumerate(messages) if message["role"] == "assistant")
        prompt, reference = messages[:last], messages[last].get("content") or ""
    elif "prompt" not in row:
        return None
    elif isinstance(row["prompt"], str):
        return Question(row["prompt"], row["completion"].strip(), has_specials=False)
    else:
        prompt, reference = row["prompt"], row["completion"][-1].get("content") or ""
    if not prompt:
        return None
    text = tokenizer.apply_chat_template(list(prompt), tokenize=False, add_generation_prompt=True)
    return Question(text, reference.strip(), has_specials=True)


def answers_to(
    model: PeftModel | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    asked: Sequence[Question],
    max_new_tokens: int,
    batch_size: int = BATCH_SIZE,
    tell: Callable[[int], None] = lambda done: None,
) -> list[Answer]:
    """Return a model's greedy answers, in the order of the questions.

    Prompts of similar length share a batch, padded on the left, so that each answer follows its prompt. An answer alone
    and in a batch differ no more than the rounding of the arithmetic makes them.

    Args:
        model: The model, in evaluation mode.
        tokenizer: Its tokenizer.
        asked: The questions.
        max_new_tokens: Tokens that an answer can have.
        batch_size: Questions at once.
        tell: Takes how many are answered, after each batch.
    """
    tokens = [tokenizer(q.prompt, add_special_tokens=not q.has_specials).input_ids for q in asked]
    order = sorted(range(len(asked)), key=lambda index: (-len(tokens[index]), index))
    found: dict[int, Answer] = {}
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        said = _generated(model, tokenizer, [tokens[index] for index in batch], max_new_tokens)
        found |= dict(zip(batch, said, strict=True))
        tell(len(found))
    return [found[index] for index in range(len(asked))]


def _generated(
    model: Any, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Sequence[int]], max_new_tokens: int
) -> list[Answer]:
    """Return the answers to one batch of prompts."""
    import torch

    width = max(map(len, prompts))
    filler = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    filler = 0 if filler is None else filler  # masked, so any token serves
    batch = {
        "input_ids": [[filler] * (width - len(prompt)) + [*prompt] for prompt in prompts],
        "attention_mask": [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts],
    }
    tensors = {name: torch.tensor(rows, device=model.device) for name, rows in batch.items()}
    with torch.no_grad():
        output = model.generate(**tensors, max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=filler)
    ends = model.generation_config.eos_token_id
    ends = {ends} if isinstance(ends, int) else set(ends or ())
    answers = []
    for row in output[:, width:].tolist():
        text: str = tokenizer.decode(row, skip_special_tokens=True)
        answers.append(Answer(text.strip(), is_cut=len(row) == max_new_tokens and not ends & set(row)))
    return answers
