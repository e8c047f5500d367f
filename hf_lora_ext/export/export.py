"""An adapter exported: reshaped or merged, compared with what was trained, written whole or not at all."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from ..adapters.factors import AdapterFactors, read_factors
from ..adapters.tensor_names import CONFIG, WEIGHTS, module_name
from ..errors import AdapterError, ConfigError, nearest
from ..new_folder import copy_chosen, whole_folder
from ..push.release import goes_along
from .base import Base, find_base
from .comparison import Difference, compare, fits_memory
from .engines import find_engine, holdings_of, serving_command
from .forms import Form, parse_form
from .merging import DTYPES, merge_into
from .reshaping import check_exportable, reshape

__all__ = ["Exported", "export_adapter"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What was written."""

    folder: str
    """Where."""
    form: str
    """In which form."""
    base: str
    """The base model."""
    rank: int | None
    """The largest rank; None of a merged model."""
    size_bytes: int
    """Bytes of the weights."""
    largest_difference: float | None
    """The largest difference of the answers from the trained adapter's; None where they were not compared."""
    largest_answer: float | None
    """The largest of those answers, for comparison."""
    energy_lost: float | None
    """Share of the updates' squared Frobenius norm that a cut to a rank took away; None where nothing was cut."""
    notes: tuple[str, ...]
    """What a reader should know."""
    serve: str | None
    """The command that serves it with the engine asked for."""

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON-ready values."""
        return asdict(self) | {"notes": list(self.notes)}


def export_adapter(
    adapter: str | Path,
    form: str | None,
    out: str | Path,
    *,
    base: str | None = None,
    engine: str | None = None,
    dtype: str | None = None,
    check: bool = True,
) -> Exported:
    """Write an adapter in another form, and check that it answers as it was trained.

    Args:
        adapter: Folder of a saved LoRA, rsLoRA, DoRA or AdaLoRA.
        form: `portable`, `compact`, `uniform:R` or `merged`; None for the smallest that the engine loads.
        out: The folder to write; it must not be there yet.
        base: Folder or Hub id of the base, where it is another than the adapter names.
        engine: An engine that must load it: `vllm`, `sglang`, `lorax`, `tgi` or `llama.cpp`.
        dtype: Precision of a merged model: `bfloat16`, `float16` or `float32`; else the base's own.
        check: Whether to load both and compare their answers, where the base's weights are here and fit the memory.

    Raises:
        ConfigError: If something given is wrong, or the base is not within reach.
        AdapterError: If the form cannot hold the adapter, the engine would not load it, or it answers otherwise.

    Example:
        export_adapter("out/sql", "portable", "out/sql-portable", engine="vllm")
    """
    wanted, target = parse_form(form or (find_engine(engine).form if engine else "portable")), Path(out)
    _check_wishes(wanted, engine, dtype)
    found = read_factors(Path(adapter))
    if not found.config:
        raise AdapterError(f"{found.file.name} stands alone, and its scale is unknown; give the folder with {CONFIG}")
    check_exportable(found, wanted)
    model = find_base(found.config, base, _labels(found), is_needed=wanted.name != "compact")
    with whole_folder(target, _bytes_needed(found, wanted, model)) as draft:
        if wanted.name == "merged":
            written = _Written(*merge_into(draft, model, found, DTYPES[dtype] if dtype else None))
        else:
            written = _write_adapter(draft, found, wanted, model, base)
        if engine:
            _check_engine(engine, draft, wanted, model)
        difference, why_not = _compared(found, wanted, draft, model, written) if check else (None, "")
    size = sum(file.stat().st_size for file in target.glob("*.safetensors"))
    return Exported(
        folder=str(target), form=str(wanted), base=model.name, rank=written.rank, size_bytes=size,
        largest_difference=difference.largest if difference else None,
        largest_answer=difference.scale if difference else None,
        energy_lost=written.lost, notes=(*written.notes, *((why_not,) if why_not else ())),
        serve=serving_command(engine, model.name, target, written.rank or 0) if engine else None,
    )  # fmt: skip


def _check_wishes(form: Form, engine: str | None, dtype: str | None) -> None:
    if engine:
        find_engine(engine)
        if form.name == "merged":
            raise ConfigError(f"a merged model is no adapter, so there is nothing of {engine} to check; leave it out")
    if dtype and form.name != "merged":
        raise ConfigError(f"dtype={dtype} is for merged models; {form} keeps the adapter's own precision")
    if dtype and dtype not in DTYPES:
        raise ConfigError(f"dtype {dtype!r} is not known; {nearest(dtype, DTYPES)}")


def _labels(adapter: AdapterFactors) -> int | None:
    """Return the labels of a classifier's head that was trained with the adapter."""
    if adapter.config.get("task_type") not in ("SEQ_CLS", "TOKEN_CLS"):
        return None
    heads = ("score.weight", "classifier.weight", "classifier.out_proj.weight", "out_proj.weight")
    return next((shape[0] for key, shape in adapter.others.items() if module_name(key).endswith(heads)), None)


def _bytes_needed(adapter: AdapterFactors, form: Form, base: Base) -> int:
    """Return the most bytes that the form may take on the disk."""
    if form.name == "merged":
        return sum(file.stat().st_size for file in base.folder().glob("*.safetensors"))
    return 4 * adapter.file.stat().st_size


@dataclass(frozen=True, slots=True)
class _Written:
    """What is in the folder, as far as the result tells."""

    notes: tuple[str, ...]
    precision: torch.dtype
    """What weights were rounded to on the way."""
    rank: int | None = None
    lost: float | None = None


def _write_adapter(draft: Path, adapter: AdapterFactors, form: Form, base: Base, given: str | None) -> _Written:
    reshaped = reshape(adapter, form, base.layers() if form.name != "compact" else {})
    config = reshaped.config | ({"base_model_name_or_path": given, "revision": None} if given else {})
    (draft / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf8")
    save_file(reshaped.tensors, draft / WEIGHTS, metadata={"format": "pt"})
    copy_chosen(adapter.file.parent, draft, goes_along)
    lost = reshaped.lost_in_all if form.rank is not None else None
    worst = max(reshaped.lost.items(), key=lambda item: item[1], default=None)
    notes = [*reshaped.notes]
    if worst and worst[1]:
        notes.append(f"the cut took most from {worst[0]}: {worst[1]:.2%} of its energy")
    return _Written(tuple(notes), reshaped.precision, reshaped.rank, lost)


def _check_engine(engine: str, draft: Path, form: Form, base: Base) -> None:
    layers = getattr(base.config().get_text_config(), "num_hidden_layers", None)
    problems = find_engine(engine).problems(holdings_of(read_factors(draft), layers))
    if problems:
        raise AdapterError(
            f"{find_engine(engine).name} would not serve the {form} form: {'; '.join(problems)}. A merged model needs "
            "nothing of the engine"
        )


def _compared(
    adapter: AdapterFactors, form: Form, draft: Path, base: Base, written: _Written
) -> tuple[Difference | None, str]:
    """Return the difference of the answers, or why they were not compared."""
    try:
        base.folder()
    except ConfigError as error:
        return None, f"answers not compared: {error}"
    if strange := next(filter(None, (m.shapes.not_as_peft_names_it() for m in adapter.modules.values())), None):
        return None, f"answers not compared: PEFT itself does not find {strange}, which it names otherwise"
    if not fits_memory(base):
        return None, "answers not compared: the base in float32 does not fit the free memory"
    tokens = _trained_tokens(adapter)
    found = compare(base, adapter.file.parent, draft, is_merged=form.name == "merged", tokens=tokens)
    if form.rank is None:
        found.check(written.precision, f"the {form} form")
    return found, ""


def _trained_tokens(adapter: AdapterFactors) -> tuple[int, ...]:
    """Return the new tokens that the adapter trains, by number."""
    told = adapter.config.get("trainable_token_indices") or []
    rows = [told] if isinstance(told, list) else list(told.values())
    return tuple(token for part in rows for token in part)
