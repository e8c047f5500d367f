"""Cards: rendered from facts alone; what is unknown has no section, what is known cannot break the page."""

import json
import re
from dataclasses import fields, replace
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from test_markdown import ANYTHING

from hf_lora_ext.cards.card import render_card, write_card
from hf_lora_ext.cards.facts import BaseModelFacts, DataFacts, Facts, Sample, StatedFacts
from hf_lora_ext.cards.licences import LICENCE_TERMS
from hf_lora_ext.cards.markdown import flat
from hf_lora_ext.cards.ownership import your_text
from hf_lora_ext.errors import ConfigError
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
    adapter={
        "task_type": "CAUSAL_LM",
        "rank": 8,
        "target_modules": ["q_proj", "v_proj"],
        "layer_ranks": {"layers.0.q_proj": 4, "layers.1.q_proj": 12},
        "config": {"r": 8, "use_rslora": True, "use_dora": False, "init_lora_weights": "pissa"},
    },
    hyperparameters={"learning_rate": 2e-4, "optim": "adamw"},
    quantization={"bnb_4bit_quant_type": "nf4"},
    run={"method": "sft", "steps": 60, "epochs": 1.5, "peak_memory": {"process_gib": 1.2}, "finished": True},
    loss_history=[{"step": 1, "loss": 2.0}],
    evaluation={"base": {"loss": 2.5}, "adapter": {"loss": 1.5}},
    samples=(Sample(prompt="def f(): ...", reference="One.", base="Two.", adapter="Three."),),
    environment={"versions": {"peft": "0.20"}, "hardware": {"device": "CPU", "devices": 1}},
    recipe="model: me/base\n",
    pictures=("loss_curve.png", "rank_history.png"),
    stated=StatedFacts(language=("en",), intended_use="Docstrings.", limitations="Not for poems."),
    repo_id="me/adapter",
)
HEADINGS = {
    "data": {"## Training data"},
    "adapter": {"## Adapter", "## Use"},
    "base_model": {"## Use", "## Licence of the base"},
    "hyperparameters": {"## Hyperparameters"},
    "quantization": set(),
    "run": set(),
    "environment": set(),
    "loss_history": {"## Loss"},
    "evaluation": {"## Evaluation"},
    "samples": {"## Samples"},
    "recipe": {"## Reproduce"},
    "pictures": set(),
    "stated": {"## Intended use", "## Limits"},
    "repo_id": set(),
}
EMPTY = {field.name: getattr(Facts(), field.name) for field in fields(Facts)}
PAGE = MarkdownIt("commonmark").enable("table")


def metadata(card):
    _, block, _ = card.split("---\n", 2)
    return yaml.safe_load(block)


def tokens(card):
    """The page's blocks, as a CommonMark parser with tables sees them."""
    return PAGE.parse(card.split("\n---\n", 1)[1])


def headings(card):
    page = tokens(card)
    opened = [i for i, token in enumerate(page) if token.type == "heading_open"]
    return [f"{'#' * int(page[i].tag[1])} {''.join(c.content for c in page[i + 1].children)}" for i in opened]


def sections(card):
    return {heading for heading in headings(card) if heading.startswith("## ")}


def skeleton(card):
    """Every block and every inline thing but the texts: what a text must not change."""
    kept = []
    for token in tokens(card):
        kept.append(token.type)
        inside = [child.type for child in token.children or ()]
        kept += [kind for kind in inside if kind not in {"text", "text_special", "code_inline"}]
        if token.type == "html_block":
            kept.append(re.sub(r"seal .*", "", token.content))
    return kept


@pytest.mark.parametrize("facts", [FULL, Facts(), replace(FULL, adapter={"rank": None, "names": []})])
def test_a_card_has_no_placeholder(facts):
    card = render_card(facts)
    for word in ("More Information Needed", "None", "undefined", "{{", "{%", "[]"):
        assert word not in card
    assert card.endswith("\n")
    assert "\n\n\n" not in card


def test_a_card_is_the_same_from_facts_and_from_their_file():
    sparse = replace(FULL, environment={"hardware": {"device": "CPU", "device_memory_gib": None}})
    for facts in (FULL, Facts(), sparse):
        assert render_card(facts) == render_card(facts.to_dict())


def test_a_full_card_shows_what_is_known():
    card = render_card(FULL)
    assert sections(card) == set().union(*HEADINGS.values()) | {"## Run"}
    for known in (
        *("rank-8", "1,200", "nf4", "0.0002", "q_proj, v_proj", "peft 0.20", "Rounded to 4 bits.", "Three."),
        *("supervised fine-tuning", "4 in layers 0, 12 in 1", "rsLoRA", "pissa", "1.2 GiB", "-1 |"),
        *(
            "](loss_curve.png)",
            "](rank_history.png)",
            "Not for poems.",
            "[me/data](https://huggingface.co/datasets/me/data)",
        ),
    ):
        assert known in card, known
    assert "DoRA" not in card


def test_an_empty_card_has_no_sections():
    assert sections(render_card(Facts())) == set()


@pytest.mark.parametrize("name", sorted(HEADINGS))
def test_an_unknown_section_loses_its_heading_and_no_other(name):
    card = render_card(replace(FULL, **{name: EMPTY[name]}))
    assert sections(card) == sections(render_card(FULL)) - HEADINGS[name]


def test_the_run_needs_run_or_environment():
    assert "## Run" not in sections(render_card(replace(FULL, run={}, environment={})))


@given(st.sets(st.sampled_from(sorted(HEADINGS))))
@settings(max_examples=25)
def test_any_part_of_the_facts_makes_a_card(names):
    card = render_card(replace(FULL, **{name: EMPTY[name] for name in names}))
    lost = set().union(*(HEADINGS[name] for name in names)) | ({"## Run"} if {"run", "environment"} <= names else set())
    assert sections(card) == sections(render_card(FULL)) - lost
    assert metadata(card)["library_name"] == "peft"
    assert "\n\n\n" not in card


@pytest.mark.parametrize("measured", ["base", "adapter"])
def test_an_evaluation_of_one_model_alone_makes_a_card(measured):
    card = render_card(Facts(evaluation={measured: {"loss": 1.25}}))
    assert "| loss | 1.25 |" in card if measured == "base" else "| loss |  | 1.25 |" in card


def test_facts_without_pictures_link_none():
    assert "![" not in render_card(replace(FULL, pictures=()))


def test_a_run_that_did_not_finish_says_so():
    assert "did not finish" in render_card(replace(FULL, run={"finished": False}))
    assert "did not finish" not in render_card(FULL)


def test_energy_is_told_where_it_was_measured():
    emissions = {"grams": 12.5, "energy_kwh": 0.031, "country": "Norway", "source": "codecarbon"}
    card = render_card(replace(FULL, run={"emissions": emissions}))
    assert "| energy, by codecarbon | 0.031 kWh, 12.5 g CO2eq (Norway) |" in card


@pytest.mark.parametrize("licence", sorted(LICENCE_TERMS))
def test_a_licence_that_binds_adapters_is_told_with_its_words(licence):
    terms = LICENCE_TERMS[licence]
    card = render_card(replace(FULL, base_model=replace(FULL.base_model, license=licence)))
    assert terms.attribution in card
    assert f"]({terms.agreement})" in card
    assert f"]({terms.policy})" in card
    assert (terms.built_with is not None) == ("**Built with" in card)
    if terms.built_with:
        assert card.index(terms.built_with) < card.index("## Use")


def test_a_licence_of_its_own_is_told_by_name_and_place():
    base = replace(FULL.base_model, license="other", license_name="tongyi", license_link="https://x.y/LICENSE")
    card = render_card(replace(FULL, base_model=base))
    assert "The base is under tongyi, which can be read at `https://x.y/LICENSE`." in card


def filled_with(value):
    """Facts with the same text wherever a text can come from outside."""
    return replace(
        FULL,
        base_model=replace(FULL.base_model, name=f"me/{value}", note=f"x{value}", license="other",
                           license_name=f"x{value}", license_link=f"x{value}", revision=f"x{value}"),
        data=replace(FULL.data, name=f"me/{value}", note=f"x{value}", form=f"x{value}", fingerprint=f"x{value}"),
        adapter={"rank": 8, "task_type": "CAUSAL_LM", "kind": "LORA", "list": [value, value], f"k{value}": f"x{value}",
                 "layer_ranks": {f"layers.0.x{value}": 3}, "config": {"init_lora_weights": f"x{value}"}},
        hyperparameters={f"x{value}": f"x{value}", "optim": f"x{value}"},
        quantization={f"x{value}": f"x{value}"},
        run={"trainer": f"x{value}", "peak": {f"x{value}": f"x{value}"}, "method": f"x{value}", "steps": f"x{value}"},
        evaluation={"base": {f"x{value}": 1.0}, "adapter": {f"x{value}": 2.0}},
        samples=(Sample(prompt=f"x{value}", reference=f"x{value}", base=f"x{value}", adapter=f"x{value}"),),
        environment={"hardware": {"device": f"x{value}"}, "versions": {f"x{value}": f"x{value}"}},
        recipe=f"x{value}",
        stated=StatedFacts(language=("en",), intended_use=re.sub(r"\s*\n\s*", "\n", f"x{value}"), limitations="x"),
        repo_id=f"me/{value}",
    )  # fmt: skip


@given(ANYTHING)
@settings(max_examples=40)
def test_no_text_opens_a_heading_a_cell_html_or_a_link(value):
    assert skeleton(render_card(filled_with(value))) == skeleton(render_card(filled_with("a")))


@given(ANYTHING)
@settings(max_examples=40)
def test_no_text_breaks_the_metadata(value):
    card = render_card(filled_with(value))
    block = re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)[1]
    read = yaml.safe_load(block)
    assert read["license_name"] == flat(f"x{value}")
    assert read["base_model"] == flat(f"me/{value}")
    assert read["model-index"][0]["results"][0]["metrics"][0]["name"] == flat(f"Held-out x{value}")
    assert list(read) == list(metadata(render_card(filled_with("a"))))


def test_half_a_character_does_not_stop_a_card(tmp_path):
    facts = replace(FULL, samples=(Sample(prompt="half \ud800", reference="a", base="\udfff", adapter="c"),))
    (tmp_path / "facts.json").write_text(json.dumps(facts.to_dict()), encoding="utf8")
    assert "half ?" in write_card(tmp_path).read_text(encoding="utf8")


def test_the_template_may_be_one_s_own(tmp_path):
    own = tmp_path / "mine.jinja"
    own.write_text(
        "---\n{{ metadata }}---\n# {{ title | inline }}\n\nRank {{ facts.adapter.rank }}.\n", encoding="utf8"
    )
    card = render_card(FULL, template=own, your_text="Mine.")
    assert headings(card) == ["# adapter"]
    assert "Rank 8." in card
    assert "Mine." in card


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        (b"\xff", "UTF-8"),
        (b"{{ facts.nothing }}", "mend it"),
        (b"a\n{% if %}", "line 2"),
        (b"{{ ''.__class__.__mro__ }}", "unsafe"),
        (b"{{ 1 / 0 }}", "ZeroDivisionError"),
        (b"{% include '/etc/passwd' %}", "no loader"),
    ],
)
def test_a_template_that_cannot_be_used_is_one_clear_error(tmp_path, content, message):
    own = tmp_path / "mine.jinja"
    if content is not None:
        own.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        render_card(FULL, template=own)


def test_other_schemas_are_refused():
    with pytest.raises(ConfigError, match="schema_version"):
        render_card({"schema_version": 99})


EXAMPLES = sorted(path.parent for path in shipped_folder("model_cards").rglob("facts.json"))


def test_there_are_example_cards():
    assert EXAMPLES


@pytest.mark.parametrize("folder", EXAMPLES, ids=lambda folder: folder.name)
def test_an_example_card_is_what_its_facts_render_to_byte_for_byte(folder: Path):
    facts = json.loads((folder / "facts.json").read_text(encoding="utf8"))
    card = (folder / "README.md").read_bytes()
    assert render_card(facts, your_text=your_text(card.decode("utf8"))).encode("utf8") == card
    linked = re.findall(r"!\[[^]]*\]\(([^)]+)\)", card.decode("utf8"))
    assert set(linked) == set(facts["pictures"])
    assert all((folder / name).is_file() for name in linked)


@pytest.mark.parametrize("facts", [FULL, *EXAMPLES], ids=lambda f: getattr(f, "name", "full"))
def test_every_row_of_a_card_s_tables_has_its_cells(facts):
    card = render_card(facts) if isinstance(facts, Facts) else (facts / "README.md").read_text(encoding="utf8")
    page = tokens(card)
    rows = sum(token.type == "tr_open" for token in page)
    outside = re.sub(r"^(`{3,})[^`\n]*\n.*?^\1$", "", card, flags=re.MULTILINE | re.DOTALL)
    lines = [line for line in outside.splitlines() if line.startswith("|")]
    assert rows == len(lines) - sum(line.startswith("|---") for line in lines)
