"""What merging an adapter makes of each stored tensor of its base: decided by names, computed in float32."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor, nn

from ..adapters.factors import AdapterFactors, ModuleFactors
from ..adapters.tensor_names import module_name
from ..errors import AdapterError

__all__ = ["Changes", "find_changes", "merged_weight"]

Change = Callable[[Tensor], Tensor]
TOKENS: Final = ".token_adapter.trainable_tokens_delta"
IN_MEMORY: Final = "PeftModel.from_pretrained(base, folder).merge_and_unload() merges it in memory"


def merged_weight(weight: Tensor, module: ModuleFactors, *, is_transposed: bool) -> Tensor:
    """Return a layer's weight with the adapter in it, in float32.

    W + s B A; under DoRA (arXiv 2402.09353, equation 5) each output's row of that, brought to the length that was
    learned.

    Args:
        weight: `(out_features, in_features)`.
        module: The layer's factors.
        is_transposed: Whether the weight is stored the other way round, as Conv1D's and an embedding's are.

    Raises:
        AdapterError: If the factors are of another shape than the weight.
    """
    merged = (weight.T if is_transposed else weight).float()
    a, b = module.a.float(), module.b.float()
    if merged.shape != (len(b), a.shape[1]):
        raise AdapterError(
            f"{module.name} has the shape {tuple(merged.shape)} in the base, and the adapter is for "
            f"{(len(b), a.shape[1])}; give base= (--base) the model that it was trained on"
        )
    merged = torch.addmm(merged, b, a, alpha=module.scaling or 0.0)
    if (magnitude := module.magnitude) is not None:
        merged *= (magnitude.float().view(-1) / merged.norm(dim=1))[:, None]
    return merged.T if is_transposed else merged


@dataclass(frozen=True, slots=True)
class Changes:
    """What becomes of the base's tensors."""

    changed: dict[str, Change] = field(default_factory=dict)
    """Stored tensor → what is made of it."""
    added: dict[str, tuple[str | None, Change]] = field(default_factory=dict)
    """New tensor → the stored tensor that it is made of, if any, and how."""
    unties: bool = False
    """Whether the head and the embedding, one tensor in the base, become two."""


@dataclass(frozen=True, slots=True)
class _Names:
    """How a model calls its tensors, and how its files do."""

    outline: Any
    stored: frozenset[str]

    def stored_key(self, name: str) -> str | None:
        """Return the name in the files; some leave the backbone's name out."""
        prefix = f"{self.outline.base_model_prefix}."
        return next((key for key in (name, name.removeprefix(prefix), prefix + name) if key in self.stored), None)

    @property
    def tied(self) -> tuple[str, str] | None:
        """Return the names of the embedding's and the head's weights where they are one tensor."""
        embedding, head = self.outline.get_input_embeddings(), self.outline.get_output_embeddings()
        if embedding is None or head is None or head.weight is not embedding.weight:
            return None
        names = {id(module): name for name, module in self.outline.named_modules()}
        return f"{names[id(embedding)]}.weight", f"{names[id(head)]}.weight"


def find_changes(adapter: AdapterFactors, outline: Any, stored: Iterable[str]) -> Changes:
    """Return what merging the adapter makes of the base.

    Args:
        adapter: The adapter.
        outline: The base on the meta device.
        stored: Names of the tensors in the base's files.

    Raises:
        AdapterError: If the base's files have no place for something that the adapter holds.
    """
    names = _Names(outline, frozenset(stored))
    wanted: dict[str, Change] = {}
    for module in adapter.modules.values():
        if module.rank:
            wanted[f"{module.name}.weight"] = _adapted(module, outline)
    tokens: dict[str, Change] = {}
    for key in adapter.others:
        if key.endswith(TOKENS):
            tokens[f"{module_name(key).removesuffix(TOKENS)}.weight"] = _rows(adapter, key)
        elif key.endswith("lora_B.bias"):
            raise AdapterError(f"{key}: a bias of B (lora_bias) is not merged here; {IN_MEMORY}")
        elif not key.endswith(".base_layer.weight"):
            name = module_name(key).replace(".base_layer.", ".")
            wanted[name] = _whole(adapter, key, outline, name)
    return _placed(wanted, tokens, names)


def _placed(wanted: Mapping[str, Change], tokens: Mapping[str, Change], names: _Names) -> Changes:
    """Give each change its stored tensor; a tied head and embedding part where one alone changes."""
    changes, head_of_its_own = Changes(), {}
    tied = names.tied
    if tied and (set(wanted) & set(tied)):
        embedding, head = tied
        changes = Changes(unties=True)
        source = names.stored_key(embedding) or names.stored_key(head)
        head_of_its_own = {head: (source, wanted.get(head, _same))}
        wanted = {name: change for name, change in wanted.items() if name != head}
    for name, change in {**wanted, **tokens}.items():
        key = names.stored_key(name)
        if key is None and name in tokens and tied and name in tied:  # only one of the two names is stored
            key = names.stored_key(tied[0]) or names.stored_key(tied[1])
        if key is None and name in dict(names.outline.named_parameters()) and _is_new_head(name, names):
            changes.added[name] = (None, change)
        elif key is None:
            raise AdapterError(
                f"the base's files hold no {name}, under that name or without the backbone's; {IN_MEMORY}"
            )
        else:
            changes.changed[key] = change
    changes.added.update(head_of_its_own)
    return changes


def _is_new_head(name: str, names: _Names) -> bool:
    """Return whether the tensor belongs to a head that the base's files lack as a whole, as a classifier's does."""
    return not name.startswith(f"{names.outline.base_model_prefix}.")


def _same(weight: Tensor) -> Tensor:
    return weight


def _adapted(module: ModuleFactors, outline: Any) -> Change:
    from transformers.pytorch_utils import Conv1D

    try:
        layer = outline.get_submodule(module.name)
    except AttributeError as error:
        raise AdapterError(
            f"the base has no {module.name}; give base= (--base) the model that the adapter was trained on"
        ) from error
    is_transposed = isinstance(layer, (Conv1D, nn.Embedding))
    return lambda weight: merged_weight(weight, module, is_transposed=is_transposed)


def _rows(adapter: AdapterFactors, key: str) -> Change:
    """Return what puts trained rows of an embedding in their places: PEFT stores the rows themselves."""
    told = adapter.config.get("trainable_token_indices") or []
    owner = module_name(key).removesuffix(TOKENS)
    indices = told if isinstance(told, list) else next(
        (rows for suffix, rows in told.items() if f".{owner}".endswith(f".{suffix}")), [])  # fmt: skip
    rows = adapter.other(key)
    if len(indices) != len(rows):
        raise AdapterError(f"{key} has {len(rows)} rows, the config names {len(indices)} tokens; save both together")

    def put(weight: Tensor) -> Tensor:
        if max(indices) >= len(weight):
            raise AdapterError(
                f"token {max(indices)} was trained, and the base's embedding has {len(weight)} rows; resize the base, "
                "save it, and give base= (--base) that folder"
            )
        return weight.float().index_copy(0, torch.tensor(indices), rows.float())

    return put


def _whole(adapter: AdapterFactors, key: str, outline: Any, name: str) -> Change:
    """Return what puts a whole trained tensor in the base's place."""
    expected = dict(outline.named_parameters(remove_duplicate=False)).get(name)
    if expected is not None and expected.shape != adapter.others[key]:
        raise AdapterError(
            f"{name} has the shape {adapter.others[key]} in the adapter and {tuple(expected.shape)} in the base; "
            "resize the base, save it, and give base= (--base) that folder"
        )
    return lambda _: adapter.other(key)
