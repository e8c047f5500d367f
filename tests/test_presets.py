"""Presets: pure, explained, overridable; wishes that cannot be right are refused."""

import json
from dataclasses import FrozenInstanceError, fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_lora_ext.choices import adapter as choices
from hf_lora_ext.choices.adapter import METHODS, LoraWishes, check_wishes
from hf_lora_ext.errors import ConfigError
from hf_lora_ext.hardware import Hardware
from hf_lora_ext.models.sizes import ModelShape, size_band
from hf_lora_ext.presets import preset as presets
from hf_lora_ext.presets.explanation import _shown
from hf_lora_ext.presets.preset import Preset, decide

CPU = Hardware(kind="cpu")
NEW_CARD = Hardware(kind="cuda", memory_gib=24, has_bfloat16=True, name="A10G")
OLD_CARD = Hardware(kind="cuda", memory_gib=16, name="Tesla T4")
MAC = Hardware(kind="mps", name="Apple GPU")
UNDECIDED = {"model_id", "shape", "hardware", "choices", "own_lora_config", "model_is_loaded", "warnings", "found"}

shapes = st.builds(
    ModelShape,
    parameters=st.integers(1, 10**13),
    source=st.just("test"),
    max_positions=st.none() | st.integers(1, 10**6),
)
machines = st.sampled_from([CPU, NEW_CARD, OLD_CARD, MAC]) | st.builds(
    Hardware, kind=st.just("cuda"), devices=st.integers(1, 64), has_bfloat16=st.booleans()
)
wished = st.builds(
    LoraWishes,
    rank=st.none() | st.integers(1, 512),
    alpha=st.none() | st.integers(1, 512),
    dropout=st.none() | st.floats(0, 0.99),
    targets=st.none() | st.just("all-linear") | st.tuples(st.just("q_proj"), st.just("v_proj")),
)


def shape(billions=7.0, **known):
    return ModelShape(parameters=int(billions * 10**9), source="test", **known)


@given(shapes, machines, st.sampled_from(METHODS), wished)
def test_every_decided_value_has_one_choice_with_why_and_source(shape, hardware, method, wishes):
    made = decide(shape, hardware, method=method, wishes=wishes)
    by_name = {choice.name: choice for choice in made.choices}
    assert len(by_name) == len(made.choices)
    assert set(by_name) == {field.name for field in fields(Preset)} - UNDECIDED
    for name, choice in by_name.items():
        assert choice.value == getattr(made, name)
        assert choice.why.strip()
        assert choice.source.strip()


@given(shapes, machines, st.sampled_from(METHODS), wished)
def test_deciding_twice_gives_the_same_preset(shape, hardware, method, wishes):
    again = decide(shape, hardware, method=method, wishes=wishes)
    assert decide(shape, hardware, method=method, wishes=wishes) == again


@given(shapes, machines, wished)
def test_wishes_win_and_the_rest_is_the_band_s(shape, hardware, wishes):
    made = decide(shape, hardware, wishes=wishes)
    rank = wishes.rank or size_band(shape.parameters).rank
    assert made.rank == rank
    assert made.alpha == (wishes.alpha or 2 * rank)
    assert made.dropout == (0.05 if wishes.dropout is None else wishes.dropout)
    assert made.targets == (wishes.targets or "all-linear")
    yours = {c.name for c in made.choices if c.why == "given by you"}
    assert yours == {name for name in LoraWishes.__slots__ if getattr(wishes, name) is not None}


@given(shapes, machines)
def test_batches_and_lengths_are_possible(shape, hardware):
    made = decide(shape, hardware)
    assert made.micro_batch >= 1
    assert made.accumulation >= 1
    assert made.max_length <= (shape.max_positions or 1024)
    together = made.micro_batch * made.accumulation * hardware.devices
    assert together <= max(choices.BATCH_EXAMPLES, made.micro_batch * hardware.devices)
    assert f"{together} examples" in next(c.why for c in made.choices if c.name == "accumulation")


@pytest.mark.parametrize(
    ("hardware", "dtype", "checkpointing"),
    [(CPU, "float32", False), (MAC, "float32", False), (NEW_CARD, "bfloat16", True), (OLD_CARD, "float16", True)],
)
def test_precision_and_checkpointing_follow_the_hardware(hardware, dtype, checkpointing):
    made = decide(shape(), hardware)
    assert (made.dtype, made.activation_checkpointing) == (dtype, checkpointing)


@pytest.mark.parametrize(("billions", "rate"), [(0.1, 2e-4), (30, 2e-4), (30.1, 1e-4)])
def test_the_learning_rate_halves_above_30b(billions, rate):
    assert decide(shape(billions), CPU).learning_rate == rate


@pytest.mark.parametrize(
    ("method", "wishes", "message"),
    [
        ("lora", {"rank": 0}, r"rank=0 must be a whole number from 1; leave it out"),
        ("lora", {"rank": True}, r"rank=True must be a whole number"),
        ("lora", {"rank": 1.5}, r"rank=1\.5 must be a whole number"),
        ("lora", {"rank": "8"}, r"rank='8' must be a whole number"),
        ("lora", {"alpha": 0}, r"alpha=0 must be a whole number from 1"),
        ("lora", {"dropout": 1.0}, r"dropout=1\.0 must be from 0 up to, not including, 1; 0\.05"),
        ("lora", {"dropout": -0.1}, r"dropout=-0\.1 must be"),
        ("lora", {"dropout": float("nan")}, r"dropout=nan must be"),
        ("lora", {"dropout": "0.1"}, r"dropout='0\.1' must be"),
        ("lora", {"targets": ()}, r"targets is empty, so nothing would train; name modules such as q_proj"),
        ("lora", {"targets": ""}, r"targets is empty"),
        ("lora", {"targets": ("q_proj", "")}, r"targets"),
        ("lora", {"targets": (1, 2)}, r"targets"),
        ("qlor", {}, r"method 'qlor' is not known; did you mean `qlora`\?"),
        ("full", {}, r"method 'full' is not known; valid: adalora, dora, lora, prefix, qdora"),
        (None, {}, r"method None is not known"),
    ],
)
def test_a_wish_that_cannot_be_right_is_refused_with_the_remedy(method, wishes, message):
    with pytest.raises(ConfigError, match=message):
        check_wishes(method, LoraWishes(**wishes))


def test_a_lora_config_beside_a_rank_is_refused():
    with pytest.raises(ConfigError, match="lora_config and rank, alpha were both given; set r inside it"):
        check_wishes("lora", LoraWishes(rank=8, alpha=16), object())


@given(wished, st.sampled_from([method for method in METHODS if method != "prefix"]))
def test_possible_wishes_are_accepted(wishes, method):
    assert check_wishes(method, wishes) is None


@given(shapes, machines, st.sampled_from(METHODS), wished)
def test_explain_shows_every_value_on_narrow_lines(shape, hardware, method, wishes):
    made = decide(shape, hardware, method=method, wishes=wishes)
    text = made.explain()
    assert max(map(len, text.splitlines())) <= 100
    assert str(hardware) in text
    rows = {line.split()[0]: line for line in text.splitlines() if line and line[0].isalpha()}
    for choice in made.choices:
        assert _shown(choice.value).split()[0] in rows[choice.name]


def test_explain_wraps_long_targets_and_sources():
    long = tuple(f"model.layers.{i}.self_attn.q_proj" for i in range(40))
    text = decide(shape(), CPU, wishes=LoraWishes(targets=long)).explain()
    assert max(map(len, text.splitlines())) <= 100
    assert "layers.39" in "".join(text.split())


def test_a_preset_is_json_and_reads_back_the_same():
    plain = decide(shape(), NEW_CARD, wishes=LoraWishes(targets=("q_proj",)), model_id="a/b").to_dict()
    assert json.loads(json.dumps(plain, allow_nan=False))["targets"] == ["q_proj"]
    missing = {field.name for field in fields(Preset)} - set(plain) - {"own_lora_config"}
    assert not missing


def test_a_preset_cannot_be_changed():
    made = decide(shape(), CPU)
    with pytest.raises(FrozenInstanceError):
        made.rank = 4


def test_a_size_key_gives_a_preset_for_the_declared_gpu():
    made = presets.preset("13B", method="qlora", gpu_memory_gib=24, gpus=2, targets=["q_proj"])
    assert (made.method, made.rank, made.targets, made.model_id) == ("qlora", 16, ("q_proj",), None)
    assert (made.hardware.devices, made.hardware.memory_gib) == (2, 24)


def test_bad_wishes_are_refused_before_the_model_is_looked_up():
    with pytest.raises(ConfigError, match="rank=0"):
        presets.preset("no/such-model-anywhere", rank=0)


def test_a_mixture_of_experts_keeps_its_routers_out_of_the_adapter():
    from hf_lora_ext.models.families import shape_from_config

    mixture = decide(shape_from_config({"model_type": "mixtral"}), Hardware(kind="cpu"))
    assert "q_proj" in mixture.targets
    assert not any("gate" in name or "router" in name for name in mixture.targets)
    assert decide(shape_from_config({"model_type": "llama"}), Hardware(kind="cpu")).targets == "all-linear"
