"""The comparison of cards that `tests/benchmarks/cards.py` prints: real cards of three libraries, judged alike."""

from pathlib import Path

import cards as comparison
import pytest


@pytest.mark.parametrize("hub_id", [None, comparison.HUB_ID], ids=["local", "hub"])
def test_our_card_has_no_placeholder_no_fault_and_no_path(tmp_path: Path, hub_id: str | None):
    with comparison.quiet():  # trl sets what transformers has renamed, peft looks for the base on the Hub
        results = comparison.compared(tmp_path, hub_id)
    assert list(results) == ["ours", "peft", "trl"]
    ours = results["ours"]
    assert (ours["placeholders"], ours["faults"], ours["leaked"]) == (0, [], 0)
    assert results["peft"]["placeholders"] > 0
    if hub_id:
        assert set(ours["told"]) == set(comparison.TOLD)
        assert {"base_model", "base_model_relation", "model-index"} <= set(ours["fields"])


def test_the_judge_sees_what_is_wrong():
    body = "See [None](https://huggingface.co/None). More Information Needed\n"
    card = f"---\nbase_model: /home/x/base\nlicence: mit\n---\n{body}"
    seen = comparison.judged(card, ["/home/x"])
    assert seen["placeholders"] == 1
    assert seen["leaked"] == 1
    assert {"base_model is a path", "library_name is not peft", "a link to None"} <= set(seen["faults"])
    assert "| placeholders | 1 |" in comparison.table({"ours": seen})
