"""How an adapter of moving ranks is kept and taken up again: what lies in a checkpoint, and how one is loaded.

The state lies in a file of its own beside the adapter, written with it, so that a checkpoint that is whole for the
trainer is whole for us.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MethodType
from typing import TYPE_CHECKING, Any, Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..errors import ResumeError
from .lora_layers import LoraFactors, saved_ranks, without_masked, write_ranks_
from .probes import Moments
from .sketches import Sketch, Sketches

if TYPE_CHECKING:
    from peft import PeftModel

__all__ = [
    "BEST_FOLDER",
    "AdapterLayers",
    "RankState",
    "load_by_ranks_",
    "over_budget",
    "read_state",
    "save_with_state_",
    "write_state",
]

STATE_FILE: Final = "adaptive_rank_state.safetensors"
BEST_FOLDER: Final = "best_adapter"
"""Folder of the best adapter of a run, which is loaded again when the run ends."""


@dataclass(slots=True)
class RankState:
    """What a run must remember beside the adapter and the optimizer."""

    settings: dict[str, Any]
    """What the events follow from; a run goes on only with the same."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """One entry an event."""
    moments: dict[str, Moments] = field(default_factory=dict)
    """What an unfinished probe has seen."""
    sketches: Sketches | None = None
    """What it has seen of where layers could grow."""
    groups: dict[str, dict[str, int]] = field(default_factory=dict)
    """The optimizer's group of each part of each layer, for layers that the adapter takes up again."""


def write_state(folder: Path, state: RankState) -> None:
    """Write the state into a folder, whole or not at all."""
    tensors = {
        f"{kind}/{name}": getattr(moments, kind).cpu().contiguous()
        for name, moments in state.moments.items()
        for kind in Moments.__slots__
    }
    if state.sketches is not None:
        tensors |= {
            f"sketch/{kind}/{name}": getattr(sketch, kind).cpu().contiguous()
            for name, sketch in state.sketches.layers.items()
            for kind in Sketch.KINDS
        }
        tensors["labels"] = state.sketches.labels.cpu()
    plain = {"settings": state.settings, "history": state.history, "groups": state.groups}
    draft = folder / f".{STATE_FILE}"
    save_file(tensors or {"none": torch.zeros(1)}, draft, metadata={"state": json.dumps(plain)})
    draft.replace(folder / STATE_FILE)


def read_state(folder: Path, device: Callable[[str], torch.device]) -> RankState:
    """Return what `write_state` left.

    Args:
        folder: The checkpoint.
        device: Device of a layer's sums, by the layer's name.

    Raises:
        ResumeError: If there is none or it cannot be read.
    """
    file = folder / STATE_FILE
    if not file.is_file():
        raise ResumeError(
            f"{folder.name} holds no {STATE_FILE}, so its ranks and the run's schedule are unknown; resume from a "
            "checkpoint that AdaptiveRankCallback has written, or start anew"
        )
    try:
        with safe_open(file, "pt") as stored:
            plain = json.loads(stored.metadata()["state"])
            tensors = {key: stored.get_tensor(key) for key in stored.keys()}
    except (SafetensorError, KeyError, ValueError) as broken:
        raise ResumeError(f"{folder.name}/{STATE_FILE} cannot be read: {broken}; resume from an earlier one") from None
    names = [key.removeprefix("tokens/") for key in tensors if key.startswith("tokens/")]
    moments = {
        name: Moments(**{kind: tensors[f"{kind}/{name}"].to(device(name)) for kind in Moments.__slots__})
        for name in names
    }
    return RankState(plain["settings"], plain["history"], moments, _sketches(tensors, device), plain.get("groups", {}))


def over_budget(folder: Path) -> tuple[int, int] | None:
    """Return the parameters of a checkpoint whose ranks still have to fall, and its budget; None for any other.

    Raises:
        ResumeError: If the state that lies there cannot be read.
    """
    file = folder / STATE_FILE
    if not file.is_file():
        return None
    try:
        with safe_open(file, "pt") as stored:
            state = json.loads(stored.metadata()["state"])
        settings, history = state["settings"], state["history"]
        found, budget = history[-1]["parameters"] if history else settings["start"], settings["budget"]
    except (SafetensorError, KeyError, ValueError) as broken:
        raise ResumeError(f"{folder.name}/{STATE_FILE} cannot be read: {broken}; push a later checkpoint") from None
    return (found, budget) if found > budget else None


def _sketches(tensors: Mapping[str, torch.Tensor], device: Callable[[str], torch.device]) -> Sketches | None:
    if "labels" not in tensors:
        return None
    names = [key.removeprefix("sketch/tokens/") for key in tensors if key.startswith("sketch/tokens/")]
    layers = {
        name: Sketch(**{kind: tensors[f"sketch/{kind}/{name}"].to(device(name)) for kind in Sketch.KINDS})
        for name in names
    }
    return Sketches(layers, tensors["labels"].to(device(names[0])) if names else tensors["labels"])


class AdapterLayers:
    """The layers an adapter trains in, those that it has left included."""

    def __init__(self, model: PeftModel, adapter: str, layers: Mapping[str, LoraFactors]) -> None:
        self.model, self.adapter = model, adapter
        self._all = dict(layers)
        self._left: dict[str, dict[str, Any]] = {}

    @property
    def every(self) -> dict[str, LoraFactors]:
        """All layers, by name; those that the adapter has left have no factors now."""
        return dict(self._all)

    @property
    def carrying(self) -> dict[str, LoraFactors]:
        """Layers that carry the adapter, by name."""
        return {name: factors for name, factors in self._all.items() if name not in self._left}

    @property
    def live(self) -> dict[str, LoraFactors]:
        """Layers with a direction in use, by name."""
        return {name: factors for name, factors in self.carrying.items() if factors.rank}

    @property
    def costs(self) -> dict[str, int]:
        """Parameters of one direction, by live layer."""
        return {name: factors.cost for name, factors in self.live.items()}

    @property
    def ranks(self) -> dict[str, int]:
        """Rank by layer; 0 where the adapter has left it."""
        return {name: factors.rank if name not in self._left else 0 for name, factors in self._all.items()}

    @property
    def parameters(self) -> int:
        """Parameters of all directions in use together."""
        return sum(factors.rank * factors.cost for factors in self.live.values())

    def leave_(self, removed: Mapping[str, dict[str, Any]]) -> None:
        """Note the layers that the adapter has left, with what they would need to take it up again."""
        self._left |= removed

    def take_up_(self, name: str) -> LoraFactors:
        """Bring the adapter back into a layer that it has left, with the factors that it left with."""
        factors = self._all[name]
        factors.put_back_(self._left.pop(name))
        return factors

    def take_ranks_(self, ranks: Mapping[str, int]) -> None:
        """Give every layer its rank, with factors that wait to be loaded; no optimizer may hold them yet, or again."""
        for name, rank in ranks.items():
            factors = self.take_up_(name) if rank and name in self._left else self._all[name]
            if rank and factors.width != rank:
                a, b = factors.a, factors.b
                factors.replace_(a.new_zeros(rank, a.shape[1]), b.new_zeros(len(b), rank))
            elif not rank and name not in self._left:
                self._left[name] = factors.remove_()
        write_ranks_(self.model, self.adapter, self.ranks)

    def give_room_(self, width: int) -> None:
        """Bring every layer's parameters to the width with directions of 0, which are not in use."""
        ranks = self.ranks
        for name, factors in self._all.items():
            if name in self._left:
                self.take_up_(name)
            a, b = factors.a.detach()[: ranks[name]], factors.b.detach()[:, : ranks[name]]
            wide = min(width, a.shape[1], len(b))
            factors.replace_(a.new_zeros(wide, a.shape[1]), b.new_zeros(len(b), wide))
            factors.mask_(a, b)

    def compact_(self) -> None:
        """Take the room away that masked directions have; the optimizer is not asked, so the training must be over."""
        for name, factors in self.carrying.items():
            if not factors.rank:
                self._left[name] = factors.remove_()
            elif factors.rank < factors.width:
                factors.replace_(factors.a.detach()[: factors.rank], factors.b.detach()[:, : factors.rank])


def load_by_ranks_(layers: AdapterLayers, loaded: Callable[[Path], None]) -> None:
    """Let the model's `load_adapter` take the ranks of what it loads; resume and best model both go through it.

    Args:
        layers: The adapter's layers.
        loaded: Called with the folder after the adapter was loaded from it.
    """
    model = layers.model
    original = MethodType(type(model).load_adapter, model)  # not that of an earlier trainer's callback

    def load(self: PeftModel, model_id: Any, adapter_name: str, *args: Any, **kwargs: Any) -> Any:
        ours = adapter_name == layers.adapter and Path(model_id).is_dir()
        if ours:
            layers.take_ranks_(saved_ranks(Path(model_id), list(layers.ranks)))
            kwargs = {"autocast_adapter_dtype": False} | kwargs  # or PEFT casts a 16-bit adapter to float32
        result = original(model_id, adapter_name, *args, **kwargs)
        if ours:
            loaded(Path(model_id))
        return result

    model.load_adapter = MethodType(load, model)


def save_with_state_(layers: AdapterLayers, state: Callable[[], RankState]) -> None:
    """Let the model's `save_pretrained` leave masked directions out, and write the state beside a checkpoint's adapter.

    Args:
        layers: The adapter's layers.
        state: Gives the state to write.
    """
    model = layers.model
    original = MethodType(type(model).save_pretrained, model)

    def save(self: PeftModel, save_directory: str, *args: Any, **kwargs: Any) -> None:
        if any(factors.rank < factors.width for factors in layers.carrying.values()):
            whole = kwargs.get("state_dict") or self.state_dict()
            kwargs["state_dict"] = without_masked(whole, layers.carrying.values())
        original(save_directory, *args, **kwargs)
        if Path(save_directory).name.startswith(("checkpoint-", BEST_FOLDER)):
            write_state(Path(save_directory), state())

    model.save_pretrained = MethodType(save, model)
