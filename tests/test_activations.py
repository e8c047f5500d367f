"""What autograd saves, counted on real models: one more block costs what the estimate says, to the byte.

A CPU differs from CUDA in two places, for which the counts are corrected: dropout keeps its mask in the type of its
input instead of booleans, and LayerNorm its statistics instead of float32.
"""

import gc
import weakref
from dataclasses import replace
from functools import cache

import bitsandbytes as bnb
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

from hf_lora_ext.memory.activations import cast_weights, kept_checkpoints, saved_by_layer
from hf_lora_ext.memory.anatomy import Block, block_of, is_target
from hf_lora_ext.memory.plans import Plan
from hf_lora_ext.models.families import linear_targets, shape_from_config

SIZES = {"hidden_size": 64, "intermediate_size": 176, "num_attention_heads": 4}
GROUPED = {**SIZES, "num_key_value_heads": 2}
WIDE_HEADS = {**GROUPED, "head_dim": 24}
GPT2 = {"n_embd": 64, "n_head": 4, "n_inner": 176, "resid_pdrop": 0.0, "attn_pdrop": 0.0, "embd_pdrop": 0.0}
BERT = {**SIZES, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
EXPERTS = {"num_experts_per_tok": 2}
TINY = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "smollm3", "olmo2", "phi3"), GROUPED),
    **dict.fromkeys(("qwen3", "gemma", "gemma2", "gemma3_text"), WIDE_HEADS),
    "phi": {**SIZES, "num_key_value_heads": 4},
    "gpt_neox": SIZES,
    "gpt2": GPT2,
    "gpt_bigcode": {**GPT2, "multi_query": True},
    "bloom": {"hidden_size": 64, "n_head": 4},
    "opt": {"hidden_size": 64, "ffn_dim": 176, "num_attention_heads": 4, "dropout": 0.0, "word_embed_proj_dim": 64},
    **dict.fromkeys(("bert", "roberta"), BERT),
    "mixtral": {**GROUPED, **EXPERTS, "num_local_experts": 4},
    "qwen3_moe": {**WIDE_HEADS, **EXPERTS, "num_experts": 4, "moe_intermediate_size": 48, "norm_topk_prob": True},
}
ENCODERS = {"bert", "roberta"}
EAGER_ALONE = {"gemma2", "bloom"}
"""transformers has no sdpa for these."""
ROUTER_BYTES = 32
"""How far a router's own bytes a token may be off; they are a thousandth of a real block."""
PLAIN = Plan(
    base="bfloat16", adapter="bfloat16", rank=8, micro_batch=2, sequence=32, dropout=False, autocast=False,
    checkpointing=False, attention="eager",
)  # fmt: skip


def config_of(family: str, layers: int, attention: str):
    named = "n_layer" if "n_embd" in TINY[family] or family == "bloom" else "num_hidden_layers"
    more = {named: layers, "vocab_size": 128, "attn_implementation": attention}
    more |= {} if family in ENCODERS else {"use_cache": False}
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return AutoConfig.for_model(family, **{**TINY[family], **more, **tokens})


def tiny_model(family: str, plan: Plan, layers: int):
    torch.manual_seed(0)
    config = config_of(family, layers, plan.attention)
    model_class = AutoModelForMaskedLM if family in ENCODERS else AutoModelForCausalLM
    model = model_class.from_config(config).to(getattr(torch, plan.base))
    if plan.method != "full":
        targets = linear_targets(shape_from_config(config.to_dict())) if plan.targets == "all-linear" else plan.targets
        adapter = LoraConfig(
            r=plan.rank,
            target_modules=list(targets),
            lora_dropout=0.1 if plan.dropout else 0.0,
            use_dora=plan.method == "dora",
            fan_in_fan_out=family == "gpt2",
            task_type=None if family in ENCODERS else "CAUSAL_LM",
        )
        model = get_peft_model(model, adapter, autocast_adapter_dtype=False)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data = parameter.data.to(getattr(torch, plan.adapter))
        model.enable_input_require_grads()
    if plan.checkpointing:
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    return model.train()


def saved_bytes(family: str, plan: Plan, layers: int) -> int:
    """Bytes of the unique storages that autograd saves in a forward pass, parameters and inputs left out."""
    model = tiny_model(family, plan, layers)
    known = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    found: dict[int, int] = {}
    alive = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            alive.append(tensor)  # an address is unique only while its storage lives
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    base = model.get_base_model() if plan.method != "full" else model
    tokens = torch.randint(1, 128, (plan.micro_batch, plan.sequence))
    narrow = torch.autocast("cpu", dtype=getattr(torch, plan.compute), enabled=plan.autocast)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), narrow:
        getattr(base, base.base_model_prefix)(input_ids=tokens)
    return sum(found.values())


@cache
def counted(family: str, plan: Plan) -> int:
    """Bytes that one more block saves."""
    return saved_bytes(family, plan, 3) - saved_bytes(family, plan, 2)


def tiny_block(family: str) -> Block:
    return block_of(shape_from_config(config_of(family, 3, "eager").to_dict()))


def on_cuda(family: str, plan: Plan) -> int:
    """Bytes that one more block would save on CUDA."""
    block = tiny_block(family)
    dropped = (
        sum(p.in_features * p.each for p in block.projections if is_target(p, plan.targets)) if plan.dropout else 0
    )
    masks = (plan.adapter_bytes - 1) * dropped
    statistics = 2 * (4 - plan.compute_bytes) * block.habits.norms if block.habits.norm == "layer" else 0
    return counted(family, plan) + round((statistics - masks) * plan.tokens)


def estimated(family: str, plan: Plan) -> int:
    block = tiny_block(family)
    return saved_by_layer(block, plan).total + cast_weights(block, plan)


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", sorted(TINY))
def test_every_family_saves_what_the_estimate_says(family: str, attention: str, method: str):
    if family in EAGER_ALONE and attention == "sdpa":
        attention = "eager"
    plan = replace(PLAIN, attention=attention, method=method)
    router = ROUTER_BYTES * plan.tokens if tiny_block(family).experts else 0
    assert estimated(family, plan) == pytest.approx(on_cuda(family, plan), rel=0, abs=router)


@pytest.mark.parametrize("family", ["llama", "gemma2", "phi3", "qwen3"])
@pytest.mark.parametrize("method", ["lora", "dora", "full"])
@pytest.mark.parametrize("adapter", ["float32", "bfloat16"])
@pytest.mark.parametrize("base", ["float32", "bfloat16"])
def test_autocast_saves_what_the_estimate_says(family: str, method: str, adapter: str, base: str):
    if base == "float32" and adapter == "bfloat16":
        adapter = "float32"  # an adapter is never narrower than its base
    plan = replace(PLAIN, base=base, adapter=adapter, method=method, autocast=True)
    assert estimated(family, plan) == on_cuda(family, plan)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("targets", [("q_proj", "v_proj"), "all-linear"], ids=["qv", "all"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(
    ("compute", "adapter"), [("bfloat16", "float32"), ("bfloat16", "bfloat16"), ("float32", "float32")]
)
@pytest.mark.parametrize("dropout", [True, False], ids=["dropout", "plain"])
def test_targets_types_and_dropout_save_what_the_estimate_says(
    family: str, targets, attention: str, compute: str, adapter: str, dropout: bool
):
    plan = replace(
        PLAIN, base=compute, compute=compute, adapter=adapter, targets=targets, attention=attention, dropout=dropout
    )
    assert estimated(family, plan) == on_cuda(family, plan)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "mixtral"])
@pytest.mark.parametrize(("compute", "bytes_each"), [("bfloat16", 2), ("float32", 4)])
def test_a_checkpointed_block_keeps_its_input_alone(family: str, compute: str, bytes_each: int):
    plan = replace(PLAIN, base=compute, compute=compute, adapter=compute, checkpointing=True)
    stream = 64 * bytes_each * plan.tokens
    assert kept_checkpoints(tiny_block(family), plan) == 3 * stream
    assert counted(family, plan) == stream


def test_layer_norm_under_autocast_widens_the_stream_of_packed_layers_alone():
    plan = replace(PLAIN, autocast=True, checkpointing=True, base="nf4")
    gpt2, llama = tiny_block("gpt2"), tiny_block("llama")
    assert kept_checkpoints(gpt2, plan) == 2 * kept_checkpoints(gpt2, replace(plan, base="bfloat16"))
    assert kept_checkpoints(llama, plan) == kept_checkpoints(llama, replace(plan, base="bfloat16"))


@pytest.mark.parametrize(("bits", "keeps"), [(8, True), (4, False)])
def test_packed_layers_keep_their_input_in_8_bits_alone(bits: int, keeps: bool):
    packed = bnb.nn.Linear8bitLt(64, 64, has_fp16_weights=False) if bits == 8 else bnb.nn.Linear4bit(64, 64)
    packed.load_state_dict(torch.nn.Linear(64, 64).state_dict())
    given = torch.randn(8, 64, dtype=torch.float16, requires_grad=True) * 2
    alive = weakref.ref(given)
    result = packed.to("cpu").requires_grad_(False)(given)
    assert result.grad_fn is not None
    del given
    gc.collect()
    assert (alive() is not None) == keeps
    plan = replace(PLAIN, base="int8" if bits == 8 else "nf4")
    assert (saved_by_layer(tiny_block("llama"), plan).inputs > 0) == keeps
