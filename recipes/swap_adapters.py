"""Serve LoRA adapters of different ranks from one loaded base: switched, mixed in a batch, combined, rolled back.

Hardware: a CPU with two cores and 4 GiB of free memory.
Command:  python recipes/swap_adapters.py [NEW OTHER EARLIER-NEW]   (folders or Hub ids; else it trains its own)
"""

import sys
import time

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_lora_ext.data.stdlib_docstrings import docstring_examples
from hf_lora_ext.models.base_models import find_base_model


def trained(folder: str, base, tokenizer, rank: int, change, steps: int) -> str:
    """Train an adapter on changed docstrings; return its folder."""
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=rank, lora_alpha=32, target_modules="all-linear"))
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=3e-3)
    lines = (change(example["completion"]) for example in docstring_examples())
    for _ in range(steps):
        text = tokenizer(" ".join(next(lines) for _ in range(8)), truncation=True, max_length=64, return_tensors="pt")
        model(**text, labels=text["input_ids"]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    model.unload()
    return folder


def main(*given: str, name: str = "HuggingFaceTB/SmolLM2-135M-Instruct", out: str = "out/swap", steps: int = 8) -> None:
    """Show each way to use several adapters, with memory, time and an answer."""
    base, tokenizer = (k.from_pretrained(find_base_model(name).path) for k in (AutoModelForCausalLM, AutoTokenizer))
    plans = ("loud", 4, str.upper, steps), ("quiet", 16, str.lower, steps), ("loud-earlier", 4, str.upper, 2)
    new, other, earlier = given or [trained(f"{out}/{to}", base, tokenizer, *how) for to, *how in plans]

    def show(what: str, *adapters: str, **how) -> None:
        rows = tokenizer(["return the list of"] * len(adapters), return_tensors="pt")
        said = model.generate(**rows, max_new_tokens=8, do_sample=False, **how)[:, rows["input_ids"].shape[1] :]
        for adapter, text in zip(adapters, tokenizer.batch_decode(said), strict=True):
            size = sum(p.nbytes for n, p in model.named_parameters() if f".{adapter}." in n) / 2**20
            print(f"{what:<24} {adapter:<8} {size:5.1f} MiB  {text!r}")

    model = PeftModel.from_pretrained(base, new, adapter_name="new").eval()
    model.load_adapter(other, "other")  # of a Hub id, revision= names the version
    model.load_adapter(earlier, "earlier")
    model.add_weighted_adapter(["new", "other"], [0.5, 0.5], "blend", combination_type="cat")  # exact at any ranks
    for adapter in ("new", "other", "blend", "earlier"):  # the last is the rollback
        begun = time.perf_counter()
        model.set_adapter(adapter)
        show(f"switched in {1000 * (time.perf_counter() - begun):.1f} ms", adapter)
    show("mixed in one batch", *(mix := ["new", "other", "__base__"]), adapter_names=mix)
    model.delete_adapter("new")  # and is forgotten


if __name__ == "__main__":
    main(*sys.argv[1:4])
