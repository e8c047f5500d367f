"""Recipes: strict, complete, reversible; any other text is refused as a ConfigError."""

from dataclasses import fields, replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hf_lora_ext.choices.adapter import METHODS
from hf_lora_ext.errors import ConfigError
from hf_lora_ext.runs.declared import HardwareChoice
from hf_lora_ext.runs.push_choice import _RULES as _PUSH_RULES
from hf_lora_ext.runs.push_choice import PushChoice
from hf_lora_ext.runs.recipe import (
    _DATA_RULES,
    _RECIPE_RULES,
    DataChoice,
    Recipe,
    apply_overrides,
    dump_recipe,
    load_recipe,
    parse_recipe,
    validate,
)
from hf_lora_ext.runs.trainer_kinds import TRAINER_KINDS
from hf_lora_ext.runs.trainer_rules import COMMON_FIELDS, OTHER_NAMES, TRAINING_FIELDS

MINIMAL = {"model": "me/model", "output_dir": "out/x", "data": {"source": "data.jsonl"}}

# Control characters and exotic line ends are left out: PyYAML itself does not keep them.
words = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=1, max_size=12).filter(str.strip)
counts = st.integers(1, 10**9)
fractions = st.floats(0, 1, exclude_max=True)
training = st.fixed_dictionaries(
    {},
    optional={
        "learning_rate": st.floats(min_value=0, exclude_min=True, allow_infinity=False),
        "max_steps": counts,
        "packing": st.booleans(),
        "optim": words,
        "weight_decay": fractions,
    },
)
data = st.builds(
    DataChoice,
    source=words,
    split=words,
    revision=st.none() | words,
    columns=st.dictionaries(st.sampled_from(["prompt", "completion", "messages", "text"]), words),
    group_by=st.none() | words,
    eval_fraction=fractions.filter(bool),
    train_examples=st.none() | counts,
    max_characters=st.none() | counts,
) | st.builds(DataChoice, source=words, eval_source=words)
recipes = st.builds(
    Recipe,
    model=words,
    output_dir=words,
    data=data,
    revision=st.none() | words,
    method=st.sampled_from([method for method in METHODS if method != "prefix"]),  # has no rank
    rank=st.none() | counts,
    dropout=st.none() | fractions,
    targets=st.none() | words | st.lists(words, min_size=1, max_size=3).map(tuple),
    training=training,
    samples=st.integers(0, 9),
    seed=st.integers(0, 2**64),
    push=st.none()
    | st.builds(
        PushChoice,
        repo=words,
        every_saves=st.none() | counts,
        private=st.none() | st.booleans(),
        tag=st.none() | words,
        allow=st.just(()) | st.lists(words, min_size=1, max_size=3).map(tuple),
    ),
    hardware=st.none()
    | st.builds(HardwareChoice, host_gib=st.floats(1, 1e4))
    | st.builds(HardwareChoice, gpus=counts, gpu_memory_gib=st.floats(1, 1e4), machines=counts),
)


def written(tmp_path, text):
    file = tmp_path / "recipe.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def merged(**changes):
    return {**MINIMAL, **changes}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("recipes")


@given(recipe=recipes)
@example(recipe=Recipe(model="m", output_dir="1e-3", data=DataChoice(source="s", revision="12e45")))
@settings(deadline=None)
def test_a_dumped_recipe_loads_as_an_equal_one(folder, recipe):
    assert load_recipe(written(folder, dump_recipe(recipe))) == recipe


def test_every_field_has_a_rule():
    assert set(_RECIPE_RULES) == {field.name for field in fields(Recipe)}
    assert set(_DATA_RULES) == {field.name for field in fields(DataChoice)}
    assert set(_PUSH_RULES) == {field.name for field in fields(PushChoice)}


def test_all_problems_are_named_at_once():
    raw = {"model": "", "rank": 0, "sede": 1, "data": {"soruce": "x"}, "training": {"learning_rate": "fast"}}
    problems = validate(raw)
    for start in ("output_dir: missing", "model: found ''", "rank: found 0", "sede: unknown", "data.source: missing"):
        assert any(problem.startswith(start) for problem in problems)
    with pytest.raises(ConfigError, match=rf"mine has {len(problems)} problems") as caught:
        parse_recipe(raw, "mine")
    assert all(problem in str(caught.value) for problem in problems)


@pytest.mark.parametrize(
    ("raw", "hint"),
    [
        (merged(metod="lora"), "metod: unknown key; did you mean `method`?"),
        (merged(Rank=8), "Rank: unknown key; did you mean `rank`?"),
        (merged(data={"source": "x", "colums": {}}), "data.colums: unknown key; did you mean `columns`?"),
        (merged(training={"learning_rat": 1}), "training.learning_rat: unknown key; did you mean `learning_rate`?"),
        (merged(learning_rate=1e-4), "learning_rate: unknown key; did you mean `training.learning_rate`?"),
        (merged(epochs=3), "epochs: unknown key; did you mean `training.num_train_epochs`?"),
        (merged(r=8), "r: unknown key; did you mean `rank`?"),
        (merged(push={"repo": "me/x", "tga": "v1"}), "push.tga: unknown key; did you mean `tag`?"),
        (merged(push={"repo": "me/x", "token": "hf_x"}), "push.token: a recipe is shared, so it holds no token"),
        (merged(push={"tag": "v1"}), "push.repo: missing"),
        ({**MINIMAL, 3: 4}, "3: unknown key; valid: adaptive_rank, alpha"),
    ],
)
def test_an_unknown_key_names_the_nearest_valid_one(raw, hint):
    assert any(problem.startswith(hint) for problem in validate(raw))


@pytest.mark.parametrize("name", OTHER_NAMES)
def test_what_other_tools_call_a_field_is_told_as_a_field_that_the_trainer_takes(name: str):
    assert name not in TRAINING_FIELDS
    for trainer, kind in TRAINER_KINDS.items():
        (problem,) = (p for p in validate(merged(trainer=trainer, training={name: 1})) if p.startswith("training."))
        meant = OTHER_NAMES[name]
        told = f"training.{name}: unknown key; did you mean `{meant}`?"
        assert (problem == told) == (meant in {*COMMON_FIELDS, *kind.fields})


@pytest.mark.parametrize(
    "changes",
    [
        {"rank": True},
        {"rank": 1.0},
        {"alpha": -1},
        {"dropout": 1},
        {"dropout": float("nan")},
        {"method": "full"},
        {"method": ["lora"]},
        {"init": "pisa"},
        {"task": "poem", "rank": "auto"},
        {"task": "chat"},
        {"rank": "automatic"},
        {"init": "corda"},
        {"optimizer": "sgd"},
        {"attention": "flash"},
        {"sharding": "zero"},
        {"method": "prefix", "rank": 8},
        {"method": "dora", "init": "pissa"},
        {"method": "qlora8", "sharding": "fsdp"},
        {"method": "prefix", "training": {"gradient_checkpointing": True}},
        {"targets": []},
        {"targets": ["q_proj", 3]},
        {"samples": -1},
        {"seed": "0"},
        {"push": "me/x"},
        {"push": {"repo": "me/x", "every_saves": 0}},
        {"push": {"repo": "me/x", "allow": "lab/secret"}},
        {"data": "data.jsonl"},
        {"data": []},
        {"training": [1]},
        {"data": {"source": "x", "columns": {"question": "prompt"}}},
        {"data": {"source": "x", "columns": {"prompt": None}}},
        {"data": {"source": "x", "eval_fraction": 0}},
        {"data": {"source": "x", "eval_fraction": 1.0}},
        {"data": {"source": "x", "eval_source": "y", "eval_fraction": 0.2}},
        {"training": {"learning_rate": float("inf")}},
        {"training": {"learning_rate": 0}},
        {"training": {"max_steps": 5, "num_train_epochs": 1}},
        {"training": {"bf16": True, "fp16": True}},
        {"training": {"packing": "yes"}},
    ],
)
def test_a_value_that_cannot_be_right_is_one_problem(changes):
    assert len(validate(merged(**changes))) == 1


@pytest.mark.parametrize("number", ["1e-3", "1E-3", "1.e-3", "+1e-3", ".1e-2", "1.0e-3"])
def test_exponents_without_a_dot_are_numbers(tmp_path, number):
    file = written(tmp_path, f"model: m\noutput_dir: o\ndata: {{source: s}}\ntraining: {{learning_rate: {number}}}")
    assert load_recipe(file).training["learning_rate"] == pytest.approx(1e-3)


def test_null_leaves_a_value_to_its_default():
    data = {"source": "s", "group_by": None, "eval_fraction": None, "eval_source": "held.jsonl"}
    raw = merged(rank=None, data=data, training={"max_steps": None, "num_train_epochs": 2, "learning_rate": None})
    recipe = parse_recipe(raw)
    assert recipe.rank is None
    assert recipe.data == DataChoice(source="s", eval_source="held.jsonl")
    assert recipe.training == {"num_train_epochs": 2}


def test_overrides_reach_nested_keys_as_yaml_values(tmp_path):
    file = written(tmp_path, "model: m\noutput_dir: o\ndata: {source: s}\ntraining:\nrank: 4\n")
    overrides = [
        "training.learning_rate=1e-3", "data.columns.prompt=question", "rank=", "targets=[q_proj, v_proj]",
        "data.source=a=b.jsonl",
    ]  # fmt: skip
    recipe = load_recipe(file, overrides)
    assert recipe.training == {"learning_rate": 1e-3}
    assert recipe.data == DataChoice(source="a=b.jsonl", columns={"prompt": "question"})
    assert (recipe.rank, recipe.targets) == (None, ("q_proj", "v_proj"))


def test_overrides_leave_the_original_alone():
    raw = merged(data={"source": "s", "columns": {"prompt": "old"}})
    changed = apply_overrides(raw, ["data.columns.prompt=new", "data.source=t"])
    assert changed["data"] == {"source": "t", "columns": {"prompt": "new"}}
    assert raw["data"] == {"source": "s", "columns": {"prompt": "old"}}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("max_steps", r"'max_steps' is not key=value; write it without spaces around =, e\.g\. training\.max_steps=20"),
        ("=3", "is not key=value"),
        ("model.name=x", "model holds text, so it has no key 'name'"),
        ("rank=[", "override 'rank=.*' is not valid YAML"),
        ("training.max_step=3", r"training\.max_step: unknown key; did you mean `max_steps`"),
    ],
)
def test_a_bad_override_is_refused_by_name(tmp_path, override, message):
    file = written(tmp_path, "model: m\noutput_dir: o\ndata: {source: s}")
    with pytest.raises(ConfigError, match=message):
        load_recipe(file, [override])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: a\nmodel: b\n", "key model appears twice; keep one"),
        ("data: {source: a, source: b}", "key source appears twice"),
        ("- model", "holds a list, needed a mapping of keys"),
        ("", "holds nothing, needed a mapping"),
        ("just words", "holds text, needed a mapping"),
        ("model: [", "not valid YAML at line 1"),
        ("model: a\n  rank: 8", "not valid YAML at line 2"),
        ("model: !!python/object/apply:os.system ['true']", "not valid YAML"),
        (b"\xff\xfe\x00\x01binary", r"not UTF-8 text \(byte 0\); save it as UTF-8"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused_with_the_reason(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        load_recipe(written(tmp_path, text))


def test_a_missing_file_and_a_folder_are_told_apart(tmp_path):
    with pytest.raises(ConfigError, match=r"no such file; give a \.yaml file"):
        load_recipe(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match=r"a folder; give a \.yaml file"):
        load_recipe(tmp_path)


@given(
    text=st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
    | st.text(":-[]{}!&*?|>#'\"\n ae01._<", max_size=30)
)
@example(text="model: 2024-13-45")
@example(text="rank: !!int eight")
@example(text="rank: !!bool maybe")
@example(text="rank: !!timestamp x")
@example(text="rank: 0b_")
@example(text="rank: " + "9" * 5000)
@example(text="data: !!map x")
@example(text="[" * 3000)
@settings(deadline=None, max_examples=200)
def test_any_text_as_yaml_raises_only_a_config_error(folder, text):
    with pytest.raises(ConfigError):
        load_recipe(written(folder, text))


def test_wishes_are_the_adapter_s_part():
    recipe = replace(parse_recipe(merged(rank=4, targets=["q_proj"])), dropout=0.0)
    assert (recipe.wishes.rank, recipe.wishes.dropout, recipe.wishes.targets) == (4, 0.0, ("q_proj",))


@pytest.mark.parametrize("sharding", ["fsdp", "zero3"])
def test_an_evaluation_at_the_end_is_refused_where_no_process_has_the_whole_model(sharding: str):
    wanted = MINIMAL | {"evaluate": {"metrics": ["loss"]}}
    assert validate(wanted) == []
    (problem,) = validate(wanted | {"sharding": sharding})
    assert problem.startswith(f"evaluate: under {sharding} no process has the whole model")


@pytest.mark.parametrize("text", ["0x{}", "rank: 0x{}", "rank: !!int 0x{}", "rank: [-0x{}]", "? 0x{}\n: 1"])
def test_a_number_too_long_to_be_written_is_refused(tmp_path, text):
    file = tmp_path / "recipe.yaml"
    file.write_text(text.format("f" * 5000))
    with pytest.raises(ConfigError, match="is not valid YAML: Exceeds the limit"):
        load_recipe(file)
