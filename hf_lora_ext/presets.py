"""Presets: the LoRA and training configuration for a model, with the reason and the source of every value.

`decide` is pure: a shape, the hardware and the user's wishes in, a frozen `Preset` out. `preset` gathers those
and calls it. Whatever needs peft, trl or torch is built on demand by `training`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal

from .choices import Choice, LoraWishes, Method, all_choices, check_wishes
from .errors import ConfigError
from .hardware import Hardware, declared_hardware
from .host_memory import host_choice, host_warnings
from .methods import METHOD_FACTS
from .run_choices import RunWishes, Sharding, check_run
from .sizes import ModelShape

if TYPE_CHECKING:
    from peft import LoraConfig, PeftConfig
    from transformers import BitsAndBytesConfig, TrainerCallback
    from trl import SFTConfig

    from .advice import Advice, Task
    from .fitting import Fit

__all__ = ["Preset", "decide", "preset"]


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
    dtype: Literal["float32", "float16", "bfloat16"]
    """Precision of the base weights and of the matrix products."""
    init: str
    """How the adapter's factors start, a name in `methods.INITS`."""
    virtual_tokens: int
    """Length of the learned prefix; 0 without one."""
    adapter_dtype: Literal["float32", "bfloat16"]
    """Precision of the adapter's weights while they train."""
    optimizer: str
    """A name in `run_choices.OPTIMIZERS`."""
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
        from .training import adapter_config

        return adapter_config(self)

    @property
    def quantization_config(self) -> BitsAndBytesConfig | None:
        """A new transformers `BitsAndBytesConfig` where the base is quantised, else None."""
        from .training import quantization_config

        return quantization_config(self)

    @property
    def model_kwargs(self) -> dict[str, Any]:
        """Keyword arguments for `AutoModelForCausalLM.from_pretrained`."""
        from .training import model_kwargs

        return model_kwargs(self)

    def sft_config(self, output_dir: str, **overrides: Any) -> SFTConfig:
        """Return a trl `SFTConfig` that trains this preset on the hardware at hand.

        Args:
            output_dir: Folder for checkpoints.
            **overrides: Any `SFTConfig` field; it replaces the preset's value.

        Raises:
            ConfigError: If an override is not a field of `SFTConfig`.
        """
        from .training import sft_config

        return sft_config(self, output_dir, **overrides)

    def optimizer_cls_and_kwargs(self, args: SFTConfig) -> tuple[Any, dict[str, Any]] | None:
        """Return what the trainer's argument of this name takes: LoRA+'s optimizer, None for the other choices.

        Args:
            args: The trainer's configuration, which the learning rate and Adam's settings are read from.
        """
        from .training import optimizer_cls_and_kwargs

        return optimizer_cls_and_kwargs(self, args)

    def callbacks(self) -> list[TrainerCallback]:
        """Return new trainer callbacks that the method and the initialisation need; often none."""
        from .training import method_callbacks

        return method_callbacks(self)

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
        from .strict_yaml import dump_yaml

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


def preset(
    model: Any,
    *,
    method: Method | None = None,
    rank: int | Literal["auto"] | None = None,
    alpha: int | None = None,
    dropout: float | None = None,
    targets: str | Sequence[str] | None = None,
    lora_config: LoraConfig | None = None,
    task: Task | None = None,
    examples: int | None = None,
    tokens: int | None = None,
    init: str | None = None,
    optimizer: str | None = None,
    attention: str | None = None,
    packing: bool | None = None,
    sharding: Sharding | None = None,
    max_length: int | None = None,
    gpu_memory_gib: float | None = None,
    gpus: int | None = None,
    machines: int | None = None,
    host_gib: float | None = None,
    ask_hub: bool = True,
) -> Preset:
    """Return the LoRA and training configuration for a model, with its reasons.

    >>> preset("7B").rank
    8

    Args:
        model: A size key (`"7B"`, `"1.3b"`), a Hub id, a local folder, a config (object or mapping), or a loaded
            model.
        method: `"lora"`, `"rslora"`, `"dora"`, `"adalora"`, `"prefix"`; `"qlora"` or `"qdora"` for a base held in
            4-bit NF4 with double quantisation, `"qlora8"` for one in 8 bits. Left out, `"lora"`, or `"qlora"` where
            only that fits.
        rank: Overrides the rank of the size band; `"auto"` takes `advice.advise`'s for the next three.
        alpha: Overrides alpha = 2 x rank.
        dropout: Overrides the adapter's dropout, from 0 up to 1.
        targets: Overrides the adapted modules: `"all-linear"` or module names.
        lora_config: Your own `peft.LoraConfig`; excludes the four above.
        task: What is learned: `"style"`, `"classification"`, `"chat"`, `"code"` or `"domain"`.
        examples: Training examples.
        tokens: Training tokens that the loss counts.
        init: How the factors start: `"default"`, `"gaussian"`, `"orthogonal"`, `"pissa"`, `"olora"`, `"mica"`.
        optimizer: `"adamw"`, `"paged_adamw_8bit"`, or `"loraplus"` (see `Preset.optimizer_cls_and_kwargs`).
        attention: `"sdpa"`, `"eager"`, or `"flash_attention_2"` and `_3`, which need a package and allow packing.
        packing: Whether several examples share a row; on by default where the attention keeps them apart.
        sharding: `"none"`, `"ddp"`, `"fsdp"` or `"zero3"`; by default `"ddp"` for several devices.
        max_length: Longest example in tokens; longer ones are cut.
        gpu_memory_gib: Memory of one GPU in GiB, to plan for a machine that is not this one.
        gpus: Number of GPUs in one machine, likewise.
        machines: Number of such machines that train together.
        host_gib: Memory of one machine's host in GiB, likewise; what is planned then fits it too.
        ask_hub: Whether a popular model is looked up on the Hub although its config is shipped with this package.

    Raises:
        ConfigError: If the model's size cannot be told, a value cannot be right, or nothing fits the GPUs; then with
            what would.
    """
    from .base_models import find_shape, is_loaded_model
    from .machine import find_hardware

    asks = rank == "auto"
    _check_question(rank, task, examples, tokens)
    if asks and (method == "prefix" or lora_config is not None):
        owner = "method prefix" if method == "prefix" else "lora_config"
        raise ConfigError(f"{owner} leaves no rank to choose; leave rank='auto' out")
    wishes = LoraWishes(
        rank=None if rank == "auto" else rank, alpha=alpha, dropout=dropout, targets=_as_targets(targets)
    )
    run = RunWishes(
        init=init, optimizer=optimizer, attention=attention, packing=packing, sharding=sharding, max_length=max_length
    )
    check_wishes(method or "lora", wishes, lora_config)
    hardware = declared_hardware(find_hardware(), gpu_memory_gib, gpus, machines=machines, host_gib=host_gib)
    check_run(method or "lora", run, hardware, lora_config)
    shape, model_id = find_shape(model, ask_hub=ask_hub)
    advice = _advice(shape, task, examples, tokens) if asks else None
    found = _found_plan(
        hardware, shape=shape, method=method, adapter=wishes, run=run, lora_config=lora_config, advice=advice
    )
    if found is not None:
        method = method or ("qlora" if found.plan.base == "nf4" else "lora")
        hardware = found.hardware
    decided = decide(
        shape,
        hardware,
        method=method or "lora",
        wishes=wishes,
        lora_config=lora_config,
        run=run,
        advice=advice,
        found=found,
        model_id=model_id,
    )
    return replace(decided, model_is_loaded=is_loaded_model(model))


def _found_plan(hardware: Hardware, **request: Any) -> Fit | None:
    """Ask the planner where there is a GPU of known memory; it is loaded only then."""
    if hardware.kind != "cuda" or hardware.memory_gib is None or request["method"] == "prefix":
        return None
    from .plan_choices import PlanRequest
    from .remedies import plan_run

    return plan_run(PlanRequest(**request), hardware)


def _advice(shape: ModelShape, task: Task | None, examples: int | None, tokens: int | None) -> Advice:
    from .advice import advise

    return advise(shape, task=task, examples=examples, tokens=tokens)


def _check_question(rank: Any, task: str | None, examples: int | None, tokens: int | None) -> None:
    """Raise for a question to the advice without `rank="auto"`, or one that cannot be answered."""
    question = {"task": task, "examples": examples, "tokens": tokens}
    given = [name for name, value in question.items() if value is not None]
    if given and rank != "auto":
        raise ConfigError(f"{given[0]} is for rank='auto'; add it, or leave {given[0]} out")
    if given:
        from .advice import check_question

        check_question(task, examples, tokens)


def _as_targets(targets: str | Sequence[str] | None) -> str | tuple[str, ...] | None:
    return targets if targets is None or isinstance(targets, str) else tuple(targets)


def decide(
    shape: ModelShape,
    hardware: Hardware,
    *,
    method: Method = "lora",
    wishes: LoraWishes | None = None,
    lora_config: LoraConfig | None = None,
    run: RunWishes | None = None,
    advice: Advice | None = None,
    found: Fit | None = None,
    model_id: str | None = None,
) -> Preset:
    """Return the preset for a shape on given hardware; the pure part of `preset`."""
    run = run or RunWishes()
    shared = replace(run, sharding=found.sharding) if found is not None and found.plan.devices > 1 else run
    choices = all_choices(shape, hardware, method, wishes or LoraWishes(), lora_config, shared, advice)
    if found is None:
        choices = (*choices, host_choice(shape, hardware, choices))
    else:
        from .plan_choices import overlaid

        choices = overlaid(choices, found, fixed_sharding=run.sharding is not None)
    value = {choice.name: choice.value for choice in choices}
    return Preset(
        model_id=model_id,
        shape=shape,
        hardware=hardware,
        choices=choices,
        warnings=(*(advice.warnings if advice else ()), *host_warnings(shape, hardware, choices)),
        found=found,
        own_lora_config=lora_config,
        **value,
    )
