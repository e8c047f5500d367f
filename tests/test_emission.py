"""A preset written out: the script runs and builds the preset's own objects, the recipe gives the same preset."""

import ast
import dataclasses
import runpy
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from conftest import PAIRS, write_jsonl

from hf_lora_ext import ConfigError, preset, run_recipe
from hf_lora_ext.choices.methods import INITS, METHODS
from hf_lora_ext.choices.run import LORA_RATE
from hf_lora_ext.presets.arguments import callback_arguments
from hf_lora_ext.runs.emission import python_script, recipe_yaml
from hf_lora_ext.runs.recipe import load_recipe, parse_recipe
from hf_lora_ext.runs.recipe_plan import preset_for
from hf_lora_ext.runs.trainer_kinds import TRAINER_KINDS, TRAINERS
from hf_lora_ext.runs.training import method_callbacks
from hf_lora_ext.strict_yaml import read_yaml

INITIALISATIONS = [name for name, facts in INITS.items() if not facts.refusal]
NEEDED = {"loftq": {"method": "qlora"}}
"""What an initialisation makes sense with only."""
CASES = {
    **{method: {"method": method} for method in METHODS},
    **{f"init {name}": {"init": name} | NEEDED.get(name, {}) for name in INITIALISATIONS},
    "LoRA+": {"optimizer": "loraplus"},
    "paged": {"method": "qlora", "optimizer": "paged_adamw_8bit"},
    "eager, short": {"attention": "eager", "max_length": 64},
    "your own values": {"rank": 5, "alpha": 7, "dropout": 0.25, "targets": ["q_proj", "v_proj"]},
    "advised": {"rank": "auto", "task": "chat", "examples": 500, "tokens": 10**5},
}
GPU_CASES = CASES | {
    "FSDP QLoRA": {"method": "qlora", "gpus": 2, "sharding": "fsdp"},
    "ZeRO-3": {"gpus": 4, "sharding": "zero3"},
    "flash, packed": {"attention": "flash_attention_2", "packing": True},
}


def write(form, p, data="examples.jsonl", output_dir="out") -> str:
    installed = {"transformers": version("transformers")} if form is python_script else {}
    return form(p, data=str(data), output_dir=str(output_dir), **installed)


def without_the_run(script: str) -> str:
    """Leave out the trainer, so that only the configuration is built."""
    return script[: script.index("trainer = ")]


@pytest.fixture
def on_any_hardware(monkeypatch):
    """Let a preset for a GPU be built here: SFTConfig refuses bfloat16 on a CPU, whoever asks."""
    import trl

    def make(p):
        fields = dataclasses.fields(trl.SFTConfig)
        recording = dataclasses.make_dataclass(
            "SFTConfig", [(f.name, object, dataclasses.field(default=None)) for f in fields]
        )
        monkeypatch.setattr(trl, "SFTConfig", recording)
        monkeypatch.setattr("hf_lora_ext.machine.find_hardware", lambda: p.hardware)

    return make


@pytest.mark.parametrize("name", CASES)
def test_a_script_for_this_machine_builds_the_preset_s_own_objects(name, tiny_model: Path):
    p = preset(str(tiny_model), **CASES[name])
    made: dict = {}
    exec(without_the_run(write(python_script, p)), made)
    assert made["args"].to_dict() == p.sft_config("out").to_dict()
    assert made["peft_config"].to_dict() == p.peft_config.to_dict()
    assert type(made["peft_config"]) is type(p.peft_config)
    quantised = made["quantization_config"].to_dict() if p.bits else None
    assert quantised == (p.quantization_config.to_dict() if p.bits else None)


@pytest.mark.parametrize("name", GPU_CASES)
def test_a_script_for_gpus_asks_for_what_the_preset_asks_for(name, tiny_model: Path, on_any_hardware):
    p = preset(str(tiny_model), gpu_memory_gib=24, **GPU_CASES[name])
    on_any_hardware(p)
    made: dict = {}
    exec(without_the_run(write(python_script, p)), made)
    assert dataclasses.asdict(made["args"]) == dataclasses.asdict(p.sft_config("out"))
    assert made["peft_config"].to_dict() == p.peft_config.to_dict()
    if p.bits:
        assert made["quantization_config"].to_dict() == p.quantization_config.to_dict()
    assert ("callbacks=" in write(python_script, p)) == bool(method_callbacks(p))
    for callback in method_callbacks(p):
        assert type(callback) is made[type(callback).__name__]


@pytest.mark.parametrize("name", GPU_CASES)
def test_every_value_of_a_script_has_its_reason_within_100_columns(name, tiny_model: Path):
    p = preset(str(tiny_model), gpu_memory_gib=24, **GPU_CASES[name])
    script = write(python_script, p)
    ast.parse(script)
    assert max(len(line) for line in script.splitlines() if str(tiny_model) not in line) <= 100
    words = " ".join(script.replace("#", " ").split())
    for choice in p.choices:
        if choice.name in ("rank", "learning_rate", "micro_batch", "accumulation") and p.method != "prefix":
            assert choice.why in words


@pytest.mark.parametrize("name", GPU_CASES)
def test_only_what_needs_a_callback_of_this_package_imports_it(name, tiny_model: Path):
    p = preset(str(tiny_model), gpu_memory_gib=80, **GPU_CASES[name])
    names = {callback for callback, _ in callback_arguments(p)}
    script = write(python_script, p)
    assert ("import hf_lora_ext" in script or "from hf_lora_ext" in script) == bool(names)
    assert all(f"{callback}(" in script for callback in names)
    assert names or name not in ("adalora", "init pissa", "init olora")
    assert not names or name not in ("lora", "rslora", "dora", "prefix", "LoRA+", "your own values")


@pytest.mark.parametrize("name", ["lora", "LoRA+", "adalora"])
def test_an_emitted_script_trains_as_it_is(name, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    few = write_jsonl(tmp_path / "few.jsonl", PAIRS[:11])  # 3 epochs of one optimizer step
    script = write(python_script, preset(str(tiny_model), **CASES[name]), data=few)
    (tmp_path / "train.py").write_text(script, encoding="utf8")
    made = runpy.run_path(str(tmp_path / "train.py"))
    assert made["trainer"].state.global_step >= 2
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()


def test_an_emitted_script_runs_in_an_interpreter_of_its_own_without_this_package(tiny_model: Path, tmp_path: Path):
    few = write_jsonl(tmp_path / "few.jsonl", PAIRS[:4])
    script = write(python_script, preset(str(tiny_model)), data=few, output_dir=tmp_path / "out")
    script += 'import sys\nassert not any(name.startswith("hf_lora_ext") for name in sys.modules)\n'
    (tmp_path / "train.py").write_text(script, encoding="utf8")
    result = subprocess.run([sys.executable, str(tmp_path / "train.py")], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "out" / "adapter_config.json").is_file()


@pytest.mark.parametrize("name", CASES)
def test_a_recipe_gives_the_same_preset(name, tiny_model: Path, tmp_path: Path):
    p = preset(str(tiny_model), **CASES[name])
    file = tmp_path / "mine.yaml"
    file.write_text(write(recipe_yaml, p), encoding="utf8")
    recipe = load_recipe(file)
    again = preset_for(recipe, str(tiny_model), examples=100)
    assert again.peft_config.to_dict() == p.peft_config.to_dict()
    assert again.sft_config("out", **recipe.training).to_dict() == p.sft_config("out").to_dict()
    decided = {field.name for field in dataclasses.fields(p)} - {"choices", "warnings"}
    assert {n: getattr(again, n) for n in decided} == {n: getattr(p, n) for n in decided}


@pytest.mark.parametrize("name", GPU_CASES)
def test_a_recipe_for_gpus_gives_the_same_preset_on_such_gpus(name, tiny_model: Path, monkeypatch):
    p = preset(str(tiny_model), gpu_memory_gib=24, **GPU_CASES[name])
    recipe = parse_recipe(read_yaml(write(recipe_yaml, p), "emitted"))
    monkeypatch.setattr("hf_lora_ext.machine.find_hardware", lambda: p.hardware)
    again = preset_for(recipe, str(tiny_model), examples=100)
    replaced = {"packing", "micro_batch", "accumulation", "choices", "warnings", "found", "memory_gib"}
    decided = {field.name for field in dataclasses.fields(p)} - replaced
    assert {n: getattr(again, n) for n in decided} == {n: getattr(p, n) for n in decided}
    assert recipe.training["per_device_train_batch_size"] == p.micro_batch
    assert recipe.training["gradient_accumulation_steps"] == p.accumulation
    assert recipe.training["packing"] == p.packing


def test_an_emitted_recipe_trains(tiny_model: Path, tmp_path: Path):
    few = write_jsonl(tmp_path / "few.jsonl", PAIRS)
    p = preset(str(tiny_model), method="rslora")
    file = tmp_path / "mine.yaml"
    file.write_text(write(recipe_yaml, p, data=few, output_dir=tmp_path / "run"), encoding="utf8")
    recipe = load_recipe(file, ["training.max_steps=2", "training.num_train_epochs=null"])
    result = run_recipe(recipe, say=lambda line: None)
    assert result.status == "trained"
    assert result.facts.run["steps"] == 2
    assert (tmp_path / "run" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize("form", [python_script, recipe_yaml])
def test_a_preset_without_a_model_or_with_a_config_of_the_user_s_is_refused(form, tiny_model: Path):
    from peft import LoraConfig

    with pytest.raises(ConfigError, match="a size alone names no model to load; give a Hub id"):
        write(form, preset("7B"))
    with pytest.raises(ConfigError, match="a LoraConfig of your own"):
        write(form, preset(str(tiny_model), lora_config=LoraConfig()))


def test_no_name_escapes_from_the_text_that_it_stands_in(tiny_model: Path, tmp_path: Path):
    odd = tmp_path / "a\"b'c\n# d"
    odd.symlink_to(tiny_model)
    data = "x\ny: [1.jsonl"
    p = preset(str(odd))
    made: dict = {}
    exec(without_the_run(write(python_script, p, data=data)), made)
    assert (made["MODEL"], made["DATA"]) == (str(odd), data)
    recipe = parse_recipe(read_yaml(write(recipe_yaml, p, data=data), "emitted"))
    assert (recipe.model, recipe.data.source) == (str(odd), data)


@pytest.mark.parametrize(
    ("data", "call"),
    [
        ("mine.jsonl", 'load_dataset("json", data_files=DATA'),
        ("mine.csv", 'load_dataset("csv", data_files=DATA'),
        ("mine.parquet", 'load_dataset("parquet", data_files=DATA'),
        ("trl-lib/Capybara", "load_dataset(DATA"),
    ],
)
def test_data_is_loaded_by_its_kind(data, call, tiny_model: Path):
    assert call in write(python_script, preset(str(tiny_model)), data=data)


@pytest.mark.parametrize(
    ("transformers", "name"), [("5.22.2", "gradient_checkpointing"), ("5.23.0", "activation_checkpointing"),
                               ("6.0.0.dev0", "activation_checkpointing")],
)  # fmt: skip
def test_checkpointing_is_named_as_the_installed_transformers_names_it(transformers, name, tiny_model: Path):
    p = preset(str(tiny_model))
    script = python_script(p, data="d.jsonl", output_dir="out", transformers=transformers)
    assert f"    {name}=" in script
    assert f"    {name}_kwargs=" in script


@pytest.mark.parametrize("trainer", TRAINERS)
def test_a_recipe_is_written_for_every_trainer_with_what_it_is_given_in_the_place_of_sft_s(trainer: str):
    kind, p = TRAINER_KINDS[trainer], preset("Qwen/Qwen3-8B", gpu_memory_gib=80, ask_hub=False)
    text = recipe_yaml(p, data="examples.jsonl", output_dir="out", trainer=trainer)
    recipe = parse_recipe(read_yaml(text, "emitted"))
    assert recipe.trainer == trainer
    assert recipe.training["learning_rate"] == kind.fitted_rate(p.learning_rate, LORA_RATE)
    examples = recipe.training["per_device_train_batch_size"] * recipe.training["gradient_accumulation_steps"]
    assert examples == p.micro_batch * p.accumulation
    assert not kind.source or kind.source in " ".join(line.strip(" #") for line in text.splitlines())
    assert ("packing" in recipe.training) == (trainer == "sft")


def test_a_recipe_for_what_the_trainer_refuses_is_not_written(tiny_model: Path):
    p = preset(str(tiny_model), init="pissa")
    with pytest.raises(ConfigError, match="trainer dpo does not work with init pissa"):
        recipe_yaml(p, data="examples.jsonl", output_dir="out", trainer="dpo")
