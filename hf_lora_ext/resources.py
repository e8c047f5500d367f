"""Files shipped with the package: the card template and the recipes.

In a checkout they are top-level folders beside the package; in the wheel they lie inside it.
"""

from pathlib import Path
from typing import Literal

__all__ = ["shipped_folder"]


def shipped_folder(name: Literal["model_cards", "recipes"]) -> Path:
    """Return the folder `name`, from the installed wheel or from the checkout.

    Raises:
        FileNotFoundError: If the installation is incomplete.
    """
    package = Path(__file__).parent
    for folder in (package / name, package.parent / name):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"the installed hf_lora_ext has no {name} folder; reinstall it")
