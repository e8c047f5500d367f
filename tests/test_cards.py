"""Cards: rendered from facts alone; what is unknown has no section, what is known cannot break the page."""

import json
import re
from dataclasses import fields, replace

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_lora_ext.cards import card_metadata, render_card, write_card
from hf_lora_ext.errors import ConfigError
from hf_lora_ext.facts import BaseModelFacts, DataFacts, Facts, Sample
from hf_lora_ext.resources import shipped_folder

FULL = Facts(
    base_model=BaseModelFacts(
        name="me/base", on_hub=True, revision="abc", sha256="ff", parameters=7, license="mit", note="Rounded to 4 bits."
    ),
    data=DataFacts(
        name="me/data",
        form="text",
        train_examples=1200,
        fingerprint="f1",
        eval_examples=30,
        eval_fingerprint="f2",
        revision="def",
        note="Split by module.",
    ),
    adapter={"task_type": "CAUSAL_LM", "rank": 8, "target_modules": ["q_proj", "v_proj"], "config": {"r": 8}},
    hyperparameters={"learning_rate": 2e-4, "optim": "adamw"},
    quantization={"bnb_4bit_quant_type": "nf4"},
    run={"steps": 60, "epochs": 1.5, "peak_memory": {"process_gib": 1.2}, "finished": True},
    loss_history=[{"step": 1, "loss": 2.0}],
    evaluation={"base": {"loss": 2.5}, "adapter": {"loss": 1.5}},
    samples=(Sample(prompt="def f(): ...", reference="One.", base="Two.", adapter="Three."),),
    environment={"versions": {"peft": "0.20"}, "hardware": {"device": "CPU", "devices": 1}},
    recipe="model: me/base\n",
)
HEADINGS = {
    "data": {"## Training data"},
    "adapter": {"## Adapter", "## Use"},
    "base_model": {"## Use"},
    "hyperparameters": {"## Hyperparameters"},
    "quantization": set(),
    "run": set(),
    "environment": set(),
    "loss_history": {"## Loss"},
    "evaluation": {"## Evaluation"},
    "samples": {"## Samples"},
    "recipe": {"## Reproduce"},
}
EMPTY = {field.name: getattr(Facts(), field.name) for field in fields(Facts)}
NASTY = ["a|b", "a\nb", "a\rb", "a\r\n\r\n# b", "`", "```", "a```\nb\n````", "\\|", "|---|", "# x", "ends in \\"]


def outside_fences(card):
    """The card without its code blocks; every line ending that Markdown knows is a newline."""
    lines = re.sub(r"\r\n?", "\n", card)
    return re.sub(r"^(`{3,})[^`\n]*\n.*?^\1$", "", lines, flags=re.MULTILINE | re.DOTALL)


def headings(card):
    return re.findall(r"^#+ .*$", outside_fences(card), flags=re.MULTILINE)


def sections(card):
    return {heading for heading in headings(card) if heading.startswith("## ")}


def metadata(card):
    _, block, _ = card.split("---\n", 2)
    return yaml.safe_load(block)


def check_tables(card):
    """Every row of a table has as many cells as its head; no text breaks out of one."""
    for block in re.findall(r"(?:^\|.*\n)+", outside_fences(card), flags=re.MULTILINE):
        rows = block.rstrip("\n").split("\n")
        widths = {len(re.findall(r"(?<!\\)(?:\\\\)*\|", row)) for row in rows}
        assert len(widths) == 1, block
        assert re.fullmatch(r"\|(?:-+:?\|)+", rows[1]), block


@pytest.mark.parametrize("facts", [FULL, Facts(), replace(FULL, adapter={"rank": None, "names": []})])
def test_a_card_has_no_placeholder_and_reads_as_markdown(facts):
    card = render_card(facts)
    for word in ("More Information Needed", "None", "undefined", "{{", "{%", "[]"):
        assert word not in card
    assert card.endswith("\n")
    check_tables(card)


def test_a_card_is_the_same_from_facts_and_from_their_file():
    sparse = replace(FULL, environment={"hardware": {"device": "CPU", "device_memory_gib": None}})
    for facts in (FULL, Facts(), sparse):
        assert render_card(facts) == render_card(facts.to_dict())


def test_a_full_card_shows_what_is_known():
    card = render_card(FULL)
    expected = set().union(*HEADINGS.values()) | {"## Run"}
    assert sections(card) == expected
    for known in ("rank-8", "1,200", "nf4", "0.0002", "q_proj, v_proj", "peft 0.20", "Rounded to 4 bits.", "Three."):
        assert known in card


def test_an_empty_card_has_no_sections():
    assert sections(render_card(Facts())) == set()


@pytest.mark.parametrize("name", sorted(HEADINGS))
def test_an_unknown_section_loses_its_heading_and_no_other(name):
    card = render_card(replace(FULL, **{name: EMPTY[name]}))
    assert sections(card) == sections(render_card(FULL)) - HEADINGS[name]
    check_tables(card)


def test_the_run_needs_run_or_environment():
    assert "## Run" not in sections(render_card(replace(FULL, run={}, environment={})))


@given(st.sets(st.sampled_from(sorted(HEADINGS))))
@settings(deadline=None, max_examples=40)
def test_any_part_of_the_facts_makes_a_card(names):
    card = render_card(replace(FULL, **{name: EMPTY[name] for name in names}))
    lost = set().union(*(HEADINGS[name] for name in names)) | ({"## Run"} if {"run", "environment"} <= names else set())
    assert sections(card) == sections(render_card(FULL)) - lost
    assert metadata(card)["library_name"] == "peft"


@pytest.mark.parametrize("measured", ["base", "adapter"])
def test_an_evaluation_of_one_model_alone_makes_a_card(measured):
    card = render_card(Facts(evaluation={measured: {"loss": 1.25}}))
    assert "1.25" in card
    check_tables(card)


def test_full_metadata_is_in_the_hub_s_keys():
    assert metadata(render_card(FULL)) == {
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "license": "mit",
        "base_model": "me/base",
        "base_model_relation": "adapter",
        "tags": ["hf_lora_ext", "lora", "qlora"],
    }


def test_metadata_holds_only_what_is_known():
    assert card_metadata(Facts()) == {"library_name": "peft", "tags": ["hf_lora_ext", "lora"]}
    local = Facts(base_model=BaseModelFacts(name="folder", on_hub=False))
    assert "base_model" not in card_metadata(local)


@pytest.mark.parametrize("value", [*NASTY, "a: b", "'", '"', "---", "yes"])
def test_metadata_stays_yaml_whatever_the_values(value):
    facts = replace(FULL, base_model=replace(FULL.base_model, license=value))
    block = render_card(facts).split("\n---\n", 1)[0].removeprefix("---\n")
    assert yaml.safe_load(block)["license"] == value


@pytest.mark.parametrize("value", NASTY)
def test_no_value_breaks_a_table_or_a_fence(value):
    nasty = replace(
        FULL,
        base_model=replace(FULL.base_model, note=value),
        data=replace(FULL.data, name=value, note=value),
        adapter={"rank": 8, "task_type": "CAUSAL_LM", "kind": value, "list": [value, value]},
        hyperparameters={"x": value},
        quantization={"x": value},
        run={"trainer": value, "peak": {"device": value}},
        samples=(Sample(prompt=value, reference=value, base=value, adapter=value),),
        environment={"hardware": {"device": value}, "versions": {"x": value}},
        recipe=value,
    )
    card = render_card(nasty)
    assert headings(card) == headings(render_card(FULL))
    check_tables(card)
    assert not re.search(r"^\s*```", outside_fences(card), flags=re.MULTILINE)


def test_a_card_is_written_beside_its_facts_in_place_of_another(tmp_path):
    (tmp_path / "facts.json").write_text(FULL.to_json(), encoding="utf8")
    (tmp_path / "README.md").write_text("[More Information Needed]")
    assert write_card(tmp_path) == tmp_path / "README.md"
    assert (tmp_path / "README.md").read_text(encoding="utf8") == render_card(FULL)


def test_a_folder_without_facts_keeps_its_card(tmp_path):
    (tmp_path / "README.md").write_text("theirs")
    with pytest.raises(ConfigError, match=r"no facts\.json"):
        write_card(tmp_path)
    assert (tmp_path / "README.md").read_text() == "theirs"


def test_other_schemas_are_refused():
    with pytest.raises(ConfigError, match="schema_version"):
        render_card({"schema_version": 99})


EXAMPLES = sorted(path.parent for path in shipped_folder("model_cards").rglob("facts.json"))


def test_there_are_example_cards():
    assert EXAMPLES


@pytest.mark.parametrize("folder", EXAMPLES, ids=lambda folder: folder.name)
def test_an_example_card_is_what_its_facts_render_to_byte_for_byte(folder):
    facts = json.loads((folder / "facts.json").read_text(encoding="utf8"))
    assert render_card(facts) == (folder / "README.md").read_text(encoding="utf8")
    assert (folder / "loss_curve.png").is_file()
