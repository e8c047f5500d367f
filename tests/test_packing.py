"""Packing and attention: where packed examples are kept apart, and what SFTTrainer makes of it."""

from pathlib import Path

import pytest
from small_runs import losses, trainer_for
from test_families import SMALL, real_config
from test_targets import MIXTURES

from hf_lora_ext import ConfigError, preset
from hf_lora_ext.choices.run import RunWishes
from hf_lora_ext.hardware import Hardware
from hf_lora_ext.models.attention import EAGER_ONLY, KEPT_APART, SEEN_TO_LEAK
from hf_lora_ext.models.families import FAMILIES, shape_from_config
from hf_lora_ext.presets.preset import decide

CPU = Hardware(kind="cpu")
DECODERS = sorted(name for name in FAMILIES if name not in {"bert", "roberta", "deberta-v2", "t5"})


def small_model(family: str, attention: str):
    import torch
    from transformers import AutoModelForCausalLM

    settings = MIXTURES.get(family) or SMALL[family][0]
    if family == "phi":
        settings = settings | {"hidden_size": 32}  # its rotary dimensions must be even
    torch.manual_seed(0)
    config = real_config(family, settings | {"initializer_range": 0.3})
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()


def leak(family: str, attention: str) -> float:
    """How far the logits of two examples in one row are from those of each alone."""
    import torch

    model = small_model(family, attention)
    one, two = torch.tensor([[5, 9, 17, 33, 12]]), torch.tensor([[7, 3, 40]])
    together, positions = torch.cat([one, two], 1), torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2]])
    with torch.no_grad():
        alone = torch.cat([model(one).logits, model(two).logits], 1)
        return float((model(together, position_ids=positions, use_cache=False).logits - alone).abs().max())


@pytest.mark.parametrize("family", DECODERS)
def test_packed_examples_see_each_other_exactly_in_the_families_where_packing_is_refused(family: str):
    kernels = ["eager"] if family in EAGER_ONLY else ["eager", "sdpa"]
    for attention in kernels:
        kept = leak(family, attention) < 1e-4
        assert kept == (family in KEPT_APART), f"{attention}: it belongs to {'KEPT_APART' if kept else 'SEEN_TO_LEAK'}"
    assert (family in SEEN_TO_LEAK) == (family not in KEPT_APART)


@pytest.mark.parametrize("family", DECODERS)
def test_the_attention_is_the_one_that_transformers_takes(family: str):
    from transformers import AutoModelForCausalLM

    settings = real_config(family, SMALL[family][0])
    model = AutoModelForCausalLM.from_config(settings)
    assert decide(shape_from_config(settings.to_dict()), CPU).attention == model.config._attn_implementation


def test_packing_trains_under_sdpa_with_the_loss_of_the_examples_apart(wide_model: Path, tmp_path: Path):
    apart = trainer_for(preset(str(wide_model), dropout=0.0), tmp_path, steps=1)
    packed = trainer_for(preset(str(wide_model), dropout=0.0, packing=True), tmp_path, steps=1)
    assert packed.padding_free
    assert len(packed.train_dataset) < len(apart.train_dataset)
    assert packed.model.config._attn_implementation == "sdpa"
    for trainer in (apart, packed):
        trainer.train()
    assert losses(packed)[0] == pytest.approx(losses(apart)[0], rel=1e-5)


def test_packing_is_on_by_itself_only_with_flash_attention():
    shape = shape_from_config({"model_type": "llama"})
    assert not decide(shape, CPU).packing
    assert decide(shape, CPU, run=RunWishes(attention="flash_attention_2")).packing
    why = next(c.why for c in decide(shape, CPU, run=RunWishes(packing=True)).choices if c.name == "packing")
    assert "sdpa computes the whole row" in why


@pytest.mark.parametrize("model", [{"model_type": "falcon"}, {"model_type": "gpt_oss"}, "7B"])
def test_packing_is_refused_where_examples_would_see_each_other(model, tmp_path: Path):
    with pytest.raises(ConfigError, match=r"see each other; set attention=flash_attention_2"):
        preset(model, packing=True)
    with pytest.raises(ConfigError, match=r"see each other; set attention=flash_attention_2"):
        preset(model).sft_config(str(tmp_path), packing=True)
    assert preset(model, packing=True, attention="flash_attention_2").packing
