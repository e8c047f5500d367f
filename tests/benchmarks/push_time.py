"""Print how long `push_adapter` takes beside the client's own `upload_folder` of the same files.

    python tests/benchmarks/push_time.py
    python tests/benchmarks/push_time.py --sizes 1,20,100,500 --runs 3 --ways xet

Three things take turns: `upload_folder` of the files as they land, `push_adapter` without verification, and with it.
Each is a process of its own against a Hub of its own, which is a process too, on loopback, and each makes a new
repository. Timed is the call, after its imports; for ours those include torch and peft, which a training has loaded.
Memory is the process's peak after the imports and at the end, so that what grows is the push. What the stand-in does
(its hashing, its copies) is in all three; it holds a file whole, so 500 MB want a few GiB of memory for it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from statistics import median

TESTS = Path(__file__).parent.parent
sys.path.insert(0, str(TESTS))

REPO = "me/sums"
TIMED = """
import json, re, resource, sys, time, warnings
from pathlib import Path
warnings.simplefilter("ignore")
how, folder = sys.argv[1:]
begun = time.perf_counter()
from huggingface_hub import HfApi
if how != "upload_folder":
    from hf_lora_ext import push_adapter
    import hf_lora_ext.push.push
def peak():  # Linux hands a new program the peak of the one that started it, but for this line
    status = Path("/proc/self/status")
    if status.exists():
        return int(re.search(r"VmHWM:\\s+(\\d+)", status.read_text())[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
imported, before, worked = time.perf_counter(), peak(), time.process_time()
if how == "upload_folder":
    HfApi().create_repo("me/sums", exist_ok=True)
    HfApi().upload_folder(repo_id="me/sums", folder_path=folder, commit_message="Push adapter")
else:
    push_adapter(folder, "me/sums", license="mit", verify=how.endswith("verified"))
done, worked = time.perf_counter(), time.process_time() - worked
print(json.dumps({"imports": imported - begun, "seconds": done - imported, "processor": worked, "before": before,
                  "peak": peak()}))
"""
HOWS = ("upload_folder", "push_adapter", "push_adapter, verified")


def adapter_of(megabytes: float, folder: Path) -> Path:
    """Save a LoRA of random numbers with a config; its base is nowhere."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir()
    rank, width = 64, 4096
    layers = max(1, round(megabytes * 1e6 / (2 * rank * width * 4)))
    if layers == 1:
        width = round(megabytes * 1e6 / (2 * rank * 4))
    name = "base_model.model.model.layers.{}.self_attn.q_proj.lora_{}.weight"
    tensors = {
        name.format(layer, side): torch.randn(shape)
        for layer in range(layers)
        for side, shape in (("A", (rank, width)), ("B", (width, rank)))
    }
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": rank, "revision": None}
    config |= {"target_modules": ["q_proj"], "base_model_name_or_path": "/srv/base"}
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2), encoding="utf8")
    return folder


@contextmanager
def hub(root: Path) -> Iterator[str]:
    """Serve the stand-in in a process of its own; yield its endpoint."""
    command = [sys.executable, str(TESTS / "git_hub.py"), "--root", str(root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.kill()


def timed(how: str, folder: Path, way: str) -> dict[str, float]:
    """Return the seconds and MiB of one push to a new Hub."""
    from git_hub_access import WRITE_TOKEN

    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch, hub(Path(scratch, "hub")) as endpoint:
        environment = os.environ | {
            "HF_ENDPOINT": endpoint, "HF_TOKEN": WRITE_TOKEN, "HF_HOME": str(Path(scratch, "home")),
            "HF_HUB_DISABLE_XET": str(int(way == "lfs")), "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "PYTHONPATH": os.pathsep.join([str(TESTS.parent), os.environ.get("PYTHONPATH", "")]),
        }  # fmt: skip
        environment.pop("HF_HUB_OFFLINE", None)
        command = [sys.executable, "-c", TIMED, how, str(folder)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{how} by {way} failed: {done.stderr.strip().splitlines()[-1]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def compared(folder: Path, way: str, runs: int) -> dict[str, dict[str, float]]:
    """Return each one's medians, over runs that take turns."""
    found: dict[str, list[dict[str, float]]] = {how: [] for how in HOWS}
    for _ in range(runs):
        for how in HOWS:
            found[how].append(timed(how, folder, way))
    return {how: {key: median(run[key] for run in some) for key in some[0]} for how, some in found.items()}


def main() -> None:
    """Print the table."""
    from rank_report import table

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="1,20,100", help="MB of weights, with commas between (default: 1,20,100)")
    parser.add_argument("--ways", default="xet,lfs", help="how large files go (default: xet,lfs)")
    parser.add_argument("--runs", type=int, default=5, help="how often each is timed (default: 5)")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for size, way in product(map(float, options.sizes.split(",")), options.ways.split(",")):
            folder = Path(scratch, f"{size:g}")
            found = compared(folder if folder.is_dir() else adapter_of(size, folder), way, options.runs)
            bare = found[HOWS[0]]["seconds"]
            for how, of in found.items():
                more = f"{of['peak'] - of['before']:+,.0f}"
                rows.append([f"{size:g} MB", way, how, f"{of['seconds']:.2f}", f"{of['seconds'] / bare:.2f}",
                             f"{of['imports']:.1f}", f"{of['before']:,.0f}", more])  # fmt: skip
            print(f"{size:g} MB by {way}: done", file=sys.stderr)
    load = f"load of the machine {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    print(f"median of {options.runs}, in turns; {load}\n")
    columns = ["weights", "way", "what", "seconds", "× bare", "s of imports", "MiB before", "MiB more at the peak"]
    print(table(columns, rows))


if __name__ == "__main__":
    main()
