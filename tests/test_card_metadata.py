"""Metadata: the Hub's own keys and words, only what is known, and the same in JavaScript's YAML as in Python's."""

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from test_cards import EXAMPLES, FULL, filled_with

from hf_lora_ext.cards.card import render_card
from hf_lora_ext.cards.facts import BaseModelFacts, Facts
from hf_lora_ext.cards.metadata import PIPELINE_TAGS, card_metadata
from hf_lora_ext.strict_yaml import dump_yaml

LIBRARIES = {"peft"}


def test_full_metadata_is_in_the_hub_s_keys():
    assert card_metadata(FULL) == {
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "license": "mit",
        "language": ["en"],
        "base_model": "me/base",
        "base_model_relation": "adapter",
        "datasets": ["me/data"],
        "tags": [
            *("hf_lora_ext", "lora", "qlora", "transformers", "trl", "sft", "generated_from_trainer"),
            "base_model:adapter:me/base",
        ],
        "model-index": [
            {
                "name": "adapter",
                "results": [
                    {
                        "task": {"type": "text-generation"},
                        "dataset": {"name": "me/data, held-out examples", "type": "me/data", "revision": "def"},
                        "metrics": [{"type": "loss", "value": 1.5, "name": "Held-out loss"}],
                    }
                ],
            }
        ],
    }


def test_metadata_holds_only_what_is_known():
    assert card_metadata(Facts()) == {
        "library_name": "peft",
        "tags": ["hf_lora_ext", "lora", "transformers", "generated_from_trainer"],
    }


def test_a_base_that_is_not_on_the_hub_is_not_named():
    metadata = card_metadata(replace(FULL, base_model=BaseModelFacts(name="folder", on_hub=False)))
    assert not {"base_model", "base_model_relation"} & set(metadata)
    assert not any("folder" in tag for tag in metadata["tags"])


def test_only_data_that_is_known_to_be_on_the_hub_is_listed():
    local = replace(FULL, data=replace(FULL.data, name="mine.jsonl", revision=None))
    assert "datasets" not in card_metadata(local)
    assert card_metadata(replace(FULL, data=replace(FULL.data, revision=None, on_hub=True)))["datasets"] == ["me/data"]


def test_a_licence_of_its_own_has_name_and_link_and_no_other_has():
    base = replace(FULL.base_model, license="other", license_name="tongyi", license_link="https://x.y")
    metadata = card_metadata(replace(FULL, base_model=base))
    assert (metadata["license"], metadata["license_name"], metadata["license_link"]) == (
        "other",
        "tongyi",
        "https://x.y",
    )
    assert "license_name" not in card_metadata(replace(FULL, base_model=replace(base, license="mit")))


@pytest.mark.parametrize(("method", "tag"), [("sft", "sft"), ("dpo", "dpo"), ("reward", "reward-trainer")])
def test_a_trl_run_has_trl_s_tags(method: str, tag: str):
    tags = card_metadata(replace(FULL, recipe=None, run={"method": method}))["tags"]
    assert tags[tags.index("trl") + 1] == tag


def test_a_plain_trainer_s_run_has_none():
    assert "trl" not in card_metadata(replace(FULL, recipe=None, run={}))["tags"]


def test_a_classifier_s_accuracy_is_a_metric_of_the_hub_and_a_loss_is_none():
    facts = replace(FULL, adapter={"task_type": "SEQ_CLS"}, evaluation={"adapter": {"loss": 0.5, "accuracy": 0.75}})
    metadata = card_metadata(facts)
    assert metadata["pipeline_tag"] == "text-classification"
    assert metadata["metrics"] == ["accuracy"]


def test_emissions_are_told_in_grams_where_they_were_measured():
    measured = {"grams": 12.5, "country": "Norway", "source": "codecarbon", "energy_kwh": 0.4}
    assert card_metadata(replace(FULL, run={"emissions": measured}))["co2_eq_emissions"] == {
        "emissions": 12.5,
        "source": "codecarbon",
        "training_type": "fine-tuning",
        "geographical_location": "Norway",
        "hardware_used": "CPU",
    }
    unplaced = {"energy_kwh": 0.4, "source": "codecarbon"}
    assert "co2_eq_emissions" not in card_metadata(replace(FULL, run={"emissions": unplaced}))


@pytest.mark.parametrize("facts", [FULL, Facts(), *EXAMPLES], ids=lambda f: getattr(f, "name", "facts"))
def test_huggingface_hub_reads_it_back(facts):
    if isinstance(facts, Path):
        facts = Facts.from_dict(json.loads((facts / "facts.json").read_text(encoding="utf8")))
    card = ModelCard(render_card(facts))
    told = card_metadata(facts)
    assert card.data.library_name == "peft"
    assert card.data.base_model == told.get("base_model")
    measured = told["model-index"][0]["results"][0]["metrics"] if "model-index" in told else []
    assert [(r.metric_type, r.metric_value) for r in card.data.eval_results or []] == [
        (metric["type"], metric["value"]) for metric in measured
    ]


def test_what_is_a_number_in_yaml_1_2_alone_is_quoted():
    assert dump_yaml({"revision": "0o17", "name": "0o8"}) == "revision: '0o17'\nname: 0o8\n"


@pytest.fixture(scope="session")
def node_packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the Hub's own lists and the YAML reader of JavaScript, from the npm registry."""
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("node and npm are not installed")
    folder = tmp_path_factory.mktemp("node")
    install = ["npm", "install", "--silent", "--prefix", str(folder), "@huggingface/tasks", "js-yaml"]
    if subprocess.run(install, check=False, capture_output=True, timeout=120).returncode:
        pytest.skip("the npm registry is out of reach")
    return folder


def by_node(folder: Path, code: str, given: object) -> object:
    script = f"const given = JSON.parse(require('fs').readFileSync(0, 'utf8')); console.log(JSON.stringify({code}))"
    result = subprocess.run(
        ["node", "-e", script],
        cwd=folder,
        input=json.dumps(given),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return json.loads(result.stdout)


@pytest.mark.slow
def test_the_hub_s_own_lists_know_every_pipeline_tag_and_library(node_packages: Path):
    lists = "[t.PIPELINE_DATA, t.MODEL_LIBRARIES_UI_ELEMENTS].map(Object.keys)"
    tags, libraries = by_node(node_packages, f"(t => {lists})(require('@huggingface/tasks'))", None)
    assert set(PIPELINE_TAGS.values()) <= set(tags)
    assert LIBRARIES <= set(libraries)


@pytest.mark.slow
def test_the_hub_s_yaml_reader_sees_what_ours_sees(node_packages: Path):
    """The Hub reads YAML 1.2, PyYAML writes 1.1: words that one of them takes for a number stay words."""
    words = ["yes", "0o17", "1e3", "1_000", "0x1f", "1:30", "~", "null", "2026-01-02", "a: b", "#x", "'", '"', "- a",
             "---", "a\nb", "a\n\n---\n\nb", "é语\u2028", "!x", "&a", "*a", "{a", "%TAG", "\t", ".5", "="]  # fmt: skip
    blocks = [render_card(filled_with(word)).split("\n---\n", 1)[0].removeprefix("---\n") for word in words]
    seen = by_node(node_packages, "given.map(x => require('js-yaml').load(x))", blocks)
    assert seen == [yaml.safe_load(block) for block in blocks]
