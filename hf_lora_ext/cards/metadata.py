"""The card's metadata block, in the Hub's keys; only what the facts know.

Keys and words: the Hub's model card specification, and the pipeline tags and libraries in `@huggingface/tasks`.
`.eval_results` files are not written: the Hub takes them for its registered benchmarks alone, and what a run measures
here is its own held-out split.
"""

import re
from typing import Any, Final

from .comparisons import METRICS, Comparison
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
_HUB_METRICS: Final = frozenset(
    {"accuracy", "f1", "precision", "recall", "matthews_correlation", "perplexity", "rouge", "bleu", "exact_match"}
)
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
        "metrics": _metrics(facts),
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


def _metrics(facts: Facts) -> list[str]:
    """Return the measured metrics that have a page on the Hub, each once."""
    trained = facts.evaluation.get("adapter", {})
    compared = [METRICS[row.metric].hub for one in facts.comparisons for row in one.measured]
    return [name for name in dict.fromkeys([*trained, *compared]) if name in _HUB_METRICS]


def measured_again(facts: Facts) -> frozenset[str]:
    """Return the words of what a comparison measured on the rows that the trainer measured on too."""
    seen = facts.data.eval_fingerprint if facts.data else None
    same = [one for one in facts.comparisons if seen is not None and one.fingerprint == seen]
    return frozenset(METRICS[row.metric].words for one in same for row in one.measured)


def _model_index(facts: Facts) -> list[dict[str, Any]] | None:
    """Return the adapter's values; the base's, and the intervals, stand in the card's tables.

    Of rows that it was trained on there is no entry: a figure without its warning would be taken for a held-out one.
    """
    task = PIPELINE_TAGS.get(str(facts.adapter.get("task_type")))
    data, again = facts.data, measured_again(facts)
    if not (task and data):
        return None
    revision = {"revision": data.revision} if data.revision and is_hub_data(facts) else {}
    found: dict[str, tuple[dict[str, Any], dict[str, dict[str, Any]]]] = {}
    held_out = {"name": f"{data.name}, held-out examples", "type": data.name, **revision}
    for name, value in facts.evaluation.get("adapter", {}).items():
        if name not in again:
            entry = {"type": name.replace(" ", "_"), "value": value, "name": f"Held-out {name}"}
            found.setdefault(held_out["name"], (held_out, {}))[1][name] = entry
    for one in facts.comparisons:
        whole = one.fingerprint == data.eval_fingerprint
        dataset = held_out if whole else {"name": f"{one.data}, {one.examples} examples", "type": one.data}
        if not one.trained_on:
            found.setdefault(dataset["name"], (dataset, {}))[1].update(_entries(one))
    results = [
        {"task": {"type": task}, "dataset": dataset, "metrics": [*entries.values()]}
        for dataset, entries in found.values()
    ]
    return [{"name": card_title(facts), "results": results}] if results else None


def _entries(one: Comparison) -> dict[str, dict[str, Any]]:
    """Return metric → its entry; what is measured later on the same rows takes its place."""
    before = "Held-out " if one.held_out else ""
    named = [(METRICS[row.metric], row.adapter) for row in one.measured]
    return {
        metric.words: {"type": metric.hub, "value": value, "name": f"{before}{metric.words}"} for metric, value in named
    }
