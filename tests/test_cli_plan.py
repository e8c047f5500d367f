"""`hf-lora plan`: what is needed and what fits, at once and without torch."""

import json
from pathlib import Path

import pytest
from conftest import outcome

from hf_lora_ext.choices.methods import METHODS

GIB = 2**30


def plan(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    return outcome(capsys, "plan", *arguments)


def test_a_seven_billion_model_fits_a_24_gib_card_and_the_components_add_up(capsys):
    code, out, _ = plan(capsys, "meta-llama/Llama-2-7b-hf", "--gpu", "24", "--json")
    answer = json.loads(out)
    parts = answer["bytes"]
    named = (
        "weights",
        "quantisation",
        "adapters",
        "gradients",
        "optimizer",
        "gathered",
        "checkpoints",
        "saved",
        "workspace",
    )
    assert code == 0
    assert answer["fits"]
    assert sum(parts[name] for name in (*named, "logits")) == parts["allocated"]
    assert parts["needed"] <= answer["available_bytes"] == 24 * GIB


def test_the_report_shows_plan_bars_and_margin(capsys):
    _, out, _ = plan(capsys, "7B", "--gpu", "24", "--method", "qlora", "--seq", "2048")
    for shown in (
        "base in nf4",
        "2048 tokens",
        "weights",
        "█",
        "as nvidia-smi shows it",
        "margin, of 24",
        "host memory",
        "--host-gib declares it",
    ):
        assert shown in out
    assert max(map(len, out.splitlines())) <= 100


def test_what_does_not_fit_is_refused_with_what_would(capsys):
    code, out, err = plan(capsys, "70B", "--gpu", "24")
    assert (code, out) == (2, "")
    assert "what would fit: a card of" in err
    assert "2 such cards" in err
    assert "host memory" in err


def test_methods_are_compared_row_by_row_and_a_refusal_is_a_row(capsys):
    code, out, _ = plan(capsys, "Qwen/Qwen3-8B", "--gpu", "16", "--compare", "lora,qlora,full", "--json")
    rows = json.loads(out)
    assert code == 0
    assert {name: row["fits"] for name, row in rows.items()} == {"lora": False, "qlora": True, "full": False}
    _, text, _ = plan(capsys, "Qwen/Qwen3-8B", "--gpu", "16", "--compare", "lora,qlora,full")
    assert text.count("does not fit") == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("7B", "--gpu", "0"), "must be above 0"),
        (("nobody", "--gpu", "24"), "is not a size key"),
        (("7B", "--gpu", "24", "--compare", "qlorra"), "did you mean `qlora`?"),
        (("7B", "--gpu", "24", "--compare", ","), "--compare names no method"),
        (("7B", "--gpu", "24", "--compare", "lora", "--method", "lora"), "exclude each other"),
        (("7B", "--gpu", "24", "--method", "prefix"), "not planned for"),
        (("7B", "--gpu", "24", "--method", "ful"), "did you mean `full`?"),
        (("7B", "--gpu", "24", "--gpus", "2", "--method", "adalora", "--sharding", "fsdp"), "does not work with"),
        (("7B", "--gpu", "200", "--method", "full", "--accelerate-config", "nowhere.yaml"), "leave --method full out"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(capsys, arguments, message):
    code, out, err = plan(capsys, *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.strip().splitlines()) == 1


def test_a_refusal_is_json_too_with_remedies_that_fit(capsys):
    code, out, err = plan(capsys, "70B", "--gpu", "24", "--json")
    answer = json.loads(out)
    assert (code, answer["fits"]) == (2, False)
    assert len(err.strip().splitlines()) == 1
    assert len(answer["remedies"]) >= 3
    for remedy in answer["remedies"]:
        assert remedy["bytes"]["needed"] <= remedy["available_bytes"]
        assert remedy["change"] in answer["reason"]


def test_a_host_that_is_too_small_is_refused_and_one_that_is_large_enough_is_said(capsys):
    code, _, err = plan(capsys, "70B", "--gpu", "24", "--gpus", "2", "--host-gib", "32")
    assert code == 2
    assert "of host memory and 32 GiB is there" in err
    assert "of 256 of the machine" in plan(capsys, "70B", "--gpu", "24", "--gpus", "2", "--host-gib", "256")[1]


PLANNED = [None, *(method for method in METHODS if method != "prefix")]
HARDWARE = [("24",), ("80", "2"), ("24", "2"), ("80", "8", "2")]


@pytest.mark.parametrize("hardware", HARDWARE, ids="x".join)
@pytest.mark.parametrize("size", ["1B", "7B", "13B", "70B"])
@pytest.mark.parametrize("method", PLANNED)
def test_plan_and_preset_give_the_same_plan_for_the_same_wishes(capsys, method, size, hardware):
    names = ("--gpu", "--gpus", "--machines")
    asked = [word for pair in zip(names, hardware, strict=False) for word in pair]
    asked += ["--method", method] if method else []
    planned = plan(capsys, size, *asked, "--json")
    preset = outcome(capsys, "preset", size, *asked, "--json")
    assert planned[0] == preset[0]
    if planned[0]:
        assert planned[2] == preset[2] != ""
        return
    answer, made = json.loads(planned[1]), json.loads(preset[1])
    assert {name: answer[name] for name in made["found"]} == made["found"]
    assert answer["method"] == made["method"]


LAUNCHES = {
    "one GPU": (["7B", "--gpu", "24"], "NO", 1),
    "DDP": (["7B", "--gpu", "24", "--gpus", "4"], "MULTI_GPU", 4),
    "FSDP 1": (["70B", "--gpu", "24", "--gpus", "2"], "FSDP", 2),
    "ZeRO-3": (["7B", "--gpu", "80", "--gpus", "8", "--sharding", "zero3"], "DEEPSPEED", 8),
    "two machines": (
        ["7B", "--gpu", "80", "--gpus", "8", "--machines", "2", "--main-process-ip", "h"],
        "MULTI_GPU",
        16,
    ),
}


@pytest.mark.parametrize("name", LAUNCHES)
def test_accelerate_reads_the_file_that_is_written_and_the_command_is_said(capsys, name, tmp_path: Path):
    from accelerate.commands.config.config_args import load_config_from_file

    arguments, kind, processes = LAUNCHES[name]
    file = tmp_path / "accelerate.yaml"
    code, out, err = plan(capsys, *arguments, "--accelerate-config", file)
    assert (code, err) == (0, "")
    read = load_config_from_file(str(file))
    assert (read.distributed_type, read.num_processes) == (kind, processes)
    assert f"accelerate launch --config_file {file}" in out
    assert ("--machine_rank N" in out) == (name == "two machines")


def test_a_file_of_somebody_else_s_is_written_over_only_with_force(capsys, tmp_path: Path):
    file = tmp_path / "accelerate.yaml"
    file.write_text("mine: 1\n", encoding="utf8")
    code, out, err = plan(capsys, "7B", "--gpu", "24", "--accelerate-config", file)
    assert (code, out) == (2, "")
    assert "name another file, or add --force" in err
    assert file.read_text(encoding="utf8") == "mine: 1\n"
    assert plan(capsys, "7B", "--gpu", "24", "--accelerate-config", file, "--force")[0] == 0
    written = file.read_text(encoding="utf8")
    assert plan(capsys, "7B", "--gpu", "24", "--gpus", "2", "--accelerate-config", file)[0] == 0  # its own
    assert file.read_text(encoding="utf8") != written


def test_nothing_is_written_where_nothing_fits_or_an_address_is_missing(capsys, tmp_path: Path):
    file = tmp_path / "accelerate.yaml"
    assert plan(capsys, "70B", "--gpu", "24", "--accelerate-config", file)[0] == 2
    code, _, err = plan(capsys, "7B", "--gpu", "80", "--machines", "2", "--accelerate-config", file)
    assert code == 2
    assert "--machines 2 needs --main-process-ip" in err
    missing = tmp_path / "no" / "such" / "folder.yaml"
    code, _, err = plan(capsys, "7B", "--gpu", "80", "--accelerate-config", missing)
    assert (code, len(err.strip().splitlines())) == (2, 1)
    assert not list(tmp_path.iterdir())
