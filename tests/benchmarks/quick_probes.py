"""What `bench_quick.py` measures: `python tests/benchmarks/quick_probes.py GROUP` prints pairs by ratio as JSON.

Each probe takes its two sides by turns, in seconds of the processor where it can, on one thread. They are the
benchmarks beside this file at small sizes, so that what is compared is what those tables show.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections import defaultdict
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

Samples = dict[str, list[tuple[float, float]]]
STARTS, PEFT_STARTS, TURNS = 9, 2, 3
COMPRESS_STEPS, WIDE_MODULES = 40, 4
EXAMPLES = 128
PLANS = {
    "plan 7B": ["7B", "--gpu", "24"],
    "plan 13B in 4 bits": ["13B", "--method", "qlora", "--gpu", "24"],
    "plan 70B in 4 bits on 2": ["70B", "--method", "qlora", "--gpu", "80", "--gpus", "2"],
    "plan of Mixtral 8x7B": ["mistralai/Mixtral-8x7B-v0.1", "--gpu", "80", "--gpus", "2"],
}


def startup() -> Samples:
    """Time fresh processes beside a bare Python."""
    from plan_time import seconds

    plan = [sys.executable, "-m", "hf_lora_ext.cli", "plan"]
    commands = {
        "import hf_lora_ext": [sys.executable, "-c", "import hf_lora_ext"],
        'preset("7B")': [sys.executable, "-c", "from hf_lora_ext import preset; preset('7B')"],
        **{name: [*plan, *words] for name, words in PLANS.items()},
    }
    bare, peft = [sys.executable, "-c", "pass"], [sys.executable, "-c", "import peft"]
    for command in (bare, peft, *commands.values()):
        seconds(command)  # writes bytecode
    found: Samples = defaultdict(list)
    for _ in range(STARTS):
        for name, command in commands.items():
            found[f"{name} / python"].append((seconds(command)[1], seconds(bare)[1]))
    for _ in range(PEFT_STARTS):
        found['preset("7B") / import peft'].append((seconds(commands['preset("7B")'])[1], seconds(peft)[1]))
    return found


def rank() -> Samples:
    """Time steps of adaptive rank beside plain LoRA's of the rank that it starts at and of the one that it ends at."""
    from rank_cost import Clock, ours_in_phases, plain_target, plain_wide

    found: Samples = defaultdict(list)
    for _ in range(TURNS):
        (wide,) = plain_wide(Clock("cpu"), "cpu").values()
        ours = ours_in_phases(Clock("cpu"), "cpu")
        (target,) = plain_target(Clock("cpu"), "cpu").values()
        for phase, words, plain in (
            ("ours, before a probe", "before a probe / plain of start rank", wide),
            ("ours, probe", "in a probe / plain of start rank", wide),
            ("ours, after the last event", "after the last event / plain of target rank", target),
        ):
            found[f"adaptive step {words}"].append((median(ours[phase]), median(plain)))
    return found


def event() -> Samples:
    """Time the parts of one event of a 7B's size beside steps of Adam on the same factors."""
    import torch
    from rank_cost import event_parts, event_setting, now

    found: Samples = defaultdict(list)
    for _ in range(TURNS):
        model, layers, moments, optimizer = event_setting()
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.ones_like(parameter)
        began = now("cpu")
        for _ in range(10):
            optimizer.step()
        plain = now("cpu") - began
        optimizer.zero_grad()
        parts = event_parts(model, layers, moments, optimizer)
        for part, words in (("find_bases", "bases"), ("allocate_ranks", "allocation"), ("change_ranks_", "change")):
            found[f"event, its {words} / 10 Adam steps"].append((parts[part], plain))
    return found


def compress() -> Samples:
    """Cut a planted adapter after few steps, as PEFT does and as we do; then wide layers, seconds a module."""
    from compress import MODULES, WIDE_BUDGET, WIDTH, Case, by_peft, by_us, planted_case, wide_model

    found: Samples = defaultdict(list)
    case = planted_case(seed=0, steps=COMPRESS_STEPS)
    for asked in (1, 4):
        theirs = by_peft(case, asked)
        for criterion, words in (("svd", "singular values"), ("whitened", "what the loss would miss")):
            ours = by_us(case, criterion, theirs.parameters)
            found[f"KL by {words} / PEFT's, rank {asked}"].append((ours.loss, theirs.loss))
    many = Case(wide_model(MODULES), lambda: 0.0, dict)
    one = Case(wide_model(1), lambda: 0.0, dict)
    budget = MODULES * WIDE_BUDGET * 2 * WIDTH
    for _ in range(TURNS):
        ours_seconds = by_us(many, "svd", budget).seconds / MODULES
        found["seconds a wide module / PEFT's"].append((ours_seconds, by_peft(one, WIDE_BUDGET).seconds))
    return found


def push() -> Samples:
    """Push 1 MB beside `upload_folder` of the same files, seconds of the client's processor after its imports."""
    from push_time import HOWS, adapter_of, timed

    pairs = []
    with TemporaryDirectory() as scratch:
        folder = adapter_of(1, Path(scratch, "adapter"))
        for _ in range(TURNS):
            bare, ours = (timed(how, folder, "xet")["processor"] for how in (HOWS[0], HOWS[2]))
            pairs.append((ours, bare))
    return {"push_adapter, verified / upload_folder, 1 MB": pairs}


def speed() -> Samples:
    """Train a tiny model by the preset and by a stock script, made equal: seconds of the processor a token."""
    from cards import small_base
    from training_speed import run_one

    pairs = []
    with TemporaryDirectory() as scratch:
        data = Path(scratch, "rows.jsonl")
        sums = (
            {"prompt": f"{one} and {one % 7} are", "completion": f" {one + one % 7}"} for one in range(EXAMPLES + 4)
        )
        data.write_text("".join(json.dumps(row) + "\n" for row in sums), encoding="utf8")
        options = argparse.Namespace(
            model=str(small_base(Path(scratch, "base"))), data=data, examples=EXAMPLES, held_out=4
        )
        for turn in range(TURNS + 1):
            ours, stock = (run_one(script, "made equal", options)["processor_seconds_per_token"]
                           for script in ("preset", "stock"))  # fmt: skip
            pairs += [(ours, stock)] if turn else []  # the first loads what both need
    return {"training a token, preset / stock, made equal": pairs}


PROBES: dict[str, Callable[[], Samples]] = {
    "startup": startup, "rank": rank, "event": event, "compress": compress, "push": push, "speed": speed,
}  # fmt: skip


def main(group: str) -> None:
    """Print a group's pairs."""
    warnings.simplefilter("ignore")
    with redirect_stdout(sys.stderr):
        if group in ("rank", "compress", "speed"):
            from adaptive_rank import be_quiet

            be_quiet()
        found = PROBES[group]()
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
