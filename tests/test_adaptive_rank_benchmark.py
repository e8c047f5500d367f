"""The benchmark of adaptive rank: its tasks are what they say, its cells are kept, its arithmetic is right."""

import dataclasses
import json
import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import adaptive_rank
import pytest
import rank_cells
import rank_cost
import rank_text_data
import torch
from planted import RANKS, PlantedShape, PlantedTask, divergence, plant
from rank_cells import Bench, Choices, rank_correlation
from rank_keys import code_hash
from rank_methods import METHODS, shuffle_within_costs
from rank_plot import plot, spread
from rank_report import Arm, tables
from rank_statistics import estimate, paired, t_quantile
from rank_tasks import Sizes, in_order, is_attention, layer_costs, uniform_ranks
from rank_text import IGNORED, CausalTask, ClassificationTask
from rank_text_data import read_split
from rank_training import Cell, Job
from transformers import BertConfig, BertForSequenceClassification

SMALL = PlantedShape(vocabulary=32, hidden=16, intermediate=32, layers=1, heads=2)
SIZES = Sizes(steps=24, batch=4)
"""Long enough that B is not 0 any more in the passes that the first event sees."""
BUDGET = 544
"""Rank 2 everywhere in the small Llama."""


def small_task(**changes: Any) -> PlantedTask:
    return PlantedTask(**({"length": 8, "held_out_rows": 8, "shape": SMALL} | changes))


def choices(**changes: Any) -> Choices:
    settings: dict[str, Any] = {
        "methods": ["uniform", "ours"], "budgets": [BUDGET], "seeds": [0], "tune_seeds": [90], "scale": 1.0,
        "learning_rates": [1e-2], "adalora_scales": [1.0],
    }  # fmt: skip
    return Choices(**(settings | changes))


def cell(method: str = "uniform", **changes: Any) -> Cell:
    return Cell(**({"method": method, "seed": 0, "budget": BUDGET, "learning_rate": 1e-2, "scale": 1.0} | changes))


@pytest.fixture(scope="module", autouse=True)
def _quick() -> Iterator[None]:
    """Spare the heat map that each of the many trainers draws at its end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hf_lora_ext.callbacks.adaptive_rank.plot_ranks", lambda *_, **__: None, raising=False)
        yield


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(task=small_task(), sizes=SIZES, out=tmp_path_factory.mktemp("bench"))


# --- the planted task


def test_planted_ranks_are_one_multiset_dealt_out_by_the_seed() -> None:
    found = [plant(seed, PlantedShape(hidden=16, intermediate=32, layers=4)).true_ranks for seed in range(3)]
    wanted = sorted(RANKS[index % len(RANKS)] for index in range(28))
    assert [sorted(ranks.values()) for ranks in found] == [wanted] * 3
    assert found[0] != found[1]


def test_planted_teacher_differs_from_its_base_by_just_the_true_ranks() -> None:
    planted = plant(4, SMALL)
    for name, rank in planted.true_ranks.items():
        difference = (planted.teacher.get_submodule(name).weight - planted.base.get_submodule(name).weight).detach()
        assert torch.linalg.matrix_rank(difference, rtol=1e-4) == rank


def test_planted_task_is_the_same_for_every_call_and_kept_rows_are_those_made(tmp_path: Path) -> None:
    first = small_task().prepare(3, SIZES)
    for task in (small_task(), small_task(folder=tmp_path), small_task(folder=tmp_path)):
        again = task.prepare(3, SIZES)
        assert all(
            torch.equal(row[k], other[k]) for row, other in zip(first.rows, again.rows, strict=True) for k in row
        )
        pairs = zip(first.base.parameters(), again.base.parameters(), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)


def test_planted_divergence_is_zero_for_the_teacher_alone_and_the_base_is_away_from_it() -> None:
    planted, tokens = plant(0, SMALL), torch.arange(32).view(4, 8)
    assert divergence(planted.teacher, planted.teacher, tokens) == 0
    assert divergence(planted.base, planted.teacher, tokens) > 0.01


@pytest.mark.parametrize("noise_free", [False, True])
def test_planted_loss_has_its_least_at_the_teacher(noise_free: bool) -> None:
    prepared = small_task(noise_free=noise_free).prepare(0, Sizes(steps=64, batch=4))
    batch = prepared.collate(list(prepared.rows))
    losses = [prepared.loss(model(input_ids=batch["input_ids"]), batch["labels"]).item()
              for model in (prepared.base, plant(0, SMALL).teacher)]  # fmt: skip
    assert losses[1] < losses[0]
    assert not noise_free or losses[1] == pytest.approx(0, abs=1e-6)


# --- methods


@pytest.mark.parametrize("method", METHODS)
def test_method_trains_within_its_budget_and_reports_all_that_is_promised(bench: Bench, method: str) -> None:
    told = bench.of(method, BUDGET, 0, (1e-2, 1.0), choices())
    assert "error" not in told, told.get("traceback")
    assert 0 < told["value"] < 1
    assert len(told["ranks"]) == 7
    assert told["peak_parameters"] >= told["mean_parameters"] > 0
    over = {"wide": 8 * BUDGET, "true": told["parameters"], "eva": 1.5 * BUDGET, "adalora": 1.5 * BUDGET}
    assert told["parameters"] <= over.get(method, BUDGET)


def test_annealing_ends_at_the_ranks_that_were_given(bench: Bench) -> None:
    def ranks(method: str) -> dict[str, int]:
        return bench.of(method, BUDGET, 0, (1e-2, 1.0), choices())["ranks"]

    assert ranks("anneal") == ranks("uniform")
    assert ranks("replay") == ranks("ours")
    assert sorted(ranks("shuffled").values()) == sorted(ranks("ours").values())


def labels_seen(method: str) -> list[torch.Tensor]:
    """Return the labels of every batch that a method trains on, in order."""
    job, found = Job(cell(method), small_task(), SIZES), []
    inner: Callable[..., torch.Tensor] = job.prepared.loss  # type: ignore[assignment]

    def spy(outputs: Any, labels: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        found.append(labels.clone())
        return inner(outputs, labels, **kwargs)

    job.prepared = dataclasses.replace(job.prepared, loss=spy)
    METHODS[method].run(job)
    return found


def test_every_method_sees_the_same_rows_in_the_same_order() -> None:
    first = labels_seen("uniform")
    assert len(first) == SIZES.steps
    for method in ("ours", "eva", "adalora", "truncate-svd"):
        assert all(torch.equal(one, other) for one, other in zip(first, labels_seen(method), strict=True)), method


def test_uniform_ranks_hold_the_budget_and_differ_by_at_most_one() -> None:
    costs = {"a": 32, "b": 32, "c": 48, "d": 48}
    for budget in range(160, 700, 37):
        ranks = uniform_ranks(costs, budget, seed=1)
        assert sum(ranks[name] * costs[name] for name in costs) <= budget
        assert max(ranks.values()) - min(ranks.values()) <= 1
    assert set(uniform_ranks(costs, 320, seed=1).values()) == {2}


def test_shuffling_keeps_the_parameters_and_the_histogram_of_each_cost() -> None:
    costs = {f"a{n}": 32 for n in range(8)} | {f"b{n}": 48 for n in range(8)}
    ranks = {name: place for place, name in enumerate(costs)}
    dealt = shuffle_within_costs(ranks, costs, seed=0)
    assert sorted(dealt[f"a{n}"] for n in range(8)) == list(range(8))
    assert sum(dealt[n] * costs[n] for n in costs) == sum(ranks[n] * costs[n] for n in costs)
    assert dealt != ranks


@pytest.mark.parametrize(
    ("name", "attention"),
    [
        ("model.layers.0.self_attn.q_proj", True),
        ("bert.encoder.layer.0.attention.output.dense", True),
        ("bert.encoder.layer.0.output.dense", False),
        ("model.layers.0.mlp.down_proj", False),
    ],
)
def test_layers_of_an_attention_block_are_known_by_name(name: str, attention: bool) -> None:
    assert is_attention(name) is attention


# --- cells


def test_a_cell_is_run_once_and_its_file_is_taken_up_by_another_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Bench(task=small_task(), sizes=SIZES, out=tmp_path).result(cell())
    monkeypatch.setattr(rank_cells, "Job", lambda *_: pytest.fail("the cell was run again"))
    assert Bench(task=small_task(), sizes=SIZES, out=tmp_path).result(cell()) == first


@pytest.mark.parametrize("change", [{"seed": 1}, {"learning_rate": 2e-2}, {"scale": 2.0}, {"given": {"a": 1}}])
def test_another_cell_has_another_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]) -> None:
    bench = Bench(task=small_task(), sizes=SIZES, out=tmp_path)
    monkeypatch.setattr(Bench, "_run", lambda self, cell: {"cell": {}, "value": 1.0})
    assert bench.result(cell())["key"] != bench.result(cell(**change))["key"]


def test_a_cell_that_fails_is_kept_with_its_error_and_run_again_only_when_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise ValueError("no room")

    with monkeypatch.context() as broken:
        broken.setattr(rank_cells, "Job", fail)
        assert Bench(task=small_task(), sizes=SIZES, out=tmp_path).result(cell())["error"] == "ValueError: no room"
    assert "error" in Bench(task=small_task(), sizes=SIZES, out=tmp_path).result(cell())
    assert "value" in Bench(task=small_task(), sizes=SIZES, out=tmp_path, retry=True).result(cell())


def test_code_counts_in_the_key_and_comments_do_not(tmp_path: Path) -> None:
    texts = ['"""One."""\nx = 1  # so\n', '"""Other."""\n\nx = 1\n', "x = 2\n"]
    hashes = []
    for number, text in enumerate(texts):
        (tmp_path / f"{number}.py").write_text(text)
        hashes.append(code_hash(tmp_path / f"{number}.py"))
    assert hashes[0] == hashes[1] != hashes[2]


def test_the_rate_of_the_lowest_mean_is_chosen_and_one_that_fails_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {1e-3: (0.3, 0.5), 2e-3: (0.2, 0.4), 4e-3: (0.1, math.nan)}

    def run(self: Bench, cell: Cell) -> dict[str, Any]:
        value = values[cell.learning_rate][cell.seed - 90]
        return {"error": "diverged"} if math.isnan(value) else {"value": value}

    monkeypatch.setattr(Bench, "_run", run)
    bench = Bench(task=small_task(), sizes=SIZES, out=tmp_path)
    assert bench.tuned("uniform", BUDGET, choices(learning_rates=list(values), tune_seeds=[90, 91])) == (2e-3, 1.0)


def test_a_method_that_always_fails_takes_no_other_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(self: Bench, cell: Cell) -> dict[str, Any]:
        return {"error": "ValueError: no"} if cell.method == "ours" else {"value": 1.0, "ranks": {}}

    monkeypatch.setattr(Bench, "_run", run)
    chosen = choices(methods=["uniform", "ours", "replay"], learning_rates=[1e-3, 2e-3])
    arms = adaptive_rank.run(Bench(task=small_task(), sizes=SIZES, out=tmp_path), chosen)
    assert [bool(arm.failed) for arm in arms] == [False, True, True]


def test_variants_share_the_rate_of_ours_only_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    best = {"ours": 2e-3, "ours-svd": 1e-3}
    monkeypatch.setattr(Bench, "_run", lambda self, cell: {"value": abs(cell.learning_rate - best[cell.method])})
    bench = Bench(task=small_task(), sizes=SIZES, out=tmp_path)
    alone, shared = (choices(learning_rates=[1e-3, 2e-3], share_rates=share) for share in (False, True))
    assert bench.tuned("ours-svd", BUDGET, alone) == (1e-3, 1.0)
    assert bench.tuned("ours-svd", BUDGET, shared) == (2e-3, 1.0)


def test_rank_correlation_is_spearmans() -> None:
    true = {"a": 0, "b": 1, "c": 2, "d": 8}
    assert rank_correlation({"a": 1, "b": 2, "c": 3, "d": 4}, true) == 1.0
    assert rank_correlation({"a": 4, "b": 3, "c": 2, "d": 1}, true) == -1.0
    assert rank_correlation({"a": 1, "b": 1, "c": 3, "d": 4}, true) == pytest.approx(0.949, abs=1e-3)
    assert rank_correlation(dict.fromkeys(true, 2), true) is None


# --- arithmetic and tables


@pytest.mark.parametrize(("freedom", "t"), [(1, 12.7062), (2, 4.30265), (4, 2.77645), (9, 2.26216), (100, 1.98397)])
def test_t_quantile_is_that_of_the_tables(freedom: int, t: float) -> None:
    assert t_quantile(freedom) == pytest.approx(t, rel=1e-5)


def test_paired_interval_is_the_one_by_hand() -> None:
    ours, theirs = {0: 1.0, 1: 2.0, 2: 4.0, 7: 9.0}, {0: 2.0, 1: 4.0, 2: 5.0, 8: 1.0}
    found = paired(ours, theirs)  # differences -1, -2, -1: mean -4/3, deviation 1/√3
    assert found is not None
    assert found.mean == pytest.approx(-4 / 3)
    assert found.half_width == pytest.approx(4.30265 / 3, rel=1e-5)
    assert found.verdict == "tie"
    assert estimate([-1.0, -1.1, -0.9]).verdict == "better"
    assert estimate([1.0, 1.1, 0.9]).verdict == "worse"
    assert estimate([-1.0]).verdict == "one seed"
    assert paired({0: 1.0}, {1: 1.0}) is None


def arm(method: str, values: list[float], budget: int = 100, **changes: Any) -> Arm:
    told = {"parameters": budget, "peak_parameters": budget, "mean_parameters": budget, "max_rank": 2, "seconds": 1.0,
            "extra_seconds": 0.0, "supervised_tokens": 1000, "binds": True}  # fmt: skip
    results = {seed: {"value": value} | told | changes for seed, value in enumerate(values)}
    return Arm(method=method, budget=budget, learning_rate=1e-3, scale=1.0, results=results)


def test_tables_say_who_won_tied_lost_and_failed() -> None:
    failed = Arm(method="eva", budget=100, learning_rate=1e-3, scale=1.0, results={0: {"error": "ValueError: no"}})
    arms = [arm("uniform", [1.0, 1.1, 1.2]), arm("adalora", [2.0, 2.1, 2.21]), arm("anneal", [0.9, 1.2, 1.1]),
            arm("ours", [0.5, 0.6, 0.71]), arm("uniform", [0.6, 0.4, 0.7], budget=200), failed]  # fmt: skip
    text = tables(arms, "NLL", [1e-3])
    assert "Worse than uniform: adalora." in text
    assert "Worse than ours: uniform, adalora, anneal." in text
    assert "| ours | 0.6033 ± 0.2609 | -0.4967 ± 0.0143 | better | 0.55 |" in text
    assert "| 100 | uniform | 200 | +0.0367 ± 0.3770 | tie |" in text
    assert "- eva, 100 parameters, seed 0: ValueError: no" in text
    assert "the budget binds" in text


def test_table_says_that_a_budget_does_not_bind_and_that_a_method_is_over_it() -> None:
    text = tables([arm("uniform", [1.0, 2.0], binds=False), arm("true", [1.0, 2.0], parameters=120)], "KL", [1e-3])
    assert "does not bind" in text
    assert "120 (over)" in text


def test_plot_names_are_apart_and_inside(tmp_path: Path) -> None:
    places = spread({"a": 0.5, "b": 0.5, "c": 0.99, "d": 1.0, "e": 0.0}, 0.1)
    ordered = sorted(places.values())
    assert all(later - earlier >= 0.1 - 1e-9 for earlier, later in pairwise(ordered))
    assert ordered[0] >= 0
    assert ordered[-1] <= 1
    plot([arm("uniform", [1.0, 1.2]), arm("ours", [0.5, 0.7])], "NLL", "title", tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_writes_its_tables_and_a_second_one_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(adaptive_rank, "task_from", lambda options: small_task())
    command = ["--out", str(tmp_path), "--methods", "uniform,ours", "--seeds", "0,1", "--learning-rates", "1e-2",
               "--budgets", "300p", "--also", "uniform@2", "--steps", "8", "--batch", "4"]  # fmt: skip
    adaptive_rank.main(command)
    told = json.loads((tmp_path / "results.json").read_text())
    assert [(one["method"], one["budget"]) for one in told["arms"]] == [
        ("uniform", 544),
        ("uniform", 300),
        ("ours", 300),
    ]
    assert "| 300 | uniform | 544 |" in (tmp_path / "table.md").read_text()
    assert (tmp_path / "plot.png").is_file()
    first = capsys.readouterr().out
    monkeypatch.setattr(Bench, "_run", lambda self, cell: pytest.fail("a cell was run again"))
    adaptive_rank.main(command)
    assert capsys.readouterr().out == first
    assert first.strip() == (tmp_path / "table.md").read_text().strip()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--out", "x", "--methods", "our"], "ours"),
        (["--out", "x", "--seeds", "0-4", "--tune-seeds", "4"], "share a seed"),
        (["--out", "x", "--task", "causal"], "--model"),
        ([], "--out"),
    ],
)
def test_a_command_that_cannot_be_honest_or_run_is_refused(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        adaptive_rank.options_from(arguments)
    assert says in capsys.readouterr().err


def test_no_adapter_goes_into_a_head_or_a_pooler() -> None:
    shape = BertConfig(vocab_size=9, hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2)
    names = layer_costs(BertForSequenceClassification(shape), "all-linear")
    assert len(names) == 6
    assert not [name for name in names if "pooler" in name or "classifier" in name]


def test_seeds_are_read_from_ranges_and_lists() -> None:
    assert adaptive_rank.numbers("0-2,7") == [0, 1, 2, 7]


# --- text


def rows_file(path: Path, rows: list[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_built_in_classes_are_split_by_module_and_every_class_is_on_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    examples = rank_text_data.package_examples()
    monkeypatch.setattr(rank_text_data, "package_examples", lambda: examples)
    modules = {row["text"]: row["module"] for row in examples}
    split = read_split(("text", "label"), None, None, 10**6)
    train, held_out = ({modules[row["text"]] for row in side} for side in (split.train, split.held_out))
    assert not train & held_out
    labels = [{row["label"] for row in side} for side in (split.train, split.held_out)]
    assert labels[0] == labels[1]
    assert len(labels[0]) >= 4
    assert 0.1 < len(split.held_out) / len(modules) <= 0.2


def test_equal_prompts_of_a_file_are_on_one_side_and_the_split_is_the_same_again(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{n % 20}", "completion": f"c{n}"} for n in range(60)]
    file = rows_file(tmp_path / "rows.jsonl", rows)
    split = read_split(("prompt", "completion"), file, None, 100)
    assert not {row["prompt"] for row in split.train} & {row["prompt"] for row in split.held_out}
    assert len(split.train) + len(split.held_out) == 60
    assert split.fingerprint == read_split(("prompt", "completion"), file, None, 100).fingerprint


def test_a_missing_column_is_named_with_its_line(tmp_path: Path) -> None:
    file = rows_file(tmp_path / "rows.jsonl", [{"prompt": "p", "completion": "c"}, {"prompt": "p"}])
    with pytest.raises(SystemExit, match=r"line 2: no 'completion'"):
        read_split(("prompt", "completion"), file, None, 100)


def test_order_is_whole_epochs_by_the_seed() -> None:
    order = in_order(5, 12, seed=3)
    assert sorted(order[:5]) == sorted(order[5:10]) == list(range(5))
    assert order == in_order(5, 12, seed=3) != in_order(5, 12, seed=4)


def test_causal_task_supervises_the_completion_alone(tiny_model: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"What is {n}?", "completion": f"It is {n}."} for n in range(40)]
    task = CausalTask(model=tiny_model, data=rows_file(tmp_path / "rows.jsonl", rows), length=128)
    train, _ = task.encoded
    shown = [label for label in train[0]["labels"] if label != IGNORED]
    assert task.tokenizer.decode(shown[:-1]) == task.split.train[0]["completion"]
    assert shown[-1] == task.tokenizer.eos_token_id


def test_causal_task_can_supervise_the_whole_text(tiny_model: Path, tmp_path: Path) -> None:
    file = rows_file(tmp_path / "rows.jsonl", [{"prompt": f"{n} is ", "completion": f"{n}."} for n in range(40)])
    task = CausalTask(model=tiny_model, data=file, length=128, whole_text=True)
    row, text = task.encoded[0][0], task.split.train[0]
    assert row["labels"] == row["input_ids"]
    assert task.tokenizer.decode(row["labels"], skip_special_tokens=True) == text["prompt"] + text["completion"]
    assert task.settings() != CausalTask(model=tiny_model, data=file, length=128).settings()


@pytest.mark.parametrize("method", ["uniform", "eva", "ours", "truncate-whitened"])
def test_text_tasks_run_on_a_model_folder(tiny_model: Path, tmp_path: Path, method: str) -> None:
    pairs = [{"prompt": f"What is {n}?", "completion": f"It is {n}."} for n in range(40)]
    texts = [{"text": f"number {n} is {'odd' if n % 2 else 'even'}", "label": str(n % 2)} for n in range(40)]
    tasks = [
        CausalTask(model=tiny_model, data=rows_file(tmp_path / "pairs.jsonl", pairs), targets="q_proj,down_proj"),
        ClassificationTask(model=tiny_model, data=rows_file(tmp_path / "texts.jsonl", texts)),
    ]
    for task in tasks:
        told = Bench(task=task, sizes=Sizes(steps=8, batch=4), out=tmp_path).result(cell(method, budget=1000))
        assert "error" not in told, told.get("traceback")
        assert 0 < told["value"] < 10
        assert told["parameters"] <= 1000
    assert 0 <= told["accuracy"] <= 1


# --- cost


def test_cost_times_every_kind_of_step_and_the_parts_of_an_event(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("ROUNDS", 1), ("SHAPE", SMALL), ("LAYERS", 3), ("WIDTH", 48), ("RANK", 2)):
        monkeypatch.setattr(rank_cost, name, value)
    steps = rank_cost.step_table(rank_cost.step_times("cpu"))
    assert all(phase in steps for phase in ("target rank 2", "ours, probe and event", "AdaLoRA, 3 to 2"))
    assert all(part in rank_cost.event_report() for part in ("find_bases", "allocate_ranks", "change_ranks_"))
