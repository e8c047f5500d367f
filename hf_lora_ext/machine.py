"""What this machine is: its accelerator, library versions, peak memory and free disk.

Nothing here loads torch by itself, so that `preset("7B")` stays instant: NVIDIA cards are found through NVML.
"""

import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from .hardware import Hardware

__all__ = [
    "describe_hardware",
    "find_hardware",
    "free_disk_bytes",
    "free_memory_bytes",
    "gpu_energy_joules",
    "peak_memory",
    "private_folders",
    "private_people",
    "reset_peak_memory",
    "secrets_of_environment",
    "software_versions",
]

LIBRARIES: Final = (
    "hf_lora_ext",
    "torch",
    "transformers",
    "peft",
    "trl",
    "accelerate",
    "bitsandbytes",
    "datasets",
    "huggingface_hub",
)


def find_hardware() -> Hardware:
    """Return the hardware found here; torch is asked only when something else has loaded it already."""
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "cuda"):
        found = _hardware_by_torch(torch)
    else:
        found = _hardware_by_nvml() or _apple_hardware() or Hardware(kind="cpu")
    return replace(found, host_memory_gib=_host_memory_gib())


NVIDIA_DEVICES: Final = ("/dev/nvidiactl", "/dev/dxg")
"""Where Linux, and Linux under Windows, have NVIDIA's driver; without it, asking is 0.02 s for nothing."""
CONTAINER_LIMITS: Final = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""Where Linux says how much memory a container may use: control groups 2 and 1."""


def _host_memory_gib() -> float:
    """Return the host's memory in GiB, or the part of it that a container's limit leaves."""
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    else:
        import psutil  # 0.03 s, so only where the standard library does not know

        whole = psutil.virtual_memory().total
    limits = [Path(file) for file in CONTAINER_LIMITS]
    texts = [file.read_text(encoding="ascii").strip() for file in limits if file.is_file()]
    return round(min([whole, *(int(text) for text in texts if text.isdigit())]) / 2**30, 1)


def _hardware_by_torch(torch: Any) -> Hardware:
    if torch.cuda.is_available():
        card = torch.cuda.get_device_properties(0)
        return Hardware(
            kind="cuda",
            devices=torch.cuda.device_count(),
            memory_gib=round(card.total_memory / 2**30, 1),
            has_bfloat16=torch.cuda.is_bf16_supported(including_emulation=False),
            name=card.name,
        )
    if torch.backends.mps.is_available():
        return _apple()
    return Hardware(kind="cpu")


def _hardware_by_nvml() -> Hardware | None:
    """Ask the NVIDIA driver; None where there is no driver or no visible card."""
    with _nvidia_cards() as cards:
        if not cards:
            return None
        import pynvml

        card = cards[0]
        return Hardware(
            kind="cuda",
            devices=len(cards),
            memory_gib=round(pynvml.nvmlDeviceGetMemoryInfo(card).total / 2**30, 1),
            has_bfloat16=pynvml.nvmlDeviceGetCudaComputeCapability(card)[0] >= 8,
            name=pynvml.nvmlDeviceGetName(card),
        )


@contextmanager
def _nvidia_cards() -> Iterator[list[Any]]:
    """Give NVML's handles of the visible cards; none where there is no driver."""
    absent = sys.platform == "linux" and not any(Path(file).exists() for file in NVIDIA_DEVICES)
    if absent or os.environ.get("CUDA_VISIBLE_DEVICES", "unset").strip() in {"", "-1"}:
        yield []
        return
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield []
        return
    try:
        yield [pynvml.nvmlDeviceGetHandleByIndex(i) for i in _visible_cards(pynvml.nvmlDeviceGetCount())]
    finally:
        pynvml.nvmlShutdown()


def gpu_energy_joules() -> float | None:
    """Return what the visible NVIDIA GPUs have used since their driver was loaded, or None where it is not counted.

    NVML counts in millijoules, on Volta and later (nvmlDeviceGetTotalEnergyConsumption).
    """
    with _nvidia_cards() as cards:
        if not cards:
            return None
        import pynvml

        try:
            return float(sum(pynvml.nvmlDeviceGetTotalEnergyConsumption(card) for card in cards)) / 1000
        except pynvml.NVMLError:  # an older card, or a part of one (MIG)
            return None


def _visible_cards(count: int) -> list[int]:
    """Return the indices that CUDA_VISIBLE_DEVICES leaves; UUIDs are not resolved and count as the first cards."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is None:
        return list(range(count))
    names = [name.strip() for name in listed.split(",") if name.strip()]
    if all(name.isdigit() for name in names):
        return [int(name) for name in names if int(name) < count]
    return list(range(min(len(names), count)))


def _apple_hardware() -> Hardware | None:
    return _apple() if sys.platform == "darwin" and platform.machine() == "arm64" else None


def _apple() -> Hardware:
    return Hardware(kind="mps", name="Apple GPU")


def software_versions() -> dict[str, str]:
    """Return the version of Python and of each library of the stack that is installed."""
    from importlib.metadata import PackageNotFoundError, version  # 0.03 s that a plan does not need

    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def describe_hardware() -> dict[str, Any]:
    """Return the device that computes and its host, without names that identify the machine."""
    import psutil

    hardware = find_hardware()
    return {
        "device": hardware.name if hardware.kind != "cpu" else _cpu_name(),
        "device_kind": hardware.kind,
        "devices": hardware.devices,
        "device_memory_gib": hardware.memory_gib,
        "cpu_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "host_memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf8").splitlines()
    except OSError:
        return platform.processor() or "CPU"
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "CPU"


def peak_memory() -> dict[str, float]:
    """Return peak memory in GiB so far: of this process, and of the GPU where there is one."""
    peaks = {"process_gib": round(_peak_process_bytes() / 2**30, 2)}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        peaks["gpu_allocated_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
        peaks["gpu_reserved_gib"] = round(torch.cuda.max_memory_reserved() / 2**30, 2)
    return peaks


def _peak_process_bytes() -> int:
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts in bytes, others in KiB
    status = Path("/proc/self/status")  # getrusage's peak is never below that of the process which started this one
    lines = status.read_text(encoding="ascii", errors="replace").splitlines() if status.is_file() else []
    own = [int(line.split()[1]) for line in lines if line.startswith("VmHWM:")]
    return (own or [resource.getrusage(resource.RUSAGE_SELF).ru_maxrss])[0] * unit


def reset_peak_memory() -> None:
    """Begin to measure `peak_memory` anew: of the GPU where there is one, of the process where that is Linux."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # proc(5): resets the peak resident set
    except OSError:  # another system, or a container that forbids it
        return


def private_folders(*more: Path) -> list[str]:
    """Return the folders whose paths must not be published: home, the working folder, and `more`."""
    return [str(folder.absolute()) for folder in (Path.home(), Path.cwd(), *more)]


def private_people() -> list[str]:
    """Return the user's login and this machine's names, which must not be published."""
    import getpass
    import socket

    host = socket.gethostname()
    found = {host, host.partition(".")[0], Path.home().name}
    try:
        found.add(getpass.getuser())
    except (OSError, KeyError, ImportError):  # a container's user without a name
        pass
    return sorted(name for name in found if name)


SECRET_VARIABLES: Final = re.compile(r".*(TOKEN|API_?KEY|SECRET|PASSW(OR)?D|CREDENTIAL|ACCESS_KEY).*", re.IGNORECASE)
"""Names under which an environment keeps what must stay secret."""


def secrets_of_environment() -> dict[str, str]:
    """Return the environment's own secrets: value → the variable's name."""
    kept = {name: value.strip() for name, value in os.environ.items() if SECRET_VARIABLES.fullmatch(name)}
    return {value: name for name, value in kept.items() if len(value) >= 8 and not Path(value).exists()}


def free_disk_bytes(folder: Path) -> int:
    """Return the free bytes on the disk that holds `folder`, which need not exist yet."""
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    return shutil.disk_usage(existing).free


def free_memory_bytes() -> int:
    """Return the bytes of the host's memory that a program may still take without swapping."""
    import psutil

    return int(psutil.virtual_memory().available)
