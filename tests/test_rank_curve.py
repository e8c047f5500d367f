"""The rank curve: the first directions at every budget, the whole exactly, and a model that nobody has touched."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import PAIRS
from hypothesis import given, settings
from hypothesis import strategies as st
from trained_adapters import KINDS, ROWS, TRAINING, trained

from hf_lora_ext import BudgetError, ConfigError, preset, rank_curve
from hf_lora_ext.analysis import curve as curve_module
from hf_lora_ext.analysis.passes import at_rest, example_losses
from hf_lora_ext.analysis.truncation import Truncation, cut_meanwhile, truncation
from hf_lora_ext.data.tokens import encode_examples
from hf_lora_ext.ranks.lora_layers import lora_layers


def traces(model: Any) -> dict[str, Any]:
    """All that a look at a model could change."""
    layers = lora_layers(model, "default", trains=False)
    return {
        "numbers": {name: value.clone() for name, value in model.state_dict().items()},
        "order": [name for name, _ in model.named_parameters()],
        "objects": [id(parameter) for parameter in model.parameters()],
        "gradients": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "trains": [parameter.requires_grad for parameter in model.parameters()],
        "modes": [module.training for module in model.modules()],
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()],
        "told": {n: (f.layer.r, f.layer.lora_alpha, f.layer.scaling, f.layer._disable_adapters)
                 for n, f in layers.items()},
        "config": model.peft_config["default"].to_dict(),
        "drawn": torch.get_rng_state(),
    }  # fmt: skip


def same(left: Any, right: Any) -> bool:
    if isinstance(left, torch.Tensor):
        return isinstance(right, torch.Tensor) and torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(same, left, right))
    return left == right


@pytest.fixture(scope="module")
def cut(tiny_model: Path) -> Truncation:
    return truncation(lora_layers(trained("mixed", tiny_model), "default"), "svd")


@settings(max_examples=60)
@given(first=st.integers(100, 2000), second=st.integers(100, 2000))
def test_a_smaller_budget_keeps_a_part_of_what_a_larger_one_keeps(cut: Truncation, first: int, second: int):
    smaller, larger = (cut.ranks_for(budget) for budget in sorted((first, second)))
    assert all(smaller[name] <= larger[name] for name in smaller)
    assert cut.parameters_at(smaller) <= min(first, cut.parameters)
    for name, rank in smaller.items():
        inner, outer = cut.factors(name, rank), cut.bases[name].factors(*cut.layers[name].directions())
        if rank < cut.layers[name].rank:
            assert torch.allclose(inner[0].double(), outer[0][:rank], rtol=1e-6)
            assert torch.allclose(inner[1].double(), outer[1][:, :rank], rtol=1e-6)


def test_cutting_by_singular_values_is_the_best_approximation_over_all_layers(tiny_model: Path):
    model = trained("lora", tiny_model)
    layers = lora_layers(model, "default")
    cut = truncation(layers, "svd")
    found = {name: torch.linalg.svdvals(f.scale * f.b.detach().double() @ f.a.detach().double())[: f.rank]
             for name, f in layers.items()}  # fmt: skip
    densities = sorted(((s**2 / layers[name].cost).item(), name) for name, values in found.items() for s in values)
    ranks = cut.ranks_for(1500)
    kept = densities[-sum(ranks.values()) :]
    assert {name: sum(n == name for _, n in kept) for name in ranks} == ranks
    energy = sum((v[: ranks[n]] ** 2).sum() for n, v in found.items()) / sum((v**2).sum() for v in found.values())
    assert cut.energy(ranks) == pytest.approx(energy.item(), rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_curve_ends_with_the_model_as_it_answers(tiny_model: Path, kind: str):
    model = trained(kind, tiny_model)
    curve = rank_curve(model, ROWS, calibration=TRAINING, budgets=[0.5])
    batch = [torch.tensor([row["input_ids"]]) for row in ROWS]
    with torch.no_grad():
        nats = sum(float(model(input_ids=ids, labels=ids).loss) * (ids.shape[1] - 1) for ids in batch)
        with model.disable_adapter():
            base = sum(float(model(input_ids=ids, labels=ids).loss) * (ids.shape[1] - 1) for ids in batch)
    assert curve.tokens == sum(ids.shape[1] - 1 for ids in batch)
    assert curve.whole.loss == pytest.approx(nats / curve.tokens, rel=1e-5)
    assert curve.base_loss == pytest.approx(base / curve.tokens, rel=1e-5)
    assert (curve.whole.rise, curve.whole.rise_error) == (0, 0)
    assert curve.whole.ranks == {n: f.rank for n, f in lora_layers(model, "default").items()}


@pytest.mark.parametrize("criterion", ["whitened", "svd"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_is_left_bit_for_bit_as_it_was(tiny_model: Path, kind: str, criterion: str):
    model = trained(kind, tiny_model)
    model.train()
    model(input_ids=torch.tensor([[3, 4, 5]]), labels=torch.tensor([[3, 4, 5]])).loss.backward()
    model.get_base_model().get_input_embeddings().eval()
    before = copy.deepcopy(traces(model))
    rank_curve(model, ROWS, criterion=criterion, calibration=TRAINING, budgets=[0.2, 0.7])
    assert same(before, traces(model))


@pytest.mark.parametrize("stage", ["example_losses", "watch_examples", "cut_meanwhile"])
def test_a_model_is_left_as_it_was_after_an_interruption(tiny_model: Path, monkeypatch, stage: str):
    model = trained("dora", tiny_model).train()
    before = copy.deepcopy(traces(model))
    whole, calls = getattr(curve_module, stage), []

    def interrupted(*args: Any) -> Any:
        calls.append(stage)
        if len(calls) == (4 if stage == "example_losses" else 1):  # inside a cut
            model(input_ids=torch.tensor([[3]]))
            raise KeyboardInterrupt
        return whole(*args)

    monkeypatch.setattr(curve_module, stage, interrupted)
    with pytest.raises(KeyboardInterrupt):
        rank_curve(model, ROWS, calibration=TRAINING)
    assert same(before, traces(model))


def test_a_frozen_adapter_is_measured_and_stays_frozen(tiny_model: Path, tmp_path: Path):
    trained("lora", tiny_model).save_pretrained(tmp_path)
    from peft import PeftModel
    from trained_adapters import base_model

    model = PeftModel.from_pretrained(base_model("lora", tiny_model), tmp_path)
    assert rank_curve(model, ROWS, calibration=TRAINING, budgets=[0.5]).criterion == "whitened"
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_layer_of_rank_0_answers_as_the_base_does(tiny_model: Path):
    model = trained("dora", tiny_model)
    layers = lora_layers(model, "default")
    examples = encode_examples(ROWS)
    with at_rest(model):
        with cut_meanwhile(layers, truncation(layers, "svd"), dict.fromkeys(layers, 0)):
            without = example_losses(model, examples)
        with model.disable_adapter():
            base = example_losses(model, examples)
    assert without == base


def test_whitened_directions_lose_less_where_inputs_differ_in_size(tiny_model: Path):
    """An update along inputs that never occur is large and worth nothing."""
    model = trained("lora", tiny_model)
    layers = lora_layers(model, "default")
    with torch.no_grad():
        for factors in layers.values():
            factors.b.mul_(0.2)
        for norm in (m for n, m in model.get_base_model().named_modules() if n.endswith("input_layernorm")):
            norm.weight[:16] = 0.001
        for name, factors in layers.items():
            if not name.endswith("down_proj"):
                factors.a[:2, :16] *= 5
                factors.a[:2, 16:] = 0
    seen = rank_curve(model, ROWS, calibration=TRAINING, budgets=[0.5])
    blind = rank_curve(model, ROWS, budgets=[0.5])
    assert abs(seen.points[0].rise) < abs(blind.points[0].rise)


def test_examples_of_unlike_length_are_measured_one_as_another(tiny_model: Path, monkeypatch: pytest.MonkeyPatch):
    model, examples = trained("lora", tiny_model), encode_examples(ROWS)
    together = example_losses(model, examples)
    monkeypatch.setattr("hf_lora_ext.analysis.passes.LOGITS_AT_ONCE", 1)
    assert example_losses(model, examples) == pytest.approx(together, rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"criterion": "whitened"}, ConfigError, "calibration"),
        ({"criterion": "hessian"}, ConfigError, "whitened, svd"),
        ({"calibration": ROWS}, ConfigError, "12 of 12 calibration examples are held out"),
        ({"eval_data": ROWS[:1]}, ConfigError, "at least 2"),
        ({"eval_data": []}, ConfigError, "none of 0 rows"),
        ({"eval_data": [{"text": "a"}]}, ConfigError, "tokenizer="),
        ({"eval_data": [{"words": "a"}]}, ConfigError, "needed prompt and completion"),
        ({"budgets": [10**9]}, BudgetError, "above the"),
        ({"budgets": [5]}, BudgetError, "does not hold the first direction"),
    ],
)
def test_what_cannot_be_measured_is_refused(tiny_model: Path, arguments: dict[str, Any], error: type, said: str):
    with pytest.raises(error, match=said):
        rank_curve(trained("lora", tiny_model), **({"eval_data": ROWS} | arguments))


@pytest.mark.parametrize("marks", [False, True], ids=["all turns", "assistant turns"])
@pytest.mark.parametrize(
    "rows",
    [
        PAIRS[:4],
        [{"text": "a b c"}, {"text": "d<eos>"}],
        [{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": f"Ho {n}"}]} for n in "ab"],
        [{"prompt": [{"role": "user", "content": "Hi"}], "completion": [{"role": "assistant", "content": n}]}
         for n in "ab"],
    ],
    ids=["prompts", "texts", "messages", "chats"],
)  # fmt: skip
def test_rows_become_the_tokens_and_labels_that_trl_makes_of_them(tiny_model: Path, tmp_path: Path, rows, marks: bool):
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import SFTTrainer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    if marks:
        tokenizer.chat_template = (
            "{% for m in messages %}{{ m['role'] }}: {% if m['role'] == 'assistant' %}{% generation %}"
            "{{ m['content'] }}<eos>{% endgeneration %}{% else %}{{ m['content'] }}<eos>{% endif %}{% endfor %}"
            "{% if add_generation_prompt %}assistant: {% endif %}"
        )
    counted = marks and "messages" in rows[0]
    args = preset(str(tiny_model)).sft_config(str(tmp_path), max_length=25, assistant_only_loss=counted)
    trainer = SFTTrainer(str(tiny_model), args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    ours = curve_module.encoded(rows, curve_module.Reading(tokenizer, 25, counted))
    theirs = [(tuple(row["input_ids"]), tuple(row["labels"])) for row in trainer.train_dataset]
    assert [(example.input_ids, example.labels) for example in ours] == theirs


def test_the_knee_is_within_the_error_of_what_the_adapter_gains(tiny_model: Path):
    curve = rank_curve(trained("lora", tiny_model), ROWS)
    assert curve.gain_error > 0
    assert curve.to_dict()["knee_parameters"] == curve.knee.parameters
    wide = dataclasses.replace(curve, gain_error=100.0)
    assert wide.knee is wide.points[0]
    rising = tuple(dataclasses.replace(point, rise=1.0) for point in curve.points[:-1])
    assert dataclasses.replace(curve, points=(*rising, curve.whole), gain_error=0.5).knee is curve.whole


def test_the_picture_shows_both_criteria(tiny_model: Path, tmp_path: Path):
    model = trained("lora", tiny_model)
    svd = rank_curve(model, ROWS)
    rank_curve(model, ROWS, calibration=TRAINING).plot(tmp_path / "curve.png", "tiny", beside=[svd])
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
