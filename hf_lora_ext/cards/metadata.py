"""The card's metadata block, in the Hub's keys; only what the facts know.

Keys and words: the Hub's model card specification, and the pipeline tags and libraries in `@huggingface/tasks`.
`.eval_results` files are not written: the Hub takes them for its registered benchmarks alone, and what a run measures
here is its own held-out split.
"""

import re
from typing import Any, Final

from .facts import Facts
from .markdown import flat

__all__ = ["LANGUAGE", "PIPELINE_TAGS", "adapter_kind", "card_metadata", "card_title"]

PIPELINE_TAGS: Final = {
    "CAUSAL_LM": "text-generation",
    "SEQ_CLS": "text-classification",
    "TOKEN_CLS": "token-classification",
    "QUESTION_ANS": "question-answering",
    "FEATURE_EXTRACTION": "feature-extraction",
}
"""PEFT's task type → the Hub's tag; a sequence-to-sequence model's task cannot be told from its type."""
LANGUAGE: Final = re.compile(r"[a-z]{2,3}|code|multilingual")
"""What the Hub takes as a language: ISO 639 codes of two or three letters, and two words."""
_NOT_TRL: Final = frozenset({"classification", "seq2seq"})
"""Methods of transformers' own trainers."""
_METHOD_TAGS: Final = {"reward": "reward-trainer"}
"""Trainer's method → trl's own tag for it, where that is another word."""
_HUB_METRICS: Final = {"accuracy", "f1", "precision", "recall", "matthews_correlation", "perplexity", "rouge", "bleu"}
"""Metrics with a page on the Hub; a loss has none."""


def adapter_kind(facts: Facts) -> str:
    """Return the adapter's kind as people write it: LoRA, QLoRA, or PEFT's own word for another kind.

    >>> adapter_kind(Facts(quantization={"load_in_4bit": True}))
    'QLoRA'
    """
    kind = str(facts.adapter.get("kind", "LORA"))
    if kind != "LORA":
        return {"PREFIX_TUNING": "prefix-tuning", "ADALORA": "AdaLoRA"}.get(kind, kind)
    return "QLoRA" if facts.quantization else "LoRA"


def card_title(facts: Facts) -> str:
    """Return what the card and the evaluation's entry are called."""
    if facts.repo_id:
        return facts.repo_id.rpartition("/")[2]
    return f"{adapter_kind(facts)} adapter" + (f" for {facts.base_model.name}" if facts.base_model else "")


def training_method(facts: Facts) -> str | None:
    """Return what the trainer did; a recipe whose facts do not say it is of a time when there was SFT alone."""
    return facts.run.get("method") or ("sft" if facts.recipe else None)


def card_metadata(facts: Facts) -> dict[str, Any]:
    """Return the card's metadata block."""
    base, data, stated = facts.base_model, facts.data, facts.stated
    on_hub = base is not None and base.on_hub
    metadata: dict[str, Any] = {
        "library_name": "peft",
        "pipeline_tag": PIPELINE_TAGS.get(str(facts.adapter.get("task_type"))),
        "license": base.license if base else None,
        "license_name": base.license_name if base and base.license == "other" else None,
        "license_link": base.license_link if base and base.license == "other" else None,
        "language": list(stated.language) if stated else None,
        "base_model": base.name if base and on_hub else None,
        "base_model_relation": "adapter" if on_hub else None,
        "datasets": [data.name] if data and is_hub_data(facts) else None,
        "tags": _tags(facts),
        "metrics": [name for name in facts.evaluation.get("adapter", {}) if name in _HUB_METRICS],
        "co2_eq_emissions": _emissions(facts),
        "model-index": _model_index(facts),
    }
    return {key: _one_line(value) for key, value in metadata.items() if value not in (None, [])}


def _one_line(value: Any) -> Any:
    """Return a value with each text on one line: YAML's readers differ in what a line's end is."""
    if isinstance(value, dict):
        return {key: _one_line(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_one_line(item) for item in value]
    return flat(value) if isinstance(value, str) else value


def is_hub_data(facts: Facts) -> bool:
    """Return whether the data is known to be on the Hub: it was loaded from there, at a revision."""
    data = facts.data
    return data is not None and (data.on_hub if data.on_hub is not None else data.revision is not None)


def _tags(facts: Facts) -> list[str]:
    base, method = facts.base_model, training_method(facts)
    kind = str(facts.adapter.get("kind", "LORA")).lower()
    tags = ["hf_lora_ext", kind, *(["qlora"] if facts.quantization and kind == "lora" else []), "transformers"]
    if method and method not in _NOT_TRL:
        tags += ["trl", _METHOD_TAGS.get(method, method)]
    tags.append("generated_from_trainer")
    return tags + ([f"base_model:adapter:{base.name}"] if base and base.on_hub else [])


def _emissions(facts: Facts) -> dict[str, Any] | None:
    measured = facts.run.get("emissions")
    if not isinstance(measured, dict) or "grams" not in measured:
        return None
    found = {
        "emissions": measured["grams"],
        "source": measured.get("source"),
        "training_type": "fine-tuning",
        "geographical_location": measured.get("country"),
        "hardware_used": facts.environment.get("hardware", {}).get("device"),
    }
    return {key: value for key, value in found.items() if value is not None}


def _model_index(facts: Facts) -> list[dict[str, Any]] | None:
    """Return the adapter's values on the held-out examples; the base's stand in the card's table."""
    task = PIPELINE_TAGS.get(str(facts.adapter.get("task_type")))
    data, values = facts.data, facts.evaluation.get("adapter", {})
    if not (task and data and values):
        return None
    dataset = {
        "name": f"{data.name}, held-out examples",
        "type": data.name,
        "revision": data.revision if is_hub_data(facts) else None,
    }
    result = {
        "task": {"type": task},
        "dataset": {key: value for key, value in dataset.items() if value is not None},
        "metrics": [
            {"type": name.replace(" ", "_"), "value": value, "name": f"Held-out {name}"}
            for name, value in values.items()
        ],
    }
    return [{"name": card_title(facts), "results": [result]}]
