"""Rows of a table of measured peaks → shapes and plans: how its columns and notes are read, outside the package."""

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from hf_lora_ext.memory.plans import Plan
from hf_lora_ext.models.families import shape_from_config
from hf_lora_ext.models.popular_models import POPULAR_MODELS
from hf_lora_ext.models.sizes import ModelShape

GIB = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One measurement, read."""

    number: int
    """Row in the file, from 0."""
    tag: str
    """A, B or C: how far the row is to be trusted."""
    model: str
    family: str
    """What leave-one-out leaves out."""
    tool: str
    """Who ran it."""
    method: str
    metric: str
    """allocated, reserved or device."""
    measured: float
    """GiB."""
    card: float | None
    """GiB of the card that it ran on, where it is stated."""
    config: Mapping[str, object]
    """The model's config, as far as a shape needs it."""
    shape: ModelShape
    plan: Plan

    @property
    def configuration(self) -> str:
        """Family, method and tool: what siblings share that differ in batch, sequence or number of devices."""
        return f"{self.family} {self.plan.method} {self.plan.base} {self.tool}"


def _named(model: str) -> dict[str, object]:
    return dict(POPULAR_MODELS[model])


EXTRA = {
    "powerlm": {
        **{"model_type": "llama", "num_hidden_layers": 40, "hidden_size": 2304, "intermediate_size": 9216},
        **{"num_attention_heads": 36, "num_key_value_heads": 36, "vocab_size": 49_152, "tie_word_embeddings": True},
    },
    "santacoder": {
        **{"model_type": "gpt_bigcode", "n_layer": 24, "n_embd": 2048, "n_head": 16, "n_inner": 8192},
        **{"vocab_size": 49_280, "n_positions": 2048, "multi_query": True},
    },
    "stablelm": {
        **{"model_type": "gpt_neox", "num_hidden_layers": 16, "hidden_size": 4096, "intermediate_size": 16_384},
        **{"num_attention_heads": 32, "vocab_size": 50_688, "tie_word_embeddings": False},
    },
    "qwen-1.8b": {  # Qwen 1 has Qwen 1.5's sizes; its gated MLP's w1 and w2 are gate and up
        **{"model_type": "qwen2", "num_hidden_layers": 24, "hidden_size": 2048, "intermediate_size": 5504},
        **{"num_attention_heads": 16, "num_key_value_heads": 16, "vocab_size": 151_936, "tie_word_embeddings": False},
    },
    "qwen-7b": {
        **{"model_type": "qwen2", "num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size": 11_008},
        **{"num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 151_936, "tie_word_embeddings": False},
    },
    "qwen-14b": {
        **{"model_type": "qwen2", "num_hidden_layers": 40, "hidden_size": 5120, "intermediate_size": 13_696},
        **{"num_attention_heads": 40, "num_key_value_heads": 40, "vocab_size": 152_064, "tie_word_embeddings": False},
    },
    "afm-4.5b": {
        **{"model_type": "llama", "num_hidden_layers": 36, "hidden_size": 2560, "intermediate_size": 18_432},
        **{"num_attention_heads": 20, "num_key_value_heads": 4, "vocab_size": 128_004, "tie_word_embeddings": False},
    },
    "gpt-oss-20b": {
        **{"model_type": "gpt_oss", "num_hidden_layers": 24, "hidden_size": 2880, "intermediate_size": 2880},
        **{"num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 201_088},
        **{"num_local_experts": 32, "num_experts_per_tok": 4, "tie_word_embeddings": False},
    },
    "t0_3b": {  # T5 1.1 XL's sizes
        **{"model_type": "t5", "num_layers": 24, "d_model": 2048, "d_ff": 5120, "d_kv": 64, "num_heads": 32},
        **{"vocab_size": 32_128, "feed_forward_proj": "gated-gelu"},
    },
    "mt0-xxl": {  # mT5 XXL's sizes
        **{"model_type": "t5", "num_layers": 24, "d_model": 4096, "d_ff": 10_240, "d_kv": 64, "num_heads": 64},
        **{"vocab_size": 250_112, "feed_forward_proj": "gated-gelu"},
    },
    "bloomz-7b1": {"model_type": "bloom", "n_layer": 30, "hidden_size": 4096, "n_head": 32, "vocab_size": 250_880},
}
MODELS = [  # (pattern in the lower-cased name, config, family)
    (r"mixtral", _named("mistralai/Mixtral-8x7B-v0.1"), "mixtral"),
    (r"ministral-8b", _named("mistralai/Ministral-8B-Instruct-2410"), "ministral"),
    (r"magistral|devstral|mistral-small", _named("mistralai/Magistral-Small-2506"), "mistral-small"),
    (r"nemo", _named("mistralai/Mistral-Nemo-Base-2407"), "mistral-nemo"),
    (r"mistral-7b", _named("mistralai/Mistral-7B-v0.1"), "mistral"),
    (r"powerlm|granite.*3b", EXTRA["powerlm"], "powerlm"),
    (r"santacoder", EXTRA["santacoder"], "santacoder"),
    (r"stablelm", EXTRA["stablelm"], "stablelm"),
    (r"qwen-?1\.8b", EXTRA["qwen-1.8b"], "qwen1"),
    (r"qwen1\.5-1\.8b", EXTRA["qwen-1.8b"], "qwen1"),
    (r"qwen-7b", EXTRA["qwen-7b"], "qwen1"),
    (r"qwen-14b", EXTRA["qwen-14b"], "qwen1"),
    (r"qwen2(\.5)?-7b", _named("Qwen/Qwen2.5-7B"), "qwen2"),
    *[
        (rf"qwen2\.5-{s}b".replace(".5b", r"\.5b"), _named(f"Qwen/Qwen2.5-{s}B"), "qwen2")
        for s in ("0.5", "1.5", "3", "14", "32", "72")
    ],
    *[(rf"qwen3-{s}b(?!-a)", _named(f"Qwen/Qwen3-{s}B"), "qwen3") for s in ("0.6", "1.7", "4", "8", "14", "32")],
    (r"qwen3-30b-a3b", _named("Qwen/Qwen3-30B-A3B"), "qwen3_moe"),
    (r"llama-?3\.2-1b", _named("meta-llama/Llama-3.2-1B"), "llama3.2"),
    (r"llama-?3\.2-3b", _named("meta-llama/Llama-3.2-3B"), "llama3.2"),
    (r"llama-?3(\.1)?-8b", _named("meta-llama/Llama-3.1-8B"), "llama3"),
    (r"llama-?3(\.[13])?-70b", _named("meta-llama/Llama-3.1-70B"), "llama3"),
    (r"codellama-34b", _named("codellama/CodeLlama-34b-hf"), "codellama"),
    (r"llama-?30b", _named("huggyllama/llama-30b"), "llama1"),
    (r"tiny-?llama", _named("TinyLlama/TinyLlama-1.1B-Chat-v1.0"), "tinyllama"),
    (r"llama-?2?-70b|llama2 70", _named("meta-llama/Llama-2-70b-hf"), "llama2"),
    (r"llama-?2?-13b|llama2 13", _named("meta-llama/Llama-2-13b-hf"), "llama2"),
    (r"llama-?2?-7b|llama2-7b|^llama-7b", _named("meta-llama/Llama-2-7b-hf"), "llama2"),
    (r"gemma-2b", _named("google/gemma-2b"), "gemma"),
    (r"t0_3b", EXTRA["t0_3b"], "t5"),
    (r"mt0-xxl", EXTRA["mt0-xxl"], "t5"),
    (r"bloomz-7b1", EXTRA["bloomz-7b1"], "bloom"),
    (r"gemma-7b", _named("google/gemma-7b"), "gemma"),
    (r"gemma-2-9b", _named("google/gemma-2-9b"), "gemma2"),
    (r"gemma-2-2b", _named("google/gemma-2-2b"), "gemma2"),
    (r"gemma-2-27b", _named("google/gemma-2-27b"), "gemma2"),
    (r"phi-2", _named("microsoft/phi-2"), "phi"),
    (r"phi-3-mini", _named("microsoft/Phi-3-mini-4k-instruct"), "phi3"),
    (r"phi-4", _named("microsoft/phi-4"), "phi3"),
    (r"falcon-7b", _named("tiiuae/falcon-7b"), "falcon"),
    (r"pythia-1b", _named("EleutherAI/pythia-1b"), "pythia"),
    (r"pythia-6.9b", _named("EleutherAI/pythia-6.9b"), "pythia"),
    (r"afm-4\.5b", EXTRA["afm-4.5b"], "afm"),
    (r"gpt-oss-20b", EXTRA["gpt-oss-20b"], "gpt-oss"),
    *[(re.escape(name.lower()), dict(config), str(config["model_type"])) for name, config in POPULAR_MODELS.items()],
]

TARGETS = {
    "q,k,v,o": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "default": ("q_proj", "v_proj", "q", "v", "query_key_value"),
    "q,v": ("q_proj", "v_proj", "query_key_value"),
    "query,value": ("q_proj", "v_proj", "query_key_value"),
    "q_proj/v_proj": ("q_proj", "v_proj"),
    "v_proj": ("v_proj",),
    "c_attn": ("c_attn",),
    "attn": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "c_attn,c_proj,w1,w2": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    "q,k,v,up,down,gate": ("q_proj", "k_proj", "v_proj", "up_proj", "down_proj", "gate_proj"),
}


TOOLS = {
    "fms-acceleration": "fms", "litgpt": "litgpt", "method_comparison": "peft suite", "fsdp_qlora": "fsdp_qlora",
    "LLaMA-Factory": "llama-factory", "LlamaFactory": "llama-factory", "QwenLM": "qwen", "Qwen": "qwen",
    "unsloth": "unsloth", "axolotl": "axolotl", "peft:README": "peft examples", "torchtune": "torchtune",
}  # fmt: skip
"""Part of a row's source → who ran it."""


class Unreadable(Exception):
    """Why a row is not compared."""


def read_rows(path: str | Path) -> tuple[list[Row], list[tuple[int, str, str]]]:
    """Return the rows that a plan can be made of, and (row, model, reason) of those it cannot."""
    rows: list[Row] = []
    left: list[tuple[int, str, str]] = []
    with open(path, encoding="utf8", newline="") as file:
        for number, record in enumerate(csv.DictReader(file)):
            try:
                rows += _read(number, record)
            except Unreadable as error:
                left.append((number, f"{record['model']}, {record['method']}", str(error)))
    return rows, left


@cache
def _shape(model: str, params: float) -> tuple[ModelShape, str, Mapping[str, object]]:
    name = model.rpartition("/")[2].lower()
    if name == "llama 2":
        name = f"llama-2-{7 if params < 10 else 13 if params < 20 else 70}b"
    if name == "gemma-2b" and abs(params - 2.61) < 0.05:
        name = "gemma-2-2b"
    full = f"{name} {params:.0f}"
    for pattern, config, family in MODELS:
        if config and (re.search(pattern, name) or re.search(pattern, full) or re.fullmatch(pattern, model.lower())):
            shape = shape_from_config(config)
            if shape is not None:
                return shape, family, config
    raise Unreadable("no config of this model is known here")


def _read(number: int, record: dict[str, str]) -> list[Row]:
    tag = re.match(r"\[([A-Z])\]", record["notes"])
    shape, family, config = _shape(record["model"], float(record["params_b"] or 0))
    plan, tool = _plan(record), _tool(record["source"])
    if tool == "litgpt":
        shape = _as_litgpt_has_it(shape)
    if family == "t5":
        shape = _untied(shape)  # T5 1.1 has a head of its own, as transformers 4 built it
    notes, measured = record["notes"], float(record["measured_gib"])
    by_torch = "alloc rank0" in notes or tool in ("litgpt", "peft examples")
    metric = "allocated" if by_torch else "device"
    if "RESERVED" in notes or "reserved" in notes:
        metric = "reserved"
    common = {
        "number": number, "tag": tag[1] if tag else "?", "model": record["model"].rpartition("/")[2],
        "family": family, "method": record["method"].split(";")[0], "shape": shape, "plan": plan, "config": config,
        "tool": tool, "card": _card(record["gpus"]),
    }  # fmt: skip
    found = [Row(metric=metric, measured=measured, **common)]
    if smi := re.search(r"nvidia-smi=([\d.]+)GiB", notes):
        found.append(Row(metric="device", measured=float(smi[1]), **common))
    if (allocated := re.search(r"; alloc ([\d.]+)", notes)) and metric == "reserved":
        found.append(Row(metric="allocated", measured=float(allocated[1]), **common))
    return found


def _number(text: str, name: str) -> int:
    if "twitter_complaints" in text:
        return 64  # `max_length` of peft's causal example; the others pad to the longest tweet of a batch
    found = re.search(r"\d+", text)
    if not found:
        raise Unreadable(f"{name} is not stated ({text or 'empty'})")
    return int(found[0])


def _tool(source: str) -> str:
    """Return who ran it, in a word."""
    for part, tool in TOOLS.items():
        if part in source:
            return tool
    return re.sub(r"^https?://|/.*", "", source)


def _card(gpus: str) -> float | None:
    """Return the GiB of the card, as its name says."""
    found = re.search(r"-(\d+)GB", gpus)
    return float(found[1]) if found else None


def _untied(shape: ModelShape) -> ModelShape:
    head = (shape.vocabulary or 0) * (shape.hidden or 0) if shape.tied else 0
    return replace(shape, parameters=shape.parameters + head, tied=False)


def _as_litgpt_has_it(shape: ModelShape) -> ModelShape:
    """Return the shape of litgpt's own model: nothing kept from packing, the head untied, Phi's GELU one kernel."""
    linear = tuple(replace(layer, kept=0) for layer in shape.linear)
    family = "falcon" if shape.family == "phi" else shape.family
    return replace(_untied(shape), linear=linear, family=family)


def _plan(record: dict[str, str]) -> Plan:
    _refuse(record)
    return Plan(**_adapter(record), **_weights(record), **_batch(record), **_kernels(record), **_devices(record))


def _refuse(record: dict[str, str]) -> None:
    """Raise for rows that are no peak of a plan, or do not say which."""
    method = record["method"]
    if "MAX CONTEXT" in method:
        raise Unreadable("an inverse row: the longest sequence that fitted a card")
    if "component" in method:
        raise Unreadable("a component, not a peak")
    if re.search(r"BEFT|LN-tuning|MiSS|LoRA-FA|MiCA|emb\+lm_head$", method) and "emb" not in method:
        raise Unreadable("a method that the plan does not have")
    if not _targets(record) and not _is_full(record):
        raise Unreadable("targets are not stated")
    if not (record["rank"] or _is_full(record)):
        raise Unreadable("the rank is not stated")


def _is_full(record: dict[str, str]) -> bool:
    return "Full FT" in record["method"]


def _targets(record: dict[str, str]) -> str:
    return re.sub(r"\s*\(.*", "", record["targets"]).strip()


def _is_unsloth(record: dict[str, str]) -> bool:
    return "unsloth" in record["method"].lower()


def _number_of_devices(record: dict[str, str]) -> int:
    return int((re.match(r"(\d+)x", record["gpus"]) or [0, 1])[1])


def _framework(record: dict[str, str]) -> str:
    found = re.search(r"framework=([\w-]+)", record["notes"])
    return found[1] if found else ""


def _transformers(record: dict[str, str]) -> tuple[int, int] | None:
    """Return the version, where it is stated."""
    found = re.search(r"tf(\d)\.(\d+)", record["notes"])
    return (int(found[1]), int(found[2])) if found else None


def _adapter(record: dict[str, str]) -> dict[str, Any]:
    source, method, full, targets = record["source"], record["method"], _is_full(record), _targets(record)
    tool, litgpt = _tool(source), "litgpt" in source
    everything = full or targets in ("all", "all-linear") or "projection" in targets
    stated = [int(found) for found in re.findall(r"\d+", "1" if full else record["rank"])]
    # peft gave adapters the base's type until 0.12, of 2024, and the Qwen rows are of 2023
    in_bfloat16 = litgpt or "fsdp_qlora" in source or _is_unsloth(record) or tool == "qwen"
    return {
        "method": "full" if full else "dora" if "DoRA" in method else "adalora" if "AdaLoRA" in method else "lora",
        "rank": stated[-1],
        "start_factor": stated[0] // stated[-1],  # AdaLoRA: `init 64->target 32`
        "targets": "all-linear" if everything else TARGETS.get(targets, tuple(targets.split(","))),
        "embeddings_trained": "emb" in method,
        "adapter": "bfloat16" if in_bfloat16 or _base(record)[0] == "float16" else "float32",
        "dropout": "method_comparison" not in source,
        "fused_adapter": litgpt,
        "optimizer": _optimizer(record),
    }


def _optimizer(record: dict[str, str]) -> str:
    if "8bit" in record["optimizer"].lower():
        return "adamw_8bit"
    if "Paged" in record["optimizer"]:
        return "paged_adamw"
    # torch's own default from 2.0 on, which transformers had until 5; peft's examples are older
    return "adamw" if _tool(record["source"]) == "peft examples" else "adamw_foreach"


def _base(record: dict[str, str]) -> tuple[str, str]:
    """Return what the base is stored in, and computed in."""
    method, dtype = record["method"].lower(), record["dtype"]
    start = dtype[:4].lower()
    if "litgpt" in record["source"] and "mixed" in dtype:
        base, compute = "float32", "bfloat16"
    elif start == "fp32":
        base = compute = "float32"
    else:
        base = compute = "float16" if start in ("floa", "fp16") and "16" in dtype else "bfloat16"
    if "gptq" in method:
        return "gptq", compute
    return ("nf4" if "qlora" in method or "nf4" in method else base), compute


def _weights(record: dict[str, str]) -> dict[str, Any]:
    source, method, transformers = record["source"], record["method"], _transformers(record)
    litgpt, fms = "litgpt" in source, "fms-acceleration" in source
    base, compute = _base(record)
    kbit = "prepare_model_for_kbit" in method and "no prepare" not in method
    kbit = kbit or "baseline-peft-bnb" in _framework(record)
    return {
        "base": base,
        "compute": compute,
        "double_quant": not litgpt or "dq" in method.lower(),
        "experts_quantised": base in ("nf4", "gptq") and fms,
        # FSDP flattens parameters of one type; the rows with and without are equal there
        "kbit_prepared": kbit and _sharding(record) != "fsdp",
        "experts_looped": (transformers is not None and transformers[0] == 4) or fms,
        "keeps_packed_inputs": litgpt and base == "nf4",
        "head_packed": litgpt and base == "nf4",
    }


def _batch(record: dict[str, str]) -> dict[str, Any]:
    source, method, notes = record["source"], record["method"], record["notes"]
    return {
        "micro_batch": _number(record["batch"], "the batch"),
        "sequence": _number(record["seq_len"], "the sequence"),
        "accumulation": int((re.search(r"grad accum (\d+)", notes) or [0, 1])[1]),
        "checkpointing": record["grad_ckpt"].startswith("yes"),
        # its blog of 2023 is older than the offload
        "checkpoint_offload": _is_unsloth(record) and "blog" not in source,
        "attention": "flash" if "FA2" in notes or "FA2" in method else "sdpa",
        "padding_mask": "method_comparison" in source or "litgpt" in source,  # litgpt repeats grouped keys itself
        "graph_outlives": "config_hub" in source,  # batches of 512 tokens; its tables begin with the longest of all
        "autocast": _autocast(record, _framework(record)),
    }


def _kernels(record: dict[str, str]) -> dict[str, Any]:
    source, notes, kernels = record["source"], record["notes"], _framework(record)
    transformers, unsloth, litgpt = _transformers(record), _is_unsloth(record), "litgpt" in source
    fused = "foak" in kernels or unsloth or "liger" in notes.lower()
    chunked = kernels.endswith("liger") or "Cut-CrossEntropy" in notes or (unsloth and "blog" not in source)
    held = transformers is not None and (4, 46) <= transformers < (4, 50)
    return {
        "fused_norms": fused,
        # the kernels of fms-acceleration are of norms, rotary positions and the loss
        "fused_mlp": fused and "fms-acceleration" not in source,
        "loss": "chunked" if chunked else "fused" if fused else "eager",
        "logits_upcast": not litgpt and "gpt_bigcode" not in record["model"],
        "logits_held": held or litgpt,
    }


def _sharding(record: dict[str, str]) -> str:
    """Return how the row says that devices share, whatever their number."""
    if "DDP mode" in record["notes"]:
        return "ddp"
    said = record["gpus"] + record["notes"] + record["method"]
    found = [name for word, name in (("FSDP", "fsdp"), ("ZeRO-2", "zero2"), ("ZeRO-3", "zero3")) if word in said]
    return found[-1] if found else "none"


def _devices(record: dict[str, str]) -> dict[str, Any]:
    number, litgpt = _number_of_devices(record), "litgpt" in record["source"]
    offload = "offload" in record["method"]
    return {
        "devices": number,
        "sharding": _sharding(record) if number > 1 or offload else "none",
        "offload": offload or ("offload" in record["notes"] and number > 1),
        "loads_whole": litgpt and number > 1,
        "stays_gathered": litgpt and number > 1,
    }


def _autocast(record: dict[str, str], kernels: str) -> bool:
    """Tell whether the tool ran under autocast: by its own scripts where they are known, else as Trainer does."""
    source, dtype = record["source"], record["dtype"]
    if "amp" in dtype or "mixed" in dtype:
        return True
    if "fms-acceleration" in source:  # its scenarios set bf16 or fp16 for packed bases alone
        return "peft" in kernels
    return _tool(source) not in ("litgpt", "peft suite", "fsdp_qlora", "peft examples")
