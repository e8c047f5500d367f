"""A saved adapter as its low-rank factors, whichever tool wrote it, without the base model.

A module's update is ΔW = scaling · B A. What is read at once are names, sizes and whether every number is finite;
a module's factors are read when they are asked for, so that an adapter of any size needs the memory of one module.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import Tensor

from ..errors import AdapterError
from .factor_shapes import FactorShapes, find_modules
from .stored_adapter import StoredAdapter, read_config, read_stored_adapter, read_tensor
from .tensor_names import CONFIG, WEIGHTS, Part

__all__ = ["AdapterFactors", "ModuleFactors", "pickle_refusal", "read_factors"]

PICKLES: Final = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"}
"""Files whose loading can run code, and which are therefore never opened."""
METHODS: Final = {"LORA", "ADALORA"}
"""The `peft_type`s whose update is a product of two factors."""


@dataclass(frozen=True, slots=True)
class ModuleFactors:
    """One module's factors; alive as long as the file is."""

    shapes: FactorShapes
    """What the factors are, without their numbers."""
    file: Path
    """The weights."""

    @property
    def name(self) -> str:
        """Name in the base model, such as `model.layers.0.self_attn.q_proj`.

        PEFT wraps several parameters of one module (experts) around each other; the inner one's name ends in
        `.base_layer`.
        """
        return self.shapes.name

    @property
    def kind(self) -> Literal["linear", "embedding", "conv", "parameter"]:
        """What the module is; `parameter` is a weight that PEFT's `target_parameters` names."""
        return self.shapes.kind

    @property
    def rank(self) -> int:
        """Directions; of experts, those of each."""
        return self.shapes.rank

    @property
    def experts(self) -> int:
        """Updates that lie side by side, one for each expert; else 1."""
        return self.shapes.experts

    @property
    def scaling(self) -> float | None:
        """What B A is multiplied by; None where the adapter has no config, which alone knows alpha."""
        return self.shapes.scaling

    @property
    def parameters(self) -> int:
        """Numbers in the factors."""
        return self.shapes.parameters

    @property
    def a(self) -> Tensor:
        """A `(rank, in_features)` in the stored dtype; of a convolution, each row is a kernel laid flat.

        AdaLoRA's E is multiplied into it, in float64. Of experts it is `(experts · rank, in_features)` as PEFT
        stacks it, which `blocks` takes apart.
        """
        a = self._read("a").flatten(1)
        return a.double() * self._read("e").double().view(-1, 1) if "e" in self.shapes.keys else a

    @property
    def b(self) -> Tensor:
        """B `(out_features, rank)` in the stored dtype; of experts `(out_features, rank · experts)`.

        Of a convolution in groups it is the block-diagonal matrix that the groups' columns stand for.
        """
        b = self._read("b").flatten(1)
        groups = self.shapes.groups
        return b if groups == 1 else torch.block_diag(*b.chunk(groups))

    @property
    def magnitude(self) -> Tensor | None:
        """DoRA's length of each output's weights, as it is stored; None without DoRA."""
        return self._read("magnitude") if "magnitude" in self.shapes.keys else None

    def blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield A `(rank, in_features)` and B `(out_features, rank)` in float64: of each expert, or the one pair."""
        a, b = self.a.double(), self.b.double()
        if self.kind != "parameter":
            yield a, b
            return
        # peft's ParamWrapper: the rows of A go expert by expert, the columns of B direction by direction.
        stacked = b.view(len(b), self.rank, self.experts)
        yield from ((part, stacked[:, :, index]) for index, part in enumerate(a.view(self.experts, self.rank, -1)))

    def _read(self, part: Part) -> Tensor:
        return read_tensor(self.file, self.shapes.keys[part])


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterFactors:
    """A saved adapter, taken apart."""

    file: Path
    """The weights."""
    stored: StoredAdapter
    """What the file holds, by its own names."""
    config: Mapping[str, Any]
    """`adapter_config.json`; empty where there is none."""
    modules: Mapping[str, ModuleFactors]
    """Module's name → factors, in the order of names."""
    others: Mapping[str, tuple[int, ...]]
    """What the file holds beside factors and magnitudes, by its own names → sizes: biases, whole modules, tokens."""

    @property
    def method(self) -> str:
        """What it is called: LoRA, rsLoRA, DoRA or AdaLoRA."""
        if self.config.get("peft_type") == "ADALORA" or any("e" in m.shapes.keys for m in self.modules.values()):
            return "AdaLoRA"
        if any("magnitude" in module.shapes.keys for module in self.modules.values()):
            return "DoRA"
        return "rsLoRA" if self.config.get("use_rslora") else "LoRA"

    @property
    def parameters(self) -> int:
        """Numbers in the factors of all modules."""
        return sum(module.parameters for module in self.modules.values())

    def other(self, name: str) -> Tensor:
        """Return a tensor that is no factor, by its name in `others`."""
        return read_tensor(self.file, name)


def read_factors(adapter: str | Path) -> AdapterFactors:
    """Return a saved adapter as its factors: LoRA, rsLoRA, DoRA or AdaLoRA, written by PEFT or by another tool.

    Args:
        adapter: A folder with `adapter_config.json` and `adapter_model.safetensors`, or a safetensors file. A file
            without its config is read as well; its scaling is then unknown, unless alpha is in it, as in kohya's.

    Raises:
        AdapterError: If there is no adapter, it is a pickle, its file is torn or holds what is not finite, its
            factors do not fit each other or the config, or its method is another.
    """
    file, config = _find(Path(adapter))
    if config and (method := str(config["peft_type"])) not in METHODS:
        raise AdapterError(f"{CONFIG} says {method}, whose update is no product of two factors; give a LoRA or AdaLoRA")
    stored = read_stored_adapter(file)
    modules, others = find_modules(stored.shapes, config, lambda key: float(read_tensor(file, key)))
    return AdapterFactors(
        file=file,
        stored=stored,
        config=config,
        modules={shapes.name: ModuleFactors(shapes, file) for shapes in modules},
        others={key: stored.shapes[key] for key in others},
    )


def _find(adapter: Path) -> tuple[Path, dict[str, Any]]:
    """Return the weights of an adapter, and its config; an empty one where a file stands alone."""
    if adapter.suffix in PICKLES and not adapter.is_dir():
        raise AdapterError(pickle_refusal(adapter.name))
    if adapter.is_file():
        beside = adapter.parent / CONFIG
        return adapter, read_config(beside) if adapter.name == WEIGHTS and beside.is_file() else {}
    if not adapter.is_dir():
        raise AdapterError(f"{adapter} is not here; give an adapter's folder, its .safetensors file, or a Hub id")
    if not (adapter / WEIGHTS).is_file():
        pickles = sorted(file for file in adapter.glob("adapter_model*") if file.suffix in PICKLES)
        found = sorted(file.name for file in adapter.iterdir())[:5]
        if pickles:
            raise AdapterError(pickle_refusal(pickles[0].name))
        if (adapter / "config.json").is_file():
            raise AdapterError(f"{adapter} is a whole model, with no adapter in it; give the folder of an adapter")
        raise AdapterError(
            f"{adapter} holds no {WEIGHTS} (found: {', '.join(found) or 'nothing'}); give the folder that "
            "save_pretrained wrote, or a .safetensors file"
        )
    if not (adapter / CONFIG).is_file():
        raise AdapterError(
            f"{adapter} holds no {CONFIG}, which says alpha; save the adapter again, or give {adapter / WEIGHTS} "
            "itself to go on without it"
        )
    return adapter / WEIGHTS, read_config(adapter / CONFIG)


def pickle_refusal(name: str) -> str:
    """Return why a pickle is not opened, and how it becomes what is."""
    return (
        f"{name} is a pickle, which can run code when it is loaded, and is not opened; where you trust it: "
        f"safetensors.torch.save_file(torch.load('{name}', weights_only=True), '{WEIGHTS}')"
    )
