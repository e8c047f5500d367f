"""`hf-lora plan`: what a run would need, and what fits, before anything is downloaded."""

from __future__ import annotations

import json
import textwrap
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import click

from ..choices.adapter import short_count
from ..choices.methods import METHODS
from ..choices.run import RunWishes
from ..errors import ConfigError, nearest
from ..hardware import Hardware, declared_hardware
from ..memory.fitting import Fit
from ..memory.peaks import COMPONENTS
from ..memory.preset_plans import FULL, PlanRequest
from ..memory.remedies import DoesNotFit, plan_run
from ..models.sizes import ModelShape
from ..presets.preset import Preset, preset
from .options import preset_arguments, spoken_as_options, wish_options

__all__ = ["command"]

GIB: Final = 2**30
MARK: Final = "# Written by `hf-lora plan`"
"""How a file of accelerate's begins that may be written anew."""
BAR: Final = 40
"""Characters of the longest bar."""
PLANNED: Final = (*(method for method in METHODS if method != "prefix"), FULL)
"""Methods whose memory is planned; `full` trains every weight, for comparison."""
EPILOG: Final = """
\b
Examples:
  hf-lora plan 7B --gpu 24
  hf-lora plan meta-llama/Llama-2-70b-hf --gpu 24 --gpus 2 --host-gib 256
  hf-lora plan Qwen/Qwen3-8B --gpu 16 --compare lora,qlora,full --json
  hf-lora plan 70B --gpu 80 --gpus 8 --accelerate-config accelerate.yaml

MODEL is a size such as 7B, a Hub id, or a folder with config.json. The plan is that of `hf-lora preset` with the same
options. Exit code 2: something given was wrong, or nothing fits; one line on standard error says what would, and with
--json the remedies are on standard output.
"""


@click.command("plan", epilog=EPILOG)
@click.argument("model")
@click.option("--method", metavar=f"[{'|'.join(PLANNED)}]", help="Stay with it; else lora, or qlora if it must be.")
@wish_options
@click.option("--compare", metavar="METHODS", help="A row for each of these methods, separated by commas.")
@click.option(
    "--accelerate-config", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
    help="Write what `accelerate launch --config_file` takes for the plan.",
)  # fmt: skip
@click.option("--main-process-ip", metavar="ADDRESS", help="Address of the first machine, for several.")
@click.option("--force", is_flag=True, help="Write FILE although it exists.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(
    model: str,
    compare: str | None,
    accelerate_config: Path | None,
    main_process_ip: str | None,
    force: bool,
    as_json: bool,
    **wishes: Any,
) -> None:
    """Say what memory a run needs, by component, and what fits."""
    with spoken_as_options():
        if compare is not None:
            _check_alone(wishes["method"], accelerate_config)
            _print_comparison(model, wishes, compare, as_json)
            return
        _check_file(accelerate_config, force)
        try:
            planned = _planned(model, wishes)
        except DoesNotFit as refusal:
            if as_json:
                click.echo(json.dumps(_refused(refusal)))
            raise
        written = [] if accelerate_config is None else _written(planned, model, accelerate_config, main_process_ip)
        if as_json:
            click.echo(json.dumps(_plain(planned)))
        else:
            click.echo("\n".join([*_report(model, planned), *written]))


@dataclass(frozen=True, slots=True)
class _Planned:
    """A plan that fits."""

    method: str
    shape: ModelShape
    found: Fit
    preset: Preset | None
    """The preset with this plan; none for full fine-tuning."""


def _planned(model: str, wishes: dict[str, Any]) -> _Planned:
    given = preset_arguments(wishes)
    if (method := given.get("method", "lora")) not in PLANNED:
        if method == "prefix":
            raise ConfigError("the memory of method prefix is not planned for; leave it to `hf-lora preset`")
        raise ConfigError(f"method {method!r} is not known; {nearest(method, PLANNED)}")
    if method == FULL:
        return _full(model, given)
    made = preset(model, **given, ask_hub=False)
    if made.found is None:
        raise ConfigError(_NO_GPU)
    return _Planned(made.method, made.shape, made.found, made)


_NO_GPU: Final = "no GPU of known memory is found here; name the one to plan for by its memory in GiB, e.g. --gpu 24"


def _full(model: str, given: dict[str, Any]) -> _Planned:
    from ..machine import find_hardware
    from ..models.base_models import find_shape

    hardware = declared_hardware(
        find_hardware(),
        given.get("gpu_memory_gib"),
        given.get("gpus"),
        machines=given.get("machines"),
        host_gib=given.get("host_gib"),
    )
    shape, _ = find_shape(model, ask_hub=False)
    if hardware.kind != "cuda" or hardware.memory_gib is None:
        raise ConfigError(_NO_GPU)
    run = RunWishes(**{name: given[name] for name in RunWishes.__slots__ if name in given and name != "init"})
    return _Planned(FULL, shape, plan_run(PlanRequest(shape=shape, method=FULL, run=run), hardware), None)


def _plain(planned: _Planned) -> dict[str, Any]:
    return {"fits": True, "method": planned.method, **planned.found.to_dict()}


def _refused(refusal: DoesNotFit) -> dict[str, Any]:
    remedies = [{"change": r.words, "hardware": asdict(r.hardware), **r.found.to_dict()} for r in refusal.remedies]
    return {"fits": False, "reason": str(refusal), "remedies": remedies}


def _check_alone(method: str | None, file: Path | None) -> None:
    for name, value in (("--method", method), ("--accelerate-config", file)):
        if value is not None:
            raise ConfigError(f"--compare and {name} exclude each other; leave one out")


def _check_file(file: Path | None, force: bool) -> None:
    """Refuse a file that cannot be written, and one that exists and is not of this command's own making."""
    if file is None:
        return
    if not file.parent.is_dir():
        raise ConfigError(
            f"--accelerate-config {file}: there is no folder {file.parent}; make it, or name another file"
        )
    if file.exists() and not force and not file.read_bytes().startswith(MARK.encode()):
        raise ConfigError(f"{file} exists and is not from `hf-lora plan`; name another file, or add --force")


def _written(planned: _Planned, model: str, file: Path, main_process_ip: str | None) -> list[str]:
    """Write accelerate's configuration; return what to do with it."""
    if (made := planned.preset) is None:
        raise ConfigError("--accelerate-config is for a preset's methods; leave --method full out")
    about = f"{MARK}: {' '.join(model.split())}, {made.method}, {made.hardware}\n"
    text = about + made.accelerate_yaml(main_process_ip=main_process_ip)
    try:
        file.write_text(text, encoding="utf8")
    except OSError as error:
        raise ConfigError(
            f"--accelerate-config {file} cannot be written ({error.strerror}); name another file"
        ) from error
    machines = made.hardware.machines
    rank = " --machine_rank N" if machines > 1 else ""
    where = f", on each of the {machines} machines, N from 0 to {machines - 1}" if rank else ""
    return ["", f"wrote {file}; next: accelerate launch --config_file {file}{rank} train.py{where}"]


def _print_comparison(model: str, wishes: dict[str, Any], compare: str, as_json: bool) -> None:
    rows: dict[str, _Planned | DoesNotFit] = {}
    for name in _methods(compare):
        try:
            rows[name] = _planned(model, wishes | {"method": name})
        except DoesNotFit as refusal:
            rows[name] = refusal
    if as_json:
        click.echo(json.dumps({n: _refused(r) if isinstance(r, DoesNotFit) else _plain(r) for n, r in rows.items()}))
        return
    for name, row in rows.items():
        if isinstance(row, DoesNotFit):
            needed, words = "", f"does not fit: {row}"
        else:
            needed, words = f"{row.found.estimate.needed / GIB:.2f} GiB", _words(row)
        click.echo(_wrapped(f"{name:<8} {needed:>10}  ", words))


def _wrapped(before: str, words: str) -> str:
    return textwrap.fill(words, 100, initial_indent=before, subsequent_indent=" " * len(before))


def _methods(listed: str) -> list[str]:
    names = [name.strip() for name in listed.split(",") if name.strip()]
    if not names:
        raise ConfigError("--compare names no method; write e.g. --compare lora,qlora,full")
    for name in names:
        if name not in PLANNED:
            raise ConfigError(f"--compare: method {name!r} is not known; {nearest(name, PLANNED)}")
    return names


def _report(model: str, planned: _Planned) -> list[str]:
    """Return the plan, a bar for each component, and the totals."""
    shape, found, estimate = planned.shape, planned.found, planned.found.estimate
    lines = [
        f"{model}: {short_count(shape.parameters)} parameters, from {shape.source}",
        _wrapped("hardware: ", str(found.hardware)),
        _wrapped("plan:     ", _words(planned)),
        _wrapped("gave up:  ", "; ".join(found.gave_up) or "nothing"),
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
    return [
        *lines,
        "",
        f"{'peak, allocated':<18} {estimate.allocated / GIB:7.2f} GiB  at the {estimate.peak}",
        f"{'peak, visible':<18} {estimate.device / GIB:7.2f} GiB  as nvidia-smi shows it",
        f"{'needed':<18} {estimate.needed / GIB:7.2f} GiB  with {estimate.margin:.0%} margin, of "
        f"{found.available / GIB:g}",
        f"{'while loading':<18} {estimate.loading / GIB:7.2f} GiB",
        f"{'host memory':<18} {found.host / GIB:7.2f} GiB  {_host_words(found.hardware)}",
    ]


def _host_words(hardware: Hardware) -> str:
    each = "of each machine" if hardware.machines > 1 else "of the machine"
    known = hardware.host_memory_gib
    return f"of {known:g} {each}" if known is not None else f"{each}, which is not known; --host-gib declares it"


def _words(planned: _Planned) -> str:
    plan = planned.found.plan
    words = [
        "full fine-tuning" if planned.preset is None else f"{planned.method} of rank {planned.preset.rank}",
        f"base in {plan.base}",
        f"{plan.sequence} tokens",
        f"micro-batch {plan.micro_batch} x {plan.accumulation}",
        "activation checkpointing" if plan.checkpointing else "no checkpointing",
    ]
    words += [plan.sharding + (" with offload" if plan.offload else "")] if plan.devices > 1 else []
    return ", ".join(words)
