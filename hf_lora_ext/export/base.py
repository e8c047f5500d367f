"""The base model of an adapter: where it is, which layers it has, and how it is opened."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any, Final

from ..errors import ConfigError
from ..models.base_models import find_base_model
from .reshaping import Gap

__all__ = ["Base", "find_base"]

_AUTO_CLASSES: Final = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "FEATURE_EXTRACTION": "AutoModel",
}
"""PEFT's `task_type` → the class that its AutoPeftModel opens the base with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """A base model, for an adapter of a task."""

    name: str
    """What the adapter calls it, or what was given instead."""
    path: str
    """What `from_pretrained` takes: a folder, or a Hub id."""
    revision: str | None
    """Commit, for a Hub id."""
    task: str | None
    """The adapter's `task_type`; a causal language model where it has none."""
    labels: int | None = None
    """Rows of the head that the adapter brings, of a classifier."""

    @property
    def _auto_class(self) -> Any:
        import transformers

        return getattr(transformers, _AUTO_CLASSES.get(self.task or "CAUSAL_LM", "AutoModelForCausalLM"))

    def config(self) -> Any:
        """Return its config, with the labels that the adapter has.

        Raises:
            ConfigError: If transformers cannot read it, or would run the model's own code for it.
        """
        from transformers import AutoConfig

        with self._told():
            config = AutoConfig.from_pretrained(self.path, revision=self.revision)
        if self.labels is not None and config.num_labels != self.labels:
            config.num_labels = self.labels
        return config

    def outline(self) -> Any:
        """Return the model on the meta device: names and sizes without numbers.

        Raises:
            ConfigError: If transformers has no such model.
        """
        import torch

        config = self.config()
        if hasattr(config, "quantization_config"):
            del config.quantization_config  # names and sizes are those of the unpacked weights
        with self._told(), torch.device("meta"):
            model = self._auto_class.from_config(config)
        model.tie_weights()
        return model

    def open(self, dtype: Any, folder: Path | None = None) -> Any:
        """Return the model with its weights, or the one in another folder, opened in the same way.

        Raises:
            ConfigError: If transformers cannot open it.
        """
        own = {"revision": self.revision, "config": self.config()} if folder is None else {}
        with self._told():
            return self._auto_class.from_pretrained(folder or self.path, dtype=dtype, **own).eval()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (ValueError, OSError, KeyError) as error:
            reason = " ".join(str(error).split())[:300]
            raise ConfigError(
                f"transformers cannot open the base {self.name} ({reason}); give base= (--base)"
            ) from error

    def layers(self) -> dict[str, Gap]:
        """Return the layers that a LoRA can adapt, by name."""
        from torch import nn
        from transformers.pytorch_utils import Conv1D

        found = {}
        for name, module in self.outline().named_modules():
            if isinstance(module, nn.Linear):
                found[name] = Gap(name, "linear", module.in_features, module.out_features)
            elif isinstance(module, Conv1D):
                found[name] = Gap(name, "linear", module.weight.shape[0], module.weight.shape[1])
            elif isinstance(module, nn.Embedding):
                found[name] = Gap(name, "embedding", module.num_embeddings, module.embedding_dim)
        return found

    def stored_config(self) -> dict[str, Any]:
        """Return `config.json` as it is stored in the folder.

        Raises:
            ConfigError: If the weights are not here.
        """
        config: dict[str, Any] = json.loads((self.folder() / "config.json").read_text(encoding="utf8"))
        return config

    def folder(self) -> Path:
        """Return the folder with its weights.

        Raises:
            ConfigError: If they are not here.
        """
        from .. import hub

        if Path(self.path).is_dir():
            return Path(self.path)
        cached = hub.cached_model_folder(self.path, self.revision)
        if cached is None:
            raise ConfigError(
                f"the weights of {self.path} are not here; `hf download {self.path}` fetches them, or give a folder as "
                "base= (--base)"
            )
        return cached


def find_base(
    config: Mapping[str, Any], given: str | None, labels: int | None = None, *, is_needed: bool = True
) -> Base:
    """Return an adapter's base model.

    Args:
        config: The adapter's config.
        given: A folder or Hub id in place of the one that the config names.
        labels: Rows of the head that the adapter brings.
        is_needed: Whether to raise where the base is out of reach.

    Raises:
        ConfigError: If there is no base within reach.
    """
    name = given or config.get("base_model_name_or_path")
    if not name:
        raise ConfigError("adapter_config.json names no base model; give base= (--base) a folder or a Hub id")
    if not isinstance(task := config.get("task_type"), (str, NoneType)):
        raise ConfigError(f"adapter_config.json says task_type={task!r}, a name was needed; save the adapter again")
    try:
        found = find_base_model(str(name), None if given else config.get("revision"))
    except ConfigError as error:
        if is_needed:
            raise ConfigError(f"the adapter's base: {error}; base= (--base) names another") from error
        return Base(name=str(name), path=str(name), revision=None, task=task, labels=labels)
    return Base(name=str(name), path=found.path, revision=found.revision, task=task, labels=labels)
