"""What a classifier's adapter changes: labels by index or name, on rows of text and label."""

from pathlib import Path

import pytest
import torch
from conftest import write_jsonl

from hf_lora_ext import AdapterError, ConfigError, evaluate_adapter
from hf_lora_ext.data.labels import label_indices, read_labelled
from hf_lora_ext.metrics import load_metric

ROWS = [{"text": "ab" * (n % 5 + 1), "label": n % 3} for n in range(12)]


@pytest.fixture(scope="module")
def classifier(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter with a head for three labels, both drawn by chance."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(4)
    base = AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=3)
    model = get_peft_model(base, LoraConfig(task_type="SEQ_CLS", r=2, init_lora_weights=False))
    folder = tmp_path_factory.mktemp("classifier")
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    return folder


def test_a_classifier_is_measured_as_its_own_logits_say(classifier: Path, tiny_model: Path, tmp_path: Path):
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    file = write_jsonl(tmp_path / "labelled.jsonl", ROWS)
    found = evaluate_adapter(classifier, data=str(file), batch_size=5)
    measured = {row.metric: row.adapter for row in found.comparison.measured}
    base = AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=3)
    model, tokenizer = PeftModel.from_pretrained(base, classifier).eval(), AutoTokenizer.from_pretrained(tiny_model)
    with torch.no_grad():
        likely = [model(torch.tensor([tokenizer(row["text"]).input_ids])).logits[0].log_softmax(-1) for row in ROWS]
    true, told = [row["label"] for row in ROWS], [int(row.argmax()) for row in likely]
    assert measured["loss"] == pytest.approx(
        -sum(float(r[t]) for r, t in zip(likely, true, strict=True)) / 12, rel=1e-5
    )
    arguments = {"predictions": told, "references": true}
    assert measured["accuracy"] == pytest.approx(load_metric("accuracy").compute(**arguments)["accuracy"])
    for average in ("macro", "micro"):
        assert measured[f"f1_{average}"] == pytest.approx(load_metric("f1").compute(**arguments, average=average)["f1"])
    assert found.samples == ()
    assert any("33.3 % of the rows" in note for note in found.comparison.notes)
    again = evaluate_adapter(classifier, data=str(file), batch_size=5)  # the base's head is drawn anew
    assert again.comparison == found.comparison


def test_a_label_may_be_a_name_or_an_index_and_must_be_one_of_the_classifiers():
    rows = [{"label": "cat"}, {"label": "2"}, {"label": 0}]
    assert label_indices(rows, 3, ["dog", "cow", "cat"]) == [2, 2, 0]
    with pytest.raises(ConfigError, match="did you mean `cat`"):
        label_indices([{"label": "cats"}], 3, ["dog", "cow", "cat"])
    with pytest.raises(ConfigError, match="row 1: label 3 is none of the classifier's 3; needed a whole number"):
        label_indices([{"label": 3}], 3, None)


@pytest.mark.parametrize(
    ("rows", "message"), [([{"text": "a"}], "no label"), ([{"text": " ", "label": 1}], "row 1: text is empty")]
)
def test_labelled_rows_are_checked(rows: list[dict], message: str, tmp_path: Path):
    with pytest.raises(ConfigError, match=message):
        read_labelled(str(write_jsonl(tmp_path / "rows.jsonl", rows)))
    with pytest.raises(ConfigError, match="are read from a"):
        read_labelled("me/on-the-hub")


def test_an_adapter_without_a_head_is_no_classifier(adapter: Path):
    from hf_lora_ext.evaluation.classes import labels_of

    with pytest.raises(AdapterError, match="has no head"):
        labels_of(adapter, {"modules_to_save": ["score"]})
