"""The code on a card that runs the adapter, as pasted.

Foreign names stand in it as Python literals, so that none of them can be more than a text.
"""

from typing import Any, Final

from .facts import Facts

__all__ = ["usage_code"]

_LOADERS: Final = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "FEATURE_EXTRACTION": "AutoModel",
}
"""PEFT's task type → the class that loads its base."""
_QUANTIZATION_KEYS: Final = (
    *("load_in_4bit", "load_in_8bit", "bnb_4bit_quant_type", "bnb_4bit_use_double_quant", "bnb_4bit_compute_dtype"),
)
LONGEST_PROMPT: Final = 600
"""Characters of a held-out example that the snippet may show."""


def usage_code(facts: Facts) -> str | None:
    """Return Python that loads the base and the adapter and asks it something; None where the base has no Hub id."""
    base = facts.base_model
    loader = _LOADERS.get(str(facts.adapter.get("task_type")))
    if base is None or not base.on_hub or loader is None:
        return None
    quantization = _quantization(facts)
    names = [loader, "AutoTokenizer", *(["BitsAndBytesConfig"] if quantization else [])]
    lines = ["import torch"] if loader == _LOADERS["SEQ_CLS"] else []
    lines += ["from peft import PeftModel", f"from transformers import {', '.join(names)}", ""]
    lines += [
        f"adapter = {_literal(facts.repo_id)}" if facts.repo_id else 'adapter = "."  # the folder that this card is in'
    ]
    if quantization:
        lines.append(f"quantization = BitsAndBytesConfig({_arguments(quantization)})")
    lines += [
        f"base = {loader}.from_pretrained({_base_arguments(facts, bool(quantization))})",
        "model = PeftModel.from_pretrained(base, adapter).eval()",
        "tokenizer = AutoTokenizer.from_pretrained(adapter)",
    ]
    return "\n".join([*lines, *_question(facts, loader)])


def _literal(value: Any) -> str:
    """Return a value as Python writes it, in double quotes where they need no escape."""
    written = repr(value)
    return f'"{written[1:-1]}"' if written.startswith("'") and '"' not in written else written


def _text_lines(prompt: str) -> list[str]:
    """Return the assignment of a prompt, a line of code for each of its lines."""
    parts = prompt.splitlines(keepends=True)
    if len(parts) < 2:
        return [f"text = {_literal(prompt)}"]
    return ["text = (", *(f"    {_literal(part)}" for part in parts), ")"]


def _arguments(given: dict[str, Any]) -> str:
    return ", ".join(f"{name}={_literal(value)}" for name, value in given.items())


def _base_arguments(facts: Facts, is_quantized: bool) -> str:
    base, labels = facts.base_model, facts.adapter.get("labels")
    assert base is not None
    given: dict[str, Any] = {"revision": base.revision} if base.revision else {}
    if labels:
        given["id2label"] = dict(enumerate(labels))
    elif _is_reward_model(facts):
        given["num_labels"] = 1
    named = f", {_arguments(given)}" if given else ""
    return f"{_literal(base.name)}{named}{', quantization_config=quantization' if is_quantized else ''}"


def _quantization(facts: Facts) -> dict[str, Any]:
    """Return how bitsandbytes held the base while it trained, so that it answers as it did then."""
    told = facts.quantization
    if not (told.get("load_in_4bit") or told.get("load_in_8bit")):
        return {}
    wanted = {key: told[key] for key in _QUANTIZATION_KEYS if key in told}
    return wanted if told.get("load_in_4bit") else {"load_in_8bit": True}


def _is_reward_model(facts: Facts) -> bool:
    """Return whether it gives a text a number."""
    return facts.run.get("method") == "reward"


def _question(facts: Facts, loader: str) -> list[str]:
    """Return the lines that ask: the first held-out example where it is known, else a plain text."""
    first = facts.samples[0].prompt if facts.samples else ""
    prompt = first if 0 < len(first) <= LONGEST_PROMPT else "Hello"
    if loader == _LOADERS["SEQ_CLS"]:
        return ["", *(_SCORES if _is_reward_model(facts) else _label(prompt))]
    if loader != _LOADERS["CAUSAL_LM"]:
        return []
    if facts.data is not None and facts.data.form == "messages" and not first:
        ask = [
            'messages = [{"role": "user", "content": "Hello"}]',
            "text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)",
        ]
    else:
        ask = _text_lines(prompt)
    return [
        "",
        *ask,
        'inputs = tokenizer(text, return_tensors="pt").to(model.device)',
        "output = model.generate(**inputs, max_new_tokens=40, do_sample=False)",
        'print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))',
    ]


def _label(text: str) -> list[str]:
    """Return the lines that ask which label a text has."""
    return [
        f'inputs = tokenizer({_literal(text)}, return_tensors="pt").to(model.device)',
        "with torch.no_grad():",
        "    best = model(**inputs).logits[0].argmax().item()",
        "print(base.config.id2label[best])",
    ]


_SCORES: Final = (
    'prompt = "What is the capital of France?\\n"',
    'for answer in ("Paris.", "A fish."):',
    "    text = prompt + answer + tokenizer.eos_token",
    '    inputs = tokenizer(text, return_tensors="pt").to(model.device)',
    "    with torch.no_grad():",
    "        score = model(**inputs).logits[0].item()",
    '    print(f"{score:.3f}  {answer}")  # higher is better, for answers to the same prompt',
)
"""The lines that score two answers, each with the token that TRL's RewardTrainer ends a text with."""
