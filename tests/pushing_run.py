"""Trains a tiny adapter that pushes while it trains; run by `test_push_runs.py`, alone or by `accelerate launch`."""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from adaptive_runs import adapted, build
from push_runs import REPO
from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from hf_lora_ext import FactsCallback, PushAdapterCallback


class Watch(TrainerCallback):
    """Lets no save be skipped, and kills the process after a step."""

    def __init__(self, push: PushAdapterCallback, kill_at: int | None) -> None:
        self.push, self.kill_at = push, kill_at

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Wait, but not for the push of the step before the end, so that it is killed on its way."""
        if state.global_step == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.push.queue_ is not None and state.global_step + 1 != self.kill_at:
            self.push.queue_.wait(60)


def main(model: str, output: str, kill_at: int | None = None, **settings: Any) -> None:
    """Train, from the last checkpoint where there is one."""
    push = PushAdapterCallback(REPO, every_saves=2, tag="v1", license="mit")
    folder = Path(output)
    settings = {"max_steps": 6, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 2} | settings
    trainer = build(adapted(Path(model)), folder, FactsCallback(), push, Watch(push, kill_at), **settings)
    last = get_last_checkpoint(output) if folder.is_dir() else None
    trainer.train(resume_from_checkpoint=last)
    told = {"queue": push.queue_ is not None, "step": trainer.state.global_step}
    (folder / f"process-{trainer.args.process_index}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
