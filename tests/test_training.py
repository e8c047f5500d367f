"""The seam to TRL: what a preset builds, and that what is trained is an ordinary adapter."""

import json
from pathlib import Path

import pytest
from conftest import PAIRS, run_python

from hf_lora_ext import ConfigError, preset
from hf_lora_ext.hardware import Hardware
from hf_lora_ext.models.sizes import ModelShape
from hf_lora_ext.presets.preset import decide
from hf_lora_ext.runs.training import fitted_to_this_machine

SEVEN_BILLION = ModelShape(parameters=7 * 10**9, source="test")


def train(p, folder: Path, model=None, steps: int = 4, **overrides):
    from datasets import Dataset
    from trl import SFTTrainer

    given = {"quantization_config": p.quantization_config} if model is None else {}
    adapter = {} if hasattr(model, "peft_config") else {"peft_config": p.peft_config}
    args = p.sft_config(
        str(folder), max_steps=steps, learning_rate=1e-2, report_to="none", save_strategy="no", disable_tqdm=True,
        per_device_train_batch_size=2, gradient_accumulation_steps=1, logging_steps=1, **overrides,
    )  # fmt: skip
    trainer = SFTTrainer(
        model=p.model_id if model is None else model,
        args=args,
        train_dataset=Dataset.from_list(PAIRS),
        **given,
        **adapter,
    )
    trainer.train()
    return trainer


def test_a_plain_preset_trains_on_this_machine_as_it_is(tiny_model: Path, tmp_path: Path):
    trainer = train(preset(str(tiny_model)), tmp_path, steps=40)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.95 * losses[0]


def test_a_preset_for_a_loaded_model_trains(tiny_model: Path, tmp_path: Path):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    parameters = model.num_parameters()
    p = preset(model, rank=2, targets=["q_proj"])
    trainer = train(p, tmp_path, model=model)
    assert p.shape.parameters == parameters
    assert p.sft_config(str(tmp_path)).model_init_kwargs is None
    assert trainer.model.peft_config["default"].target_modules == {"q_proj"}


@pytest.mark.filterwarnings("ignore:.*quantization.*:UserWarning")
def test_qlora_trains_on_the_cpu_in_nf4_with_double_quantisation(tiny_model: Path, tmp_path: Path):
    from bitsandbytes.nn import Linear4bit

    trainer = train(preset(str(tiny_model), method="qlora"), tmp_path, steps=40)
    packed = [m for m in trainer.model.modules() if isinstance(m, Linear4bit)]
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(packed) == 14
    assert all(m.weight.quant_type == "nf4" and m.weight.quant_state.nested for m in packed)
    assert losses[-1] < 0.95 * losses[0]


LOAD_WITH_PEFT_ALONE = """
import json, sys, torch
from peft import AutoPeftModelForCausalLM
model = AutoPeftModelForCausalLM.from_pretrained(sys.argv[1]).eval()
with torch.no_grad():
    logits = model(torch.tensor([[5, 9, 17, 33]])).logits
ours = [m for m in sys.modules if m.startswith("hf_lora_ext")]
print(json.dumps({"logits": logits.flatten().tolist(), "ours": ours}))
"""


def test_a_saved_adapter_gives_the_same_logits_with_peft_alone(tiny_model: Path, tmp_path: Path):
    import torch

    trainer = train(preset(str(tiny_model)), tmp_path)
    trainer.save_model(str(tmp_path / "adapter"))
    trainer.model.eval()
    with torch.no_grad():
        here = trainer.model(torch.tensor([[5, 9, 17, 33]])).logits.flatten().tolist()
    result = run_python("-c", LOAD_WITH_PEFT_ALONE, str(tmp_path / "adapter"))
    assert result.returncode == 0, result.stderr
    there = json.loads(result.stdout.splitlines()[-1])
    assert there["ours"] == []
    assert max(abs(a - b) for a, b in zip(here, there["logits"], strict=True)) < 1e-6


def test_a_saved_adapter_continues_training(tiny_model: Path, tmp_path: Path):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    p = preset(str(tiny_model))
    train(p, tmp_path / "first").save_model(str(tmp_path / "adapter"))
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    model = PeftModel.from_pretrained(base, tmp_path / "adapter", is_trainable=True)
    before = {name: w.clone() for name, w in model.named_parameters() if w.requires_grad}
    train(p, tmp_path / "second", model=model)
    assert before
    assert all(not torch.equal(before[name], w) for name, w in model.named_parameters() if name in before)


def test_objects_are_built_anew_at_each_access():
    p = preset("7B", method="qlora")
    p.peft_config.r = 1
    p.quantization_config.load_in_4bit = False
    assert p.peft_config.r == 8
    assert p.quantization_config.load_in_4bit


def test_an_own_lora_config_replaces_the_adapter():
    from peft import LoraConfig

    own = LoraConfig(r=3, lora_alpha=5, target_modules=["q_proj"], use_dora=True)
    p = preset("7B", lora_config=own)
    assert (p.rank, p.alpha, p.targets) == (3, 5, ("q_proj",))
    assert p.peft_config.use_dora
    assert p.peft_config is not own
    assert json.dumps(p.to_dict())


def test_bfloat16_where_there_is_hardware_for_it_and_not_elsewhere():
    ampere = Hardware(kind="cuda", memory_gib=24, has_bfloat16=True, name="Ampere")
    turing = Hardware(kind="cuda", memory_gib=16, has_bfloat16=False, name="Turing")
    dtypes = [decide(SEVEN_BILLION, hardware).dtype for hardware in (ampere, turing, Hardware(kind="cpu"))]
    assert dtypes == ["bfloat16", "float16", "float32"]


def test_a_preset_declared_for_a_gpu_is_built_for_the_machine_at_hand(tmp_path: Path):
    import torch

    declared = preset("7B", method="qlora", gpu_memory_gib=24)
    assert declared.dtype == "bfloat16"
    if torch.cuda.is_available():
        assert fitted_to_this_machine(declared).hardware.kind == "cuda"
        return
    args = declared.sft_config(str(tmp_path))
    assert (args.bf16, args.fp16, args.use_cpu) == (False, False, True)
    assert args.gradient_checkpointing is False
    assert declared.model_kwargs["dtype"] == "float32"


def test_overrides_of_the_trainer_config_win_and_typos_are_refused(tmp_path: Path):
    p = preset("7B")
    assert p.sft_config(str(tmp_path), learning_rate=5e-5, warmup_steps=7).warmup_steps == 7
    for name in ("activation_checkpointing", "gradient_checkpointing"):
        assert p.sft_config(str(tmp_path), **{name: True}).gradient_checkpointing is True
    with pytest.raises(ConfigError, match="did you mean `learning_rate`"):
        p.sft_config(str(tmp_path), learning_rat=1e-4)
    with pytest.raises(ConfigError, match="did you mean `learning_rate`"):
        p.sft_config(str(tmp_path), lr=1e-4)
