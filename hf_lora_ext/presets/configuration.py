"""A preset's values, and on demand the objects that peft, transformers, trl and accelerate take for them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from ..choices.adapter import Choice, Method
from ..choices.methods import METHOD_FACTS
from ..choices.run import Sharding
from ..hardware import Hardware
from ..models.sizes import ModelShape

if TYPE_CHECKING:
    from peft import LoraConfig, PeftConfig
    from transformers import BitsAndBytesConfig, TrainerCallback, TrainingArguments
    from trl import SFTConfig

    from ..memory.fitting import Fit
    from ..runs.trainer_kinds import Trainer

__all__ = ["Preset"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """A complete LoRA configuration for one model on one kind of hardware.

    Frozen. The objects that peft, transformers and trl take are built anew at each access, so that a library
    which edits its configuration in place cannot change the preset.
    """

    model_id: str | None
    """Hub id or local folder of the base model; None for a bare size key."""
    shape: ModelShape
    """Size and dimensions of the base model."""
    hardware: Hardware
    """What it was made for."""
    method: Method
    """What is trained and how the base is held, a name in `methods.METHODS`."""
    rank: int
    """LoRA rank of every adapted layer."""
    alpha: int
    """LoRA alpha; the update is scaled by alpha / rank."""
    dropout: float
    """Dropout on the adapter's input."""
    targets: str | tuple[str, ...]
    """Module names that get an adapter, or `all-linear`."""
    experts: tuple[str, ...]
    """Expert parameters that get an adapter each; empty where they stay frozen."""
    expert_rank: int
    """LoRA rank of every expert; 0 without."""
    new_tokens: tuple[int, ...]
    """Tokens whose rows of embedding and head train."""
    adaptive_rank: bool
    """Whether the rank is a mean that layers share as they need it."""
    start_factor: int
    """How many times its mean rank an adapter of adaptive rank starts with; 1 without."""
    dtype: Literal["float32", "float16", "bfloat16"]
    """Precision of the base weights and of the matrix products."""
    init: str
    """How the adapter's factors start, a name in `methods.INITS`."""
    virtual_tokens: int
    """Length of the learned prefix; 0 without one."""
    adapter_dtype: Literal["float32", "bfloat16"]
    """Precision of the adapter's weights while they train."""
    optimizer: str
    """A name in `run.OPTIMIZERS`."""
    attention: str
    """Attention kernel, by its transformers name."""
    packing: bool
    """Whether several examples share a row."""
    sharding: Sharding
    """How several devices share the work."""
    offload: bool
    """Whether FSDP's parts of the weights wait in host memory."""
    reentrant: bool
    """Which kind of activation checkpointing, where it is on."""
    learning_rate: float
    """Peak learning rate of AdamW."""
    scheduler: str
    """Learning-rate schedule, by its transformers name."""
    warmup_fraction: float
    """Share of the steps that warm up."""
    epochs: float
    """Passes over the training data."""
    micro_batch: int
    """Examples per device in one forward pass."""
    accumulation: int
    """Forward passes per optimizer step."""
    max_length: int
    """Longest sequence in tokens; longer ones are cut."""
    activation_checkpointing: bool
    """Whether activations are recomputed in the backward pass to save memory."""
    memory_gib: float | None
    """GiB that each GPU should have, margin included; None where that is not known."""
    choices: tuple[Choice, ...]
    """Every value above with its reason and source."""
    warnings: tuple[Choice, ...] = ()
    """Risks that the advice for an automatic rank sees."""
    found: Fit | None = None
    """The memory plan behind it; None without a GPU of known memory."""
    own_lora_config: LoraConfig | None = None
    """The user's own LoraConfig, which then replaces the adapter's part."""
    model_is_loaded: bool = False
    """Whether it was made for a model in memory, so that a trainer has nothing to load."""

    @property
    def bits(self) -> Literal[4, 8] | None:
        """Bits of a weight of the base while training; None for its own precision."""
        return METHOD_FACTS[self.method].bits

    @property
    def peft_config(self) -> PeftConfig:
        """A new peft configuration of this preset's adapter (or a copy of the user's own)."""
        from ..runs.training import adapter_config

        return adapter_config(self)

    @property
    def quantization_config(self) -> BitsAndBytesConfig | None:
        """A new transformers `BitsAndBytesConfig` where the base is quantised, else None."""
        from ..runs.training import quantization_config

        return quantization_config(self)

    @property
    def model_kwargs(self) -> dict[str, Any]:
        """Keyword arguments for `AutoModelForCausalLM.from_pretrained`."""
        from ..runs.training import model_kwargs

        return model_kwargs(self)

    def sft_config(self, output_dir: str, **overrides: Any) -> SFTConfig:
        """Return a trl `SFTConfig` that trains this preset on the hardware at hand.

        Args:
            output_dir: Folder for checkpoints.
            **overrides: Any `SFTConfig` field; it replaces the preset's value.

        Raises:
            ConfigError: If an override is not a field of `SFTConfig`.
        """
        from ..runs.training import sft_config

        return sft_config(self, output_dir, **overrides)

    def training_config(self, trainer: Trainer, output_dir: str, **overrides: Any) -> Any:
        """Return the configuration of a trainer that trains this preset on the hardware at hand.

        The learning rate is the trainer's own, and where an example is two sequences, they share one's memory.

        Args:
            trainer: `"sft"`, `"dpo"`, `"kto"`, `"reward"`, `"grpo"`, `"rloo"`, `"classification"` (transformers'
                Trainer) or `"seq2seq"`.
            output_dir: Folder for checkpoints.
            **overrides: Any field of the configuration; it replaces the preset's value.

        Raises:
            ConfigError: If the trainer is not known or does not work with the preset, or an override is not a field.
        """
        from ..runs.training import training_config

        return training_config(self, trainer, output_dir, **overrides)

    def adapter_config(self, trainer: Trainer) -> PeftConfig:
        """Return a new peft configuration of this preset's adapter for a trainer: `peft_config` is the one for SFT.

        Args:
            trainer: A name as `training_config` takes it; classifiers and reward models train a new head as well.

        Raises:
            ConfigError: If the trainer is not known.
        """
        from ..runs.training import adapter_config

        return adapter_config(self, trainer)

    def optimizer_cls_and_kwargs(self, args: TrainingArguments) -> tuple[Any, dict[str, Any]] | None:
        """Return what the trainer's argument of this name takes: LoRA+'s optimizer, None for the other choices.

        Args:
            args: The trainer's configuration, which the learning rate and Adam's settings are read from.
        """
        from ..runs.training import optimizer_cls_and_kwargs

        return optimizer_cls_and_kwargs(self, args)

    def callbacks(self) -> list[TrainerCallback]:
        """Return new trainer callbacks: what method, initialisation and new tokens need, and what watches the run.

        That is `OverfitCallback` where the advice for `rank="auto"` sees the risk, and `ResourceCallback` where there
        is a memory plan to hold the run against. Without either, plain LoRA has none.
        """
        from ..runs.training import all_callbacks

        return all_callbacks(self)

    def accelerate_config(
        self,
        *,
        machines: int | None = None,
        machine_rank: int = 0,
        main_process_ip: str | None = None,
        main_process_port: int | None = None,
    ) -> dict[str, Any]:
        """Return what `accelerate launch --config_file` takes, as a mapping.

        Args:
            machines: Machines that take part, each with as many devices; left out, those that it was made for.
            machine_rank: This machine's number, from 0.
            main_process_ip: Address of machine 0, needed for several.
            main_process_port: Its port.

        Raises:
            ConfigError: If the numbers do not fit the preset's sharding.
        """
        from .launch import accelerate_config

        return accelerate_config(
            sharding=self.sharding,
            devices=self.hardware.devices_each,
            dtype=self.dtype,
            bits=self.bits,
            offload=self.offload,
            on_cpu=self.hardware.kind == "cpu",
            machines=self.hardware.machines if machines is None else machines,
            machine_rank=machine_rank,
            main_process_ip=main_process_ip,
            main_process_port=main_process_port,
        )

    def accelerate_yaml(self, **machines: Any) -> str:
        """Return `accelerate_config`, which takes the same arguments, as the YAML text of the file."""
        from ..strict_yaml import dump_yaml

        return dump_yaml(self.accelerate_config(**machines))

    def explain(self) -> str:
        """Return a table of every value, why it was chosen, and its source."""
        from .explanation import explain

        return explain(self)

    def to_dict(self) -> dict[str, Any]:
        """Return the preset as plain values that JSON takes; a user's own LoraConfig as its own dictionary."""
        plain = {name: getattr(self, name) for name in self.__slots__ if name not in _NESTED}
        return plain | {
            "targets": self.targets if isinstance(self.targets, str) else list(self.targets),
            "shape": asdict(self.shape),
            "hardware": asdict(self.hardware),
            "choices": [asdict(choice) for choice in self.choices],
            "warnings": [asdict(warning) for warning in self.warnings],
            "found": None if self.found is None else self.found.to_dict(),
            "own_lora_config": None if self.own_lora_config is None else _config_dict(self.own_lora_config),
        }


def _config_dict(config: LoraConfig) -> dict[str, Any]:
    """Return a LoraConfig as JSON-ready values; what JSON does not know becomes text, sets become lists."""
    as_list = (set, frozenset, tuple)
    plain = {key: sorted(value) if isinstance(value, as_list) else value for key, value in config.to_dict().items()}
    known = (str, int, float, bool, list, dict, type(None))
    return {key: value if isinstance(value, known) else str(value) for key, value in plain.items()}


_NESTED: Final = {"shape", "hardware", "choices", "warnings", "targets", "found", "own_lora_config"}
