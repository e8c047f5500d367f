"""Where a shape comes from when a family has no closed form: the meta device, the stored weights, the dimensions.

Each answers with a shape whose `source` says how it was found, or with None. Code from a model's repository is
never run (`trust_remote_code`).
"""

import json
from collections import Counter
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any, Final

from ..errors import ConfigError
from .blocks import Dimensions
from .decoders import DECODERS
from .families import language_config
from .sizes import ExpertWeights, LinearLayer, ModelShape

__all__ = [
    "shape_from_dimensions",
    "shape_from_folder",
    "shape_from_index",
    "shape_from_tensors",
    "shape_on_meta_device",
]

_BYTES: Final = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1}
"""Stored dtypes in which one element is one parameter."""
_BUFFERS: Final = {"I64", "BOOL"}
"""Dtypes of what is stored beside parameters, such as position ids; any other holds packed weights."""
_CONFIG_BYTES: Final = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}


def shape_on_meta_device(config: Mapping[str, Any], source: str) -> ModelShape | None:
    """Return the shape of the model that transformers builds without memory, or None if it knows no such model."""
    from transformers import CONFIG_MAPPING

    family = config.get("model_type")
    if family not in CONFIG_MAPPING:
        return None
    # Packed weights would miscount, and a repository's own code is not wanted.
    plain = {key: value for key, value in config.items() if key not in {"quantization_config", "auto_map"}}
    settings = CONFIG_MAPPING[family].from_dict(plain)
    inner = settings.get_text_config() if language_config(config) is not None else settings
    said = f"{source} ({family}, counted on the meta device)"
    if inner is not settings:
        said = f"{source}, language part of a {family} model ({inner.model_type}, counted on the meta device)"
    built = _built(inner, _auto_classes(config))
    if built is None:
        return None
    model, auto_class = built
    return _measured(model, inner, said, auto_class)


def _auto_classes(config: Mapping[str, Any]) -> list[str]:
    """Return the auto classes to try, the most natural first."""
    causal, masked, both = "AutoModelForCausalLM", "AutoModelForMaskedLM", "AutoModelForSeq2SeqLM"
    architectures = config.get("architectures") or []
    if config.get("is_encoder_decoder"):
        return [both, causal]
    if any(str(name).endswith("ForMaskedLM") for name in architectures):
        return [masked, causal]
    return [causal, masked, both]


def _built(settings: Any, auto_classes: list[str]) -> tuple[Any, str] | None:
    import torch
    import transformers

    for name in auto_classes:
        try:
            with torch.device("meta"):
                model = getattr(transformers, name).from_config(settings, trust_remote_code=False)
        except ValueError:  # the family has no such model
            continue
        model.tie_weights()
        return model, name
    return None


def _measured(model: Any, settings: Any, source: str, auto_class: str) -> ModelShape:
    experts = _expert_weights(model)
    heads, hidden = _number(settings, "num_attention_heads"), _number(settings, "hidden_size")
    return ModelShape(
        parameters=sum(p.numel() for p in model.parameters()),
        source=source,
        family=settings.model_type,
        counted_as=auto_class,
        layers=_number(settings, "num_hidden_layers"),
        hidden=hidden,
        heads=heads,
        key_value_heads=_number(settings, "num_key_value_heads") or heads,
        head_dim=_number(settings, "head_dim") or (hidden // heads if hidden and heads else None),
        intermediate=_number(settings, "intermediate_size"),
        experts=experts[0].experts if experts else None,
        experts_per_token=_number(settings, "num_experts_per_tok") if experts else None,
        vocabulary=_number(settings, "vocab_size"),
        tied=getattr(settings, "tie_word_embeddings", None),
        max_positions=_number(settings, "max_position_embeddings"),
        sliding_window=_number(settings, "sliding_window"),
        linear=_linear_layers(model),
        expert_weights=experts,
    )


def _number(settings: Any, name: str) -> int | None:
    """Return a dimension of a config; None where it has none, or one for each layer."""
    value = getattr(settings, name, None)
    return value if isinstance(value, int) and value > 0 else None


def _linear_layers(model: Any) -> tuple[LinearLayer, ...]:
    """Return a model's linear layers by their place in the block, and whether transformers quantises them."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D
    from transformers.quantizers.base import HfQuantizer
    from transformers.quantizers.quantizers_utils import should_convert_module

    left_alone = HfQuantizer.get_modules_to_not_convert(model, None, model._keep_in_fp32_modules)
    found: Counter[tuple[str, int, int, bool, bool]] = Counter()
    kept: Counter[tuple[str, int, int, bool, bool]] = Counter()
    for name, module in model.named_modules():
        if not isinstance(module, (nn.Linear, Conv1D)) or module is model.get_output_embeddings():
            continue
        sizes = module.weight.shape if isinstance(module, Conv1D) else module.weight.shape[::-1]
        path, in_a_block = _place(name)
        kind = (path, *sizes, module.bias is not None, in_a_block)
        found[kind] += 1
        exact = type(module) is nn.Linear or isinstance(module, Conv1D)  # subclasses are not replaced
        kept[kind] += not (exact and should_convert_module(name, left_alone))
    return tuple(
        LinearLayer(
            name=path.rpartition(".")[2],
            within=path.rpartition(".")[0],
            in_features=width_in,
            out_features=width_out,
            count=count,
            has_bias=bias,
            is_target=in_a_block,
            kept=kept[path, width_in, width_out, bias, in_a_block],
        )
        for (path, width_in, width_out, bias, in_a_block), count in found.items()
    )


def _expert_weights(model: Any) -> tuple[ExpertWeights, ...]:
    """Return the 3-D parameters of modules called `experts`: (experts, out, in) unless they are transposed."""
    found: Counter[tuple[str, int, int, int, bool]] = Counter()
    for module_name, module in model.named_modules():
        if not module_name.endswith(".experts"):
            continue
        own = dict(module.named_parameters(recurse=False))
        for name, parameter in own.items():
            if parameter.ndim == 3:
                experts, *sides = parameter.shape
                width_in, width_out = sides if getattr(module, "is_transposed", False) else sides[::-1]
                path = _place(f"{module_name}.{name}")[0]
                found[path, experts, width_in, width_out, f"{name}_bias" in own] += 1
    return tuple(
        ExpertWeights(
            name=path, experts=experts, in_features=width_in, out_features=width_out, count=count, has_bias=bias
        )
        for (path, experts, width_in, width_out, bias), count in found.items()
    )


def _place(name: str) -> tuple[str, bool]:
    """Return a name from its block on, and whether it is in a block: blocks are numbered."""
    parts = name.split(".")
    number = max((i for i, part in enumerate(parts) if part.isdigit()), default=-1)
    return ".".join(parts[number + 1 :]), number >= 0


def shape_from_tensors(elements: Mapping[str, int], config: Mapping[str, Any], source: str) -> ModelShape | None:
    """Return the shape by the elements of each dtype that a model's safetensors files hold, or None.

    None where weights are packed, as in a checkpoint that was quantised before: an element is then several
    parameters, and scales are none. None too for a multimodal model, whose files hold its other parts as well.
    """
    if config.get("quantization_config") or language_config(config) is not None:
        return None
    if any(dtype not in _BYTES and dtype not in _BUFFERS for dtype in elements):
        return None
    total = sum(count for dtype, count in elements.items() if dtype in _BYTES)
    return _bare_shape(total, config, f"{source} (as stored)")


def shape_from_index(index: Mapping[str, Any], config: Mapping[str, Any], source: str) -> ModelShape | None:
    """Return the shape by the bytes that a sharded checkpoint's index states, or None where they tell nothing."""
    stated = index.get("metadata")
    size = stated.get("total_size") if isinstance(stated, Mapping) else None
    dtype = str(config.get("dtype") or config.get("torch_dtype") or "").removeprefix("torch.")
    if config.get("quantization_config") or language_config(config) is not None or dtype not in _CONFIG_BYTES:
        return None
    if not isinstance(size, (int, float)):
        return None
    return _bare_shape(int(size) // _CONFIG_BYTES[dtype], config, f"{source} (total_size in {dtype})")


def _bare_shape(parameters: int, config: Mapping[str, Any], source: str) -> ModelShape | None:
    if parameters < 1:
        return None
    family = config.get("model_type")
    return ModelShape(parameters=parameters, source=source, family=family if isinstance(family, str) else None)


def shape_from_folder(folder: Path, config: Mapping[str, Any]) -> ModelShape | None:
    """Return the shape by a local folder's weights: the headers of its safetensors files, else its index."""
    files = sorted(folder.glob("*.safetensors"))
    elements: Counter[str] = Counter()
    try:
        for file in files:
            elements.update(_elements(file))
    except (OSError, ValueError, TypeError, KeyError):
        elements.clear()  # an unfinished download, or no such file at all
    if elements:
        return shape_from_tensors(elements, config, "the weights' safetensors headers")
    for file in sorted(folder.glob("*.index.json")):
        try:
            index = json.loads(file.read_text(encoding="utf8"))
        except ValueError:
            continue
        if isinstance(index, dict) and (shape := shape_from_index(index, config, file.name)):
            return shape
    return None


def _elements(file: Path) -> dict[str, int]:
    """Return a safetensors file's elements by dtype: 8 bytes of length, then a JSON header."""
    with file.open("rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    elements: Counter[str] = Counter()
    for name, tensor in header.items():
        if name != "__metadata__":
            elements[tensor["dtype"]] += prod(tensor["shape"])
    return dict(elements)


def shape_from_dimensions(config: Mapping[str, Any], source: str) -> ModelShape | None:
    """Return an estimate for an unknown family: as a Llama of its dimensions, or None where one is missing."""
    inner = language_config(config) or config
    needed = ("hidden_size", "num_hidden_layers", "vocab_size", "num_attention_heads", "intermediate_size")
    if not all(name in inner for name in needed):
        return None
    family = DECODERS["llama"]
    dimensions = Dimensions(inner, {}, str(inner.get("model_type")))
    try:
        parameters = family.parts(dimensions).parameters
    except ConfigError:
        return None
    return _bare_shape(parameters, inner, f"{source} (estimated as a Llama of its dimensions)")
