"""Facts: what is written reads back the same, unknown facts vanish, and nothing private is left."""

import json
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hf_lora_ext.cards.facts import (
    BaseModelFacts,
    DataFacts,
    Facts,
    Sample,
    read_facts,
    redact,
    write_text_atomically,
)
from hf_lora_ext.errors import ConfigError

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=15)
numbers = st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
measured = st.dictionaries(text, numbers, max_size=3)
known = st.dictionaries(st.text("abc_", min_size=1, max_size=5), text | numbers | st.booleans(), max_size=3)
base_models = st.builds(BaseModelFacts, name=text, on_hub=st.booleans(), revision=st.none() | text)
data = st.builds(DataFacts, name=text, form=text, train_examples=st.integers(0), fingerprint=text)
all_facts = st.builds(
    Facts,
    base_model=st.none() | base_models,
    data=st.none() | data,
    adapter=known,
    hyperparameters=known,
    run=known,
    loss_history=st.lists(measured, max_size=2),
    evaluation=st.fixed_dictionaries({}, optional={"base": measured, "adapter": measured}),
    samples=st.lists(st.builds(Sample, prompt=text, reference=text, base=text, adapter=text), max_size=2).map(tuple),
    recipe=st.none() | text,
)

HOME = "/home/jo.doe"
PRIVATE = [HOME, "/home/jo.doe/work", "/mnt/big disk", r"C:\Users\jo", "/opt"]
# Texts as they occur: a private folder, more path or none, and anything that can stand around a path.
pieces = st.lists(
    st.sampled_from(
        [*PRIVATE, "/", "\\", "a", "secret.txt", " ", "'", '"', ":", "(", ")", "\n", "see ", ".cache", "é", "file://"]
    ),
    max_size=10,
).map("".join)


@given(all_facts)
def test_facts_written_as_json_read_back_the_same(facts):
    read = Facts.from_dict(json.loads(facts.to_json()))
    assert read.to_dict() == facts.to_dict()
    assert (read.base_model, read.data, read.samples) == (facts.base_model, facts.data, facts.samples)


def test_a_file_of_facts_reads_back_the_same(tmp_path):
    facts = Facts(base_model=BaseModelFacts(name="a/b", on_hub=True), run={"steps": 3}, recipe="model: é\n")
    write_text_atomically(tmp_path / "facts.json", facts.to_json())
    assert read_facts(tmp_path / "facts.json") == facts


def test_unknown_facts_are_left_out_at_every_depth():
    facts = Facts(
        base_model=BaseModelFacts(name="x", on_hub=False),
        adapter={"rank": 8, "alpha": None, "config": {"bias": None, "patterns": {}, "r": 0}},
        run={"peak": {"gpu": None}, "finished": False},
    )
    assert facts.to_dict() == {
        "schema_version": 1,
        "base_model": {"name": "x", "on_hub": False},
        "adapter": {"rank": 8, "config": {"r": 0}},
        "run": {"finished": False},
    }


def test_empty_facts_are_only_their_version():
    assert Facts().to_dict() == {"schema_version": 1}


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({}, "schema_version None, this version reads 1; write them anew"),
        ({"schema_version": 2}, "schema_version 2"),
        ({"schema_version": 1, "modle": {}}, "unknown sections: modle; remove them"),
        ({"schema_version": 1, "base_model": {"nam": "x"}}, "malformed"),
        ({"schema_version": 1, "data": {"name": "x"}}, "malformed"),
        ({"schema_version": 1, "samples": [{"prompt": "x"}]}, "malformed"),
        ({"schema_version": 1, "samples": None}, "malformed"),
        ({"schema_version": 1, "base_model": "gpt2"}, "malformed"),
        ({"schema_version": 1, "adapter": "lora"}, "malformed"),
        ({"schema_version": 1, "evaluation": [1]}, "malformed"),
    ],
)
def test_other_mappings_are_refused_with_the_reason(raw, message):
    with pytest.raises(ConfigError, match=message):
        Facts.from_dict(raw)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"no facts\.json in .*; it is written while training"),
        (b"{", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[1]", "holds no JSON object"),
        (b"[" * 100_000, "is nested too deeply"),
    ],
)
def test_a_file_without_facts_is_refused_with_the_reason(tmp_path, content, message):
    file = tmp_path / "facts.json"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read_facts(file)


@given(pieces)
@example("see //opt/opt")
@example(r"/mnt/big diskC:\Users\jo/home/jo.doeC:\Users\jo")
@example("/home/jo.doe.bak")
@example("x /home/jo.doe/work-2/a and /home/jo.doe's")
def test_no_private_folder_survives_in_any_text(value):
    clean = redact({"a": [value, {value: (value,)}]}, PRIVATE)
    texts = [clean["a"][0], *clean["a"][1], *next(iter(clean["a"][1].values()))]
    for folder in PRIVATE:
        # `/opt` stands in `/opted` as letters, not as a folder
        folder_as_part = re.compile(re.escape(folder) + r"(?![\w-])")
        assert not any(folder_as_part.search(text) for text in texts)


@pytest.mark.parametrize(
    ("value", "clean"),
    [
        ("/home/other/models/tiny", "tiny"),
        ("/home/other/models/tiny/", "tiny"),
        ("~/models/tiny", "tiny"),
        (r"D:\models\tiny", "tiny"),
        (r"\\server\share\tiny", "tiny"),
        ("cannot open '/home/jo.doe/a/b.json': gone", "cannot open 'b.json': gone"),
        ("out: /home/jo.doe/work/out\nmodel: a/b", "out: out\nmodel: a/b"),
        ("C:\\Users\\jo\\x.csv, then", "x.csv, then"),
        (("/home/jo.doe/x", 3, None, 1.5, True), ["x", 3, None, 1.5, True]),
    ],
)
def test_paths_keep_their_last_part(value, clean):
    assert redact(value, PRIVATE) == clean


@pytest.mark.parametrize(
    "value",
    [
        "meta-llama/Llama-2-7b-hf",
        "builtin:python-docstrings",
        "https://huggingface.co/a/b",
        "HuggingFaceTB/SmolLM2-135M-Instruct at main",
        r".*\.(q_proj|v_proj)$",
        "and/or, 3/4, a / b",
        "1e-3",
        "/",
        "//",
        "",
        "the home of jo.doe",
        "opted/opting /opted",
    ],
)
def test_hub_ids_and_ordinary_text_stay(value):
    assert redact(value, PRIVATE) == value


@given(st.from_regex(r"[A-Za-z0-9][\w.-]{0,20}/[\w.-]{1,30}", fullmatch=True))
def test_every_hub_id_stays(repo_id):
    assert redact(repo_id, PRIVATE) == repo_id


def test_writing_replaces_the_text_and_leaves_no_temporary_file(tmp_path):
    file = tmp_path / "card.md"
    write_text_atomically(file, "old")
    write_text_atomically(file, "new é\n")
    assert file.read_text(encoding="utf8") == "new é\n"
    assert list(tmp_path.iterdir()) == [file]


def test_failed_writing_keeps_the_old_text_and_leaves_no_temporary_file(tmp_path):
    file = tmp_path / "card.md"
    write_text_atomically(file, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text_atomically(file, "half \ud800")
    assert file.read_text(encoding="utf8") == "old"
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    ("section", "problem"),
    [
        ({"adapter": {"trainable_parameters": [1]}}, "adapter.trainable_parameters is a list, needed a whole number"),
        ({"adapter": {"config": {"rank_pattern": "r"}}}, "rank_pattern is text, needed a mapping"),
        ({"base_model": {"name": "x", "on_hub": True, "parameters": "7B"}}, "is text, needed a whole number"),
        ({"base_model": {"on_hub": True}}, "facts.base_model.name is missing"),
        ({"data": {"nme": "x"}}, "facts.data.nme is not known"),
        ({"evaluation": {"adapter": [["loss", 1]]}}, "facts.evaluation.adapter is a list, needed a mapping"),
        ({"run": {"emissions": {"energy_kwh": True}}}, "energy_kwh is true or false, needed a number"),
        ({"samples": ["text"]}, r"facts.samples\[0\] is text, needed a mapping"),
        ({"loss_history": {"step": 1}}, "facts.loss_history is a mapping, needed a list"),
    ],
)
def test_a_fact_of_another_kind_is_named(section: dict, problem: str):
    with pytest.raises(ConfigError, match=problem):
        Facts.from_dict({"schema_version": 1} | section)


def test_a_loss_that_was_not_finite_reads_back_as_unknown():
    facts = Facts(loss_history=[{"step": 1, "loss": float("nan")}])
    assert Facts.from_dict(json.loads(facts.to_json())).loss_history == ({"step": 1, "loss": None},)
