"""What an adapter changes: held-out examples answered by the base and by the adapted model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..cards.facts import Sample

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase

__all__ = ["answer_samples"]

MAX_NEW_TOKENS = 40


def answer_samples(
    model: PeftModel, tokenizer: PreTrainedTokenizerBase, rows: Iterable[Mapping[str, Any]]
) -> tuple[Sample, ...]:
    """Return each row's prompt and reference with the greedy answers of the base and of the adapter.

    Args:
        model: The adapted model; the base answers with the adapter switched off.
        tokenizer: The model's tokenizer.
        rows: `prompt` + `completion` or `messages`; plain `text` has no prompt and gives no samples.
    """
    asked = [pair for row in rows if (pair := _question(row, tokenizer)) is not None]
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
        prompt, reference = messages[:last], messages[last].get("content") or ""
    elif "prompt" not in row:
        return None
    elif isinstance(row["prompt"], str):
        return row["prompt"], row["completion"].strip()
    else:
        prompt, reference = row["prompt"], row["completion"][-1].get("content") or ""
    if not prompt:
        return None
    text = tokenizer.apply_chat_template(list(prompt), tokenize=False, add_generation_prompt=True)
    return text, reference.strip()


def _answer(model: PeftModel, tokenizer: PreTrainedTokenizerBase, prompt: str) -> str:
    import torch

    encoded = tokenizer(prompt, return_tensors="pt").to(model.device)
    settings = {"max_new_tokens": MAX_NEW_TOKENS, "do_sample": False, "pad_token_id": tokenizer.pad_token_id}
    with torch.no_grad():
        output = model.generate(**encoded, **settings)
    answer: str = tokenizer.decode(output[0, encoded["input_ids"].shape[1] :], skip_special_tokens=True)
    return answer.strip()
