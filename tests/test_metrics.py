"""Our metrics: loaded by the evaluate library without a network, and right."""

import socket

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_lora_ext import ConfigError
from hf_lora_ext.metrics import MODULES, check_installed, load_metric, metric_path
from hf_lora_ext.metrics.definitions import exact_matches, f1_by_label, f1_score, words_of

LABELS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*arguments: object, **given: object) -> None:
        raise OSError("a metric asked the network")

    monkeypatch.setattr(socket.socket, "connect", refused)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize(
    ("name", "texts", "given", "expected"),
    [
        ("exact_match", (["a", "b."], ["a", "c"]), {}, {"exact_match": 0.5}),
        ("exact_match", (["A", "b."], ["a", "b"]), {"ignore_case": True, "ignore_punctuation": True},
         {"exact_match": 1.0}),
        ("exact_match", (["a", "b"], ["a", "c"]), {"use_aggregator": False}, {"exact_match": [1.0, 0.0]}),
        ("accuracy", ([0, 1, 1], [0, 1, 2]), {}, {"accuracy": 2 / 3}),
        ("accuracy", ([0, 1, 1], [0, 1, 2]), {"normalize": False}, {"accuracy": 2.0}),
        ("f1", ([1, 0, 1, 0], [1, 1, 0, 0]), {}, {"f1": 0.5}),
        ("f1", ([0, 1, 1, 1], [0, 0, 1, 2]), {"average": None}, {"f1": [2 / 3, 0.5, 0.0]}),
    ],
)  # fmt: skip
def test_the_evaluate_library_loads_and_computes_it(name: str, texts: tuple, given: dict, expected: dict):
    predictions, references = texts
    metric = load_metric(name)
    assert metric.name == name
    found = metric.compute(predictions=predictions, references=references, **given)
    assert found == {key: pytest.approx(value) for key, value in expected.items()}


@pytest.mark.usefixtures("no_network")
def test_rouge_counts_shared_words_of_any_script_with_spaces():
    pytest.importorskip("rouge_score", reason="it is in the extra `evaluate`")
    rouge = load_metric("rouge")
    one = {"predictions": ["Der Hund heißt Änne"], "references": ["Der Hund heißt Anne."]}
    assert rouge.compute(**one, tokenizer=words_of)["rouge1"] == pytest.approx(3 / 4)
    two = {"predictions": ["the cat sat", ""], "references": ["the cat on the mat", "a"]}
    assert rouge.compute(**two)["rouge1"] == pytest.approx((2 * (2 / 3) * (2 / 5) / (2 / 3 + 2 / 5)) / 2)
    assert rouge.compute(**two, use_aggregator=False)["rouge2"] == pytest.approx([1 / 3, 0])


@settings(deadline=None, max_examples=100)
@given(st.text(st.characters(max_codepoint=127), max_size=60))
def test_on_ascii_our_words_are_those_of_rouge_score(text: str):
    tokenizers = pytest.importorskip("rouge_score.tokenizers", reason="it is in the extra `evaluate`")
    assert words_of(text) == tokenizers.DefaultTokenizer(use_stemmer=False).tokenize(text)


@given(LABELS)
def test_f1_is_the_harmonic_mean_of_precision_and_recall(pairs: list[tuple[int, int]]):
    references, predictions = ([*side] for side in zip(*pairs, strict=True))
    for label, found in f1_by_label({pair: pairs.count(pair) for pair in pairs}).items():
        right = sum(pair == (label, label) for pair in pairs)
        precision = right / predictions.count(label) if label in predictions else 0.0
        recall = right / references.count(label) if label in references else 0.0
        assert found == pytest.approx(2 * precision * recall / (precision + recall) if right else 0.0)
    assert f1_score(references, predictions, "micro") == pytest.approx(sum(a == b for a, b in pairs) / len(pairs))


@given(st.lists(st.text(max_size=5), min_size=1, max_size=9))
def test_every_text_matches_itself_exactly(texts: list[str]):
    assert exact_matches(texts, texts) == [1.0] * len(texts)
    assert exact_matches([f"{text}!" for text in texts], texts) == [0.0] * len(texts)


def test_more_than_two_labels_are_no_binary_f1():
    with pytest.raises(ValueError, match="found 3; give average='macro'"):
        load_metric("f1").compute(predictions=[0, 1], references=[2, 1])


def test_every_metric_has_its_script_and_an_unknown_one_its_nearest():
    assert MODULES
    assert all(metric_path(name).is_file() for name in MODULES)
    with pytest.raises(ConfigError, match="did you mean `rouge`"):
        metric_path("rogue")


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("hf_lora_ext.metrics.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"rouge needs evaluate and rouge_score.*pip install 'hf_lora_ext\[evaluate"):
        check_installed(["loss", "rouge"])
    check_installed(["loss", "perplexity"])
