"""lm-evaluation-harness: one line where it is missing, and its documents paired between base and adapter."""

from pathlib import Path

import pytest
from conftest import outcome, write_jsonl

from hf_lora_ext.evaluation.harness import paired_rows

TASK = """
task: next_number
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


def logged(values: list[float], **more: object) -> list[dict]:
    return [{"doc_id": n, "filter": "none", "metrics": ["acc", "text"], "acc": value, "text": [1], **more}
            for n, value in enumerate(values)]  # fmt: skip


def test_documents_are_paired_and_metrics_over_all_of_them_are_left_out():
    base, adapter = {"arc": logged([0, 0, 0, 1])}, {"arc": logged([1, 1, 0, 1])[::-1]}
    (row,) = paired_rows(base, adapter, resamples=200)
    assert (row.task, row.metric, row.examples, row.base, row.adapter) == ("arc", "acc", 4, 0.25, 0.75)
    assert row.change.low <= 0.5 <= row.change.high


def test_each_filter_of_an_answer_has_a_row_of_its_own():
    told = {"gsm": [*logged([1.0, 0.0]), *logged([0.0, 0.0], filter="strict")]}
    assert [row.metric for row in paired_rows(told, told, resamples=200)] == ["acc", "acc (strict)"]


def test_without_the_package_one_line_says_how_to_install_it(
    adapter: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("hf_lora_ext.evaluation.harness.find_spec", lambda name: None)
    code, out, err = outcome(capsys, "evaluate", adapter, "--harness", "hellaswag")
    assert (code, out) == (2, "")
    assert "pip install 'hf_lora_ext[harness]'" in err
    assert len(err.splitlines()) == 1


@pytest.mark.filterwarnings("ignore")
def test_a_task_of_ones_own_runs_on_both_models(adapter: Path, tiny_model: Path, tmp_path: Path):
    pytest.importorskip("lm_eval", reason="it is in the extra `harness`, which no other test needs")
    from hf_lora_ext import ConfigError, evaluate_adapter

    questions = [{"question": f"{n} + 1 =", "choices": [str(n + 1), str(n)], "answer": 0} for n in range(6)]
    task = tmp_path / "next_number.yaml"
    task.write_text(TASK.format(file=write_jsonl(tmp_path / "questions.jsonl", questions)))
    rows = write_jsonl(tmp_path / "rows.jsonl", [{"text": f"line {n}"} for n in range(4)])
    given = {"base": str(tiny_model), "data": str(rows), "samples": 0}
    (row,) = evaluate_adapter(adapter, **given, harness=[str(task)]).harness
    assert (row.task, row.metric, row.examples) == ("next_number", "acc", 6)
    assert 0 <= row.base <= 1
    task.write_text("task: next_number\n")
    with pytest.raises(ConfigError, match="lm_eval refuses"):
        evaluate_adapter(adapter, **given, harness=[str(task)])
