"""Whether an inference engine loads an adapter folder, and the command that serves it."""

from __future__ import annotations

from pathlib import Path
from shlex import quote

from ..adapters.factors import AdapterFactors, read_factors
from ..errors import AdapterError, ConfigError, nearest
from .engine_rules import ENGINES, Engine, Holdings, Module, max_lora_rank_for

__all__ = ["check_engine", "find_engine", "holdings_of", "serving_command"]


def check_engine(folder: str | Path, engine: str, *, base_layers: int | None = None) -> list[str]:
    """Return why an engine would refuse an adapter, or answer wrongly with it; empty where it loads it as it is.

    By the rules in the engine's source, of the version that `ENGINES` names; the engine itself is not run, and whether
    it knows the base model is not looked at.

    Args:
        folder: The adapter's folder.
        engine: `vllm`, `sglang`, `lorax`, `tgi` or `llama.cpp`.
        base_layers: Layers of the base; without it, as many as the adapter names.

    Raises:
        ConfigError: If there is no such engine.
        AdapterError: If there is no adapter.
    """
    rules = find_engine(engine)
    return list(rules.problems(holdings_of(read_factors(folder), base_layers)))


def find_engine(name: str) -> Engine:
    """Return an engine by its name.

    Raises:
        ConfigError: If there is no such engine.
    """
    if name not in ENGINES:
        raise ConfigError(f"engine {name!r} is not known; {nearest(name, ENGINES)}")
    return ENGINES[name]


def holdings_of(adapter: AdapterFactors, base_layers: int | None = None) -> Holdings:
    """Return what an adapter's folder holds, as the rules want it.

    Raises:
        AdapterError: If it is a file without its config.
    """
    if not adapter.config:
        raise AdapterError(f"{adapter.file.name} stands alone; an engine needs adapter_config.json beside it")
    modules = (Module(m.name, m.rank, m.scaling or 0.0, m.kind) for m in adapter.modules.values())
    return Holdings(
        config=adapter.config,
        modules=tuple(modules),
        keys=tuple(sorted(adapter.stored.shapes)),
        base_layers=base_layers,
        files=frozenset(file.name for file in adapter.file.parent.iterdir()),
    )


def serving_command(engine: str, base: str, folder: Path, rank: int) -> str:
    """Return the command that serves an adapter, ready to paste."""
    fields = {
        "base": quote(base), "name": quote(folder.name), "folder": quote(str(folder)),
        "rank": max_lora_rank_for(rank) or rank,
    }  # fmt: skip
    return find_engine(engine).command.format(**fields)
