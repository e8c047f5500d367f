"""A script of the tests in several processes, as `accelerate launch` starts them."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def launch(script: Path, processes: int, **settings: Any) -> subprocess.CompletedProcess[str]:
    """Run the script on the CPU, with gloo; the settings are its argument, as JSON."""
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--num_processes", str(processes),
               "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
               "--num_cpu_threads_per_process", "1", "--main_process_port", "0"]  # fmt: skip
    command += ["--multi_gpu"] if processes > 1 else ["--cpu"]  # its name for torchrun; the trainer asks for gloo
    return subprocess.run([*command, str(script), json.dumps(settings)], env=os.environ, capture_output=True,
                          text=True, timeout=600, check=False)  # fmt: skip
