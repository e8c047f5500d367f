"""What is exported answers as what was trained, loads by the rules of the engines, and is written whole or not."""

import json
from pathlib import Path

import pytest
import torch
from conftest import outcome
from exported_adapters import answers, config_of, mixed_adapter, random_adapter
from safetensors.torch import load_file, save_file

from hf_lora_ext import AdapterError, ConfigError
from hf_lora_ext.adapters.factors import read_factors
from hf_lora_ext.export.engine_rules import ENGINES
from hf_lora_ext.export.engines import check_engine
from hf_lora_ext.export.export import export_adapter
from hf_lora_ext.export.forms import FORMS, Form, parse_form

WEIGHTS = "adapter_model.safetensors"
pytestmark = [
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning"),
    pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed but the targeted layer"),
    pytest.mark.filterwarnings("ignore:.*lora_B.bias:peft.utils.warning.PeftWarning"),
]


def same(one: torch.Tensor, other: torch.Tensor, tolerance: float = 1e-5) -> bool:
    return bool((one - other).abs().max() <= tolerance * one.abs().max())


def changes_answers(base: Path, adapter: Path) -> bool:
    return not same(answers(base), answers(base, adapter), 1e-2)


KINDS = {
    "mixed ranks, rank 0": (mixed_adapter, {}),
    "mixed ranks, rslora": (mixed_adapter, {"use_rslora": True}),
    "one rank": (random_adapter, {}),
    "rslora": (random_adapter, {"use_rslora": True, "r": 3}),
    "two scales": (random_adapter, {"alpha_pattern": {"v_proj": 3}}),
    "embedding": (random_adapter, {"target_modules": ["embed_tokens", "q_proj", "v_proj"]}),
    "head": (random_adapter, {"target_modules": ["lm_head", "down_proj"]}),
    "expression": (random_adapter, {"target_modules": r".*\.0\.self_attn\.[qv]_proj"}),
    "rank as all": (random_adapter, {"target_modules": "all-linear", "r": 20}),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["portable", "compact", "uniform:32", "merged"])
def test_every_form_answers_as_the_trained_adapter(kind: str, form: str, tiny_model: Path, tmp_path: Path):
    make, config = KINDS[kind]
    adapter = make(tmp_path / "adapter", tiny_model, **config)
    assert changes_answers(tiny_model, adapter)
    done = export_adapter(adapter, form, tmp_path / "out")
    loaded = answers(tmp_path / "out") if form == "merged" else answers(tiny_model, tmp_path / "out")
    assert same(answers(tiny_model, adapter), loaded)
    assert done.largest_difference <= 1e-5 * done.largest_answer


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"embedding", "head"}))
def test_the_portable_form_loads_in_every_engine(kind: str, tiny_model: Path, tmp_path: Path):
    make, config = KINDS[kind]
    export_adapter(make(tmp_path / "adapter", tiny_model, **config), "portable", tmp_path / "out", check=False)
    assert {engine: check_engine(tmp_path / "out", engine, base_layers=2) for engine in ENGINES} == {
        engine: [] for engine in ENGINES
    }


def test_portable_names_every_layer_of_the_kinds_and_has_no_patterns(tiny_model: Path, tmp_path: Path):
    adapter = mixed_adapter(tmp_path / "adapter", tiny_model)
    export_adapter(adapter, "portable", tmp_path / "out", check=False)
    config, tensors = config_of(tmp_path / "out"), load_file(tmp_path / "out" / WEIGHTS)
    assert (config["r"], config["lora_alpha"], config["rank_pattern"], config["alpha_pattern"]) == (8, 16, {}, {})
    assert set(config["target_modules"]) == {
        f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")
    }  # the last parts of the names
    gone = set(load_file(adapter / WEIGHTS)) ^ set(tensors)
    assert gone
    assert all(not tensors[name].any() for name in gone)
    assert len(tensors) == 2 * 7 * 2


def test_what_an_engine_fuses_is_complete_even_where_a_kind_left_every_layer(tiny_model: Path, tmp_path: Path):
    adapter = random_adapter(tmp_path / "adapter", tiny_model, target_modules=["k_proj", "up_proj"])
    assert check_engine(adapter, "sglang")
    export_adapter(adapter, "portable", tmp_path / "out")
    assert set(config_of(tmp_path / "out")["target_modules"]) == {
        "q_proj", "k_proj", "v_proj", "gate_proj", "up_proj",
    }  # fmt: skip
    assert check_engine(tmp_path / "out", "sglang") == []


def test_a_suffix_that_means_other_layers_too_is_written_as_whole_names(tiny_model: Path, tmp_path: Path):
    names = ["model.layers.0.self_attn.q_proj", "lm_head"]
    adapter = random_adapter(tmp_path / "adapter", tiny_model, target_modules=names)
    export_adapter(adapter, "compact", tmp_path / "compact", check=False)
    assert config_of(tmp_path / "compact")["target_modules"] == sorted(names)
    export_adapter(adapter, "portable", tmp_path / "portable", check=False)
    assert config_of(tmp_path / "portable")["target_modules"] == ["lm_head", "q_proj", "v_proj"]


def test_compact_is_the_smallest_and_keeps_the_bits(tiny_model: Path, tmp_path: Path):
    adapter = mixed_adapter(tmp_path / "adapter", tiny_model)
    compact = export_adapter(adapter, "compact", tmp_path / "compact", check=False)
    portable = export_adapter(adapter, "portable", tmp_path / "portable", check=False)
    before, after = load_file(adapter / WEIGHTS), load_file(tmp_path / "compact" / WEIGHTS)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert compact.size_bytes < portable.size_bytes / 1.5


def test_one_rank_needs_no_patterns(tiny_model: Path, tmp_path: Path):
    export_adapter(random_adapter(tmp_path / "adapter", tiny_model), "compact", tmp_path / "out", check=False)
    assert (config_of(tmp_path / "out")["rank_pattern"], config_of(tmp_path / "out")["alpha_pattern"]) == ({}, {})


def test_a_cut_is_the_best_of_its_rank_and_says_what_it_loses(tiny_model: Path, tmp_path: Path):
    adapter = random_adapter(tmp_path / "adapter", tiny_model, r=6)
    done = export_adapter(adapter, "uniform:2", tmp_path / "out")
    whole, cut = read_factors(adapter), read_factors(tmp_path / "out")
    energy = lost = 0.0
    for name, module in whole.modules.items():
        dense = module.scaling * module.b.double() @ module.a.double()
        values = torch.linalg.svdvals(dense).square()
        kept = cut.modules[name].scaling * cut.modules[name].b.double() @ cut.modules[name].a.double()
        assert float((dense - kept).square().sum()) == pytest.approx(float(values[2:].sum()), rel=1e-5)
        energy, lost = energy + float(values.sum()), lost + float(values[2:].sum())
    assert done.energy_lost == pytest.approx(lost / energy, rel=1e-6)
    assert 0 < done.energy_lost < 1
    assert done.largest_difference > 0


def test_bfloat16_factors_stay_as_they_are(tiny_model: Path, tmp_path: Path):
    adapter = random_adapter(tmp_path / "adapter", tiny_model, dtype=torch.bfloat16)
    export_adapter(adapter, "portable", tmp_path / "out")
    before, after = load_file(adapter / WEIGHTS), load_file(tmp_path / "out" / WEIGHTS)
    assert {t.dtype for t in after.values()} == {torch.bfloat16}
    for name, tensor in before.items():
        part = after[name][:4] if "lora_A" in name else after[name][:, :4]
        assert torch.equal(part, tensor)


def test_an_adapter_that_has_left_every_layer_is_refused(tmp_path: Path, tiny_model: Path):
    adapter = random_adapter(tmp_path / "adapter", tiny_model)
    config = config_of(adapter) | {"peft_type": "ADALORA", "init_r": 4}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    empty = {k: t[:0].clone() if "lora_A" in k else t[:, :0].clone() for k, t in load_file(adapter / WEIGHTS).items()}
    save_file(empty, adapter / WEIGHTS)
    with pytest.raises(AdapterError, match="has left every layer"):
        export_adapter(adapter, "compact", tmp_path / "out")


def test_a_wrong_scale_is_caught_by_the_comparison(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from hf_lora_ext.export import reshaping

    monkeypatch.setattr(reshaping, "_number", lambda value: 1.05 * value)
    with pytest.raises(AdapterError, match="answers otherwise than the trained adapter"):
        export_adapter(random_adapter(tmp_path / "adapter", tiny_model), "portable", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter"]


def test_a_lost_layer_is_caught_by_the_comparison(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from hf_lora_ext.export import reshaping

    put = reshaping._put
    monkeypatch.setattr(
        reshaping,
        "_put",
        lambda t, name, kind, pair: put(t, name, kind, (pair[0] * ("1.self_attn.q" not in name), pair[1])),
    )
    with pytest.raises(AdapterError, match="answers otherwise"):
        export_adapter(random_adapter(tmp_path / "adapter", tiny_model), "compact", tmp_path / "out")


@pytest.mark.parametrize(
    ("config", "form", "said"),
    [
        ({"use_dora": True}, "portable", "DoRA.*use merged"),
        ({"modules_to_save": ["norm"]}, "portable", "norm.*use merged"),
        ({"trainable_token_indices": [3]}, "uniform:2", "token_adapter.*use merged"),
        ({"init_lora_weights": "pissa"}, "compact", "PEFT changes the base"),
        ({"init_lora_weights": "olora"}, "merged", "PEFT changes the base"),
        ({"lora_bias": True}, "merged", "lora_bias"),
        ({"bias": "lora_only"}, "portable", None),
    ],
    ids=str,
)
def test_what_a_form_cannot_hold_is_refused_with_the_way_out(config, form, said, tiny_model: Path, tmp_path: Path):
    adapter = random_adapter(tmp_path / "adapter", tiny_model, **config)
    if said is None:  # a Llama has no biases, so there is nothing that could be lost
        export_adapter(adapter, form, tmp_path / "out")
        return
    with pytest.raises(AdapterError, match=said):
        export_adapter(adapter, form, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "config", [{"use_dora": True}, {"modules_to_save": ["norm"]}, {"trainable_token_indices": [3]}]
)
def test_the_compact_form_carries_what_peft_reads(config: dict, tiny_model: Path, tmp_path: Path):
    adapter = mixed_adapter(tmp_path / "adapter", tiny_model, **config)
    done = export_adapter(adapter, "compact", tmp_path / "out")
    assert done.largest_difference <= 1e-6
    assert same(answers(tiny_model, adapter), answers(tiny_model, tmp_path / "out"))


def test_an_adalora_leaves_as_a_plain_lora(tiny_model: Path, tmp_path: Path):
    from peft import AdaLoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    config = AdaLoraConfig(
        target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_r=6, target_r=3, total_step=9
    )
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_E" in name:
                weight.copy_(torch.randn_like(weight))
    model.save_pretrained(tmp_path / "adapter")
    assert isinstance(model, PeftModel)
    export_adapter(tmp_path / "adapter", "portable", tmp_path / "out")
    assert config_of(tmp_path / "out")["peft_type"] == "LORA"
    assert "init_r" not in config_of(tmp_path / "out")


# --- folders and words -------------------------------------------------------------------------------------------


def test_an_export_is_pushed_to_a_branch_of_its_own(git_hub, adapter: Path, tmp_path: Path):
    from push_runs import REPO, push, pushing_to

    with pushing_to(git_hub):
        push(adapter)
        (adapter / "facts.json").write_text("{}")  # of the adapter as it was trained: it stays behind
        done = export_adapter(adapter, "portable", tmp_path / "out")
        result = push(done.folder, revision="portable")
    assert result.is_verified
    files = git_hub.files(REPO, "portable")
    assert {"adapter_config.json", WEIGHTS} <= set(files)


def test_nothing_is_overwritten_and_an_empty_folder_is_filled(adapter: Path, tmp_path: Path):
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "mine.txt").write_text("keep")
    with pytest.raises(ConfigError, match="is there already"):
        export_adapter(adapter, "compact", taken)
    assert [path.name for path in taken.iterdir()] == ["mine.txt"]
    (tmp_path / "empty").mkdir()
    export_adapter(adapter, "compact", tmp_path / "empty", check=False)
    assert (tmp_path / "empty" / WEIGHTS).is_file()


def test_a_failure_leaves_nothing(adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr("hf_lora_ext.export.export.save_file", full)
    with pytest.raises(ConfigError, match=r"cannot be written \(No space left"):
        export_adapter(adapter, "compact", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter"]


def test_the_adapter_itself_is_not_touched(tiny_model: Path, tmp_path: Path):
    adapter = mixed_adapter(tmp_path / "adapter", tiny_model)
    before = {path.name: path.read_bytes() for path in adapter.iterdir()}
    export_adapter(adapter, "portable", tmp_path / "out")
    assert {path.name: path.read_bytes() for path in adapter.iterdir()} == before


def test_a_base_that_is_out_of_reach_is_asked_for(adapter: Path, tiny_model: Path, tmp_path: Path):
    config = config_of(adapter) | {"base_model_name_or_path": "./gone"}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"no such folder.*--base"):
        export_adapter(adapter, "portable", tmp_path / "out")
    compact = export_adapter(adapter, "compact", tmp_path / "compact")
    assert compact.largest_difference is None
    assert "answers not compared" in compact.notes[-1]
    export_adapter(adapter, "portable", tmp_path / "out", base=str(tiny_model))
    assert config_of(tmp_path / "out")["base_model_name_or_path"] == str(tiny_model)


@pytest.mark.filterwarnings("ignore:Found missing adapter keys:UserWarning")
def test_factors_that_peft_passes_over_are_told(adapter: Path, tiny_model: Path, tmp_path: Path):
    tensors = {k.replace("model.layers.1", "model.layers.7"): t for k, t in load_file(adapter / WEIGHTS).items()}
    save_file(tensors, adapter / WEIGHTS)
    with pytest.raises(AdapterError, match=r"no place for .*layers\.7.*passes over"):
        export_adapter(adapter, "compact", tmp_path / "out")


def test_an_adapter_with_other_tools_names_is_written_with_pefts(adapter: Path, tiny_model: Path, tmp_path: Path):
    trained = answers(tiny_model, adapter)
    tensors = {k.replace(".weight", ".default.weight"): t for k, t in load_file(adapter / WEIGHTS).items()}
    save_file(tensors, adapter / WEIGHTS)
    done = export_adapter(adapter, "portable", tmp_path / "out")
    assert "PEFT itself does not find" in done.notes[-1]
    assert same(trained, answers(tiny_model, tmp_path / "out"))


def test_a_base_that_transformers_cannot_open_is_one_line(adapter: Path, tiny_model: Path, tmp_path: Path):
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text('{"model_type": "nobody"}')
    save_file({"x": torch.ones(1)}, tmp_path / "base" / "model.safetensors")
    with pytest.raises(ConfigError, match=r"transformers cannot open the base .*nobody"):
        export_adapter(adapter, "portable", tmp_path / "out", base=str(tmp_path / "base"))


def test_a_disk_that_is_too_small_is_told_before_anything_is_written(adapter: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("hf_lora_ext.new_folder.free_disk_bytes", lambda folder: 10_000)
    for form in ("portable", "merged"):
        with pytest.raises(ConfigError, match="MiB free"):
            export_adapter(adapter, form, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter"]


def test_another_base_is_told_by_its_shapes_or_answers(adapter: Path, wide_model: Path, tmp_path: Path):
    for form in ("compact", "merged"):
        with pytest.raises(AdapterError, match=r"peft cannot load|has the shape"):
            export_adapter(adapter, form, tmp_path / "out", base=str(wide_model))


@pytest.mark.parametrize("form", [form for form in FORMS if form != "uniform:R"])
def test_each_listed_form_is_understood(form: str):
    assert parse_form(form) == Form(form)
    assert parse_form("uniform:12") == Form("uniform", 12)


@pytest.mark.parametrize(
    "wrong", ["", "uniform", "uniform:", "uniform:0", "uniform:-1", "uniform:x", "portable:3", "PEFT"]
)
def test_other_forms_are_refused(wrong: str):
    with pytest.raises(ConfigError, match="form"):
        parse_form(wrong)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--as", "portabel"], "did you mean `portable`?"),
        (["--for", "vlm"], "did you mean `vllm`?"),
        (["--as", "merged", "--for", "vllm"], "nothing of vllm to check"),
        (["--as", "compact", "--dtype", "bfloat16"], "dtype=bfloat16 is for merged models"),
        (["--as", "merged", "--dtype", "int8"], "dtype 'int8' is not known"),
        (["--as", "compact", "--for", "sglang"], "SGLang would not serve"),
        (["--as", "compact", "--base", "./gone", "--as", "portable"], "no such folder"),
    ],
    ids=str,
)
def test_bad_input_is_one_line_and_writes_nothing(capsys, options, said: str, tiny_model: Path, tmp_path: Path):
    adapter = mixed_adapter(tmp_path / "adapter", tiny_model)
    capsys.readouterr()  # transformers' bars
    code, out, err = outcome(capsys, "export", adapter, tmp_path / "out", *options)
    assert (code, out) == (2, "")
    assert said in err
    assert len(err.strip().splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter"]


@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_gets_the_form_that_it_loads_and_the_command(capsys, engine: str, tiny_model: Path, tmp_path: Path):
    adapter = mixed_adapter(tmp_path / "adapter", tiny_model)
    code, out, _ = outcome(capsys, "export", adapter, tmp_path / "out", "--for", engine)
    assert code == 0
    assert out.startswith("compact" if engine == "vllm" else "portable")
    assert check_engine(tmp_path / "out", engine, base_layers=2) == []
    command = next(line for line in out.splitlines() if line.startswith("serve"))
    assert str(tiny_model) in command
    assert str(tmp_path / "out") in command


def test_json_is_the_only_thing_on_standard_output(capsys, adapter: Path, tmp_path: Path):
    code, out, _ = outcome(capsys, "export", adapter, tmp_path / "out", "--as", "compact", "--json")
    assert code == 0
    told = json.loads(out)
    assert (told["form"], told["folder"], told["rank"]) == ("compact", str(tmp_path / "out"), 2)
    assert told["largest_difference"] == 0


def test_torn_and_foreign_adapters_are_one_line(adapter: Path, tmp_path: Path):
    whole = (adapter / WEIGHTS).read_bytes()
    (adapter / WEIGHTS).write_bytes(whole[:-8])
    with pytest.raises(AdapterError, match="no whole safetensors file"):
        export_adapter(adapter, "compact", tmp_path / "out")
    save_file({"x": torch.ones(2)}, adapter / WEIGHTS)
    with pytest.raises(AdapterError, match="no LoRA factor"):
        export_adapter(adapter, "compact", tmp_path / "out")


def test_the_method_cards_code_runs_as_pasted(adapter: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    import re

    import hf_lora_ext

    card = Path(hf_lora_ext.__file__).parent / "export" / "export.md"
    monkeypatch.chdir(adapter.parent)
    blocks = re.findall(r"```python\n(.*?)```", card.read_text(encoding="utf8"), flags=re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "export.md", "exec"), {})
    assert capsys.readouterr().out.strip() == "[]"


def test_answers_are_not_compared_where_the_base_does_not_fit_the_memory(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("hf_lora_ext.export.comparison.free_memory_bytes", lambda: 4 * 40_000)
    done = export_adapter(adapter, "compact", tmp_path / "out")
    assert done.largest_difference is None
    assert "the base in float32 does not fit the free memory" in done.notes[-1]
