"""`hf-lora preset`: every value with its reason, as a table, as JSON, as a script and as a recipe; at once."""

import json
import time
from pathlib import Path

import pytest
from conftest import hf_lora, outcome, run_python

from hf_lora_ext import preset
from hf_lora_ext.cli.options import as_options
from hf_lora_ext.runs.recipe import load_recipe

QWEN = "Qwen/Qwen3-8B"


def test_the_table_has_every_value_reason_and_source_in_100_columns(capsys):
    code, out, err = outcome(capsys, "preset", QWEN, "--gpu", "24")
    assert (code, err) == (0, "")
    p = preset(QWEN, gpu_memory_gib=24, ask_hub=False)
    for choice in p.choices:
        assert choice.name in out
        assert all(f"] {source}\n" in out for source in choice.source.split("; "))
    assert max(map(len, out.splitlines())) <= 100
    assert "\x1b" not in out


def test_json_is_the_preset_s_own_dictionary(capsys):
    _, out, _ = outcome(capsys, "preset", "13B", "--gpu", "24", "--method", "qlora", "--json")
    assert json.loads(out) == json.loads(json.dumps(preset("13B", method="qlora", gpu_memory_gib=24).to_dict()))


def test_every_option_reaches_the_preset(capsys):
    options = {
        "--method": "dora", "--rank": "5", "--alpha": "9", "--dropout": "0.2", "--targets": "q_proj, v_proj",
        "--init": "gaussian", "--optimizer": "loraplus", "--attention": "flash_attention_2", "--sharding": "ddp",
        "--max-length": "512", "--gpu": "80", "--gpus": "2", "--machines": "2", "--host-gib": "256",
    }  # fmt: skip
    _, out, err = outcome(capsys, "preset", QWEN, *sum(options.items(), ()), "--packing", "--json")
    made = json.loads(out)
    assert err == ""
    assert {name: made[name] for name in ("method", "rank", "alpha", "dropout", "targets", "init", "optimizer")} == {
        "method": "dora", "rank": 5, "alpha": 9, "dropout": 0.2, "targets": ["q_proj", "v_proj"], "init": "gaussian",
        "optimizer": "loraplus",
    }  # fmt: skip
    assert (made["attention"], made["packing"], made["sharding"], made["max_length"]) == (
        "flash_attention_2", True, "ddp", 512,
    )  # fmt: skip
    hardware = made["hardware"]
    assert (hardware["memory_gib"], hardware["devices"], hardware["machines"], hardware["host_memory_gib"]) == (
        80, 4, 2, 256,
    )  # fmt: skip


def test_a_task_and_its_data_are_advised_on(capsys):
    asked = ("--rank", "auto", "--task", "code", "--examples", "50000", "--tokens", "100000000")
    _, out, _ = outcome(capsys, "preset", "7B", *asked, "--json")
    assert json.loads(out)["rank"] == preset("7B", rank="auto", task="code", examples=50_000, tokens=10**8).rank


def test_a_script_is_printed_with_data_and_folder(capsys):
    _, out, _ = outcome(capsys, "preset", QWEN, "--gpu", "24", "--emit", "python", "--data", "mine.csv")
    compile(out, "train.py", "exec")
    assert 'DATA = "mine.csv"' in out
    assert 'output_dir="out/Qwen3-8B"' in out


def test_a_recipe_that_is_printed_is_one_that_train_takes(capsys, tmp_path: Path):
    asked = ("--gpu", "24", "--emit", "yaml", "--data", "mine.jsonl", "--output-dir", "out/x")
    _, out, _ = outcome(capsys, "preset", QWEN, *asked)
    (tmp_path / "mine.yaml").write_text(out, encoding="utf8")
    recipe = load_recipe(tmp_path / "mine.yaml")
    assert (recipe.model, recipe.data.source, recipe.output_dir) == (QWEN, "mine.jsonl", "out/x")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("7B", "--gpu", "0"), "--gpu 0.0 must be above 0"),
        (("7B", "--gpu", "inf"), "--gpu inf must be above 0"),
        (("7B", "--gpu", "24", "--gpus", "0"), "--gpus 0 must be a whole number"),
        (("7B", "--host-gib", "-1"), "--host-gib -1.0 must be above 0"),
        (("7B", "--seq", "0"), "--seq 0 must be a whole number"),
        (("7B", "--method", "qlorra"), "did you mean `qlora`?"),
        (("7B", "--method", "dora", "--init", "pissa"), "init pissa does not work with dora"),
        (("7B", "--init", "corda"), "init corda needs data"),
        (("7B", "--optimizer", "adam"), "did you mean `adamw`?"),
        (("7B", "--task", "chat"), "task is for --rank auto"),
        (("7B", "--rank", "auto", "--task", "chess"), "chess"),
        (("7B", "--emit", "python"), "a size alone names no model to load"),
        (("70B", "--gpu", "24", "--method", "qlora"), "what would fit: a card of"),
        (("nobody",), "is not a size key"),
        (("./nowhere",), "no such folder"),
        (("",), "empty"),
    ],
)
def test_what_is_wrong_is_one_line_and_exit_code_2(capsys, arguments, message):
    code, out, err = outcome(capsys, "preset", *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.strip().splitlines()) == 1


def test_a_laptop_is_told_what_does_not_fit_and_what_to_do(capsys):
    code, out, _ = outcome(capsys, "preset", "7B", "--host-gib", "16")
    shown = " ".join(out.split())
    assert code == 0
    assert "does not fit" in shown
    assert "16 GiB of this host" in shown
    assert "--gpu 24" in shown


def test_an_unknown_name_without_a_hub_is_answered_at_once_with_what_was_tried():
    start = time.monotonic()
    result = hf_lora("preset", "some/body", HF_ENDPOINT="http://127.0.0.1:9", HF_HUB_OFFLINE="0")
    assert time.monotonic() - start < 20  # the client's own retries would take longer; it is the start that counts
    assert result.returncode == 2
    assert "size is not known here, the Hub is out of reach and its name states none" in result.stderr
    assert "give a local folder, a config, or a size key" in result.stderr
    named = hf_lora("preset", "some/body-7b", HF_ENDPOINT="http://127.0.0.1:9", HF_HUB_OFFLINE="0")
    assert "from its name" in named.stdout


HEAVY = ("torch", "numpy", "huggingface_hub", "transformers", "peft", "trl", "rich", "psutil")


MODELS = ["7B", "meta-llama/Llama-2-70b-hf", "FOLDER"]
COMMANDS = [[verb, model, *more] for verb in ("preset", "plan") for model in MODELS for more in ([], ["--json"])]
COMMANDS += [["preset", model, "--emit", form] for model in MODELS[1:] for form in ("python", "yaml")]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_neither_torch_nor_the_hub_client_is_loaded(command: list[str], tiny_model: Path):
    arguments = [word.replace("FOLDER", str(tiny_model)) for word in command] + ["--gpu", "80"]
    script = (
        "import sys; from hf_lora_ext.cli import main\n"
        f"try: main({arguments!r})\n"
        "except SystemExit as stop: assert stop.code in (0, None), stop.code\n"
        f"print('\\n', [m for m in {HEAVY!r} if m in sys.modules])"
    )
    result = run_python("-c", script)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1].strip() == "[]"


@pytest.mark.parametrize(
    ("message", "spoken"),
    [
        ("gpu_memory_gib=-1.0 must be above 0", "--gpu -1.0 must be above 0"),
        ("task is for rank='auto'; add it", "task is for --rank auto; add it"),
        ("name it: gpu_memory_gib=", "name it: --gpu"),
        ("unpack --rank=8 as it is", "unpack --rank=8 as it is"),
        ("alpha = 2", "alpha = 2"),
    ],
)
def test_errors_about_arguments_are_told_as_errors_about_options(message, spoken):
    assert as_options(message) == spoken
