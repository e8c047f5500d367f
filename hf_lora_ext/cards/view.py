"""What a card's template is given: the facts, and what is worked out from them."""

from collections.abc import Mapping
from typing import Any, Final

from ..strict_yaml import dump_yaml
from .comparisons import METRICS
from .facts import Facts
from .layer_ranks import module_and_layer, ranks_by_module
from .licences import LICENCE_TERMS
from .markdown import cell, code, hub_link, inline
from .metadata import adapter_kind, card_metadata, card_title, is_hub_data, measured_again, training_method
from .usage import usage_code

__all__ = ["card_view"]

_SHAPING: Final = (
    *("learning_rate", "lr_scheduler_type", "warmup_steps", "warmup_ratio", "num_train_epochs", "max_steps"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "optim", "adam_beta1", "adam_beta2"),
    *("adam_epsilon", "weight_decay", "max_grad_norm", "max_length", "packing", "assistant_only_loss"),
    *("num_generations", "max_completion_length", "temperature"),
    *("completion_only_loss", "beta", "loss_type", "label_smoothing_factor", "neftune_noise_alpha", "bf16", "fp16"),
    *("seed", "data_seed"),
)
"""What a reader looks for first, in this order; the rest of the training arguments is folded away."""
_METHODS: Final = {
    "sft": "supervised fine-tuning",
    "dpo": "direct preference optimisation",
    "kto": "Kahneman-Tversky optimisation",
    "grpo": "group relative policy optimisation",
    "rloo": "REINFORCE leave-one-out",
    "classification": "supervised classification",
    "seq2seq": "supervised sequence-to-sequence fine-tuning",
    "reward": "reward modelling",
}
_SWITCHES: Final = {"use_rslora": "rank-stabilised scale (rsLoRA)", "use_dora": "DoRA", "bias": "biases trained"}
"""PEFT's field → what a card calls it, shown where it is on."""
_SETTINGS: Final = {"modules_to_save": "modules trained whole", "target_parameters": "target parameters"}
_UNITS: Final = {"_gib": "GiB", "_seconds": "s", "_kwh": "kWh"}
_SHOWN_APART: Final = frozenset({"config", "layer_ranks", "labels", "ranks"})
_TOLD_ELSEWHERE: Final = frozenset({"method", "examples_per_step", "emissions"})


def card_view(facts: Facts) -> dict[str, Any]:
    """Return the template's variables; texts among them that are Markdown already are `summary` and `metadata`."""
    given = facts.hyperparameters
    return {
        "facts": facts,
        "metadata": dump_yaml(card_metadata(facts)),
        "title": card_title(facts),
        "summary": _summary(facts),
        "data_is_on_hub": is_hub_data(facts),
        "usage": usage_code(facts),
        "terms": LICENCE_TERMS.get((facts.base_model.license if facts.base_model else None) or ""),
        "ranks": ranks_by_module(facts.adapter.get("layer_ranks", {})),
        "adapter_rows": _adapter_rows(facts),
        "shaping": {name: given[name] for name in _SHAPING if name in given},
        "other_arguments": {name: value for name, value in given.items() if name not in _SHAPING},
        "evaluation": _comparison(facts),
        "comparisons": facts.comparisons,
        "metric_words": {name: metric.words for name, metric in METRICS.items()},
        "losses": _losses(facts),
        "curve": "Reward" if any({"reward", "eval_reward"} & row.keys() for row in facts.loss_history) else "Loss",
        "run_rows": _run_rows(facts),
    }


def _summary(facts: Facts) -> str:
    """Return what the adapter is, in a sentence of Markdown."""
    base, data, run, kind = facts.base_model, facts.data, facts.run, adapter_kind(facts)
    ranks, rank = facts.adapter.get("ranks"), facts.adapter.get("rank")
    words = f"A rank-{inline(rank)} {kind} adapter" if rank is not None and ranks is None else f"A {kind} adapter"
    words += f" with ranks of {inline(ranks)} from layer to layer" if ranks is not None else ""
    if base:
        words += f" for {hub_link(base.name) if base.on_hub else code(base.name)}"
    method = training_method(facts)
    if method or data:
        words += ", trained" + (f" by {inline(_METHODS.get(method, method.upper()))}" if method else "")
    if "steps" in run and (method or data):
        epochs = f" ({cell(run['epochs'])} epochs)" if "epochs" in run else ""
        words += f" for {cell(run['steps'])} steps{epochs}"
    if data:
        name = hub_link(data.name, "datasets/") if is_hub_data(facts) else code(data.name)
        words += f" on {name} ({cell(data.train_examples)} examples)"
    if isinstance(cut := facts.adapter.get("compressed_from"), Mapping) and "trainable_parameters" in facts.adapter:
        left, whole = cell(facts.adapter["trainable_parameters"]), cell(cut.get("parameters"))
        words += f", and then cut to {left} of its {whole} parameters"
    return f"{words}. It is an ordinary PEFT adapter and loads without the library that made it."


def _adapter_rows(facts: Facts) -> list[tuple[str, Any]]:
    adapter, base = _briefly(facts.adapter), facts.base_model
    config = adapter.get("config", {})
    rows = [row for key, value in adapter.items() if key not in _SHOWN_APART for row in _rows(key, value)]
    rows += [(name, config[key]) for key, name in _SWITCHES.items() if config.get(key) not in (None, False, "none")]
    rows += [(name, config[key]) for key, name in _SETTINGS.items() if config.get(key)]
    if isinstance(start := config.get("init_lora_weights"), str):
        rows.append(("initialisation", start))
    if base and base.parameters and "trainable_parameters" in adapter:
        share = 100 * adapter["trainable_parameters"] / base.parameters
        rows.append(("share of the base's parameters", f"{share:.3g} %"))
    return rows


def _briefly(adapter: Mapping[str, Any]) -> dict[str, Any]:
    """Return an adapter's facts with kinds of modules in place of every module's full name.

    Where ranks differ, peft's own `r` and `lora_alpha` are those of the widest layer and say little: the range and the
    mean stand in their place, and alpha as a share of the rank where all layers have one.
    """
    brief, config = dict(adapter), adapter.get("config", {})
    if isinstance(targets := adapter.get("targets"), (list, tuple)):
        brief["targets"] = sorted({module_and_layer(str(name))[0] for name in targets})
    if "ranks" not in adapter:
        return brief
    own = list(adapter.get("layer_ranks", {}).values())
    brief["rank"] = f"{adapter['ranks']}{f', {sum(own) / len(own):.1f} on average' if own else ''}"
    wide, alphas = config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}
    scales = {round(alpha / wide[name], 6) for name, alpha in alphas.items() if wide.get(name)}
    brief.pop("alpha", None)
    return brief | ({"alpha / rank": f"{scales.pop():g}"} if len(scales) == 1 else {})


def _run_rows(facts: Facts) -> list[tuple[str, Any]]:
    told = {**facts.run, **facts.environment.get("hardware", {})}
    rows = [row for key, value in told.items() if key not in _TOLD_ELSEWHERE for row in _rows(key, value)]
    measured = facts.run.get("emissions")
    if measured and "energy_kwh" in measured:
        place = f" ({measured['country']})" if "country" in measured else ""
        grams = f", {measured['grams']:.4g} g CO2eq{place}" if "grams" in measured else ""
        rows.append((f"energy, by {measured.get('source')}", f"{measured['energy_kwh']:.4g} kWh{grams}"))
    if versions := facts.environment.get("versions"):
        rows.append(("versions", [f"{name} {version}" for name, version in versions.items()]))
    return rows


def _rows(key: str, value: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """Return a fact as rows of name and value, its unit with the value."""
    if isinstance(value, Mapping):
        return [row for k, v in value.items() for row in _rows(str(k), v, f"{prefix}{key} ")]
    if key == "bytes" and isinstance(value, int):
        return [(f"{prefix}size", f"{value / 2**20:.1f} MiB")]
    for ending, unit in _UNITS.items():
        if key.endswith(ending):
            name = "training time" if key == "train_seconds" else f"{prefix}{key.removesuffix(ending)}"
            return [(name.replace("_", " "), f"{value} {unit}")]
    return [(f"{prefix}{key}".replace("_", " "), value)]


def _comparison(facts: Facts) -> list[tuple[str, float | None, float | None]]:
    """Return metric, base's value and adapter's value, None where one was not measured.

    What was measured again on the same rows, with its interval, stands in the comparison instead.
    """
    base, adapter = facts.evaluation.get("base", {}), facts.evaluation.get("adapter", {})
    again = measured_again(facts)
    return [(metric, base.get(metric), adapter.get(metric)) for metric in {**base, **adapter} if metric not in again]


def _losses(facts: Facts) -> dict[str, tuple[Mapping[str, float], Mapping[str, float]]]:
    """Return `training` and `held-out` → first and last row of the loss history, or of the rewards in its place."""
    found: dict[str, tuple[Mapping[str, float], Mapping[str, float]]] = {}
    for name, keys in (("training", ("loss", "reward")), ("held-out", ("eval_loss", "eval_reward"))):
        told = ((row, row.get(key)) for row in facts.loss_history for key in keys)
        rows = [{"step": row["step"], "value": value} for row, value in told if value is not None]
        if rows:
            found[name] = (rows[0], rows[-1])
    return found
