"""The memory estimate: its laws."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from hf_lora_ext.errors import ConfigError
from hf_lora_ext.memory import peaks as memory
from hf_lora_ext.memory.anatomy import block_of
from hf_lora_ext.memory.peaks import COMPONENTS, MARGIN, estimate_memory
from hf_lora_ext.memory.plans import Plan
from hf_lora_ext.models.families import shape_from_config
from hf_lora_ext.models.popular_models import POPULAR_MODELS, popular_config
from hf_lora_ext.models.sizes import ModelShape

GIB = 2**30
PLANS = st.builds(
    Plan,
    base=st.sampled_from(["float32", "bfloat16", "int8", "nf4", "gptq"]),
    rank=st.integers(1, 64),
    micro_batch=st.integers(1, 8),
    sequence=st.integers(16, 4096),
    checkpointing=st.booleans(),
    dropout=st.booleans(),
    autocast=st.booleans(),
    kbit_prepared=st.booleans(),
    fused_norms=st.booleans(),
    fused_mlp=st.booleans(),
    adapter=st.sampled_from(["float32", "bfloat16"]),
    method=st.sampled_from(["lora", "dora", "adalora"]),
    logits_upcast=st.booleans(),
    logits_held=st.booleans(),
    padding_mask=st.booleans(),
    embeddings_trained=st.booleans(),
    loss=st.sampled_from(["eager", "fused", "chunked"]),
    attention=st.sampled_from(["flash", "sdpa", "eager"]),
    optimizer=st.sampled_from(["adamw", "adamw_foreach", "adamw_8bit", "sgd"]),
    accumulation=st.integers(1, 2),
)
FULL = st.builds(
    Plan,
    method=st.just("full"),
    base=st.sampled_from(["float32", "bfloat16"]),
    micro_batch=st.integers(1, 64),
    sequence=st.integers(16, 131_072),
    checkpointing=st.booleans(),
    autocast=st.booleans(),
    loss=st.sampled_from(["eager", "fused", "chunked"]),
    attention=st.sampled_from(["flash", "sdpa", "eager"]),
    optimizer=st.sampled_from(["adamw", "adamw_foreach", "adamw_8bit", "sgd"]),
    accumulation=st.integers(1, 2),
)
MODELS = st.sampled_from(sorted(POPULAR_MODELS))
LARGEST = {
    "405B": popular_config("meta-llama/Llama-3.1-405B"),
    "DeepSeek-V3": {"model_type": "deepseek_v3"},
}
COSTS = {
    "dropout": (False, True),
    "padding_mask": (False, True),
    "accumulation": (1, 2),
    "logits_held": (False, True),
    "embeddings_trained": (False, True),
    "attention": ("sdpa", "eager"),
    "method": ("lora", "dora"),
    "fused_norms": (True, False),
    "fused_mlp": (True, False),
    "loss": ("fused", "eager"),
    "kbit_prepared": (False, True),
    "optimizer": ("adamw", "adamw_foreach"),
    "double_quant": (True, False),
    "checkpoint_offload": (True, False),
}
"""Field of a plan → two values, of which the second never needs less."""


def shape_of(model: str) -> ModelShape:
    shape = shape_from_config(popular_config(model))
    assert shape is not None
    return shape


@given(model=MODELS, plan=PLANS)
def test_components_add_up(model: str, plan: Plan):
    estimate = estimate_memory(shape_of(model), plan)
    parts = [getattr(estimate, name) for name in COMPONENTS]
    assert all(isinstance(part, int) and part >= 0 for part in parts)
    assert estimate.allocated == sum(parts)
    assert estimate.needed >= estimate.device >= estimate.reserved >= estimate.allocated >= estimate.weights


@given(model=MODELS, plan=PLANS, name=st.sampled_from(["micro_batch", "sequence", "rank", "start_factor"]))
def test_more_of_anything_never_needs_less(model: str, plan: Plan, name: str):
    shape = shape_of(model)
    more = replace(plan, **{name: 2 * getattr(plan, name)})
    assert estimate_memory(shape, more).allocated >= estimate_memory(shape, plan).allocated
    assert estimate_memory(shape, more).device >= estimate_memory(shape, plan).device


@given(model=MODELS, plan=PLANS | FULL, name=st.sampled_from(sorted(COSTS)))
def test_what_costs_memory_never_needs_less(model: str, plan: Plan, name: str):
    assume(name != "method" or plan.method != "full")
    assume(name != "attention" or plan.sequence >= 512)  # of a few tokens, eager keeps less
    less, more = (estimate_memory(shape_of(model), replace(plan, **{name: value})) for value in COSTS[name])
    assert less.allocated <= more.allocated


@given(plan=PLANS | FULL, vocabulary=st.integers(1000, 256_000), mlp=st.integers(1000, 30_000))
def test_a_wider_model_never_needs_less(plan: Plan, vocabulary: int, mlp: int):
    config = {**popular_config("meta-llama/Llama-3.2-3B"), "vocab_size": vocabulary, "intermediate_size": mlp}
    narrow = estimate_memory(shape_from_config(config), plan)
    for name in ("vocab_size", "intermediate_size"):
        wide = estimate_memory(shape_from_config({**config, name: 2 * config[name]}), plan)
        assert wide.allocated >= narrow.allocated
        assert wide.device >= narrow.device


@pytest.mark.parametrize("name", sorted(LARGEST))
@given(plan=PLANS | FULL)
def test_the_largest_models_are_planned_too(name: str, plan: Plan):
    shape = shape_from_config(LARGEST[name])
    alone, cut = (estimate_memory(shape, replace(plan, **many)) for many in ({}, {"sharding": "fsdp", "devices": 64}))
    assert cut.weights == -(-alone.weights // 64) or plan.method == "full"
    assert alone.allocated > shape.parameters // 2
    parts = [getattr(cut, part) for part in COMPONENTS]
    assert cut.allocated == sum(parts)
    assert min(parts) >= 0


@given(model=MODELS, plan=FULL)
def test_training_everything_needs_more_than_an_adapter(model: str, plan: Plan):
    assume(plan.optimizer != "sgd")  # then only gradients differ, and they may not be there at the peak
    shape = shape_of(model)
    adapter = replace(plan, method="lora", adapter=plan.base, dropout=False, targets=("q_proj",), rank=1)
    assert estimate_memory(shape, plan).allocated >= estimate_memory(shape, adapter).allocated


def test_foreach_adamw_holds_five_times_the_weights_in_a_full_step():
    shape = shape_of("mistralai/Mistral-7B-v0.1")
    plan = Plan(method="full", optimizer="adamw_foreach", autocast=False, sequence=16)
    estimate = estimate_memory(shape, plan)
    assert estimate.peak == "step"
    assert estimate.allocated == 5 * 2 * shape.parameters
    fused = estimate_memory(shape, replace(plan, optimizer="adamw"))
    assert 4 * 2 * shape.parameters < fused.allocated < 4.2 * 2 * shape.parameters


def test_fsdp_holds_what_trains_in_float32_under_mixed_precision_and_deepspeed_a_copy():
    shape = shape_of("mistralai/Mistral-7B-v0.1")
    plan = Plan(method="full", sharding="fsdp", devices=4, autocast=True)
    assert estimate_memory(shape, plan).weights == shape.parameters
    assert estimate_memory(shape, plan).optimizer == 2 * shape.parameters
    assert estimate_memory(shape, replace(plan, autocast=False)).weights == -(-shape.parameters // 2)
    zero = estimate_memory(shape, replace(plan, sharding="zero3"))
    assert zero.optimizer == 12 * shape.parameters // 4


def test_what_errs_more_or_was_never_measured_is_given_more_room():
    mixtral, mistral = shape_of("mistralai/Mixtral-8x7B-v0.1"), shape_of("mistralai/Mistral-7B-v0.1")
    sharded = Plan(sharding="fsdp", devices=2)
    assert estimate_memory(mistral, sharded).margin == estimate_memory(mixtral, Plan()).margin == MARGIN
    for shape, plan in (
        (mixtral, sharded),
        (mistral, replace(sharded, method="full")),
        (mistral, replace(sharded, sharding="zero3")),
    ):
        assert estimate_memory(shape, plan).margin > MARGIN


@given(plan=PLANS, layers=st.integers(2, 40))
def test_more_layers_never_need_less(plan: Plan, layers: int):
    config = dict(popular_config("meta-llama/Llama-3.2-3B"))
    fewer, more = (shape_from_config({**config, "num_hidden_layers": number}) for number in (layers, layers + 1))
    assert estimate_memory(more, plan).allocated >= estimate_memory(fewer, plan).allocated


@given(model=MODELS, plan=PLANS, sharding=st.sampled_from(["zero2", "zero3", "fsdp"]), devices=st.integers(2, 8))
def test_more_devices_never_need_more_each(model: str, plan: Plan, sharding: str, devices: int):
    shape, some = shape_of(model), replace(plan, sharding=sharding, devices=devices)
    more = replace(some, devices=2 * devices)
    assert estimate_memory(shape, more).device <= estimate_memory(shape, some).device
    together = estimate_memory(shape, replace(plan, sharding="ddp", devices=devices))
    for name in ("weights", "quantisation", "adapters"):
        assert getattr(estimate_memory(shape, some), name) <= getattr(together, name)


@given(model=MODELS, plan=PLANS)
def test_checkpointing_never_needs_more(model: str, plan: Plan):
    shape = shape_of(model)
    kept, without = (estimate_memory(shape, replace(plan, checkpointing=on)) for on in (True, False))
    assert kept.allocated <= without.allocated


@given(model=MODELS)
def test_packing_never_makes_weights_larger(model: str):
    shape = shape_of(model)
    sizes = [estimate_memory(shape, Plan(base=base)) for base in ("float32", "bfloat16", "int8", "nf4")]
    held = [estimate.weights + estimate.quantisation for estimate in sizes]
    assert held == sorted(held, reverse=True)


def test_packing_leaves_unpacked_experts_alone():
    shape = shape_of("mistralai/Mixtral-8x7B-v0.1")
    packed, whole, all_packed = (
        estimate_memory(shape, plan).weights
        for plan in (Plan(base="nf4"), Plan(), Plan(base="nf4", experts_quantised=True))
    )
    assert packed > 0.95 * whole
    assert all_packed < 0.27 * whole


def test_shared_experts_and_dense_layers_count_in_a_mixture_too():
    block = block_of(shape_from_config(LARGEST["DeepSeek-V3"]))
    routed, shared, dense = 8 * 2048 * 58, 2048 * 58, 18_432 * 3
    assert block.mlp == round((routed + shared + dense) / 61)


def test_a_bare_size_is_near_the_model_of_that_size():
    for model in ("meta-llama/Llama-3.2-1B", "meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-70B"):
        shape = shape_of(model)
        bare = ModelShape(parameters=shape.parameters, source="key")
        for plan in (Plan(), Plan(base="nf4", sequence=2048, micro_batch=2)):
            assert estimate_memory(bare, plan).device == pytest.approx(estimate_memory(shape, plan).device, rel=0.15)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"base": "nf5"}, "nf4"),
        ({"rank": 0}, "from 1"),
        ({"sharding": "fsdp"}, "2 devices"),
        ({"method": "full", "base": "nf4"}, "packed weights"),
    ],
)
def test_a_wrong_plan_is_refused(wrong: dict, says: str):
    with pytest.raises(ConfigError, match=says):
        Plan(**wrong)


@pytest.mark.parametrize(
    ("model", "billions"),
    [("Qwen/Qwen3-30B-A3B", 30.53), ("google/gemma-2-9b", 9.24), ("mistralai/Magistral-Small-2506", 23.57)],
)
def test_popular_configs_have_the_published_sizes(model: str, billions: float):
    assert shape_of(model).parameters / 1e9 == pytest.approx(billions, abs=0.01)


def test_every_popular_config_has_a_shape_whose_block_is_whole():
    for model in POPULAR_MODELS:
        block = block_of(shape_of(model))
        read = {projection.reads for projection in block.projections}
        assert {"attention_input", "attention_output"} <= read
        assert block.mlp > 0
        assert block.query >= block.key_value > 0


def test_the_method_cards_example_and_constants_are_true(capsys: pytest.CaptureFixture[str]):
    card = Path(memory.__file__).with_name("memory.md").read_text(encoding="utf8")
    exec(compile(re.search(r"```python\n(.*?)```", card, flags=re.DOTALL)[1], "memory.md", "exec"), {})
    assert capsys.readouterr().out.startswith(("loss", "block", "step"))
    for name, value, unit in re.findall(r"\| `([A-Z_]+)` \| ([\d.]+)( GiB)? \|", card):
        assert getattr(memory, name) == float(value) * (GIB if unit else 1)
    assert f"**{memory.MARGIN * 100:.0f} %**" in card
