"""What a preset adapts: in mixtures exactly the attention, the MLPs and, when asked, the experts; of tokens the new."""

import re
from pathlib import Path

import pytest
from small_runs import EIGHT, logits, losses, reloaded, trainer_for

from hf_lora_ext import ConfigError, preset
from hf_lora_ext.choices.methods import INITS
from hf_lora_ext.choices.wishes import LoraWishes
from hf_lora_ext.hardware import Hardware
from hf_lora_ext.models.families import shape_from_config
from hf_lora_ext.models.sizes import ModelShape
from hf_lora_ext.models.targets import adapter_parameters, check_targets, rank_warnings, token_layers
from hf_lora_ext.presets.preset import decide

CPU = Hardware(kind="cpu")
SMALL = {
    "vocab_size": 258, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.1, "num_experts_per_tok": 2,
    "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1,
}  # fmt: skip
ROUTED = SMALL | {"num_experts": 4, "moe_intermediate_size": 16, "mlp_only_layers": [1]}
MIXTURES = {
    "mixtral": SMALL | {"num_local_experts": 4},
    "qwen2_moe": ROUTED | {"shared_expert_intermediate_size": 24},
    "qwen3_moe": ROUTED | {"head_dim": 8},
    "deepseek_v3": SMALL | {
        "n_routed_experts": 4, "moe_intermediate_size": 16, "n_group": 2, "topk_group": 1, "kv_lora_rank": 8,
        "q_lora_rank": 12, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8, "first_k_dense_replace": 1,
        "num_key_value_heads": 4,
    },
    "gpt_oss": SMALL | {
        "num_local_experts": 4, "head_dim": 8, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}
    },
}  # fmt: skip


@pytest.fixture(scope="module", params=MIXTURES)
def mixture(request, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random mixture of experts of one family, with the tiny model's tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    folder = tmp_path_factory.mktemp("models") / request.param
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model(request.param, **MIXTURES[request.param])).save_pretrained(
        folder
    )
    tokenizer.save_pretrained(folder)
    return folder


def trained(p, folder: Path, steps: int, rate: float, rows=EIGHT):
    trainer = trainer_for(p, folder, steps, rows, learning_rate=rate)
    trainer.before = {name: w.detach().clone() for name, w in trainer.model.named_parameters()}
    trainer.train()
    return trainer


def adapted_modules(model) -> set[str]:
    """Names of what trains, from the block's inside on."""
    names = (name for name, w in model.named_parameters() if w.requires_grad)
    ours = (re.sub(r"(\.base_layer)*\.lora_[AB].*", "", name) for name in names)
    return {re.sub(r".*layers\.\d+\.", "", name) for name in ours}


def changed(trainer) -> set[str]:
    import torch

    now = dict(trainer.model.named_parameters())
    return {name for name, w in trainer.before.items() if not torch.equal(w, now[name])}


# peft 0.21 looks for the patterns of ranks among modules only, and says that those of parameters are ignored.
FALSE_ALARM = "ignore:The following (rank|alpha)_pattern keys did not match any targeted module:RuntimeWarning"


@pytest.mark.filterwarnings(FALSE_ALARM)
@pytest.mark.parametrize("experts", [False, True])
def test_a_mixture_trains_what_the_preset_says_and_reloads_with_peft_alone(
    mixture: Path, experts: bool, tmp_path: Path
):
    p = preset(str(mixture), rank=4, experts=experts, dropout=None if experts else 0.0)
    trainer = trained(p, tmp_path, steps=20, rate=1e-2)
    assert losses(trainer)[-1] < losses(trainer)[0]

    modules = adapted_modules(trainer.model)
    assert ("mlp.experts" in modules) == experts
    assert not any("gate" == m.rpartition(".")[2] or "router" in m or "lm_head" in m for m in modules)
    linear = {x.path for x in p.shape.linear if x.is_target}
    as_parameters = {name.removesuffix(".weight") for name in p.experts if name.endswith(".weight")}
    assert modules == linear | as_parameters | ({"mlp.experts"} if experts else set())

    trainable = {name: w.numel() for name, w in trainer.model.named_parameters() if w.requires_grad}
    assert sum(trainable.values()) == adapter_parameters(p.shape, p.rank, p.targets, p.experts, p.expert_rank)
    assert changed(trainer) == set(trainable)

    trained_logits = logits(trainer.model)
    trainer.save_model(str(tmp_path / "adapter"))
    assert (trained_logits - logits(reloaded(p, tmp_path / "adapter"))).abs().max() == 0


def test_with_experts_every_weight_of_the_blocks_but_the_router_is_adapted(mixture: Path):
    p = preset(str(mixture), experts=True)
    named = {x.path for x in p.shape.linear if x.is_target} | {name.removesuffix(".weight") for name in p.experts}
    left = {x.path for x in p.shape.linear} | {x.name for x in p.shape.expert_weights}
    assert {name.rpartition(".")[2] for name in left - named} <= {"gate", "router", "shared_expert_gate"}


def test_the_experts_rank_is_shared_among_those_that_a_token_meets():
    shape = shape_from_config({"model_type": "mixtral"})
    p = decide(shape, CPU, wishes=LoraWishes(experts=True))
    assert (p.rank, p.expert_rank, p.dropout) == (32, 16, 0.0)
    config = p.peft_config
    assert set(config.rank_pattern.values()) == {16}
    assert set(config.alpha_pattern.values()) == {p.alpha // 2}
    assert set(config.target_parameters) == {"mlp.experts.gate_up_proj", "mlp.experts.down_proj"}
    narrow = decide(shape_from_config({"model_type": "qwen3_moe"}), CPU, wishes=LoraWishes(experts=True, rank=4))
    assert narrow.expert_rank == 1


def test_rslora_keeps_its_alpha_for_experts():
    p = decide(shape_from_config({"model_type": "mixtral"}), CPU, method="rslora", wishes=LoraWishes(experts=True))
    assert set(p.peft_config.alpha_pattern.values()) == {p.alpha}


def test_explain_says_what_experts_cost_and_that_qlora_does_not_shrink_them():
    shape = shape_from_config({"model_type": "mixtral"})

    def why(**given):
        p = decide(shape, CPU, **given)
        return next(choice.why for choice in p.choices if choice.name == "experts")

    more = shape.lora_parameters(16, (), ("mlp.experts.gate_up_proj", "mlp.experts.down_proj"))
    assert f"{more:,} parameters more" in why()
    assert "QLoRA will not shrink them" in why(method="qlora", wishes=LoraWishes(experts=True))
    assert "none that are known" in next(
        choice.why for choice in decide(shape_from_config({"model_type": "llama"}), CPU).choices
        if choice.name == "experts"
    )  # fmt: skip


def test_a_quantised_base_leaves_the_mlps_out_that_only_parameters_reach():
    shape = shape_from_config({"model_type": "deepseek_v3"})
    plain = decide(shape, CPU, wishes=LoraWishes(experts=True))
    packed = decide(shape, CPU, method="qlora", wishes=LoraWishes(experts=True))
    assert any(name.endswith(".weight") for name in plain.experts)
    assert not any(name.endswith(".weight") for name in packed.experts)


# --- new tokens -------------------------------------------------------------------------------------------------

TOOLS = ["<|tool|>", "<|end_tool|>"]
CALLS = [{"prompt": f"What is {n} plus one?\n", "completion": f"<|tool|>{n + 1}<|end_tool|>"} for n in range(8)]


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def resized(request, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[int]]:
    """A random Llama with two tokens more than its tokenizer came with, and their ids."""
    import torch
    from transformers import AutoConfig, AutoTokenizer, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    config = AutoConfig.from_pretrained(
        tiny_model, hidden_size=64, intermediate_size=128, head_dim=16, initializer_range=0.1,
        tie_word_embeddings=request.param,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    tokenizer.add_tokens(TOOLS, special_tokens=True)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    folder = tmp_path_factory.mktemp("models") / "resized"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder, tokenizer.convert_tokens_to_ids(TOOLS)


@pytest.mark.filterwarnings("ignore:.*quantization.*:UserWarning")
@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_only_the_new_tokens_rows_train_and_reload(method: str, resized, tmp_path: Path):
    from safetensors.torch import load_file

    folder, ids = resized
    p = preset(str(folder), method=method, new_tokens=ids)
    trainer = trained(p, tmp_path, steps=30, rate=2e-2, rows=CALLS)
    assert losses(trainer)[-1] < losses(trainer)[0] / 2

    base = trainer.model.get_base_model()
    for layer in (base.get_input_embeddings(), base.get_output_embeddings()):
        moved = (layer.weight != layer.original_module.weight).any(dim=1).nonzero().flatten().tolist()
        assert moved == ids
    rows = [name for name, w in trainer.model.named_parameters() if w.requires_grad and "lora_" not in name]
    assert len(rows) == (1 if p.shape.tied else 2)
    assert changed(trainer) >= set(rows)

    before = logits(trainer.model, (5, ids[0], 17, ids[1]))
    trainer.save_model(str(tmp_path / "adapter"))
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert all(tuple(w.shape) == (2, 64) for name, w in saved.items() if "lora_" not in name)
    assert sum("lora_" not in name for name in saved) == len(rows)
    assert (before - logits(reloaded(p, tmp_path / "adapter"), (5, ids[0], 17, ids[1]))).abs().max() == 0


@pytest.mark.parametrize(
    "wishes", [{"init": "pissa"}, {"init": "eva"}, {"optimizer": "loraplus"}, {"method": "dora"}], ids=str
)
def test_new_tokens_go_with_other_choices_through_save_and_resume(wishes: dict, resized, tmp_path: Path):
    folder, ids = resized
    p = preset(str(folder), new_tokens=ids, rank=4, dropout=0.0, **wishes)
    common = {"learning_rate": 5e-3, "save_strategy": "steps", "save_steps": 3}
    tokens = (5, ids[0], 17, ids[1])
    straight = trainer_for(p, tmp_path, 6, CALLS, **common)
    straight.train()
    answers = logits(straight.model, tokens)
    straight.save_model(str(tmp_path / "adapter"))
    assert (answers - logits(reloaded(p, tmp_path / "adapter"), tokens)).abs().max() == 0
    if "init" in wishes and INITS[wishes["init"]].changes_base:
        assert (answers - logits(reloaded(p, tmp_path / "plain_adapter"), tokens)).abs().max() < 1e-4
    resumed = trainer_for(p, tmp_path, 6, CALLS, **common)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert (answers - logits(resumed.model, tokens)).abs().max() == 0


def test_token_rows_are_named_by_family_where_the_head_has_weights_of_its_own():
    def layers(family, tied):
        return token_layers(shape_from_config({"model_type": family, "tie_word_embeddings": tied}), (7, 8))

    assert layers("llama", True) == [7, 8]
    assert layers("llama", False) == {"embed_tokens": [7, 8], "lm_head": [7, 8]}
    assert layers("gpt_neox", False) == {"embed_in": [7, 8], "embed_out": [7, 8]}
    assert token_layers(shape_from_config({"model_type": "llama"}), ()) is None


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        ({"experts": True, "dropout": 0.1}, "dropout does not work with target_parameters: .*; use dropout=0"),
        ({"experts": True, "method": "dora"}, "dora does not work with target_parameters: .*; use method lora"),
        ({"experts": True, "method": "adalora"}, "adalora does not work with target_parameters"),
        ({"experts": True, "init": "pissa"}, "init pissa does not work with target_parameters"),
        ({"experts": True, "sharding": "fsdp"}, "fsdp does not work with target_parameters"),
        ({"experts": True, "method": "prefix"}, "method prefix has no experts"),
        ({"experts": "all"}, "experts='all' must be True or False"),
        ({"new_tokens": ["<|tool|>"]}, r"must be token ids; give tokenizer\.convert_tokens_to_ids"),
        ({"new_tokens": []}, "must be token ids"),
        ({"new_tokens": [5, 5]}, "names a token twice"),
        ({"new_tokens": [5], "method": "adalora"}, "adalora does not work with new_tokens"),
    ],
)
def test_what_cannot_be_adapted_is_refused_before_the_model_is_looked_up(wishes: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        preset("no/such-model-anywhere", **wishes)


def test_what_the_model_does_not_have_is_refused_with_what_to_do():
    with pytest.raises(ConfigError, match="no experts are known; leave it out, or name them in a LoraConfig"):
        preset("7B", experts=True)
    with pytest.raises(ConfigError, match=r"new_tokens needs to know .*; give a model's folder"):
        decide(ModelShape(parameters=7 * 10**9, source="the size key 7B"), CPU, wishes=LoraWishes(new_tokens=(5,)))


DENSE = shape_from_config(SMALL | {"model_type": "llama"})


@pytest.mark.parametrize("names", [("q_proj", "vproj"), ("model.layers.0.self_attn.q_prj",)])
def test_a_misspelt_target_is_refused_with_the_layer_that_was_meant(names: tuple[str, ...]):
    with pytest.raises(ConfigError, match=r"no layer 'vproj'; did you mean `v_proj`|'q_prj'; did you mean `q_proj`"):
        check_targets(DENSE, names)


@pytest.mark.parametrize("names", [None, "all-linear", ("q_proj", "lm_head"), ("embed_tokens",), ("in_proj", "score")])
def test_a_target_that_is_there_or_resembles_no_layer_passes(names):
    check_targets(DENSE, names)
    check_targets(ModelShape(parameters=7_000_000_000, source="a size key"), ("vproj",))


def test_a_rank_above_every_layers_smaller_side_is_warned_of():
    assert rank_warnings(DENSE, 32) == ()
    assert "more than 32 directions" in rank_warnings(DENSE, 33)[0].why
    assert [warning.name for warning in decide(DENSE, CPU, wishes=LoraWishes(rank=64)).warnings] == ["rank too high"]
    assert rank_warnings(ModelShape(parameters=7_000_000_000, source="a size key"), 10_000) == ()
