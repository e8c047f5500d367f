"""What an adapter changes: held-out examples answered by the base and by the adapted model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from ..cards.facts import Sample

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase

__all__ = ["answer_samples"]

MAX_NEW_TOKENS = 40


def answer_samples(
    model: PeftModel, tokenizer: PreTrainedTokenizerBase, rows: Iterable[Mapping[str, Any]], most: int
) -> tuple[Sample, ...]:
    """Return the first rows' prompts and references with the greedy answers of the base and of the adapter.

    Args:
        model: The adapted model; the base answers with the adapter switched off.
        tokenizer: The model's tokenizer.
        rows: `messages`, or `prompt` with a `completion`, a `chosen` one or another column that tells the answer; plain
            `text` has no prompt and gives no samples, nor does a completion with the label of a bad one.
        most: How many.
    """
    told = (row for row in rows if row.get("label", True)) if most else ()
    asked = list(islice((pair for row in told if (pair := _question(row, tokenizer)) is not None), most))
    was_training = model.training
    model.eval()
    try:
        adapted = [_answer(model, tokenizer, prompt) for prompt, _ in asked]
        with model.disable_adapter():
            plain = [_answer(model, tokenizer, prompt) for prompt, _ in asked]
    finally:
        model.train(was_training)
    return tuple(
        Sample(prompt=prompt, reference=reference, base=base, adapter=adapter)
        for (prompt, reference), base, adapter in zip(asked, plain, adapted, strict=True)
    )


def _question(row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> tuple[str, str] | None:
    """Return the prompt as the model sees it, and the real answer."""
    if "messages" in row:
        messages: Sequence[Mapping[str, Any]] = row["messages"]
        last = max(i for i, message in enumerate(messages) if message["role"] == "assistant")
        prompt: Any = messages[:last]
        reference = messages[last].get("content") or ""
    elif "prompt" not in row:
        return None
    else:
        prompt, reference = row["prompt"], _text_of(_answer_in(row))
    if isinstance(prompt, str):
        return prompt, reference.strip()
    if not prompt:
        return None
    text = tokenizer.apply_chat_template(list(prompt), tokenize=False, add_generation_prompt=True)
    return text, reference.strip()


def _answer_in(row: Mapping[str, Any]) -> Any:
    """Return what a row with a prompt has for the right answer; nothing where it has only things to be rewarded by."""
    names = [name for name in ("completion", "chosen") if name in row] or [name for name in row if name != "prompt"]
    return row[names[0]] if names else ""


def _text_of(answer: Any) -> str:
    if isinstance(answer, list):
        return str(answer[-1].get("content") or "")
    return str(answer)


def _answer(model: PeftModel, tokenizer: PreTrainedTokenizerBase, prompt: str) -> str:
    import torch

    encoded = tokenizer(prompt, return_tensors="pt").to(model.device)
    settings = {"max_new_tokens": MAX_NEW_TOKENS, "do_sample": False, "pad_token_id": tokenizer.pad_token_id}
    with torch.no_grad():
        output = model.generate(**encoded, **settings)
    start = 0 if getattr(model.config, "is_encoder_decoder", False) else encoded["input_ids"].shape[1]
    answer: str = tokenizer.decode(output[0, start:], skip_special_tokens=True)
    return answer.strip()
