"""AdaptiveRankCallback in mode `fixed`: never over the budget, rank goes where it pays, and state survives."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from adaptive_runs import TARGETS, adapted, build, load, logits, parameters
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from peft.optimizers import create_loraplus_optimizer
from test_adaptive_rank import gpt2, in_bfloat16
from transformers import BitsAndBytesConfig, Trainer, TrainerCallback, TrainingArguments

from hf_lora_ext import AdaptiveRankCallback, BudgetError, ConfigError
from hf_lora_ext.callbacks import adaptive_rank
from hf_lora_ext.ranks.low_rank import Basis
from hf_lora_ext.ranks.moves import Moves

EVENTS = (11, 18)
STEPS = {"max_steps": 30}


def fixed(**changes: Any) -> AdaptiveRankCallback:
    return AdaptiveRankCallback(**({"target_rank": 2, "mode": "fixed", "events": 2, "last": 0.6} | changes))


class Forced:
    """Decides for the callback: a third of the layers leave, query layers and those that had left grow by one."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        patch.setattr(adaptive_rank, "decide_moves", self.decide)

    def decide(self, layers: Any, costs: Any, moments: Any, sketches: Any, *_: Any) -> Moves:
        names = list(costs)
        gone = {name for at, name in enumerate(names) if len(layers) == len(names) and at % 3 == 1}
        eyes = {n: torch.eye(f.rank, dtype=torch.float64) for n, f in layers.items()}
        bases = {n: Basis(torch.zeros(len(eye), dtype=torch.float64), eye, eye) for n, eye in eyes.items()}
        kept = {n: 0 if n in gone or n not in layers else layers[n].rank for n in names}
        draw = torch.Generator().manual_seed(0)
        growing = {n: sketches.layers[n].rows for n in names if n not in gone and (n not in layers or at_front(n))}
        rows = {n: torch.randn(1, own.shape[1], generator=draw).double() / 8 for n, own in growing.items()}
        return Moves(bases, kept, rows)


def at_front(name: str) -> bool:
    return name.endswith(("q_proj", "c_attn"))


class Watches(TrainerCallback):
    """Notes the adapter's parameters after each step."""

    def __init__(self) -> None:
        self.parameters: list[int] = []

    def on_step_end(self, args: Any, state: Any, control: Any, *, model: Any, **kwargs: Any) -> None:
        self.parameters.append(parameters(model))


def assert_same(one: Any, other: Any) -> None:
    left, right = dict(one.named_parameters()), dict(other.named_parameters())
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


def held(trainer: Trainer) -> set[int]:
    return {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}


def test_the_adapter_starts_at_the_budget_and_never_is_over_it(tiny_model: Path, tmp_path: Path) -> None:
    model, ours, watches = adapted(tiny_model), fixed(), Watches()
    uniform = parameters(model)
    trainer = build(model, tmp_path, ours, watches, **STEPS)
    assert parameters(model) == ours.budget_ == uniform
    trainer.train()
    assert max(watches.parameters) <= uniform
    history = json.loads((tmp_path / "rank_history.json").read_text())["events"]
    assert [event["step"] for event in history] == list(EVENTS)
    assert sum(event["left"] for event in history) > 0
    assert sum(event["grown"] for event in history) > 0
    assert all(event["probe_loss_after"] is not None for event in history)
    assert [e["adaptive_rank/grown"] for e in trainer.state.log_history if "adaptive_rank/grown" in e] == [
        event["grown"] for event in history
    ]
    trainer.save_model(str(tmp_path / "adapter"))
    assert torch.equal(logits(PeftModel.from_pretrained(load(tiny_model), tmp_path / "adapter")), logits(model))


@pytest.mark.parametrize("stop", [3, 6, 9, 11, 18])  # before, searching, judging, at an event, at the last
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(
    stop: int, resumable: tuple[Path, Any], tiny_model: Path, tmp_path: Path
) -> None:
    folder, whole = resumable
    again = adapted(tiny_model)
    shutil.copytree(folder / f"checkpoint-{stop}", tmp_path / f"checkpoint-{stop}")
    build(again, tmp_path, fixed(), **STEPS).train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{stop}"))
    assert_same(whole, again)
    assert (folder / "rank_history.json").read_text() == (tmp_path / "rank_history.json").read_text()


@pytest.fixture(scope="module")
def resumable(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder, model = tmp_path_factory.mktemp("whole"), adapted(tiny_model)
    build(model, folder, fixed(), **STEPS, save_strategy="steps", save_steps=1).train()
    return folder, model


# --- what moves -------------------------------------------------------------------------------------------------


ROOM = {"target_rank": None, "budget_parameters": 1700}
"""A budget that the forced moves stay under."""


@pytest.mark.parametrize("kind", ["linear", "dora", "conv1d"])
def test_growth_and_a_return_from_rank_0_change_no_answer(
    kind: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Moves that drop nothing of worth leave the logits where they are, and the optimizer knows what trains."""
    if kind == "conv1d":
        config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True)
        model = get_peft_model(gpt2(), config)
    else:
        model = adapted(tiny_model, use_dora=kind == "dora")
    Forced(monkeypatch)
    ours = fixed(**ROOM)
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    apply = adaptive_rank.apply_moves_

    def watched(layers: Any, moves: Moves, *rest: Any, **settings: Any) -> None:
        for name, factors in layers.live.items():
            if not moves.kept[name]:  # what leaves is worth nothing, so that any jump is growth's
                factors.b.data.zero_()
                if factors.magnitude is not None:
                    factors.begin_(factors.a.detach())
        before = logits(model)
        apply(layers, moves, *rest, **settings)
        seen.append((before, logits(model)))
        model.train()

    monkeypatch.setattr(adaptive_rank, "apply_moves_", watched)
    trainer = build(model, tmp_path, ours, **STEPS)
    trainer.train()
    assert len(seen) == 2
    assert all(torch.allclose(before, after, atol=1e-5) for before, after in seen)
    first, second = (event["ranks"] for event in ours.state_.history)
    assert any(first[name] == 0 < second[name] for name in first)
    assert held(trainer) >= {id(p) for p in model.parameters() if p.requires_grad}


@pytest.mark.parametrize("kind", ["linear", "dora", "loraplus", "adafactor"])
def test_what_left_and_came_back_resumes_bit_for_bit(
    kind: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Forced(monkeypatch)

    def run(folder: Path, resume: str | None = None) -> tuple[Any, Trainer]:
        model = adapted(tiny_model, use_dora=kind == "dora")
        extra = {"optim": "adafactor"} if kind == "adafactor" else {}
        trainer = build(model, folder, fixed(**ROOM), **STEPS, save_strategy="steps", save_steps=1, **extra)
        if kind == "loraplus":
            plus = {"lr": 1e-3, "loraplus_lr_ratio": 8, "loraplus_weight_decay": 0.1}

            def create(model_: Any = None) -> Any:  # when the trainer does, after it has loaded the adapter
                trainer.optimizer = create_loraplus_optimizer(model, torch.optim.AdamW, **plus)
                return trainer.optimizer

            trainer.create_optimizer = create
        trainer.train(resume_from_checkpoint=resume)
        return model, trainer

    whole, trainer = run(tmp_path / "a")
    if kind == "loraplus":
        names = {id(p): name for name, p in whole.named_parameters()}
        groups = [{names[id(p)] for p in group["params"]} for group in trainer.optimizer.param_groups]
        assert {"lora_B" in name for name in groups[0]} == {False}
        assert {"lora_B" in name for group in groups[1:] for name in group} == {True}
    for stop in (12, 19):  # some layers have left; some of them are back
        folder = tmp_path / f"b{stop}"
        shutil.copytree(tmp_path / "a" / f"checkpoint-{stop}", folder / f"checkpoint-{stop}")
        again, _ = run(folder, str(folder / f"checkpoint-{stop}"))
        assert_same(whole, again)


def test_new_directions_begin_with_the_mean_of_the_second_moments_and_none_of_the_first(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Forced(monkeypatch)
    ours = fixed(**ROOM)
    means: dict[str, float] = {}
    apply = adaptive_rank.apply_moves_

    def watched(layers: Any, moves: Moves, optimizer: Any, *rest: Any, **settings: Any) -> None:
        before = {n: float(optimizer.state[f.a]["exp_avg_sq"].mean()) for n, f in layers.live.items()}
        apply(layers, moves, optimizer, *rest, **settings)
        for name, rows in moves.rows.items():
            factors, grown = layers.live[name], len(rows)
            first, second = (optimizer.state[factors.a][kind] for kind in ("exp_avg", "exp_avg_sq"))
            assert not first[-grown:].any()
            assert second[-grown:].min() > 0
            if name in before:
                means[name] = before[name]
                assert torch.allclose(second[-grown:], torch.tensor(before[name]))
            assert float(optimizer.state[factors.b]["step"]) > 1
            assert optimizer.state[factors.b]["exp_avg_sq"][:, -grown:].min() > 0
            assert not factors.b[:, -grown:].any()

    monkeypatch.setattr(adaptive_rank, "apply_moves_", watched)
    build(adapted(tiny_model), tmp_path, ours, **STEPS).train()
    assert means


def test_rank_goes_to_the_layer_that_needs_it(tiny_model: Path, tmp_path: Path) -> None:
    """The labels come from the base with one layer changed by an update of rank 6: that layer grows to the most."""
    name = "model.layers.1.mlp.down_proj"
    teacher = load(tiny_model)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in [teacher.lm_head, *(block.mlp.down_proj for block in teacher.model.layers)]:
            layer.weight.normal_(0, 0.5, generator=draw)
        student = load(tiny_model)
        student.load_state_dict(teacher.state_dict())
        change = torch.randn(32, 6, generator=draw) @ torch.randn(6, 64, generator=draw)
        teacher.get_submodule(name).weight += 0.5 * change
        rows = torch.randint(2, 250, (320, 16), generator=draw)
        labels = torch.cat([teacher(part).logits.argmax(-1) for part in rows.split(64)])
    torch.manual_seed(0)
    model = get_peft_model(student, LoraConfig(task_type="CAUSAL_LM", r=2, lora_alpha=8, target_modules=TARGETS))
    ours = fixed(events=4)
    arguments = TrainingArguments(
        str(tmp_path), max_steps=80, per_device_train_batch_size=16, learning_rate=5e-3, report_to="none",
        save_strategy="no", disable_tqdm=True, use_cpu=True,
    )  # fmt: skip
    data = Dataset.from_dict({"input_ids": rows.tolist(), "labels": labels.tolist()})

    def loss(outputs: Any, labels: torch.Tensor, **_: Any) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(outputs.logits.flatten(0, 1), labels.flatten())

    Trainer(model=model, args=arguments, train_dataset=data, callbacks=[ours], compute_loss_func=loss).train()
    ranks = ours.layers_.ranks
    assert ranks[name] == max(ranks.values()) > 3, ours.state_.history


# --- every way of training --------------------------------------------------------------------------------------


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_decides_as_without_it(reentrant: bool, tiny_model: Path, tmp_path: Path) -> None:
    plain, checkpointed = fixed(events=1), fixed(events=1)
    short = {"max_steps": 20}
    build(adapted(tiny_model), tmp_path / "a", plain, **short).train()
    model = adapted(tiny_model)
    model.enable_input_require_grads()
    known = "activation" if "activation_checkpointing" in TrainingArguments.__dataclass_fields__ else "gradient"
    how: dict[str, Any] = {f"{known}_checkpointing": True}
    how[f"{known}_checkpointing_kwargs"] = {"use_reentrant": reentrant}
    build(model, tmp_path / "b", checkpointed, **short, **how).train()
    assert plain.state_.history[0]["grown"] > 0
    assert [e["ranks"] for e in plain.state_.history] == [e["ranks"] for e in checkpointed.state_.history]


def test_accumulation_changes_no_score(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What removals cost is in nats a label, however a step is cut into passes."""
    seen: list[list[float]] = []
    allocate = adaptive_rank.decide_moves.__globals__["allocate_moves"]

    def spied(scores: Any, gains: Any, *rest: Any) -> Any:
        seen.append([value for values in scores.values() for value in values])
        return allocate(scores, gains, *rest)

    monkeypatch.setitem(adaptive_rank.decide_moves.__globals__, "allocate_moves", spied)
    monkeypatch.setitem(adaptive_rank.decide_moves.__globals__, "expected_gains", without_gains)
    build(adapted(tiny_model), tmp_path / "a", fixed(events=1), max_steps=20, per_device_train_batch_size=4).train()
    build(adapted(tiny_model), tmp_path / "b", fixed(events=1), max_steps=20, per_device_train_batch_size=1,
          gradient_accumulation_steps=4).train()  # fmt: skip
    assert max(seen[0]) > 0
    assert torch.allclose(torch.tensor(seen[0]), torch.tensor(seen[1]), rtol=0.02)


def without_gains(passes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.zeros(passes.shape[-1]).double(), torch.zeros(passes.shape[-1]).double()


@pytest.mark.parametrize("bits", [4, 8])
def test_layers_of_a_packed_base_leave_and_come_back(
    bits: int, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Forced(monkeypatch)
    packed = BitsAndBytesConfig(load_in_4bit=True) if bits == 4 else BitsAndBytesConfig(load_in_8bit=True)
    base = load(tiny_model, quantization_config=packed)
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=TARGETS))
    in_bfloat16(model)
    ours = fixed(**ROOM)
    build(model, tmp_path, ours, **STEPS).train()
    assert all(rank > 0 for rank in ours.layers_.ranks.values())
    assert {p.dtype for name, p in model.named_parameters() if "lora_" in name} == {torch.bfloat16}


def test_embeddings_only_shrink(tiny_model: Path, tmp_path: Path) -> None:
    ours = fixed(target_rank=4)
    model = adapted(tiny_model, r=4, target_modules=["embed_tokens", "q_proj", "v_proj"])
    build(model, tmp_path, ours, **STEPS).train()
    ranks = [event["ranks"]["model.embed_tokens"] for event in ours.state_.history]
    assert ranks == sorted(ranks, reverse=True)
    assert ours.layers_.parameters <= ours.budget_


def test_the_best_checkpoint_comes_back_as_it_was(tiny_model: Path, tmp_path: Path) -> None:
    class Worsening(TrainerCallback):
        def on_evaluate(self, args: Any, state: Any, control: Any, *, metrics: dict, **kwargs: Any) -> None:
            metrics["eval_loss"] = float(state.global_step)

    model, ours = adapted(tiny_model), fixed()
    trainer = build(
        model, tmp_path, ours, Worsening(), **STEPS, save_strategy="steps", save_steps=5, eval_strategy="steps",
        eval_steps=5, load_best_model_at_end=True, metric_for_best_model="eval_loss",
    )  # fmt: skip
    trainer.train()
    assert set(ours.layers_.ranks.values()) == {2}  # the fifth step, before any event
    trainer.save_model(str(tmp_path / "adapter"))
    assert torch.equal(logits(PeftModel.from_pretrained(load(tiny_model), tmp_path / "adapter")), logits(model))


# --- where it starts, and what is refused -----------------------------------------------------------------------


def test_a_smaller_adapter_is_widened_to_the_budget_and_an_uneven_one_stays(tiny_model: Path, tmp_path: Path) -> None:
    small = adapted(tiny_model, r=1)
    before = logits(small)
    ours = fixed()
    build(small, tmp_path, ours)
    assert set(ours.layers_.ranks.values()) == {2}
    assert torch.allclose(logits(small), before, atol=1e-6)
    uneven, other = adapted(tiny_model, rank_pattern={"q_proj": 3}, r=1), fixed()
    build(uneven, tmp_path, other)
    assert set(other.layers_.ranks.values()) == {1, 3}


def test_an_adapter_over_the_budget_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match="over the budget of 832, which mode='fixed' never exceeds; lower r"):
        build(adapted(tiny_model, r=3), tmp_path, fixed())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"mode": "fix"}, "mode 'fix' is not known; did you mean `fixed`"),
        ({"start_factor": 2}, "start_factor=2 has no meaning with mode='fixed'"),
        ({"criterion": "svd"}, "use criterion='whitened'"),
    ],
)
def test_settings_without_a_meaning_are_refused_at_once(settings: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        fixed(**settings)


def test_probes_too_short_to_judge_by_are_refused_before_the_first_step(tiny_model: Path, tmp_path: Path) -> None:
    for changes, passes in (({"probe_steps": 4}, 2), ({"probe_steps": 1}, 1)):
        with pytest.raises(ConfigError, match=f"with {passes} passes, where mode='fixed' needs 4; raise probe_steps"):
            build(adapted(tiny_model), tmp_path, fixed(**changes), **STEPS).train()


def test_a_run_of_the_other_mode_is_not_resumed(resumable: tuple[Path, Any], tiny_model: Path, tmp_path: Path) -> None:
    from hf_lora_ext import ResumeError

    other = AdaptiveRankCallback(target_rank=2, events=2)
    with pytest.raises(ResumeError, match="mode was fixed and is anneal"):
        build(adapted(tiny_model), tmp_path, other, **STEPS).train(
            resume_from_checkpoint=str(resumable[0] / "checkpoint-3")
        )
