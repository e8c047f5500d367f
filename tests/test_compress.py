"""A smaller adapter: an ordinary one that answers as it was measured, and that overwrites nothing."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import outcome, write_jsonl
from peft import PeftModel
from safetensors.torch import load_file, save_file
from trained_adapters import KINDS, ROWS, TRAINING, base_model, trained

from hf_lora_ext import AdapterError, BudgetError, ConfigError, compress_adapter
from hf_lora_ext.adapters.factors import read_factors
from hf_lora_ext.analysis import compress as compress_module
from hf_lora_ext.analysis.passes import at_rest, example_losses, watch_examples
from hf_lora_ext.analysis.truncation import cut_meanwhile, truncation
from hf_lora_ext.data.tokens import encode_examples
from hf_lora_ext.ranks.lora_layers import lora_layers

WEIGHTS = "adapter_model.safetensors"
EXAMPLES = encode_examples(ROWS)


def saved(kind: str, tiny_model: Path, folder: Path, **changes: Any) -> Path:
    model = trained(kind, tiny_model, **changes)
    model.peft_config["default"].base_model_name_or_path = str(tiny_model)
    model.save_pretrained(folder, save_embedding_layers=kind == "embedding")  # what peft decides itself, and warns
    return folder


def losses(kind: str, tiny_model: Path, folder: Path) -> list[float]:
    """What the adapter, loaded by peft alone, says of the examples."""
    model = PeftModel.from_pretrained(base_model(kind, tiny_model), folder)
    with at_rest(model):
        return example_losses(model, EXAMPLES)


@pytest.mark.parametrize("kind", KINDS)
def test_the_smaller_adapter_reloads_in_peft_to_exactly_what_was_measured(tiny_model: Path, tmp_path: Path, kind: str):
    whole = saved(kind, tiny_model, tmp_path / "whole")
    model = PeftModel.from_pretrained(base_model(kind, tiny_model), whole)
    layers = lora_layers(model, "default", trains=False)
    cut = truncation(layers, "svd")
    ranks = cut.ranks_for(cut.parameters // 3)
    with at_rest(model), cut_meanwhile(layers, cut, ranks):
        measured = example_losses(model, EXAMPLES)
    done = compress_adapter(whole, tmp_path / "small", budget=cut.parameters // 3)
    assert done.ranks == ranks
    assert read_factors(tmp_path / "small").parameters == done.parameters  # its config says what its file holds
    assert losses(kind, tiny_model, tmp_path / "small") == measured
    small, large = (load_file(folder / WEIGHTS) for folder in (tmp_path / "small", whole))
    factors = {key for key in large if re.search(r"lora_(embedding_)?[AB]", key)}
    assert sum(small[key].numel() for key in factors & small.keys()) == done.parameters <= cut.parameters // 3
    for key in large.keys() - factors:
        assert key in small or "magnitude" in key
        assert key not in small or torch.equal(small[key], large[key])


def test_numbers_are_stored_in_the_dtype_that_they_had(tiny_model: Path, tmp_path: Path):
    whole = saved("lora", tiny_model, tmp_path / "whole")
    tensors = {key: value.to(torch.bfloat16) for key, value in load_file(whole / WEIGHTS).items()}
    save_file(tensors, whole / WEIGHTS, metadata={"format": "pt"})
    compress_adapter(whole, tmp_path / "small", budget=0.5)
    assert {value.dtype for value in load_file(tmp_path / "small" / WEIGHTS).values()} == {torch.bfloat16}


def test_a_layer_that_keeps_nothing_leaves_the_adapter(tiny_model: Path, tmp_path: Path):
    whole = saved("dora", tiny_model, tmp_path / "whole")
    done = compress_adapter(whole, tmp_path / "small", budget=0.05)
    config = json.loads((tmp_path / "small" / "adapter_config.json").read_text(encoding="utf8"))
    left = {name for name, rank in done.ranks.items() if rank}
    assert set(done.ranks) > left > set()
    assert set(config["target_modules"]) == left
    assert set(config["rank_pattern"]) == set(config["alpha_pattern"]) == {"^" + re.escape(name) for name in left}
    kept = "\n".join(load_file(tmp_path / "small" / WEIGHTS))
    assert all((name in kept) == (name in left) for name in done.ranks)


def test_a_saved_embedding_goes_along_when_the_adapter_leaves_it(tiny_model: Path, tmp_path: Path):
    whole = saved("embedding", tiny_model, tmp_path / "whole")
    tensors = load_file(whole / WEIGHTS)
    (stored,) = (key for key in tensors if key.endswith("embed_tokens.base_layer.weight"))
    (a,) = (key for key in tensors if key.endswith("lora_embedding_A"))
    save_file(tensors | {stored: tensors[stored] * 2, a: tensors[a] * 1e-6}, whole / WEIGHTS, metadata={"format": "pt"})
    done = compress_adapter(whole, tmp_path / "small", budget=0.1)
    assert done.ranks["model.embed_tokens"] == 0
    model = PeftModel.from_pretrained(base_model("embedding", tiny_model), tmp_path / "small")
    assert torch.equal(model.get_input_embeddings().weight, tensors[stored] * 2)


def test_whitened_needs_the_base_and_training_rows(tiny_model: Path, tmp_path: Path):
    whole = saved("lora", tiny_model, tmp_path / "whole")
    rows = str(write_jsonl(tmp_path / "train.jsonl", [{"text": f"row {n}"} for n in range(9)]))
    done = compress_adapter(whole, tmp_path / "small", budget=0.4, calibration=rows)
    assert done.criterion == "whitened"
    assert done.ranks != compress_adapter(whole, tmp_path / "blind", budget=0.4).ranks
    with pytest.raises(ConfigError, match="calibration"):
        compress_adapter(whole, tmp_path / "none", budget=0.4, criterion="whitened")


def test_the_knee_of_rows_that_were_given(tiny_model: Path, tmp_path: Path):
    whole = saved("lora", tiny_model, tmp_path / "whole")
    data, seen = ([{"text": f"{word} {n}"} for n in range(9)] for word in ("held", "seen"))
    files = {"data": str(write_jsonl(tmp_path / "held.jsonl", data)),
             "calibration": str(write_jsonl(tmp_path / "seen.jsonl", seen))}  # fmt: skip
    done = compress_adapter(whole, tmp_path / "small", budget="knee", **files)
    assert done.curve is not None
    assert done.parameters == done.curve.knee.parameters < done.parameters_before
    assert done.ranks == done.curve.knee.ranks
    from transformers import AutoTokenizer

    examples = encode_examples(data, AutoTokenizer.from_pretrained(tiny_model))
    model = PeftModel.from_pretrained(base_model("lora", tiny_model), tmp_path / "small")
    with at_rest(model):
        nats = example_losses(model, examples)
    assert sum(nats) / done.curve.tokens == pytest.approx(done.curve.knee.loss, rel=1e-12)


def test_an_interrupted_write_leaves_nothing(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole = saved("lora", tiny_model, tmp_path / "whole")

    def interrupted(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(compress_module, "copy_chosen", interrupted)
    with pytest.raises(KeyboardInterrupt):
        compress_adapter(whole, tmp_path / "small", budget=0.5)
    assert [path.name for path in tmp_path.iterdir()] == ["whole"]


@pytest.mark.parametrize(
    ("budget", "error", "said"),
    [
        (0, BudgetError, "keeps nothing"),
        (-0.5, BudgetError, "keeps nothing"),
        (3, BudgetError, "does not hold the first direction"),
        (10**9, BudgetError, "above the"),
        (1.0, BudgetError, "within the budget already"),
        ("half", ConfigError, "no number"),
        ("knee", ConfigError, "held-out rows"),
    ],
)
def test_a_budget_that_makes_no_smaller_adapter_is_refused(tiny_model, tmp_path, budget, error, said):
    whole = saved("lora", tiny_model, tmp_path / "whole")
    with pytest.raises(error, match=said):
        compress_adapter(whole, tmp_path / "small", budget=budget)
    assert not (tmp_path / "small").exists()


def test_nothing_is_overwritten(tiny_model: Path, tmp_path: Path):
    whole = saved("lora", tiny_model, tmp_path / "whole")
    other = shutil.copytree(whole, tmp_path / "other")
    for target, said in ((other, "nothing is overwritten"), (whole, "the adapter itself")):
        before = {path.name: path.read_bytes() for path in target.iterdir()}
        with pytest.raises(ConfigError, match=said):
            compress_adapter(whole, target, budget=0.5)
        assert {path.name: path.read_bytes() for path in target.iterdir()} == before


def test_what_cannot_be_cut_is_refused(tmp_path: Path, tiny_model: Path):
    whole = saved("lora", tiny_model, tmp_path / "whole")
    config = json.loads((whole / "adapter_config.json").read_text(encoding="utf8"))
    (whole / "adapter_config.json").write_text(json.dumps(config | {"lora_bias": True}), encoding="utf8")
    with pytest.raises(AdapterError, match="biases in B"):
        compress_adapter(whole, tmp_path / "small", budget=0.5)
    (whole / "adapter_config.json").unlink()
    with pytest.raises(AdapterError, match=r"adapter_config\.json"):
        compress_adapter(whole, tmp_path / "small", budget=0.5)
    with pytest.raises(AdapterError):
        compress_adapter(tmp_path / "nowhere", tmp_path / "small", budget=0.5)


@pytest.fixture(scope="module")
def run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of a recipe."""
    from conftest import PAIRS

    from hf_lora_ext import load_recipe, run_recipe

    folder = tmp_path_factory.mktemp("run")
    data = write_jsonl(folder / "pairs.jsonl", PAIRS)
    (folder / "tiny.yaml").write_text(
        f"model: {tiny_model}\noutput_dir: {folder / 'run'}\ndata: {{source: {data}, eval_fraction: 0.3}}\n"
        "training: {max_steps: 12, per_device_train_batch_size: 4, gradient_accumulation_steps: 1, "
        "learning_rate: 1e-2}\n",
        encoding="utf8",
    )
    return run_recipe(load_recipe(folder / "tiny.yaml"), say=lambda line: None).folder


def test_a_run_folder_knows_its_base_and_rows(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    picture = tmp_path / "curve.png"
    code, out, err = outcome(capsys, "curve", run, "--criterion", "both", "--plot", picture)
    assert (code, picture.is_file()) == (0, True), err
    assert "knee: " in out
    assert max(map(len, out.splitlines())) <= 110
    code, out, _ = outcome(capsys, "curve", run, "--json", "--quiet")
    told = json.loads(out)
    facts = json.loads((run / "facts.json").read_text(encoding="utf8"))
    assert told["criterion"] == "whitened"
    assert told["examples"] == facts["data"]["eval_examples"]
    assert told["points"][-1]["loss"] == pytest.approx(facts["evaluation"]["adapter"]["loss"], rel=0.01)
    assert told["base_loss"] == pytest.approx(facts["evaluation"]["base"]["loss"], rel=0.01)


def test_facts_and_card_say_what_was_cut(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    code, _, err = outcome(capsys, "compress", run, tmp_path / "half", "--budget", "50%")
    assert code == 0, err
    facts = json.loads((tmp_path / "half" / "facts.json").read_text(encoding="utf8"))
    before = json.loads((run / "facts.json").read_text(encoding="utf8"))
    cut = facts["adapter"]["compressed_from"]
    assert cut["parameters"] == before["adapter"]["trainable_parameters"]
    assert facts["adapter"]["trainable_parameters"] <= cut["parameters"] / 2
    assert facts["adapter"]["bytes"] == (tmp_path / "half" / WEIGHTS).stat().st_size
    assert "evaluation" not in facts  # of the whole adapter
    assert facts["loss_history"] == before["loss_history"]
    card = (tmp_path / "half" / "README.md").read_text(encoding="utf8")
    assert f"cut to {facts['adapter']['trainable_parameters']:,} of its {cut['parameters']:,} parameters" in card
    assert (tmp_path / "half" / "tokenizer.json").is_file()
    assert not (tmp_path / "half" / "recipe.yaml").exists()


def test_rows_that_changed_since_the_run_are_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    copy = shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
    facts = json.loads((copy / "facts.json").read_text(encoding="utf8"))
    facts["data"]["eval_fingerprint"] = "0" * 64
    (copy / "facts.json").write_text(json.dumps(facts), encoding="utf8")
    code, _, err = outcome(capsys, "curve", copy)
    assert (code, len(err.strip().splitlines())) == (2, 1)
    assert "may have been trained on" in err


def test_the_command_says_what_is_missing_in_one_line(tiny_model: Path, tmp_path: Path, capsys):
    whole = saved("lora", tiny_model, tmp_path / "whole")
    for arguments, said in (
        (["curve", whole], "--data"),
        (["curve", tmp_path], "adapter_config.json"),
        (["compress", whole, tmp_path / "small", "--budget", "much"], "50%"),
        (["compress", whole, tmp_path / "small", "--budget", "200%"], "above 1"),
        (["compress", whole, whole, "--budget", "50%"], "never overwritten"),
    ):
        code, out, err = outcome(capsys, *arguments)
        assert (code, out, len(err.strip().splitlines())) == (2, "", 1)
        assert said in err


def test_calibration_rows_differ_from_those_that_are_measured():
    assert not {tuple(row["input_ids"]) for row in ROWS} & {tuple(row["input_ids"]) for row in TRAINING}


def test_the_benchmark_compares_what_peft_converts_with_at_most_its_parameters(tiny_model: Path):
    from compress import Case, compared, loss_table

    model = trained("mixed", tiny_model)
    tokens = sum(example.supervised for example in EXAMPLES)
    layers = lora_layers(model, "default")
    case = Case(model, lambda: sum(example_losses(model, EXAMPLES)) / tokens,
                lambda: watch_examples(model, layers, encode_examples(TRAINING)))  # fmt: skip
    whole = case.measure()
    found = {(asked, method): [done] for asked, method, done in compared(case, [2, 6, 0.9])}
    assert found["rank 6", "PEFT"][0].loss == pytest.approx(whole, rel=1e-4)  # nothing is lost on the way back
    for (asked, _), (done,) in found.items():
        assert done.parameters <= found[asked, "PEFT"][0].parameters
    assert case.measure() == whole
    assert "3 of" not in loss_table(found, [whole])
