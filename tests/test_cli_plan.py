"""`hf-lora plan`: what is needed and what fits, at once and without torch."""

import json
from pathlib import Path

import pytest
from conftest import run_python

from hf_lora_ext.cli import main

GIB = 2**30


def plan(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = 0
    try:
        main(["plan", *arguments])
    except SystemExit as stop:
        code = stop.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


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
    ):
        assert shown in out


def test_what_does_not_fit_is_refused_with_what_would(capsys):
    code, out, err = plan(capsys, "70B", "--gpu", "24")
    assert (code, out) == (2, "")
    assert "what would fit: cards of" in err
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
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(capsys, arguments, message):
    code, out, err = plan(capsys, *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize("model", ["7B", "meta-llama/Llama-2-70b-hf", "FOLDER"])
def test_neither_torch_nor_the_hub_client_is_loaded(model: str, tiny_model: Path):
    script = (
        "import sys; from hf_lora_ext.cli import main\n"
        f"try: main(['plan', {model.replace('FOLDER', str(tiny_model))!r}, '--gpu', '80'])\n"
        "except SystemExit: pass\n"
        "print([m for m in ('torch', 'numpy', 'huggingface_hub', 'transformers', 'rich') if m in sys.modules])"
    )
    result = run_python("-c", script)
    assert "needed" in result.stdout, result.stderr
    assert result.stdout.splitlines()[-1] == "[]"
