"""What `accelerate launch --config_file` takes for a preset: pure, plain values in, a mapping out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal

from ..errors import ConfigError

if TYPE_CHECKING:
    from ..choices.run import Sharding

__all__ = ["accelerate_config"]

_KINDS: Final = {"none": "NO", "ddp": "MULTI_GPU", "fsdp": "FSDP", "zero3": "DEEPSPEED"}
_PORT: Final = 29500
"""torch.distributed's customary port."""


def accelerate_config(
    *,
    sharding: Sharding,
    devices: int,
    dtype: str,
    bits: Literal[4, 8] | None = None,
    offload: bool = False,
    on_cpu: bool = False,
    machines: int = 1,
    machine_rank: int = 0,
    main_process_ip: str | None = None,
    main_process_port: int | None = None,
) -> dict[str, Any]:
    """Return accelerate's configuration for a run.

    >>> accelerate_config(sharding="ddp", devices=2, dtype="bfloat16")["distributed_type"]
    'MULTI_GPU'

    Args:
        sharding: How the devices share the work.
        devices: Devices of one machine.
        dtype: Precision of the matrix products.
        bits: Bits of a weight of the base, None for its own precision.
        offload: Whether FSDP's parts wait in host memory.
        on_cpu: Whether the run computes on a CPU.
        machines: Machines that take part, all alike.
        machine_rank: This machine's number, from 0; each machine gets a configuration of its own.
        main_process_ip: Address of machine 0, needed for several.
        main_process_port: Its port.

    Raises:
        ConfigError: If the numbers do not fit together.
    """
    _check(sharding, devices, machines, machine_rank, main_process_ip)
    precision = {"bfloat16": "bf16", "float16": "fp16"}.get(dtype, "no")
    if bits is not None and (precision == "fp16" or sharding == "fsdp"):
        # 4-bit adapters are bfloat16, which float16's gradient scaler cannot scale; FSDP must not cast packed weights.
        precision = "no"
    kind = "MULTI_CPU" if on_cpu and sharding == "ddp" else _KINDS[sharding]
    config: dict[str, Any] = {
        "compute_environment": "LOCAL_MACHINE",
        "debug": False,
        "distributed_type": kind,
        "downcast_bf16": "no",
        "machine_rank": machine_rank,
        "main_training_function": "main",
        "mixed_precision": precision,
        "num_machines": machines,
        "num_processes": devices * machines,
        "rdzv_backend": "static",
        "same_network": True,
        "use_cpu": on_cpu,
    }
    if machines > 1:
        config |= {"main_process_ip": main_process_ip, "main_process_port": main_process_port or _PORT}
    if sharding == "fsdp":
        config["fsdp_config"] = _fsdp(offload)
    if sharding == "zero3":
        config["deepspeed_config"] = _zero3()
    return config


def _check(sharding: str, devices: int, machines: int, machine_rank: int, main_process_ip: str | None) -> None:
    for name, value in (("machines", machines), ("devices", devices)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(f"{name}={value!r} must be a whole number from 1")
    if isinstance(machine_rank, bool) or not isinstance(machine_rank, int) or not 0 <= machine_rank < machines:
        raise ConfigError(f"machine_rank={machine_rank!r} must be from 0 to {machines - 1} with machines={machines}")
    if machines > 1 and not main_process_ip:
        raise ConfigError(f"machines={machines} needs main_process_ip, the address of machine 0")
    together = devices * machines
    if sharding == "none" and together > 1:
        raise ConfigError(f"sharding none is for one device, found {together}; use sharding ddp, fsdp or zero3")
    if sharding != "none" and together < 2:
        raise ConfigError(
            f"sharding {sharding} needs two devices or more, found 1; declare gpus=, or use sharding none"
        )


def _fsdp(offload: bool) -> dict[str, Any]:
    """Return FSDP 1 as peft's `examples/sft/configs/fsdp_config_qlora.yaml` has it, fully sharded as is planned for."""
    return {
        "fsdp_version": 1,
        "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "fsdp_backward_prefetch": "BACKWARD_PRE",
        "fsdp_cpu_ram_efficient_loading": True,
        "fsdp_forward_prefetch": False,
        "fsdp_offload_params": offload,  # 70B in 4 bits on 2 x 24 GB; some 107 GB of host memory
        "fsdp_sharding_strategy": "FULL_SHARD",
        "fsdp_state_dict_type": "SHARDED_STATE_DICT",
        "fsdp_sync_module_states": True,
        "fsdp_use_orig_params": False,
    }


def _zero3() -> dict[str, Any]:
    """Return ZeRO stage 3 as trl's `accelerate_configs/zero3.yaml` has it."""
    return {
        "deepspeed_multinode_launcher": "standard",
        "offload_optimizer_device": "none",
        "offload_param_device": "none",
        "zero3_init_flag": True,
        "zero3_save_16bit_model": True,
        "zero_stage": 3,
    }
