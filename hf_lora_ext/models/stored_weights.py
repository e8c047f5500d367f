"""The weights of a model as its files hold them, read one tensor at a time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ConfigError

if TYPE_CHECKING:
    import torch

__all__ = ["StoredWeights", "tensor_files"]


class StoredWeights:
    """The safetensors files of a local folder, or of a Hub model that has been downloaded.

    Args:
        model_id: Folder or Hub id.
    """

    def __init__(self, model_id: str) -> None:
        self.model_id = model_id
        self._file_of: dict[str, Path] = {}
        self._prefix = ""

    def find(self, prefix: str = "", revision: str | None = None) -> None:
        """Look where every tensor is; nothing is read yet.

        Args:
            prefix: Name of the backbone in the model, which some files leave out of their tensors' names.
            revision: Commit on the Hub.

        Raises:
            ConfigError: If there are no safetensors files of this model here.
        """
        from .. import hub

        folder = Path(self.model_id)
        if not folder.is_dir():
            cached = hub.cached_model_folder(self.model_id, revision)
            if cached is None:
                raise ConfigError(f"{self.model_id} is no folder here and not wholly in the Hub's cache; download it "
                                  "first, or give a local folder")  # fmt: skip
            folder = cached
        self._file_of, self._prefix = tensor_files(folder), prefix
        if not self._file_of:
            raise ConfigError(f"{folder} holds no *.safetensors; save the model with save_pretrained")

    def of_layer(self, name: str) -> torch.Tensor:
        """Return the weight of a linear layer by its name in the model.

        Raises:
            ConfigError: If the files hold no unquantised weight of this name.
        """
        from safetensors import safe_open

        whole = f"{name}.weight"
        key = next((key for key in (whole, whole.removeprefix(f"{self._prefix}.")) if key in self._file_of), None)
        if key is None:
            raise ConfigError(f"the files of {self.model_id} hold no {whole}; give the model under the names it trains")
        with safe_open(self._file_of[key], "pt") as stored:
            weight: torch.Tensor = stored.get_tensor(key)
        if not weight.is_floating_point():
            raise ConfigError(f"{key} of {self.model_id} is quantised already ({weight.dtype}); give the unquantised "
                              "model")  # fmt: skip
        return weight


def tensor_files(folder: Path) -> dict[str, Path]:
    """Return tensor → file, from the index of a sharded model or from the files themselves."""
    from safetensors import safe_open

    index = folder / "model.safetensors.index.json"
    if index.is_file():
        where = json.loads(index.read_text(encoding="utf8"))["weight_map"]
        return {key: folder / file for key, file in where.items()}
    found: dict[str, Path] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as stored:
            found |= dict.fromkeys(stored.keys(), file)
    return found
