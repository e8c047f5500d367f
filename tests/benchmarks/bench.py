"""Run the benchmarks, keep their results, and bring the tables of README.md and the method cards up to date.

    python tests/benchmarks/bench.py
    python tests/benchmarks/bench.py push compress --again
    python tests/benchmarks/bench.py memory --measurements FILE.csv

`make bench` runs this; `make bench BENCHES="push compress" AGAIN=1 MEASUREMENTS=FILE.csv MODEL=FOLDER ENCODER=FOLDER`.
Each is a process of its own, and leaves `tests/benchmarks/results/NAME.json`: command, hash of the code, versions,
machine, seeds, seconds, load of the machine, and its tables as data. One that finished with the same command, code and
versions is not run again. Broken off, the same command goes on with the benchmark that was under way; the planted ones
and the quickstart keep what they had finished. With `--again` the planted ones still take finished cells from
`build/bench/planted`, each under a hash of its own: remove that folder to train them anew. Use a quiet machine: seconds
are in several tables.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bench_records import determined, is_current, record_of
from bench_suite import GIVEN, SUITE, Benchmark
from bench_tables import RESULTS, ROOT, write_tables
from code_hashes import hash_of_all

from hf_lora_ext.machine import describe_hardware, software_versions

HERE = Path(__file__).resolve().parent


def code_now() -> str:
    """Return a hash of the package and of all that the benchmarks run, this runner left out."""
    beside = [file for file in HERE.glob("*.py") if not file.name.startswith(("bench", "quick_probes"))]
    return hash_of_all([*(ROOT / "hf_lora_ext").rglob("*.py"), *HERE.parent.glob("git_hub*.py"), *beside], ROOT)


def content_hash(place: Path) -> str:
    """Return the SHA-256 of a file, or of a folder's files and their names."""
    whole = hashlib.sha256()
    for file in sorted(place.rglob("*")) if place.is_dir() else [place]:
        if file.is_file():
            whole.update(file.relative_to(place).as_posix().encode())
            with file.open("rb") as stream:
                whole.update(hashlib.file_digest(stream, "sha256").digest())
    return whole.hexdigest()


def run(benchmark: Benchmark, places: dict[str, str]) -> str | None:
    """Run a benchmark and show its output; return the output without places of this machine, None if it failed."""
    arguments = [argument.format(**places) for argument in benchmark.arguments]
    command = [sys.executable, str(HERE / benchmark.script), *arguments]
    lines = []
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, encoding="utf8") as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    if process.returncode:
        return None
    text = "".join(lines)
    for name, place in places.items():
        text = text.replace(place, f"build/bench/{benchmark.name}" if name == "work" else name.upper())
    return text


def kept(file: Path) -> dict[str, Any] | None:
    """Return a kept record."""
    return json.loads(file.read_text(encoding="utf8")) if file.is_file() else None


def carry_out(benchmark: Benchmark, given: dict[str, Path], options: argparse.Namespace) -> str:
    """Run a benchmark unless its result is there; return `kept`, `done` or `failed`."""
    file = options.results / f"{benchmark.name}.json"
    own = {benchmark.needs: given[benchmark.needs]} if benchmark.needs else {}
    now = determined(benchmark, code=code_now(), versions=software_versions(),
                     given={name: content_hash(place) for name, place in own.items()})  # fmt: skip
    if is_current(kept(file), now) and not options.again:
        return "kept"
    key = hashlib.sha256(json.dumps(now, sort_keys=True).encode()).hexdigest()[:12]
    work = f"build/bench/{benchmark.name}-{key}"
    if options.again:
        shutil.rmtree(ROOT / work, ignore_errors=True)
    began = time.monotonic()
    output = run(benchmark, {"work": work} | {name: str(place.resolve()) for name, place in own.items()})
    if output is None:
        return "failed"
    record = record_of(benchmark, now, output, machine=describe_hardware(), seconds=round(time.monotonic() - began),
                       load=round(os.getloadavg()[0], 1))  # fmt: skip
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_suffix(".new")
    draft.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf8")
    draft.replace(file)
    return "done"


def options_from(arguments: list[str] | None) -> argparse.Namespace:
    """Return the command line; what is named but cannot be run ends it."""
    names = [benchmark.name for benchmark in SUITE]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(names)}; without names all that can run")
    parser.add_argument("--again", action="store_true", help="run also what is there already")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results")
    for name, says in GIVEN.items():
        parser.add_argument(f"--{name}", type=Path, help=says)
    options = parser.parse_args(arguments)
    if unknown := set(options.names) - set(names):
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    for name in GIVEN:
        if (place := getattr(options, name)) is not None and not place.exists():
            parser.error(f"--{name} {place} does not exist; it must be {GIVEN[name]}")
    for benchmark in SUITE:
        if benchmark.name in options.names and benchmark.needs and getattr(options, benchmark.needs) is None:
            parser.error(f"{benchmark.name} needs --{benchmark.needs}: {GIVEN[benchmark.needs]}")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run what was asked for; return 1 if one failed."""
    options = options_from(arguments)
    given = {name: getattr(options, name) for name in GIVEN if getattr(options, name) is not None}
    failed = []
    chosen = [benchmark for benchmark in SUITE if not options.names or benchmark.name in options.names]
    for number, benchmark in enumerate(chosen, start=1):
        head = f"[{number} of {len(chosen)}] {benchmark.name}"
        if benchmark.needs and benchmark.needs not in given:
            print(f"{head}: left out, it needs --{benchmark.needs}: {GIVEN[benchmark.needs]}", file=sys.stderr)
            continue
        print(f"{head}: about {benchmark.minutes} min on two quiet cores", file=sys.stderr, flush=True)
        ending = carry_out(benchmark, given, options)
        print(f"{head}: {ending}", file=sys.stderr, flush=True)
        failed += [benchmark.name] if ending == "failed" else []
    if options.results.resolve() == RESULTS:
        for page in write_tables():
            print(f"{page}: tables brought up to date; read the figures in its sentences again", file=sys.stderr)
    if failed:
        print(f"failed: {', '.join(failed)}; the others' results are kept", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
