"""Print what ResourceCallback costs a training step: its hooks called as a trainer calls them, and nothing else.

python tests/benchmarks/callback_cost.py [--steps 20000] [--logging-steps 10]
"""

import argparse
import time
from types import SimpleNamespace

from transformers import TrainerControl, TrainerState

from hf_lora_ext import ResourceCallback


def seconds(steps: int, logging_steps: int) -> float:
    """Return the seconds that all hooks together take."""
    callback, control = ResourceCallback(), TrainerControl()
    state = TrainerState(is_world_process_zero=True, max_steps=steps)
    args = SimpleNamespace(output_dir=".")
    callback.on_train_begin(args, state, control)
    began = time.perf_counter()
    for step in range(1, steps + 1):
        callback.on_step_begin(args, state, control)
        state.global_step = step
        callback.on_step_end(args, state, control)
        if step % logging_steps == 0:
            logs = {"loss": 1.0, "num_tokens": 100.0 * step}
            state.log_history = [dict(logs)]
            callback.on_log(args, state, control, logs=logs)
    return time.perf_counter() - began


def main() -> None:
    """Print microseconds a step, for the log's interval that is asked for and without logs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--logging-steps", type=int, default=10)
    chosen = parser.parse_args()
    for every, words in ((chosen.logging_steps, f"a log each {chosen.logging_steps} steps"), (10**9, "no log")):
        best = min(seconds(chosen.steps, every) for _ in range(3))
        print(f"{words}: {1e6 * best / chosen.steps:.1f} microseconds a step")


if __name__ == "__main__":
    main()
