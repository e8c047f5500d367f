"""What other estimators give on the same rows: each function returns GiB, or raises `CannotSay` with the reason."""

import contextlib
import io
import json
import tempfile
from argparse import Namespace
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

from memory_rows import GIB, Row

from hf_lora_ext.memory.peaks import estimate_memory
from hf_lora_ext.memory.plans import BASE_BYTES

__all__ = ["PEERS", "CannotSay", "Peer"]

Peer = Callable[[Row], float]
PER_WEIGHT = {"nf4": 0.5, "gptq": 0.5, "int8": 1.0}


class CannotSay(Exception):
    """Why an estimator says nothing of a row."""


def accelerate(row: Row) -> float:
    """Return what `accelerate estimate-memory` prints: the total size; of a full fine-tune, training using Adam.

    Its own code runs on the row's config; only its question to the Hub is answered here.
    """
    kind = {"nf4": "int4", "gptq": "int4", "int8": "int8", "float32": "float32"}.get(row.plan.base, "float16")
    figures = _accelerate(json.dumps(dict(row.config), sort_keys=True), kind)
    return (max(figures[1].values()) if row.plan.method == "full" else figures[0]) / GIB


@cache
def _accelerate(config: str, kind: str) -> tuple[float, dict[str, float]]:
    from accelerate.commands import estimate

    with tempfile.TemporaryDirectory() as folder, patch.object(estimate, "verify_on_hub") as answer:
        Path(folder, "config.json").write_text(config, encoding="utf8")
        answer.return_value = SimpleNamespace(library_name="transformers", config=json.loads(config))
        wanted = Namespace(model_name=folder, library_name="transformers", trust_remote_code=False, dtypes=[kind])
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                ((_, _, total, training),) = estimate.gather_data(wanted)
        except Exception as error:  # whatever its libraries raise on a config
            raise CannotSay(f"{type(error).__name__}: {str(error).splitlines()[0][:80]}") from error
    return total, training


def transformer_math(row: Row) -> float:
    """Return Transformer Math 101's sum: `s b h L 34` when checkpointing, else `s b h L (34 + 5 a s / h)`."""
    shape, plan = row.shape, row.plan
    estimate = estimate_memory(shape, plan)
    per = plan.tokens * (shape.hidden or 0) * (shape.layers or 0)
    saved = 34 if plan.checkpointing else 34 + 5 * (shape.heads or 1) * plan.sequence / (shape.hidden or 1)
    trained = shape.parameters * 2 * 3 if plan.method == "full" else 2 * estimate.adapters + estimate.optimizer
    return (shape.parameters * PER_WEIGHT.get(plan.base, 2.0) / plan.shards + trained + per * saved) / GIB


def loading_only(row: Row) -> float:
    """Return the weights alone, at the bytes of their type."""
    plan = row.plan
    return row.shape.parameters * PER_WEIGHT.get(plan.base, BASE_BYTES.get(plan.base, 2)) / plan.shards / GIB


def deepspeed(row: Row) -> float:
    """Return the GPU figure of DeepSpeed's `estimate_zero2_model_states_mem_needs`, or zero3 where weights are cut.

    Both count model states with every weight trained; that of ZeRO-2 stands for one device and for DDP too.
    """
    plan, count = row.plan, row.shape.parameters
    if not plan.gathers:
        return (4 * count + 16 * count / (plan.devices if plan.sharding == "zero2" else 1)) / GIB
    largest = 4 * (row.shape.vocabulary or 0) * (row.shape.hidden or 0)  # the embedding is the largest layer
    return (largest if plan.offload else largest + 18 * count / plan.devices) / GIB


def fitcheck(row: Row) -> float:
    """Return fitcheck-llm's total, without the Hub; it is dense, for one device, with a gated MLP."""
    try:
        from fitcheck.config_parser import ModelConfig, _count_params, _parse_fields, _reject_unsupported
        from fitcheck.estimator import TrainingConfig, estimate
        from fitcheck.gpu_db import GPU_DB
    except ImportError as error:
        raise CannotSay("fitcheck-llm is not installed") from error
    plan = row.plan
    if plan.devices > 1 or plan.method not in ("lora", "full") or plan.base == "gptq":
        raise CannotSay("several devices, gptq, or a method that it does not have")
    try:
        _reject_unsupported(row.config, "the model")
        fields = _parse_fields(row.config)
        model = ModelConfig(
            name=row.model,
            num_params=_count_params(fields),
            **{name: getattr(fields, name) for name in fields.__dataclass_fields__},
        )
        names = [layer.name for layer in row.shape.linear if layer.is_target]
        targets = names if plan.targets == "all-linear" else [t for t in plan.targets if t in names]
        report = estimate(
            model,
            TrainingConfig(
                precision={"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}[plan.compute],
                quantization=plan.base if plan.is_packed else "none",
                double_quant=plan.double_quant and plan.base == "nf4",
                batch_size=plan.micro_batch,
                seq_len=plan.sequence,
                lora_rank=None if plan.method == "full" else plan.rank,
                lora_targets=targets,
                grad_checkpoint=plan.checkpointing,
                flash_attn=plan.attention != "eager",
            ),
            GPU_DB["a100-80"],
        )
    except (ValueError, KeyError) as error:
        raise CannotSay(str(error).splitlines()[0][:80]) from error
    return report.total_mib / 1024


PEERS: dict[str, Peer] = {
    "accelerate estimate-memory": accelerate,
    "fitcheck-llm": fitcheck,
    "Transformer Math 101": transformer_math,
    "DeepSpeed's estimators": deepspeed,
    "loading only": loading_only,
}
