"""The one seam to PEFT's internals: what an adapter in memory is, as plain values, and how it is saved."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from peft import PeftConfig, get_peft_model_state_dict, load_peft_weights
from peft.utils.other import TrainableTokensWrapper
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ..errors import AdapterError

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor

__all__ = [
    "adapter_bytes",
    "adapter_tensors",
    "describe_adapter",
    "describe_quantization",
    "describe_saved",
    "keep_aside",
    "load_config",
    "load_in_own_precision_",
    "load_kept_",
    "load_saved",
    "save_adapter",
    "save_initial_adapter",
    "show_head_bias_",
]


def describe_adapter(model: PeftModel) -> dict[str, Any]:
    """Return the active adapter's kind, size and whole configuration as JSON-ready values.

    Raises:
        AdapterError: If the model carries no PEFT adapter.
    """
    name = getattr(model, "active_adapter", None)
    configs = getattr(model, "peft_config", None)
    if not configs or name not in configs:
        raise AdapterError(f"{type(model).__name__} carries no PEFT adapter; wrap it with peft.get_peft_model first")
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    shapes = ((key.replace(f".{name}", ""), tuple(weight.shape)) for key, weight in model.named_parameters())
    return _summary(_plain(configs[name].to_dict()), {"trainable_parameters": trainable}, _layer_ranks(shapes))


def describe_saved(folder: Path) -> dict[str, Any]:
    """Return the same of a saved adapter, but for what trained, with its size in bytes.

    It may be another than the one in memory: one for the unchanged base has twice the rank.

    Raises:
        AdapterError: If the folder holds no adapter.
    """
    size = adapter_bytes(folder)
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as weights:
        ranks = _layer_ranks((key, tuple(weights.get_slice(key).get_shape())) for key in weights.keys())
    return _summary(json.loads((folder / "adapter_config.json").read_text(encoding="utf8")), {"bytes": size}, ranks)


def load_config(folder: Path) -> PeftConfig:
    """Return a saved adapter's config, as the object that saves itself with `save_pretrained`.

    Raises:
        AdapterError: If peft cannot read it.
    """
    try:
        return PeftConfig.from_pretrained(str(folder))
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise AdapterError(f"peft cannot read the adapter's config ({error}); save it again") from error


def load_saved(folder: Path) -> dict[str, Tensor]:
    """Return a saved adapter's tensors as peft loads them, after peft has read its config.

    Raises:
        AdapterError: If peft cannot.
    """
    try:
        PeftConfig.from_pretrained(str(folder))
        tensors: dict[str, Tensor] = load_peft_weights(str(folder), device="cpu")
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise AdapterError(f"peft cannot load the adapter ({error}); save it again") from error
    return tensors


def adapter_tensors(model: PeftModel) -> dict[str, Tensor]:
    """Return the active adapter's tensors under the names that a saved one has."""
    found: dict[str, Tensor] = get_peft_model_state_dict(model, adapter_name=model.active_adapter)
    return found


_FACTOR_A: Final = re.compile(r"base_model\.model\.(.+)\.lora_A\.weight")


def _layer_ranks(shapes: Iterable[tuple[str, tuple[int, ...]]]) -> dict[str, int]:
    """Return module → rank, by the rows of its first factor, `(rank, in_features)`."""
    return {found[1]: shape[0] for key, shape in shapes if (found := _FACTOR_A.fullmatch(key))}


def _summary(config: dict[str, Any], counted: dict[str, int], layer_ranks: dict[str, int]) -> dict[str, Any]:
    kind = config.get("peft_type")
    if kind == "ADALORA":
        config = {key: value for key, value in config.items() if key != "r"}  # peft's default, which AdaLoRA ignores
    ranks = sorted({config.get("r"), *(config.get("rank_pattern") or {}).values()} - {None})
    varied = len(ranks) > 1 and kind == "LORA"
    summary = {
        "kind": kind,
        "task_type": config.get("task_type"),
        "rank": config.get("target_r", config.get("r")),  # AdaLoRA's target is the mean rank
        "ranks": f"{ranks[0]} to {ranks[-1]}" if varied else None,
        "alpha": config.get("lora_alpha"),
        "dropout": config.get("lora_dropout"),
        "targets": config.get("target_modules"),
        "layer_ranks": layer_ranks if varied else None,
        **counted,
    }
    known = {key: value for key, value in summary.items() if value is not None}
    return known | {"config": {key: value for key, value in config.items() if key != "base_model_name_or_path"}}


def describe_quantization(model: PeftModel) -> dict[str, Any]:
    """Return how the base was quantised, or nothing."""
    config = getattr(model.config, "quantization_config", None)
    if config is None:
        return {}
    plain = _plain(config if isinstance(config, dict) else config.to_dict())
    return {key: value for key, value in plain.items() if value not in (None, [], False) and not key.startswith("_")}


def save_initial_adapter(model: PeftModel, folder: Path) -> None:
    """Save a PiSSA or OLoRA adapter that has not been trained yet, as `save_adapter` needs it."""
    with _as_plain_lora(model):
        model.save_pretrained(str(folder))


def save_adapter(model: PeftModel, folder: Path, initial: Path | None = None) -> None:
    """Save the active adapter so that it gives the same answers on the unchanged base.

    Args:
        model: The trained model.
        folder: Where to.
        initial: What `save_initial_adapter` left, for an initialisation that changed the base: the difference is
            then saved, as an ordinary LoRA of twice the rank (PiSSA, section 3 on sharing adapters).
    """
    if initial is None:
        model.save_pretrained(str(folder))
        return
    with _as_plain_lora(model):
        model.save_pretrained(str(folder), path_initial_model_for_weight_conversion=str(initial))
    _add_what_peft_left_out(model, folder / "adapter_model.safetensors")


def _add_what_peft_left_out(model: PeftModel, file: Path) -> None:
    """Put new tokens' rows and a new head into the saved weights: peft's difference of adapters has only factors."""
    saved = load_file(file)
    state = get_peft_model_state_dict(model)
    rest = {k: w.contiguous().cpu() for k, w in state.items() if ".lora_A." not in k and ".lora_B." not in k}
    if not rest.keys() <= saved.keys():
        save_file(rest | saved, file, metadata={"format": "pt"})


@contextmanager
def _as_plain_lora(model: PeftModel) -> Iterator[None]:
    """Let the configuration say plain LoRA meanwhile, so that loading what is saved changes no base again."""
    config = model.peft_config[model.active_adapter]
    plain = {"init_lora_weights": True, "corda_config": None, "lora_ga_config": None}
    own = {name: getattr(config, name) for name in plain}
    vars(config).update(plain)
    try:
        yield
    finally:
        vars(config).update(own)


def load_in_own_precision_(model: PeftModel) -> None:
    """Let a loaded checkpoint keep the precision that the adapter trains in.

    The trainer resumes, and loads its best checkpoint, through the model's `load_adapter`, which casts 16-bit factors
    to float32: what trl had cast to bfloat16 for a quantised base would go on in another precision.
    """
    own = model.load_adapter

    def load_adapter(*args: Any, **kwargs: Any) -> Any:
        return own(*args, **{"autocast_adapter_dtype": False} | kwargs)

    model.load_adapter = load_adapter


def keep_aside(model: PeftModel, folder: Path) -> None:
    """Save the adapter that trains, as it is, so that `load_kept_` can bring it back."""
    model.save_pretrained(str(folder), selected_adapters=[model.active_adapter])


def load_kept_(model: PeftModel, folder: Path) -> None:
    """Bring the adapter back that `keep_aside` saved, in its own precision.

    It goes through the model's `load_adapter`, as a trainer's resuming does, which other callbacks make fit.
    """
    name = model.active_adapter
    own = folder / name  # where peft puts an adapter of another name than `default`
    kept = own if own.is_dir() else folder
    model.load_adapter(str(kept), name, is_trainable=True, autocast_adapter_dtype=False)


def show_head_bias_(model: Any) -> None:
    """Let a head whose token rows train answer that it has no bias, as TRL's loss asks it.

    peft passes the wrapped head's `weight` on and nothing else, and its own forward leaves a bias out.

    Raises:
        AdapterError: If the head has a bias.
    """
    head = model.get_output_embeddings()
    if not isinstance(head, TrainableTokensWrapper):
        return
    if head.original_module.bias is not None:
        raise AdapterError(
            "the output head has a bias, which peft drops once rows of the head train; leave new_tokens out, or train "
            "the whole head (modules_to_save in a LoraConfig)"
        )
    head.bias = None


def adapter_bytes(folder: Path) -> int:
    """Return the size of a saved adapter's weights in bytes.

    Raises:
        AdapterError: If the folder holds no adapter weights.
    """
    weights = folder / "adapter_model.safetensors"
    if not weights.is_file():
        raise AdapterError(f"{folder.name} holds no adapter_model.safetensors; save the adapter there first")
    return weights.stat().st_size


def _plain(value: Any) -> Any:
    """Turn PEFT's enums, sets and dtypes into values that JSON takes."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(map(str, value))
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, Enum):  # PeftType, TaskType
        return value.value
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
