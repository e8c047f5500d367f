"""The rank report of saved adapters: what it finds, what it advises, how it is told, and what it refuses."""

import json
import re
from pathlib import Path

import pytest
import torch
from conftest import hf_lora, outcome
from git_hub_access import WRITE_TOKEN
from git_hub_state import Hub
from peft import LoraConfig, PeftModel, get_peft_model
from push_runs import REPO, lora_model, pushing_to, saved_adapter
from safetensors.torch import load_file, save_file
from test_factors import adalora_model, convolutions_model, experts_model
from torch import nn
from transformers import AutoModelForCausalLM

from hf_lora_ext import AdapterError, ConfigError, RankReport, rank_report
from hf_lora_ext.adapters.tensor_names import CONFIG, WEIGHTS
from hf_lora_ext.analysis.report import places


def one_module(report: RankReport):
    (module,) = report.modules
    return module


def trained(target: torch.Tensor, rank: int, folder: Path) -> RankReport:
    """The report of a LoRA that learned to add a matrix to a linear layer."""
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(*target.shape, bias=False))
    model = get_peft_model(base, LoraConfig(r=rank, lora_alpha=rank, target_modules=["0"]))
    wanted = base[0].base_layer.weight.detach() + target
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(400):
        x = torch.randn(64, target.shape[1])
        loss = (model(x) - x @ wanted.T).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    return rank_report(folder)


def orthogonal(size: int) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(size, size, generator=torch.Generator().manual_seed(1))).Q


def test_a_rank_below_what_is_to_be_learned_is_under(tmp_path: Path):
    assert one_module(trained(orthogonal(24), 4, tmp_path)).verdict == "under"


def test_a_rank_above_what_is_to_be_learned_is_over_and_the_one_to_learn_is_suggested(tmp_path: Path):
    plane = orthogonal(24)[:, :2] @ orthogonal(24)[:2]
    module = one_module(trained(plane, 8, tmp_path))
    assert (module.verdict, module.suggested_rank) == ("over", 2)


@pytest.mark.parametrize("kind", ["adalora", "convolutions", "embedding", "experts"])
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning")
def test_every_kind_of_layer_has_the_norm_that_peft_gives_it(kind: str, tiny_model: Path, tmp_path: Path):
    model = {
        "adalora": lambda: adalora_model(tiny_model),
        "convolutions": convolutions_model,
        "embedding": lambda: lora_model(tiny_model, target_modules=["embed_tokens", "lm_head"]),
        "experts": experts_model,
    }[kind]()
    model.save_pretrained(tmp_path)
    layers = dict(model.get_base_model().named_modules())
    report = rank_report(tmp_path)
    for module in report.modules:
        delta = layers[module.name].get_delta_weight("default").detach()
        assert module.norm == pytest.approx(float(delta.norm()), rel=1e-5)
    assert report.explain().count("\n") >= len(report.modules)


@pytest.mark.parametrize(
    "config", [{}, {"use_rslora": True}, {"use_dora": True}, {"rank_pattern": {"q_proj": 4}}], ids=str
)  # fmt: skip
def test_norms_are_those_of_what_peft_adds(config: dict, tiny_model: Path, tmp_path: Path):
    model = lora_model(tiny_model, **config)
    model.save_pretrained(tmp_path)
    report = rank_report(tmp_path)
    layers = dict(model.get_base_model().named_modules())
    for module in report.modules:
        delta = layers[module.name].get_delta_weight("default").detach()
        assert module.norm == pytest.approx(float(delta.norm()), rel=1e-5)
        assert module.values == pytest.approx(torch.linalg.svdvals(delta)[: module.rank].tolist(), rel=1e-3)
        assert module.shape == tuple(delta.shape)
    assert sum(report.shares.values()) == pytest.approx(1)


def test_the_suggested_patterns_are_taken_by_peft_and_keep_the_scaling(tiny_model: Path, tmp_path: Path):
    for rslora in (False, True):
        model = lora_model(tiny_model, r=6, lora_alpha=3, use_rslora=rslora)
        for name, layer in model.get_base_model().named_modules():
            if name.endswith("0.self_attn.q_proj"):
                layer.lora_B["default"].weight.data[:, 2:] *= 1e-3
        model.save_pretrained(tmp_path)
        report = rank_report(tmp_path)
        changed = next(module for module in report.modules if module.verdict == "over")
        assert changed.suggested_rank == 2
        again = lora_model(tiny_model, r=6, lora_alpha=3, use_rslora=rslora, rank_pattern=report.rank_pattern,
                           alpha_pattern=report.alpha_pattern)  # fmt: skip
        again.save_pretrained(tmp_path)
        next_one = rank_report(tmp_path)
        assert {m.name: m.rank for m in next_one.modules} == {m.name: m.suggested_rank for m in report.modules}
        assert [m.scaling for m in next_one.modules] == pytest.approx([m.scaling for m in report.modules])
        assert next_one.parameters == report.suggested_parameters


@pytest.mark.filterwarnings("ignore:.*rank_pattern:RuntimeWarning")
def test_experts_have_one_pooled_spectrum(tmp_path: Path):
    model = experts_model()
    model.save_pretrained(tmp_path)
    report = rank_report(tmp_path)
    layers = dict(model.get_base_model().named_modules())
    pooled = [module for module in report.modules if module.kind == "parameter"]
    assert {module.experts for module in pooled} == {4}
    for module in pooled:
        assert module.norm == pytest.approx(
            float(layers[module.name].get_delta_weight("default").detach().norm()), rel=1e-5
        )
        assert len(module.values) == module.rank == 2
    assert any("experts: one spectrum" in note for note in report.notes)
    assert not set(report.rank_pattern) & {module.name for module in pooled}


def test_a_fresh_adapter_has_learned_nothing(tiny_model: Path, tmp_path: Path):
    report = rank_report(saved_adapter(tmp_path, tiny_model, init_lora_weights=True))
    assert {module.verdict for module in report.modules} == {"empty"}
    assert "empty: 4 modules with an update of 0" in report.explain()
    assert (report.rank_pattern, report.suggested_parameters) == ({}, 0)
    with pytest.raises(AdapterError, match="nothing to draw"):
        report.plot(tmp_path)


def test_a_file_alone_says_that_alpha_is_unknown(adapter: Path, tmp_path: Path):
    with_alpha = rank_report(adapter)
    (adapter / WEIGHTS).rename(tmp_path / "alone.safetensors")
    alone = rank_report(tmp_path / "alone.safetensors")
    assert "scaling unknown" in alone.explain()
    assert any("alpha is unknown" in note for note in alone.notes)
    assert alone.shares == pytest.approx(with_alpha.shares)
    assert alone.alpha_pattern == {}


def test_a_sixteen_bit_adapter_is_analysed_in_float64(adapter: Path):
    whole = rank_report(adapter)
    save_file({key: t.bfloat16() for key, t in load_file(adapter / WEIGHTS).items()}, adapter / WEIGHTS)
    for one, other in zip(whole.modules, rank_report(adapter).modules, strict=True):
        assert other.values == pytest.approx(one.values, rel=2e-2)


def test_what_is_beside_the_factors_is_noted(tiny_model: Path, tmp_path: Path):
    report = rank_report(saved_adapter(tmp_path, tiny_model, use_dora=True, modules_to_save=["norm"]))
    assert report.method == "DoRA"
    assert any("not analysed: 5 tensors that are no factors (160 numbers)" in note for note in report.notes)
    assert any("magnitudes" in note for note in report.notes)


def test_no_base_model_is_loaded(adapter: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *a, **k: pytest.fail("a model was loaded"))
    monkeypatch.setattr(PeftModel, "from_pretrained", lambda *a, **k: pytest.fail("a model was loaded"))
    assert rank_report(adapter).modules


def test_several_stacks_of_layers_are_told_apart():
    found = places(["text.layers.0.q", "vision.blocks.0.q", "text.layers.1.q", "head"])
    assert len(set(found.values())) == 4
    assert found["head"] == ("head", None)


# --- the command ------------------------------------------------------------------------------------------------


def test_the_table_fits_100_columns_and_is_sorted_by_layer(capsys, adapter: Path):
    code, out, err = outcome(capsys, "ranks", adapter)
    assert (code, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 100
    rows = [line for line in out.splitlines() if re.match(r" +\d", line)]
    assert [int(row.split()[0]) for row in rows] == [0, 0, 1, 1]
    assert "\n4 modules, rank 2, 448 numbers in factors, scaling 4\n" in out


def test_the_table_fits_at_any_sizes(tmp_path: Path):
    names = [f"base_model.model.a_very_long_tower.blocks.{i}.a_long_room.and_a_longer_projection" for i in (7, 100)]
    tensors = {f"{n}.lora_{side}.weight": torch.ones(256, 256) for n in names for side in "AB"}
    save_file(tensors, tmp_path / "a.safetensors")
    assert max(map(len, rank_report(tmp_path / "a.safetensors").explain().splitlines())) <= 100


def test_top_keeps_the_largest_shares(capsys, adapter: Path):
    shares = rank_report(adapter).shares
    out = outcome(capsys, "ranks", adapter, "--top", "1")[1]
    assert "and 3 modules with a smaller share" in out
    assert f"{max(shares.values()):.1%}" in out.splitlines()[-2]


def test_json_is_whole(capsys, adapter: Path, tmp_path: Path):
    code, out, _ = outcome(capsys, "ranks", adapter, "--json", "--top", "1", "--plot", tmp_path)
    told = json.loads(out)
    report = rank_report(adapter)
    assert code == 0
    assert [module["name"] for module in told["modules"]] == [module.name for module in report.modules]
    assert told["modules"][0]["singular_values"] == list(report.modules[0].values)
    assert sum(module["share"] for module in told["modules"]) == pytest.approx(1)
    assert told["plots"] == [str(tmp_path / "ranks.png"), str(tmp_path / "spectra.png")]


@pytest.mark.parametrize(
    ("given", "files"), [("pictures", {"ranks.png", "spectra.png"}), ("x.png", {"x.png", "x_spectra.png"})]
)
def test_plots_go_where_they_are_asked(capsys, given: str, files: set, adapter: Path, tmp_path: Path):
    assert outcome(capsys, "ranks", adapter, "--plot", tmp_path / given)[0] == 0
    folder = tmp_path / given if given == "pictures" else tmp_path
    assert {file.name for file in folder.glob("*.png")} == files
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in folder.glob("*.png"))


def test_a_mixture_whose_experts_are_modules_is_drawn_in_few_rows(tmp_path: Path):
    names = [f"layers.{i}.experts.{e}.{m}" for i in range(2) for e in range(40) for m in ("up", "down")]
    draw = torch.Generator().manual_seed(0)
    tensors = {f"{n}.lora_{s}.weight": torch.randn(2, 2, generator=draw) for n in names for s in "AB"}
    save_file(tensors, tmp_path / "a.safetensors")
    report = rank_report(tmp_path / "a.safetensors")
    from hf_lora_ext.analysis.pictures import _grids

    assert {row for grid in _grids(report) for row, _ in grid.cells} == {"experts.*.up", "experts.*.down"}
    share = _grids(report)[-1].cells
    assert sum(share.values()) == pytest.approx(100)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-4]), "no whole safetensors"),
        (lambda folder: (folder / WEIGHTS).unlink(), "holds no adapter_model.safetensors"),
        (lambda folder: (folder / CONFIG).write_text("{"), "is not JSON"),
        (lambda folder: (folder / CONFIG).write_text("[1]"), "names no peft_type"),
        (lambda folder: save_file({"a\x1b[2J.lora_A.weight": torch.ones(1, 1)}, folder / WEIGHTS), "no name of a mod"),
    ],
    ids=["torn", "no weights", "no JSON", "no config", "control characters"],
)  # fmt: skip
def test_bad_input_is_one_line_and_exit_code_2(capsys, spoil, said: str, adapter: Path):
    spoil(adapter)
    code, out, err = outcome(capsys, "ranks", adapter, "--json")
    assert (code, out) == (2, "")
    assert said in err
    assert len(err.strip().splitlines()) == 1
    assert err.strip().isprintable()


def test_a_plot_that_cannot_be_written_is_one_line(capsys, adapter: Path, tmp_path: Path):
    (tmp_path / "file").touch()
    code, out, err = outcome(capsys, "ranks", adapter, "--plot", tmp_path / "file" / "in.png")
    assert (code, out) == (2, "")
    assert "cannot be written" in err


# --- the Hub ----------------------------------------------------------------------------------------------------


@pytest.fixture
def published(git_hub: Hub, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    (adapter / "extra.txt").write_text("not needed")
    git_hub.create_from(REPO, adapter)
    return git_hub


def test_an_adapter_on_the_hub_is_downloaded_alone(published: Hub, adapter: Path, tmp_path: Path):
    with pushing_to(published, WRITE_TOKEN):
        found = rank_report(REPO)
        at = rank_report(REPO, revision=published.head(REPO))
    assert found.modules == at.modules == rank_report(adapter).modules
    assert not list((tmp_path / "cache").rglob("extra.txt"))


def test_the_cache_answers_where_the_hub_is_away(published: Hub, monkeypatch: pytest.MonkeyPatch):
    with pushing_to(published, WRITE_TOKEN):
        there = rank_report(REPO)
    monkeypatch.setattr("hf_lora_ext.hub.find_model", lambda *a, **k: None)
    assert rank_report(REPO).modules == there.modules
    with pytest.raises(
        ConfigError, match=r"me/other is no folder here; .* out of reach .* no adapter_config.json of it"
    ):
        rank_report("me/other")


def test_what_the_hub_does_not_have_is_told(published: Hub, adapter: Path, tmp_path: Path):
    (adapter / WEIGHTS).rename(adapter / "adapter_model.bin")
    published.create_from("me/old", adapter)
    (adapter / "adapter_model.bin").unlink()
    published.create_from("me/none", adapter)
    with pushing_to(published, WRITE_TOKEN):
        with pytest.raises(AdapterError, match=r"me/old on the Hub: adapter_model.bin is a pickle"):
            rank_report("me/old")
        with pytest.raises(AdapterError, match=r"me/none on the Hub has no adapter_model.safetensors \(found: "):
            rank_report("me/none")
        with pytest.raises(ConfigError, match="is not on the Hub"):
            rank_report("me/nowhere")
        with pytest.raises(ConfigError, match="has no revision 'v9'"):
            rank_report(REPO, revision="v9")
    with pytest.raises(AdapterError, match="is not here; give an adapter's folder"):
        rank_report("./me/nowhere")
    with pytest.raises(ConfigError, match="which is here; leave it out"):
        rank_report(tmp_path, revision="v1")


def test_the_command_works_in_a_fresh_process(adapter: Path):
    result = hf_lora("ranks", adapter)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert "verdict" in result.stdout
