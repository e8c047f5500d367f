"""Data: three forms from four kinds of file, split by content, and every bad input refused with its place."""

import hashlib
import json

import pytest
from conftest import write_jsonl
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_lora_ext.data.examples import _split, describe_dataset, fingerprint, load_examples
from hf_lora_ext.data.forms import FORMS as ALL_FORMS
from hf_lora_ext.data.forms import ROLES, TEXT_FORMS, form_of, row_problem
from hf_lora_ext.errors import ConfigError
from hf_lora_ext.runs.recipe import DataChoice
from hf_lora_ext.runs.trainer_kinds import TRAINER_KINDS

PAIRS = [{"prompt": f"Question {i}?", "completion": f"Answer {i}.", "topic": f"t{i % 7}"} for i in range(60)]
TEXTS = [{"text": f"Text number {i}."} for i in range(60)]
CHATS = [
    {"messages": [{"role": "user", "content": f"Hi {i}"}, {"role": "assistant", "content": f"Hello {i}"}]}
    for i in range(60)
]
USER = {"role": "user", "content": "Hi"}


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path_factory):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


@pytest.fixture
def load(tmp_path):
    """Load rows (or raw content) from a file of the given name, with a choice's other fields."""

    def load(rows, name="data.jsonl", forms=TEXT_FORMS, keep=(), **choice):
        file = tmp_path / name
        if isinstance(rows, (str, bytes)):
            file.write_bytes(rows if isinstance(rows, bytes) else rows.encode())
        elif name.lower().endswith(".jsonl"):
            write_jsonl(file, rows)
        elif name.endswith(".json"):
            file.write_text(json.dumps(rows, indent=2), encoding="utf8")
        else:
            getattr(Dataset.from_list(rows), "to_csv" if name.endswith(".csv") else "to_parquet")(file)
        return load_examples(DataChoice(source=str(file), **choice), forms, keep)

    return load


def together(examples):
    return [*examples.train, *examples.held_out]


def by_content(rows):
    return sorted(rows, key=json.dumps)


FORMS = {
    "prompt-completion": [{k: row[k] for k in ("prompt", "completion")} for row in PAIRS],
    "messages": CHATS,
    "text": TEXTS,
}


FILES = ["data.jsonl", "data.json", "data.csv", "data.parquet"]


@pytest.mark.parametrize(("form", "name"), [(f, n) for f in FORMS for n in FILES if (f, n) != ("messages", "data.csv")])
def test_each_form_is_read_whole_from_each_kind_of_file(load, form, name):
    examples = load(FORMS[form], name)
    assert examples.form == form
    assert by_content(together(examples)) == by_content(FORMS[form])
    assert examples.facts.name == name
    assert examples.facts.train_examples == len(examples.train)
    assert examples.facts.eval_examples == len(examples.held_out)
    assert examples.facts.fingerprint == fingerprint(examples.train)
    assert examples.facts.eval_fingerprint == fingerprint(examples.held_out)


def test_facts_name_a_file_without_its_folder(load):
    assert load(TEXTS, "DATA.JSONL").facts.name == "DATA.JSONL"


def test_columns_are_mapped_to_ours_and_the_rest_left_out(load):
    rows = [{"question": row["prompt"], "answer": row["completion"], "prompt": "unused"} for row in PAIRS]
    examples = load(rows, columns={"prompt": "question", "completion": "answer"})
    assert by_content(together(examples)) == by_content(FORMS["prompt-completion"])


def test_columns_may_be_swapped(load):
    rows = [{"prompt": row["completion"], "completion": row["prompt"]} for row in PAIRS]
    examples = load(rows, columns={"prompt": "completion", "completion": "prompt"})
    assert by_content(together(examples)) == by_content(FORMS["prompt-completion"])


def test_texts_stay_texts_whatever_they_look_like(load):
    rows = [{"prompt": f"Question {i}?", "completion": f"2024-01-{i + 1:02}"} for i in range(20)]
    assert by_content(together(load(rows))) == by_content(rows)


def test_words_that_pandas_takes_for_missing_stay_in_a_csv(load):
    content = "prompt,completion\n" + "".join(f"Question {i}?,{w}\n" for i, w in enumerate(["None", "NA", "null"]))
    assert {row["completion"] for row in together(load(content, "data.csv"))} == {"None", "NA", "null"}


groups = st.lists(st.integers(0, 9), min_size=2, max_size=40).filter(lambda ids: len(set(ids)) > 1)


@given(groups, st.floats(0.01, 0.99), st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=40)
def test_a_group_split_keeps_groups_whole_whatever_the_order(ids, fraction, random):
    rows = [{"text": f"Text {i}", "group": f"g{group}"} for i, group in enumerate(ids)]
    choice = DataChoice(source="x.jsonl", group_by="group", eval_fraction=fraction)
    train, held_out = _split(Dataset.from_list(rows), choice, "group")
    assert set(train["group"]).isdisjoint(held_out["group"])
    assert len(train)
    assert len(held_out)
    assert len(train) + len(held_out) == len(rows)
    shuffled = random.sample(rows, len(rows))
    assert set(_split(Dataset.from_list(shuffled), choice, "group")[1]["group"]) == set(held_out["group"])


def test_equal_examples_land_on_one_side(load):
    examples = load(TEXTS * 2, eval_fraction=0.5)
    assert {r["text"] for r in examples.train}.isdisjoint(r["text"] for r in examples.held_out)


@pytest.mark.parametrize("fraction", [0.1, 0.5])
def test_the_held_out_share_is_near_the_fraction(fraction):
    rows = Dataset.from_list([{"text": f"Text {i}"} for i in range(2000)])
    _, held_out = _split(rows, DataChoice(source="x.jsonl", eval_fraction=fraction), None)
    assert len(held_out) / 2000 == pytest.approx(fraction, abs=0.04)


def test_limits_choose_the_same_examples_in_any_order(load):
    limits = {"train_examples": 10, "eval_examples": 2, "eval_fraction": 0.3}
    one, other = load(TEXTS, **limits), load(TEXTS[::-1], "reversed.jsonl", **limits)
    assert (len(one.train), len(one.held_out)) == (10, 2)
    assert list(one.train) == list(other.train)
    assert one.facts.fingerprint == other.facts.fingerprint


def test_long_examples_are_left_out_counting_all_their_text(load):
    long = [{"prompt": "x" * 10, "completion": "y" * 11}]
    short = [{"prompt": f"{i:010}", "completion": "y" * 10} for i in range(9)]
    assert by_content(together(load(long + short, max_characters=20))) == by_content(short)


def test_held_out_examples_may_come_from_their_own_file(load, tmp_path):
    held = write_jsonl(tmp_path / "held.jsonl", TEXTS[:3])
    examples = load(TEXTS[3:], eval_source=str(held))
    assert list(examples.held_out) == TEXTS[:3]
    assert list(examples.train) == TEXTS[3:]
    assert examples.facts.note == "Held-out examples come from held.jsonl."
    assert str(tmp_path) not in str(examples.facts)


def test_a_fingerprint_tells_contents_and_order_apart():
    base = [{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "d"}]
    others = [base[::-1], base[:1], [base[0], {"prompt": "cd", "completion": ""}], [base[0], {"prompt": "c", "x": "d"}]]
    prints = [fingerprint(rows) for rows in [base, *others]]
    assert len(set(prints)) == len(prints)
    assert fingerprint(Dataset.from_list(base)) == prints[0]
    assert fingerprint([dict(reversed(row.items())) for row in base]) == prints[0]


def test_a_fingerprint_is_the_same_on_every_machine():
    written = '{"text":"naïve"}\n{"n":[1,null],"text":"b"}\n'.encode()
    rows = [{"text": "naïve"}, {"text": "b", "n": [1, None]}]
    assert fingerprint(rows) == hashlib.sha256(written).hexdigest()


def test_describing_one_dataset_leaves_the_other_unknown():
    facts = describe_dataset(Dataset.from_list(TEXTS), None, "mine")
    assert (facts.train_examples, facts.eval_examples, facts.eval_fingerprint) == (60, None, None)


@pytest.mark.parametrize(
    ("rows", "name", "message"),
    [
        (b"", "data.jsonl", r"data\.jsonl has no rows; give at least two examples"),
        ("\n\n", "data.jsonl", "at least two examples"),
        ("[]", "data.json", "at least two examples"),
        ("prompt,completion\n", "data.csv", "at least two examples"),
        ('{"text": "x"}\n\n{"text":\n', "data.jsonl", r"line 3: not JSON \(Expecting value at column 9\)"),
        ('{"text": "x"}\n7\n', "data.jsonl", "line 2: found int, needed an object"),
        ('{"text": "é"}\n'.encode("latin1"), "data.jsonl", r"data\.jsonl, line 1: not UTF-8 text; save it as UTF-8"),
        (b"PAR1 no", "data.parquet", r"data\.parquet: not Parquet"),
        ("prompt,completion\na,b\nc,d,e\n", "data.csv", "line 3: found 3 values, needed 2"),
        ("prompt,completion\na,b\nc,\n", "data.csv", "row 2: completion is empty, needed text"),
        ('prompt,completion\na,"b\n', "data.csv", "line 2: not CSV"),
        ('prompt;completion\na;"b, c"\n', "data.csv", "columns are separated by ';', needed commas"),
        ([{"text": "a"}, {"text": 5}], "data.jsonl", r"column text mixes kinds \(str in row 1, number in row 2\)"),
        ([{"text": 4}, {"text": 5}], "data.jsonl", "row 1: text is of type int, needed text"),
        ([*TEXTS, {"text": " "}], "data.jsonl", "row 61: text is empty, needed text; fix or remove the row"),
        ([{"prompt": "a", "completion": ""}], "data.jsonl", "row 1: completion is empty, needed text"),
        ([{"prompt": "a", "completion": "b"}, {"prompt": "c"}], "data.jsonl", "row 2: completion is missing"),
        ([{"messages": [USER]}, CHATS[0]], "data.jsonl", "row 1: messages have no assistant turn"),
        ([{"messages": []}, CHATS[0]], "data.jsonl", "row 1: messages: no messages"),
        ([CHATS[0], {"messages": [{"content": "x"}]}], "data.jsonl", "row 2: messages: a message has no role"),
        (
            [CHATS[0], {"messages": [USER, USER | {"role": "usr"}]}],
            "data.jsonl",
            r"row 2: messages: message 2 has the role 'usr'; did you mean `user`\?; fix or remove the row",
        ),
        ([{"messages": [USER | {"role": "gpt"}]}, CHATS[0]], "data.jsonl", r"'gpt'; did you mean `assistant`\?"),
        (
            [{"messages": [USER | {"role": "x"}]}, CHATS[0]],
            "data.jsonl",
            "row 1: .*; valid: assistant, developer",
        ),
        ([{"prompt": [USER | {"role": "User"}], "completion": [USER]}] * 2, "data.jsonl", "row 1: prompt: message 1"),
        ([CHATS[0], {"messages": [USER | {"content": None}]}], "data.jsonl", "row 2: .*user message's content is miss"),
        ([{"prompt": "a", "completion": [USER]}], "data.jsonl", "row 1: prompt and completion are of different kinds"),
        (
            [{"question": "a", "answer": "b"}],
            "data.jsonl",
            r"columns question, answer; needed.*data\.columns: {prompt",
        ),
        (CHATS, "data.csv", "row 1: messages is of type str, needed a list of messages"),
        (TEXTS[:1], "data.jsonl", "single distinct example, so none can be held out; give more data"),
        (TEXTS[:1] * 4, "data.jsonl", "single distinct example"),
        ("text", "data.txt", r"found a \.txt, needed a \.jsonl"),
    ],
)
def test_a_bad_file_is_refused_with_the_place_and_the_need(load, rows, name, message):
    with pytest.raises(ConfigError, match=message):
        load(rows, name)


@pytest.mark.parametrize("role", ROLES)
def test_every_role_that_chat_templates_know_is_a_role(role: str):
    turns = [USER | {"role": role}, {"role": "assistant", "content": "Hello"}]
    assert row_problem({"messages": turns}, "messages") is None


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"columns": {"prompt": "promt"}}, r"no column 'promt'; did you mean `prompt`\?"),
        ({"columns": {"prompt": "prompt", "completion": "prompt"}}, r"prompt.*completion"),
        ({"group_by": "topics"}, r"no column 'topics' to group by; did you mean `topic`\?"),
        ({"group_by": "prompt", "max_characters": 3}, "no example has at most 3 characters; raise data.max_char"),
        ({"eval_source": "no-such.jsonl"}, r"no-such\.jsonl: no such file"),
        ({"eval_source": "builtin:nothing"}, "builtin:nothing is not known"),
    ],
)
def test_a_choice_that_does_not_fit_the_data_is_refused(load, choice, message):
    with pytest.raises(ConfigError, match=message):
        load(PAIRS, **choice)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{tmp}/none.jsonl", "no such file; check the path"),
        ("{tmp}", r"found a folder, needed a \.jsonl"),
        ("builtin:python-docstring", "not known; did you mean `python-docstrings`"),
    ],
)
def test_a_source_that_is_not_there_is_refused(tmp_path, source, message):
    with pytest.raises(ConfigError, match=message):
        load_examples(DataChoice(source=source.format(tmp=tmp_path)))


def test_held_out_examples_of_another_form_are_refused(load, tmp_path):
    held = write_jsonl(tmp_path / "held.jsonl", PAIRS)
    with pytest.raises(ConfigError, match="no column 'text', as the training data has; found prompt, completion"):
        load(TEXTS, eval_source=str(held))


def test_the_built_in_functions_are_held_out_by_module():
    examples = load_examples(DataChoice(source="builtin:python-docstrings", max_characters=240))
    assert len(examples.train) > 1000
    assert "no `module` is on both sides" in examples.facts.note
    assert "examples over 240 characters were left out" in examples.facts.note


# --- the forms of the other trainers -----------------------------------------------------------------------------

KTO, DPO, BY_REWARDS, LABELLED = (TRAINER_KINDS[name].forms for name in ("kto", "dpo", "grpo", "classification"))
PREFERRED = [{"prompt": f"{n}?", "chosen": f"{n}", "rejected": f"{n + 1}"} for n in range(40)]
NAMED = [{"text": f"about {n}", "label": ("b", "a")[n % 2]} for n in range(40)]


@pytest.mark.parametrize("form", ALL_FORMS)
def test_a_form_is_told_by_its_columns_whatever_else_is_there(form):
    assert form_of([*ALL_FORMS[form], "more"], "mine", [form]) == form
    for column in ALL_FORMS[form]:
        with pytest.raises(ConfigError, match=r"data mine has columns .*; needed "):
            form_of([c for c in ALL_FORMS[form] if c != column] or ["other"], "mine", [form])


@pytest.mark.parametrize(
    ("rows", "forms", "message"),
    [
        ([{"prompt": "a", "chosen": "b"}] * 2, DPO, "needed prompt, chosen and rejected, or chosen and rejected"),
        ([{"prompt": "a", "chosen": "b", "rejected": "b"}] * 2, DPO, "row 1: chosen and rejected are the same"),
        ([{"prompt": "a", "chosen": [USER], "rejected": [USER | {"content": "x"}]}], DPO, "row 1: .*different kinds"),
        ([{"prompt": "a", "completion": "b", "label": 2}], KTO, "row 1: label is 2, needed true or false"),
        ([{"text": "a", "label": 0.5}], LABELLED, "row 1: label is of type float, needed the label's name or number"),
        ([{"text": f"a {n}", "label": "x"} for n in range(9)], LABELLED, "label x to learn, needed two labels or more"),
        ([{"prompt": "a", "answer": ""}, {"prompt": "b", "answer": "c"}], BY_REWARDS, "row 1: answer is empty"),
        ([{"prompt": "a"}, {"prompt": "b"}], BY_REWARDS, "no column 'answer', as a reward needs"),
    ],
)
def test_a_row_that_a_trainer_cannot_take_is_refused_with_its_place(load, rows, forms, message):
    with pytest.raises(ConfigError, match=message):
        load(rows, forms=forms, keep=["answer"] if forms == BY_REWARDS else [])


def test_a_preference_becomes_a_good_and_a_bad_completion_on_one_side_of_the_split(load):
    examples = load(PREFERRED, forms=KTO)
    assert examples.form == "unpaired preference"
    said = [(row["prompt"], row["completion"], row["label"]) for row in together(examples)]
    wanted = [(row["prompt"], row[name], name == "chosen") for row in PREFERRED for name in ("chosen", "rejected")]
    assert sorted(said) == sorted(wanted)
    assert not {row["prompt"] for row in examples.train} & {row["prompt"] for row in examples.held_out}
    labels = examples.train["label"][:]
    assert labels != sorted(labels, reverse=True), "KTO reads examples in their order"
    assert examples.train[:] == load(list(reversed(PREFERRED)), forms=KTO).train[:]


@pytest.mark.parametrize(("good", "bad"), [("true", "false"), ("True", "False"), (" TRUE", "FALSE "), ("1", "0")])
def test_a_judgement_in_a_csv_may_be_spelled_as_json_python_or_a_number(load, good: str, bad: str):
    lines = [f"{n}?,{n},{(good, bad)[n % 2]}" for n in range(20)]
    examples = load("\n".join(["prompt,completion,label", *lines]), "data.csv", forms=KTO)
    assert {row["completion"]: row["label"] for row in together(examples)} == {str(n): n % 2 == 0 for n in range(20)}


def test_a_judgement_that_says_neither_is_refused_with_what_is_needed(load):
    with pytest.raises(ConfigError, match="row 1: label is 'good', needed true or false, or 1 or 0: whether the"):
        load("prompt,completion,label\na,b,good\nc,d,bad\n", "data.csv", forms=KTO)


def test_labels_are_numbered_by_name_and_the_names_kept(load):
    examples = load(NAMED, forms=LABELLED)
    assert examples.labels == ("a", "b")
    texts = {row["text"]: row["label"] for row in together(examples)}
    assert texts == {row["text"]: int(row["label"] == "b") for row in NAMED}


def test_numbers_as_labels_are_sorted_as_numbers(load):
    rows = [{"text": f"about {n}", "label": (10, 9)[n % 2]} for n in range(40)]
    assert load(rows, forms=LABELLED).labels == ("9", "10")


def test_a_label_that_is_only_held_out_is_refused(load, tmp_path):
    held = write_jsonl(tmp_path / "held.jsonl", [{"text": "new", "label": "c"}])
    with pytest.raises(ConfigError, match="label c is held out and never learned"):
        load(NAMED, forms=LABELLED, eval_source=str(held))


def test_columns_that_rewards_read_are_kept_and_no_other(load):
    rows = [{"prompt": f"{n}?", "answer": f"{n}", "note": "x"} for n in range(9)]
    assert load(rows, forms=BY_REWARDS, keep=["answer"]).train.column_names == ["prompt", "answer"]


def test_a_right_row_of_every_form_has_no_problem():
    rows = {**{form: rows[0] for form, rows in FORMS.items()}, "preference": PREFERRED[0], "labelled text": NAMED[0]}
    rows["implicit preference"] = rows["prompt-only"] = PREFERRED[0]
    rows["unpaired preference"] = PAIRS[0] | {"label": True}
    assert set(rows) == set(ALL_FORMS)
    assert [row_problem(row, form) for form, row in rows.items()] == [None] * len(rows)
