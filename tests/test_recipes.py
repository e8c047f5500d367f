"""Every recipe in `recipes/` is checked strictly and trains two steps on a tiny model; so does every script."""

import runpy
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import PAIRS, write_jsonl
from push_runs import saved_adapter
from trainer_rows import rows_for

from hf_lora_ext import load_recipe, load_sweep, render_card, run_recipe
from hf_lora_ext.cards.facts import read_facts
from hf_lora_ext.data.stdlib_docstrings import PACKAGES
from hf_lora_ext.models.popular_models import popular_config
from hf_lora_ext.resources import shipped_folder
from hf_lora_ext.runs.recipe_plan import memory_need
from hf_lora_ext.runs.shipped import ShippedRecipe, shipped_recipes
from hf_lora_ext.sweep.forecast import forecast

SWEEPS = sorted(shipped_folder("recipes").rglob("sweep_*.yaml"))
RECIPES = sorted(set(shipped_folder("recipes").rglob("*.yaml")) - set(SWEEPS))
SCRIPTS = sorted(shipped_folder("recipes").rglob("*.py"))


def test_there_are_recipes_sweeps_and_scripts():
    assert {"sft", "dpo", "kto", "reward", "grpo", "classification"} <= {load_recipe(file).trainer for file in RECIPES}
    assert SWEEPS
    assert SCRIPTS


@pytest.mark.parametrize("file", RECIPES + SWEEPS, ids=lambda file: file.stem)
def test_its_header_gives_purpose_hardware_and_command(file: Path):
    header = [line for line in file.read_text(encoding="utf8").splitlines() if line.startswith("#")]
    verb = "sweep" if file in SWEEPS else "train"
    assert header[0].strip("# ")
    assert any("Hardware:" in line for line in header)
    below = file.relative_to(shipped_folder("recipes")).as_posix()
    assert any(f"hf-lora {verb} recipes/{below}" in line for line in header)


@pytest.mark.parametrize("file", SWEEPS, ids=lambda file: file.stem)
def test_a_sweep_is_right_and_every_trial_fits_the_declared_machine(file: Path):
    found = forecast(load_sweep(file))
    assert max(made.needed_gib for made in found) < 4
    assert not [made for made in found if made.problem]


@pytest.mark.parametrize("shipped", shipped_recipes(), ids=lambda shipped: shipped.name)
def test_it_fits_the_hardware_that_it_declares_and_its_comment_says_what_it_takes(shipped: ShippedRecipe):
    recipe = shipped.recipe
    if recipe.hardware is None:
        assert not shipped.header["memory"]  # what is not declared cannot be checked
        return
    need = memory_need(shipped.preset, recipe)
    assert need.needed_gib <= need.available_gib
    if (found := shipped.preset.found) is not None and recipe.hardware.host_gib is not None:
        assert found.host <= recipe.hardware.host_gib * 2**30
    assert shipped.header["memory"] == (f"{shipped.memory}.",)
    declared = recipe.hardware
    for size in (declared.gpu_memory_gib, declared.host_gib if declared.gpu_memory_gib is None else None):
        assert size is None or f"{size:g} G" in shipped.header["hardware"][0]


@pytest.mark.parametrize("shipped", shipped_recipes(), ids=lambda shipped: shipped.name)
def test_its_sharding_is_what_its_command_launches_and_accelerate_s_own_parser_reads(
    shipped: ShippedRecipe, tmp_path: Path
):
    from accelerate.commands.config.config_args import load_config_from_file

    made, command = shipped.preset, " ".join(shipped.header["command"])
    if made is None or made.hardware.devices == 1:
        assert "--launch" not in command
        return
    assert {"ddp": f"--launch ddp{made.hardware.devices}"}.get(made.sharding, "--accelerate-config") in command
    file = tmp_path / "accelerate.yaml"
    file.write_text(made.accelerate_yaml(), encoding="utf8")
    read = load_config_from_file(str(file)).to_dict()
    assert read["num_processes"] == made.hardware.devices
    assert read["distributed_type"] == {"ddp": "MULTI_GPU", "fsdp": "FSDP", "zero3": "DEEPSPEED"}[made.sharding]


@pytest.fixture(scope="module")
def tiny(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory):
    """Make a random model of a recipe's own architecture, with the tiny model's tokenizer; return its folder."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    made: dict[str, Path] = {}

    def of(model: str) -> Path:
        family = popular_config(model)["model_type"]
        if family not in made:
            plain = AutoConfig.from_pretrained(tiny_model).to_dict() | {"head_dim": 8}
            experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
            small = {key: plain[key] for key in SMALL} | (experts if family.endswith("_moe") else {})
            torch.manual_seed(0)
            made[family] = tmp_path_factory.mktemp("models") / f"tiny-{family}"
            AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **small)).save_pretrained(made[family])
            AutoTokenizer.from_pretrained(tiny_model).save_pretrained(made[family])
        return made[family]

    return of


SMALL = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "max_position_embeddings", "pad_token_id", "eos_token_id", "bos_token_id", "head_dim",
)  # fmt: skip
ROWS = {
    "builtin:python-docstrings": PAIRS,
    "builtin:python-docstring-preferences": rows_for("dpo", 40),
    "builtin:python-packages": rows_for("classification", 40),
    "timdettmers/openassistant-guanaco": [{"text": f"### Human: {n}+1?### Assistant: {n + 1}"} for n in range(40)],
    "meta-math/MetaMathQA": [
        {"type": "GSM", "query": f"{n}+1?", "original_question": "?", "response": f"{n + 1}"} for n in range(40)
    ],
    "ise-uiuc/Magicoder-OSS-Instruct-75K": [
        {"lang": "python", "problem": f"Print {n}.", "solution": f"print({n})", "seed": "x"} for n in range(40)
    ],
    "HuggingFaceH4/ultrachat_200k": [
        {"prompt": f"{n}+1?", "prompt_id": str(n), "messages": [
            {"role": "user", "content": f"{n}+1?"}, {"role": "assistant", "content": f"{n + 1}"}]} for n in range(40)
    ],
}  # fmt: skip
"""Data set → rows with its columns."""


@pytest.mark.parametrize("shipped", shipped_recipes(), ids=lambda shipped: shipped.name)
@pytest.mark.filterwarnings("ignore:.*quantization.*:UserWarning")
def test_it_trains_two_steps_on_a_tiny_model_of_its_architecture(shipped: ShippedRecipe, tiny, tmp_path: Path):
    recipe = shipped.recipe
    size = recipe.training.get("num_generations", 2)  # a batch holds all completions of a prompt
    steps = 3 if recipe.method == "adalora" else 2  # AdaLoRA refuses two: it scores before it drops
    file = write_jsonl(tmp_path / "rows.jsonl", ROWS[recipe.data.source])
    data = replace(recipe.data, source=str(file), group_by=None, train_examples=30, eval_examples=4)
    left_out = {"num_train_epochs", "gradient_accumulation_steps", "per_device_train_batch_size"}
    shortened = {key: value for key, value in recipe.training.items() if key not in left_out}
    short = replace(
        recipe,
        model=str(tiny(recipe.model)),
        data=data,
        training=shortened
        | {"max_steps": steps, "per_device_train_batch_size": size, "gradient_accumulation_steps": 1},
        output_dir=str(tmp_path / "run"),
        sharding=None,  # what is shared out is checked by accelerate's parser, above
        samples=min(recipe.samples, 1),
    )
    done = run_recipe(short, lambda line: None)
    assert done.facts.run["steps"] == steps
    assert done.facts.adapter["kind"] == ("PREFIX_TUNING" if recipe.method == "prefix" else "LORA")
    assert load_recipe(done.folder / "recipe.yaml") == short


@pytest.mark.parametrize("file", SCRIPTS, ids=lambda file: file.stem)
def test_a_script_gives_hardware_and_command(file: Path):
    assert "Hardware:" in file.read_text(encoding="utf8")
    assert f"python recipes/{file.name}" in file.read_text(encoding="utf8")


@pytest.mark.parametrize("name", ["sft", "dpo", "custom_loop"])
def test_a_script_trains_two_steps_and_leaves_an_adapter_that_peft_loads(name: str, tiny_model: Path, tmp_path: Path):
    from peft import AutoPeftModelForCausalLM

    script = runpy.run_path(str(shipped_folder("recipes") / f"{name}.py"))
    script["main"](str(tmp_path), str(tiny_model), steps=2)
    model = AutoPeftModelForCausalLM.from_pretrained(tmp_path)
    changed = [weight for key, weight in model.named_parameters() if "lora_B" in key]
    assert any(weight.abs().sum() for weight in changed)
    if name != "custom_loop":
        facts = read_facts(tmp_path / "facts.json")
        assert facts.run["steps"] == 2
        assert (tmp_path / "README.md").read_text(encoding="utf8") == render_card(facts)


@pytest.mark.parametrize("file", SCRIPTS, ids=lambda file: file.stem)
def test_a_script_is_short_enough_to_be_read_at_a_glance(file: Path):
    assert len(file.read_text(encoding="utf8").splitlines()) < 60


def test_the_classifier_leaves_adapter_and_card(tiny_model: Path, tmp_path: Path):
    script = runpy.run_path(str(shipped_folder("recipes") / "classify_text.py"))
    script["main"](str(tmp_path), str(tiny_model), steps=2)
    facts = read_facts(tmp_path / "facts.json")
    assert (tmp_path / "adapter_model.safetensors").is_file()
    assert (tmp_path / "README.md").read_text(encoding="utf8") == render_card(facts)
    assert facts.run["steps"] == 2


def test_the_classifier_s_card_tells_labels_accuracy_and_what_its_author_says(tiny_model: Path, tmp_path: Path):
    script = runpy.run_path(str(shipped_folder("recipes") / "classify_text.py"))
    script["main"](str(tmp_path), str(tiny_model), steps=1)
    facts = read_facts(tmp_path / "facts.json")
    assert facts.adapter["labels"] == list(PACKAGES)
    assert {"loss", "accuracy"} == set(facts.evaluation["base"]) == set(facts.evaluation["adapter"])
    card = (tmp_path / "README.md").read_text(encoding="utf8")
    assert "pipeline_tag: text-classification" in card
    assert "metrics:\n- accuracy\n" in card
    assert "a head that has learned nothing yet" in card
    assert "## Limits" in card


@pytest.mark.parametrize("ranks", [(), (2, 8, 2)], ids=["its own", "given"])
def test_adapters_of_one_base_answer_alike_switched_and_mixed_in_one_batch(
    ranks: tuple[int, ...], wide_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    given = [
        str(saved_adapter(tmp_path / str(number), wide_model, r=rank, seed=number)) for number, rank in enumerate(ranks)
    ]
    script = runpy.run_path(str(shipped_folder("recipes") / "swap_adapters.py"))
    script["main"](*given, name=str(wide_model), out=str(tmp_path / "swap"), steps=3)
    rows = [line.split(maxsplit=7) for line in capsys.readouterr().out.splitlines()]
    said = {(row[0], row[4]): row[7] for row in rows}
    assert [name for _, name in said] == ["new", "other", "blend", "earlier", "new", "other", "__base__"]
    assert said["mixed", "new"] == said["switched", "new"] != said["mixed", "__base__"]
    assert said["mixed", "other"] == said["switched", "other"] != said["switched", "new"]
    assert said["switched", "earlier"] != said["switched", "new"]
