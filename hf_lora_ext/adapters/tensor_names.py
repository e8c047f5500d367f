"""What a tensor of a saved adapter is, by its name: PEFT's own names, and those that other tools write."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal

__all__ = ["CONFIG", "WEIGHTS", "Part", "TensorName", "module_name", "parse_name", "peft_names"]

CONFIG: Final = "adapter_config.json"
WEIGHTS: Final = "adapter_model.safetensors"
PREFIX: Final = "base_model.model."
"""What PEFT's wrapper puts before a name of the base model."""
_WRAPPERS: Final = re.compile(r"(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""Names that torch.compile and FSDP put between those of a model."""
_FACTOR: Final = re.compile(
    r"""(?P<module>.+)\.
    (?P<word>lora_(?:embedding_)?[AB] | lora_E | ranknum | lora_magnitude_vector  # PEFT
           | lora_down | lora_up | dora_scale | alpha)                            # kohya
    (?:\.(?!(?:weight|bias)$)(?P<adapter>[^.]+))?
    (?:\.(?P<leaf>weight|bias))?""",
    re.VERBOSE,
)
_OF_OTHER_METHODS: Final = re.compile(
    r"(?:.*\.)?(?:lora_|hada_|lokr_|hira_|glora_|hra_|oft_|boft_|ia3_|p?vera_|randlora_)[^.]*(?:\..*)?"
)
"""Names of a low-rank or orthogonal part that is no factor of a LoRA, from PEFT's tuners and LyCORIS."""
Part = Literal["a", "b", "e", "ranknum", "magnitude", "alpha"]
_PARTS: Final[dict[str, Part]] = {
    "lora_A": "a", "lora_embedding_A": "a", "lora_down": "a", "lora_B": "b", "lora_embedding_B": "b", "lora_up": "b",
    "lora_E": "e", "ranknum": "ranknum", "lora_magnitude_vector": "magnitude", "dora_scale": "magnitude",
    "alpha": "alpha",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TensorName:
    """A tensor's name, understood."""

    module: str
    """Name of the module in the base model; of another tensor, its whole name."""
    part: Part | None = None
    """Which part of the module's adapter it is; None for what is no part of a low-rank product."""
    adapter: str | None = None
    """The adapter's name, where the tensor's has it in it, as in a model's own state."""
    is_embedding: bool = False
    """Whether the factor is looked up, not multiplied by."""
    is_foreign: bool = False
    """Whether it is part of another method, which is not a plain product of two factors."""


def parse_name(key: str) -> TensorName:
    """Return what a tensor is, by its name.

    >>> parse_name("base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight")
    TensorName(module='model.layers.0.self_attn.q_proj', part='a', adapter='default', is_embedding=False, \
is_foreign=False)
    >>> parse_name("layers.0.q_proj.hada_w1_a").is_foreign
    True
    """
    name = module_name(key)
    found = _FACTOR.fullmatch(name)
    if found and found["leaf"] != "bias":
        return TensorName(found["module"], _PARTS[found["word"]], found["adapter"], "embedding" in found["word"])
    return TensorName(name, is_foreign=not found and bool(_OF_OTHER_METHODS.fullmatch(name)))


def module_name(key: str) -> str:
    """Return a name as the base model has it, without what PEFT, torch.compile, FSDP and DDP put before it.

    >>> module_name("module.base_model.model._orig_mod.model.norm.weight")
    'model.norm.weight'
    """
    name = _WRAPPERS.sub("", key)
    return name.removeprefix("module.").removeprefix(PREFIX) if PREFIX in name else name


def peft_names(module: str, kind: str) -> dict[Part, str]:
    """Return the names under which PEFT saves a LoRA layer's parts.

    >>> peft_names("lm_head", "linear")["a"]
    'base_model.model.lm_head.lora_A.weight'
    """
    own = f"{PREFIX}{module}."
    magnitude = f"{own}lora_magnitude_vector"
    if kind == "embedding":
        return {"a": f"{own}lora_embedding_A", "b": f"{own}lora_embedding_B", "magnitude": magnitude}
    return {"a": f"{own}lora_A.weight", "b": f"{own}lora_B.weight", "magnitude": magnitude}
