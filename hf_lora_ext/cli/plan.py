"""`hf-lora plan`: what a run would need, and what fits, before anything is downloaded."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, Final

import click

from ..choices import short_count
from ..errors import ConfigError, nearest
from ..fitting import Fit, fit
from ..hardware import Hardware, declared_hardware
from ..memory import COMPONENTS, MARGIN, MemoryEstimate, estimate_memory
from ..plans import Plan
from ..sizes import size_band

if TYPE_CHECKING:
    from ..sizes import ModelShape

__all__ = ["command"]

GIB: Final = 2**30
BAR: Final = 40
"""Characters of the longest bar."""
WISHES: Final = {
    "lora": Plan(loss="chunked", padding_mask=True),
    "qlora": Plan(base="nf4", adapter="bfloat16", loss="chunked", padding_mask=True),
    "dora": Plan(method="dora", loss="chunked", padding_mask=True),
    "full": Plan(method="full", base="float32", loss="chunked", padding_mask=True),
}
"""Method → the plan that is wished for: TRL's chunked loss and padded batches, adapters in the type TRL gives them."""
EPILOG = """
\b
Examples:
  hf-lora plan 7B --gpu 24
  hf-lora plan meta-llama/Llama-2-70b-hf --gpu 24 --gpus 2 --seq 2048
  hf-lora plan Qwen/Qwen3-8B --gpu 16 --compare lora,qlora,full --json

MODEL is a size such as 7B, a Hub id, or a folder with config.json. Exit code 2: nothing fits; the message names
what would.
"""


@click.command("plan", epilog=EPILOG)
@click.argument("model")
@click.option("--gpu", "gpu_memory_gib", type=float, help="Memory of one GPU in GiB; else what is found here.")
@click.option("--gpus", type=int, help="Number of such GPUs.")
@click.option("--seq", "sequence", type=click.IntRange(1), default=1024, show_default=True, help="Tokens an example.")
@click.option("--rank", type=click.IntRange(1), help="LoRA rank; by the model's size if left out.")
@click.option("--method", type=click.Choice([*WISHES]), help="Stay with it; else lora, or qlora if it must be.")
@click.option("--compare", metavar="METHODS", help="A row for each of these methods, separated by commas.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(
    model: str,
    gpu_memory_gib: float | None,
    gpus: int | None,
    sequence: int,
    rank: int | None,
    method: str | None,
    compare: str | None,
    as_json: bool,
) -> None:
    """Say what memory a run needs, by component, and what fits."""
    from ..base_models import find_shape
    from ..machine import find_hardware

    hardware = declared_hardware(find_hardware(), gpu_memory_gib, gpus)
    shape, _ = find_shape(model, ask_hub=False)
    if hardware.memory_gib is None:
        raise ConfigError("no GPU is found here; name the one to plan for by its memory in GiB, e.g. --gpu 24")
    rank = rank or size_band(shape.parameters).rank
    wishes = {name: replace(plan, rank=rank, sequence=sequence) for name, plan in WISHES.items()}
    if compare:
        rows = {name: _attempt(shape, hardware, wishes[name]) for name in _methods(compare)}
        click.echo(json.dumps({n: _plain(r) for n, r in rows.items()}) if as_json else _comparison(model, shape, rows))
        return
    fixed = frozenset({"base"}) if method else frozenset()
    found = fit(shape, hardware, wishes[method or "lora"], fixed=fixed)
    click.echo(json.dumps(_plain(found)) if as_json else _report(model, shape, hardware, found))


def _methods(listed: str) -> list[str]:
    names = [name.strip() for name in listed.split(",") if name.strip()]
    for name in names:
        if name not in WISHES:
            raise ConfigError(f"--compare: method {name!r} is not known; {nearest(name, WISHES)}")
    return names


def _attempt(shape: ModelShape, hardware: Hardware, wishes: Plan) -> Fit | ConfigError:
    """Return the fit, or the refusal, which is a row too."""
    try:
        return fit(shape, hardware, wishes, fixed=frozenset({"base"}))
    except ConfigError as refusal:
        return refusal


def _plain(result: Fit | ConfigError) -> dict[str, Any]:
    if isinstance(result, ConfigError):
        return {"fits": False, "reason": str(result)}
    return {
        "fits": True,
        "plan": asdict(result.plan),
        "gave_up": list(result.gave_up),
        "bytes": asdict(result.estimate) | _totals(result.estimate),
        "available_bytes": result.available,
    }


def _totals(estimate: MemoryEstimate) -> dict[str, int]:
    return {name: getattr(estimate, name) for name in ("allocated", "reserved", "device", "needed")}


def _report(model: str, shape: ModelShape, hardware: Hardware, found: Fit) -> str:
    """Return the plan, a bar for each component, and the totals."""
    estimate = found.estimate
    lines = [
        f"{model}: {short_count(shape.parameters)} parameters, from {shape.source}",
        f"hardware: {hardware}",
        f"plan: {_words(found.plan)}",
        f"gave up: {'; '.join(found.gave_up) or 'nothing'}",
        "",
    ]
    parts = {name: getattr(estimate, name) for name in COMPONENTS} | {
        "kept by allocator": estimate.cached,
        "driver, libraries": estimate.context,
    }
    longest = max(parts.values())
    for name, size in parts.items():
        if size:
            lines.append(f"{name:<18} {size / GIB:7.2f} GiB  {'█' * max(1, round(BAR * size / longest))}")
    lines += [
        "",
        f"{'peak, allocated':<18} {estimate.allocated / GIB:7.2f} GiB  at the {estimate.peak}",
        f"{'peak, visible':<18} {estimate.device / GIB:7.2f} GiB  as nvidia-smi shows it",
        f"{'needed':<18} {estimate.needed / GIB:7.2f} GiB  with {MARGIN:.0%} margin, of {found.available / GIB:g}",
        f"{'while loading':<18} {estimate.loading / GIB:7.2f} GiB  and {estimate.host / GIB:.1f} GiB of host memory",
    ]
    return "\n".join(lines)


def _words(plan: Plan) -> str:
    words = [
        "full fine-tuning" if plan.method == "full" else f"{plan.method} rank {plan.rank}",
        f"base in {plan.base}",
        f"{plan.sequence} tokens",
        f"micro-batch {plan.micro_batch} x {plan.accumulation}",
        "activation checkpointing" if plan.checkpointing else "no checkpointing",
    ]
    words += [plan.sharding + (" with offload" if plan.offload else "")] if plan.devices > 1 else []
    return ", ".join(words)


def _comparison(model: str, shape: ModelShape, rows: dict[str, Fit | ConfigError]) -> str:
    """Return one line for each method: what it needs and with which plan, or why it does not fit."""
    lines = [f"{model}: {short_count(shape.parameters)} parameters, from {shape.source}", ""]
    for name, result in rows.items():
        if isinstance(result, ConfigError):
            lines.append(f"{name:<6} does not fit: {result}")
        else:
            needed = estimate_memory(shape, result.plan).needed / GIB
            lines.append(f"{name:<6} {needed:7.2f} GiB  {_words(result.plan)}")
    return "\n".join(lines)
