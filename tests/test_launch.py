"""Accelerate's configuration: whole, consistent, and read back by accelerate's own parser."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_lora_ext import preset
from hf_lora_ext.choices.run import SHARDINGS
from hf_lora_ext.errors import ConfigError
from hf_lora_ext.hardware import Hardware
from hf_lora_ext.models.sizes import ModelShape
from hf_lora_ext.presets.launch import accelerate_config
from hf_lora_ext.presets.preset import decide
from hf_lora_ext.strict_yaml import read_yaml

CASES = {
    "one GPU": ({"gpus": 1}, {}),
    "DDP": ({"gpus": 4}, {}),
    "FSDP QLoRA": ({"gpus": 2, "method": "qlora", "sharding": "fsdp"}, {}),
    "FSDP LoRA": ({"gpus": 2, "sharding": "fsdp"}, {}),
    "ZeRO-3": ({"gpus": 8, "sharding": "zero3"}, {}),
    "two machines": ({"gpus": 8}, {"machines": 2, "machine_rank": 1, "main_process_ip": "10.0.0.1"}),
    "two machines, one GPU each": (
        {"gpus": 1, "sharding": "ddp"},
        {"machines": 2, "main_process_ip": "10.0.0.1", "main_process_port": 4321},
    ),
}


def card(**given):
    return preset("7B", gpu_memory_gib=80, **given)


@pytest.mark.parametrize("name", CASES)
def test_accelerate_reads_what_we_write(name, tmp_path):
    from accelerate.commands.config.config_args import load_config_from_file

    wishes, machines = CASES[name]
    p = card(**wishes)
    file = tmp_path / "accelerate.yaml"
    file.write_text(p.accelerate_yaml(**machines), encoding="utf8")
    read = load_config_from_file(str(file)).to_dict()
    config = p.accelerate_config(**machines)
    assert {key: read[key] for key in config} == config
    assert read["num_processes"] == wishes["gpus"] * machines.get("machines", 1)
    assert read["distributed_type"] == {"none": "NO", "ddp": "MULTI_GPU", "fsdp": "FSDP", "zero3": "DEEPSPEED"}[
        p.sharding
    ]  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_accelerate_launch_turns_it_into_an_environment_for_the_workers(name, tmp_path, monkeypatch):
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    monkeypatch.setattr("accelerate.commands.launch.check_cuda_p2p_ib_support", lambda: True)
    wishes, machines = CASES[name]
    p = card(**wishes)
    file = tmp_path / "accelerate.yaml"
    file.write_text(p.accelerate_yaml(**machines), encoding="utf8")
    args = launch_command_parser().parse_args(["--config_file", str(file), "train.py"])
    args, *_ = _validate_launch_command(args)
    assert (args.use_fsdp, args.use_deepspeed) == (p.sharding == "fsdp", p.sharding == "zero3")
    assert args.num_processes == p.accelerate_config(**machines)["num_processes"]
    assert (args.machine_rank, args.num_machines) == (machines.get("machine_rank", 0), machines.get("machines", 1))
    if p.sharding == "fsdp":
        assert (args.fsdp_version, args.fsdp_use_orig_params, args.fsdp_offload_params) == (1, False, p.offload)


@pytest.mark.parametrize("method", ["qlora", "lora"])
def test_the_workers_environment_has_the_sharding_that_we_wrote(method, tmp_path, monkeypatch):
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    file = tmp_path / "accelerate.yaml"
    file.write_text(card(gpus=2, method=method, sharding="fsdp").accelerate_yaml(), encoding="utf8")
    monkeypatch.setattr("accelerate.commands.launch.check_cuda_p2p_ib_support", lambda: True)
    args, *_ = _validate_launch_command(launch_command_parser().parse_args(["--config_file", str(file), "train.py"]))
    environment = prepare_multi_gpu_env(args)
    assert environment["FSDP_OFFLOAD_PARAMS"] == "false"  # it fits without
    assert (environment["FSDP_VERSION"], environment["FSDP_SHARDING_STRATEGY"]) == ("1", "FULL_SHARD")
    assert environment["FSDP_USE_ORIG_PARAMS"] == "false"
    assert environment["FSDP_SYNC_MODULE_STATES"] == environment["FSDP_CPU_RAM_EFFICIENT_LOADING"] == "true"


def test_fsdp_qlora_of_70b_on_two_cards_of_24_gib_is_as_peft_documents_it():
    config = preset("70B", gpu_memory_gib=24, gpus=2).accelerate_config()
    assert config["mixed_precision"] == "no"
    documented = {
        "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP", "fsdp_backward_prefetch": "BACKWARD_PRE",
        "fsdp_cpu_ram_efficient_loading": True, "fsdp_forward_prefetch": False, "fsdp_offload_params": True,
        "fsdp_sharding_strategy": "FULL_SHARD", "fsdp_state_dict_type": "SHARDED_STATE_DICT",
        "fsdp_sync_module_states": True, "fsdp_use_orig_params": False,
    }  # fmt: skip
    assert config["fsdp_config"] == documented | {"fsdp_version": 1}


def test_a_preset_for_two_machines_plans_and_launches_over_the_devices_of_both(tmp_path):
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    alone, both = preset("70B", gpu_memory_gib=80, gpus=2), preset("70B", gpu_memory_gib=80, gpus=2, machines=2)
    assert (alone.hardware.devices, both.hardware.devices, both.hardware.devices_each) == (2, 4, 2)
    assert both.found.plan.devices == 4
    assert both.accumulation * both.micro_batch * 4 == alone.accumulation * alone.micro_batch * 2 == 16
    file = tmp_path / "accelerate.yaml"
    file.write_text(both.accelerate_yaml(main_process_ip="10.0.0.1"), encoding="utf8")
    command = ["--config_file", str(file), "--machine_rank", "1", "train.py"]
    args, *_ = _validate_launch_command(launch_command_parser().parse_args(command))
    assert (args.num_processes, args.num_machines, args.machine_rank, args.main_process_ip) == (4, 2, 1, "10.0.0.1")


def test_fsdp_shards_over_the_devices_of_all_machines():
    one, two = (preset("70B", gpu_memory_gib=40, gpus=4, machines=m, method="lora", sharding="fsdp") for m in (1, 2))
    assert two.found.estimate.weights < one.found.estimate.weights or one.offload
    assert two.accelerate_config(main_process_ip="h")["num_processes"] == 8


@given(
    st.sampled_from(SHARDINGS),
    st.integers(1, 16),
    st.sampled_from(["float32", "float16", "bfloat16"]),
    st.sampled_from([None, 4, 8]),
    st.integers(1, 4),
)
def test_processes_are_devices_times_machines_or_it_is_refused(sharding, devices, dtype, bits, machines):
    given = {"sharding": sharding, "devices": devices, "dtype": dtype, "bits": bits, "machines": machines}
    if (sharding == "none") != (devices * machines == 1):
        with pytest.raises(ConfigError, match="sharding"):
            accelerate_config(**given, main_process_ip="h")
        return
    config = accelerate_config(**given, main_process_ip="h")
    assert config["num_processes"] == devices * machines
    assert ("main_process_ip" in config) == (machines > 1)
    assert not (bits and config["mixed_precision"] == "fp16")


@given(st.integers(1, 8), st.sampled_from(["cuda", "cpu"]))
def test_every_preset_has_a_launch_file_that_reads_back(devices, kind):
    hardware = Hardware(kind=kind, devices=devices if kind == "cuda" else 1, has_bfloat16=kind == "cuda")
    p = decide(ModelShape(parameters=10**9, source="test"), hardware)
    assert read_yaml(p.accelerate_yaml(), "it") == p.accelerate_config()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"machines": 2}, "machines=2 needs main_process_ip, the address of machine 0"),
        ({"machines": 0}, "machines=0 must be a whole number from 1"),
        ({"machines": 2, "machine_rank": 2, "main_process_ip": "h"}, "machine_rank=2 must be from 0 to 1"),
    ],
)
def test_machines_that_do_not_fit_are_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        card(gpus=2).accelerate_config(**given)


def test_sharding_over_one_device_is_refused():
    with pytest.raises(ConfigError, match="fsdp needs two devices or more, found 1; declare gpus="):
        card(gpus=1, sharding="fsdp").accelerate_config()
