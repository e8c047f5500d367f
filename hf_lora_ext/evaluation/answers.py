"""Answers to held-out prompts, by the base and by the adapted model, greedily and in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
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
    most: int | None = None,
) -> tuple[Sample, ...]:
    """Return rows' prompts and references with the greedy answers of the base and of the adapter.

    Args:
        model: The adapted model; the base answers with the adapter switched off.
        tokenizer: The model's tokenizer.
        rows: As `questions_in` takes them.
        max_new_tokens: Tokens that an answer can have.
        most: Samples at most, of the first rows that ask something; None for all.
    """
    asked = questions_in(rows, tokenizer, most)
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


def questions_in(
    rows: Iterable[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase, most: int | None = None
) -> list[Question]:
    """Return what rows ask: of messages, all before the assistant's last turn; of plain `text`, nothing.

    Args:
        rows: `messages`, or `prompt` with a `completion`, a `chosen` one or another column that tells the answer. A
            completion with the label of a bad one is no answer, and its row asks nothing.
        tokenizer: The model's tokenizer.
        most: Questions at most, of the first rows that ask; None for all.
    """
    asked = (question for row in rows if (question := _question(row, tokenizer)) is not None)
    return list(islice(asked, most))


def _question(row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> Question | None:
    if "messages" in row:
        messages: Sequence[Mapping[str, Any]] = row["messages"]
        last = max(i for i, message in enumerate(messages) if message["role"] == "assistant")
        prompt: Any = messages[:last]
        reference = messages[last].get("content") or ""
    elif "prompt" not in row or not row.get("label", True):
        return None
    else:
        prompt, reference = row["prompt"], _text_of(_answer_in(row))
    if isinstance(prompt, str):
        return Question(prompt, reference.strip(), has_specials=False)
    if not prompt:
        return None
    text = tokenizer.apply_chat_template(list(prompt), tokenize=False, add_generation_prompt=True)
    return Question(text, reference.strip(), has_specials=True)


def _answer_in(row: Mapping[str, Any]) -> Any:
    """Return what a row with a prompt has for the right answer; nothing where it has only things to be rewarded by."""
    names = [name for name in ("completion", "chosen") if name in row] or [name for name in row if name != "prompt"]
    return row[names[0]] if names else ""


def _text_of(answer: Any) -> str:
    if isinstance(answer, list):
        return str(answer[-1].get("content") or "")
    return str(answer)


def answers_to(
    model: PeftModel | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    asked: Sequence[Question],
    max_new_tokens: int,
    batch_size: int = BATCH_SIZE,
    tell: Callable[[int], None] = lambda done: None,
) -> list[Answer]:
    """Return a model's greedy answers, in the order of the questions.

    Prompts of similar length share a batch, padded on the left, so that each answer follows its prompt; an
    encoder-decoder's answer stands alone, and its prompts begin at the left. An answer alone and in a batch differ no
    more than the rounding of the arithmetic makes them.

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
    stands_alone = bool(getattr(model.config, "is_encoder_decoder", False))

    def padded(row: Sequence[int], gap: Sequence[int]) -> list[int]:
        return [*row, *gap] if stands_alone else [*gap, *row]

    batch = {
        "input_ids": [padded(prompt, [filler] * (width - len(prompt))) for prompt in prompts],
        "attention_mask": [padded([1] * len(prompt), [0] * (width - len(prompt))) for prompt in prompts],
    }
    tensors = {name: torch.tensor(rows, device=model.device) for name, rows in batch.items()}
    with torch.no_grad():
        output = model.generate(**tensors, max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=filler)
    ends = model.generation_config.eos_token_id
    ends = {ends} if isinstance(ends, int) else set(ends or ())
    answers = []
    for row in output[:, 1 if stands_alone else width :].tolist():  # after the decoder's start, or after the prompt
        text: str = tokenizer.decode(row, skip_special_tokens=True)
        answers.append(Answer(text.strip(), is_cut=len(row) == max_new_tokens and not ends & set(row)))
    return answers
