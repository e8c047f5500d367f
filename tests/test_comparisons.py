"""Comparisons as facts: read back whole, merged without loss, and told by the card as what they are."""

from dataclasses import replace

import pytest
from hub_card_check import card_answer, metadata

from hf_lora_ext import ConfigError, render_card
from hf_lora_ext.cards.comparisons import METRICS, Comparison, Difference, Measured, merged_comparisons
from hf_lora_ext.cards.facts import DataFacts, Facts

SEEN = Difference(value=-0.5, low=-0.75, high=-0.25)
UNSEEN = Difference(value=0.01, low=-0.02, high=0.04)
DATA = DataFacts(name="rows.jsonl", form="text", train_examples=9, fingerprint="t", eval_fingerprint="e")


def measured(metric: str, change: Difference = SEEN, **more) -> Measured:
    return Measured(metric=metric, examples=50, base=3.0, adapter=3.0 + change.value, change=change, **more)


def comparison(*rows: Measured, **more) -> Comparison:
    given = {"data": "rows.jsonl", "held_out": True, "examples": 50, "fingerprint": "e", "resamples": 1000,
             "level": 0.95, "trained_on": 0}  # fmt: skip
    return Comparison(measured=rows, **(given | more))


def facts(*comparisons: Comparison) -> Facts:
    return Facts(
        data=DATA, comparisons=comparisons, adapter={"task_type": "CAUSAL_LM"},
        evaluation={"base": {"loss": 3.1}, "adapter": {"loss": 2.6, "entropy of it": 1.0}},
    )  # fmt: skip


def results(card: str) -> list[dict]:
    return metadata(card)["model-index"][0]["results"]


def test_facts_read_a_comparison_back_as_it_was():
    one = comparison(measured("loss", full=2.0, beside_full=UNSEEN), notes=("A note.",), full="whole", max_new_tokens=9)
    assert Facts.from_dict(facts(one).to_dict()).comparisons == (one,)


@pytest.mark.parametrize("broken", [{"measured": 3}, {"measured": [{"metric": "no"}]}, {}])
def test_a_comparison_that_is_none_is_refused(broken: dict):
    with pytest.raises(ConfigError, match="facts are malformed"):
        Facts.from_dict({"schema_version": 1, "comparisons": [broken]})


@pytest.mark.parametrize(
    ("metric", "change", "verdict"),
    [("loss", SEEN, "better"), ("rouge1", SEEN, "worse"), ("loss", UNSEEN, "no difference"),
     ("loss", Difference(value=1.0, low=0.0, high=2.0), "no difference")],
)  # fmt: skip
def test_an_interval_that_includes_0_is_no_difference(metric: str, change: Difference, verdict: str):
    assert measured(metric, change).verdict == verdict


def test_of_the_same_rows_what_is_measured_anew_replaces_what_was():
    old = comparison(measured("loss"), measured("rouge1"), max_new_tokens=9, notes=("Old.",))
    new = comparison(measured("loss", UNSEEN), measured("exact_match"), notes=("New.",))
    (merged,) = merged_comparisons([old], new)
    assert [(row.metric, row.change) for row in merged.measured] == [
        ("loss", UNSEEN), ("exact_match", SEEN), ("rouge1", SEEN)
    ]  # fmt: skip
    assert (merged.notes, merged.max_new_tokens) == (("Old.", "New."), 9)


def test_other_rows_and_other_settings_stay_beside_the_new():
    old = comparison(measured("loss"), measured("rouge1"), max_new_tokens=9)
    for new in (replace(old, fingerprint="x"), comparison(measured("rouge1"), max_new_tokens=20)):
        assert merged_comparisons([old], new) == (old, new)
    again = replace(old, max_new_tokens=20)
    assert merged_comparisons([old], again) == (again,)


def test_the_card_tells_values_intervals_and_what_they_mean():
    beside = measured("token_accuracy", UNSEEN, full=2.9, beside_full=SEEN)
    card = render_card(facts(comparison(measured("loss"), beside, full="whole", notes=("A | note.",))))
    assert "| loss | 3 | 2.5 | -0.5 | -0.75 to -0.25 | better |" in card
    assert "| token accuracy | 3 | 3.01 | +0.01 | -0.02 to +0.04 | no difference |" in card
    assert "| token accuracy | 2.9 | 3.01 | -0.5 | -0.75 to -0.25 | worse |" in card
    assert "- A &#124; note." in card
    assert card_answer(card, "model") == (200, {"errors": [], "warnings": []})


def test_a_metric_measured_again_on_the_same_rows_is_told_once():
    card = render_card(facts(comparison(measured("loss"), measured("rouge1"))))
    assert "| loss | 3.1 | 2.6 |" not in card
    assert "| entropy of it |" in card
    (result,) = results(card)
    assert [(m["type"], m["name"], m["value"]) for m in result["metrics"]] == [
        ("entropy_of_it", "Held-out entropy of it", 1.0), ("loss", "Held-out loss", 2.5),
        ("rouge", "Held-out ROUGE-1", 2.5),
    ]  # fmt: skip
    assert metadata(card)["metrics"] == ["rouge"]


def test_other_rows_have_a_result_of_their_own_and_trained_ones_none():
    other = comparison(measured("loss"), data="new.jsonl", held_out=False, fingerprint="n", trained_on=None)
    card = render_card(facts(other, replace(other, data="old.jsonl", fingerprint="o", trained_on=3)))
    assert [result["dataset"]["name"] for result in results(card)] == [
        "rows.jsonl, held-out examples", "new.jsonl, 50 examples"
    ]  # fmt: skip
    assert "of `old.jsonl`" in card


def test_facts_without_a_comparison_have_no_such_section():
    assert "Comparison" not in render_card(facts())
    assert "comparisons" not in facts().to_dict()


def test_every_metric_of_a_model_index_has_a_name_of_its_own():
    assert len({metric.words for metric in METRICS.values()}) == len(METRICS)


def test_a_model_whose_loss_is_no_number_loses_that_metric_alone():
    from hf_lora_ext.evaluation.bootstrap import Score
    from hf_lora_ext.evaluation.comparing import RowSource, compared
    from hf_lora_ext.evaluation.measuring import Outcome, TextRows
    from hf_lora_ext.evaluation.scores import mean_statistic

    def outcome(loss: float) -> Outcome:
        values = {"loss": [loss, 1.0, 2.0], "token_accuracy": [0.0, 1.0, 1.0]}
        return Outcome(scores={name: Score(mean_statistic(given), 3) for name, given in values.items()})

    rows = TextRows(examples=(), questions=(), max_new_tokens=40, notes=())
    source = RowSource(name="rows", held_out=True, fingerprint="e", trained_on=0)
    found = compared({"base": outcome(3.0), "adapter": outcome(float("nan"))}, rows, source, 3)
    assert [row.metric for row in found.measured] == ["token_accuracy"]
    assert any("left out: loss" in note for note in found.notes)
    assert Facts.from_dict(facts(found).to_dict()).comparisons == (found,)
