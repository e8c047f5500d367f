"""Families with a closed form: a model's shape, and what LoRA adapts in it, from its config alone, without torch.

`decoders` has the gated decoders, `older_families` the rest. Every form is exact for the installed transformers:
tests hold it against the model that transformers builds on the meta device.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

from .blocks import Dimensions, Parts
from .decoders import DECODERS, GatedDecoder
from .older_families import OLDER_FAMILIES, OlderFamily
from .sizes import ModelShape, Packed

__all__ = ["FAMILIES", "expert_targets", "language_config", "linear_targets", "shape_from_config", "stored_packing"]

FAMILIES: Final[Mapping[str, GatedDecoder | OlderFamily]] = {**DECODERS, **OLDER_FAMILIES}
"""`model_type` → its closed form."""

_LANGUAGE_PARTS: Final = {"gemma3": {"model_type": "gemma3_text"}}
"""Multimodal `model_type` → what its language part's config leaves out."""


def shape_from_config(config: Mapping[str, Any], source: str = "config") -> ModelShape | None:
    """Return a model's shape from its config alone, or None where no closed form is known.

    A multimodal config is sized by its language part.

    >>> shape_from_config({"model_type": "gpt2"}).parameters
    124439808

    Args:
        config: A config as in `config.json` (`PretrainedConfig.to_dict()`); keys that equal the config class's
            defaults may be absent.
        source: Where the config came from, for `ModelShape.source`.

    Raises:
        ConfigError: If a known family's config has a dimension that cannot be.
    """
    if (inner := language_config(config)) is not None:
        return shape_from_config(inner, f"{source}, language part of a {config.get('model_type')} model")
    name = config.get("model_type")
    family = FAMILIES.get(name) if isinstance(name, str) else None
    if family is None or name is None or config.get("add_cross_attention"):
        return None
    dimensions = Dimensions(config, family.defaults, name)
    return _shape(dimensions, family, family.parts(dimensions), f"{source} ({name}, exact)")


def language_config(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the config of a multimodal model's language part, or None for a model of text alone."""
    inner = config.get("text_config")
    if not isinstance(inner, Mapping):
        return None
    # The head is tied or not by the outer config, which is the one that transformers reads.
    outer = {key: config[key] for key in ("tie_word_embeddings", "quantization_config") if key in config}
    return {**_LANGUAGE_PARTS.get(str(config.get("model_type")), {}), **inner, **outer}


def stored_packing(config: Mapping[str, Any]) -> Packed | None:
    """Return how a checkpoint's weights are quantised already, or None where they are not, or in a way unknown here.

    GPTQ and AWQ, and AutoRound in their formats, have 4 bits a weight with group scales (arXiv 2210.17323, 2306.00978).

    >>> stored_packing({"quantization_config": {"quant_method": "awq", "bits": 4}})
    'gptq'
    """
    found = config.get("quantization_config")
    if not isinstance(found, Mapping):
        return None
    method = str(getattr(found.get("quant_method"), "value", found.get("quant_method")))
    if method == "bitsandbytes":
        return "int8" if found.get("load_in_8bit") else "nf4"
    return "gptq" if method in ("gptq", "awq", "auto-round") and found.get("bits") == 4 else None


def _shape(config: Dimensions, family: GatedDecoder | OlderFamily, parts: Parts, source: str) -> ModelShape:
    fields = {
        "layers": config.layers,
        "hidden": config.hidden,
        "heads": config.heads,
        "key_value_heads": config.key_value_heads,
        "head_dim": config.head_dim,
        "intermediate": config["intermediate_size"],
        "vocabulary": config.size("vocab_size"),
        "tied": config.is_on("tie_word_embeddings"),
        "max_positions": config["max_position_embeddings"],
        "sliding_window": config["sliding_window"],
        **parts.differs,
    }
    return ModelShape(
        parameters=parts.parameters,
        source=source,
        family=config.family,
        counted_as=family.counted_as,
        linear=tuple(parts.linear),
        expert_weights=tuple(parts.experts),
        **fields,
    )


def linear_targets(shape: ModelShape) -> tuple[str, ...] | None:
    """Return the ends of the names of all linear layers in a model's blocks, as peft's `target_modules` takes them.

    Never the output head, a router or a gate. None for a family that is not known here: then use `all-linear`. For
    mixtures of experts these and `expert_targets` are safer than `all-linear`, with which peft trains routers too.

    >>> linear_targets(shape_from_config({"model_type": "phi3"}))
    ('down_proj', 'gate_up_proj', 'o_proj', 'qkv_proj')
    """
    if shape.family not in FAMILIES or not shape.linear:
        return None
    kinds = Counter(x.name for x in shape.linear)  # a last part that several kinds share needs its path
    return tuple(sorted(x.path if kinds[x.name] > 1 else x.name for x in shape.linear if x.is_target))


def expert_targets(shape: ModelShape) -> tuple[str, ...] | None:
    """Return the names of the experts' weights, as peft's `target_parameters` takes them; empty without experts.

    None for a family that is not known here.
    """
    return tuple(sorted(x.name for x in shape.expert_weights)) if shape.family in FAMILIES else None
