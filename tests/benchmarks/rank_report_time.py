"""What `rank_report` costs on a large adapter, and how often random factors pass its edges.

    python tests/benchmarks/rank_report_time.py [--modules 196] [--size 2048] [--rank 32] [--draws 4000]

The adapter is random, in float32 and in a temporary folder; the report is made without drawing.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import save_file

from hf_lora_ext.adapters.tensor_names import CONFIG, WEIGHTS
from hf_lora_ext.analysis.edges import LEVEL, edges_of
from hf_lora_ext.analysis.rank_report import rank_report

SHAPES = ((2, 64, 64), (4, 64, 256), (8, 128, 128), (8, 576, 1536), (16, 256, 1024), (32, 512, 512))
"""Rank, rows and columns whose false positives are counted."""
LAYER = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
         "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")  # fmt: skip


def write_adapter(folder: Path, modules: int, size: int, rank: int) -> None:
    """Write a random adapter of square modules whose directions fall by a random rate."""
    torch.manual_seed(0)
    tensors = {}
    for index in range(modules):
        layer, kind = divmod(index, len(LAYER))
        name = f"base_model.model.model.layers.{layer}.{LAYER[kind]}"
        tensors[f"{name}.lora_A.weight"] = torch.randn(rank, size)
        tensors[f"{name}.lora_B.weight"] = torch.randn(size, rank) * torch.logspace(0, -2 * float(torch.rand(1)), rank)
    save_file(tensors, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps({"peft_type": "LORA", "r": rank, "lora_alpha": rank}))


def report_time(modules: int, size: int, rank: int) -> None:
    """Print the seconds and the memory of one report."""
    with TemporaryDirectory() as folder:
        write_adapter(Path(folder), modules, size, rank)
        edges_of.__globals__["_edges"].cache_clear()
        before = resource.getrusage(resource.RUSAGE_SELF)
        start = time.perf_counter()
        report = rank_report(folder)
        wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
        start = time.perf_counter()
        report.explain()
        told = time.perf_counter() - start
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"{modules} modules of {size}x{size}, rank {rank}, {report.parameters:,} numbers")
    print(f"report {wall:.1f} s ({cpu:.1f} s of processor time), text {told:.2f} s, {torch.get_num_threads()} threads")


def false_positives(draws: int) -> None:
    """Print how often the largest and smallest singular values of random factors pass their edges."""
    tolerance = 2 * math.sqrt(LEVEL * (1 - LEVEL) * (1 / draws + 1 / 3999))
    print(
        f"\nstated {LEVEL:.1%} an edge, ± {tolerance:.1%} (two standard deviations of {draws} draws and of the edges)"
    )
    print(
        "| rank | shape | A | above the largest | below the smallest | fewer for 99 % |\n|---:|---|---|---:|---:|---:|"
    )
    for rank, rows, columns in SHAPES:
        edges = edges_of(rank, rows, columns)
        for kind, draw in (("Gaussian", torch.randn), ("uniform, as PEFT's", lambda *size: 2 * torch.rand(*size) - 1)):
            torch.manual_seed(1)
            values = torch.cat([
                torch.linalg.svdvals(_triangle(torch.randn(rows, rank)) @ _triangle(draw(columns, rank)).T)[None]
                for _ in range(draws)
            ])  # fmt: skip
            values /= values.norm(dim=1, keepdim=True)
            needed = (values.square().cumsum(1) < 0.99).sum(1) + 1
            passed = (values[:, 0] > edges.largest, values[:, -1] < edges.smallest, needed < edges.needed)
            told = " | ".join(f"{float(those.double().mean()):.1%}" for those in passed)
            print(f"| {rank} | {rows}x{columns} | {kind} | {told} |", flush=True)


def _triangle(matrix: torch.Tensor) -> torch.Tensor:
    return torch.linalg.qr(matrix.double(), mode="r").R


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--modules", type=int, default=196)
    parser.add_argument("--size", type=int, default=2048)
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--draws", type=int, default=4000)
    given = parser.parse_args()
    report_time(given.modules, given.size, given.rank)
    false_positives(given.draws)


if __name__ == "__main__":
    main()
