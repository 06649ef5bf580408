"""What a run's record says of the machine and the versions."""

import importlib.metadata
import os
import platform
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

LIMITS = ("ONEDNN_MAX_CPU_ISA", "OPENBLAS_CORETYPE", "NPY_DISABLE_CPU_FEATURES")  # torch's own is in its answer
PACKAGES = ("etude", "torch", "numpy", "scipy", "scikit-learn", "scikit-image")


def versions(packages: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    """Installed versions of the packages that exist."""
    found = {}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def processor() -> str:
    """The processor's name as the system gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def instructions() -> str:
    """The vector instructions that torch computes with, and the limits set to it, to NumPy and to their libraries.

    They decide how sums are rounded, and that which numbers a seed gives.
    """
    import torch

    limits = [f"{name}={os.environ[name]}" for name in LIMITS if os.environ.get(name)]
    return ", ".join([torch.backends.cpu.get_cpu_capability(), *limits])


@cache
def commit() -> str | None:
    """The commit of the checkout that Etude is imported from, or None outside one."""
    folder = Path(__file__).parent
    command = ["git", "-C", str(folder), "rev-parse", "--short=12", "HEAD"]
    try:
        out = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return out.stdout.strip() if out.returncode == 0 else None


def environment(device: str, workers: int) -> dict[str, Any]:
    """Versions, machine, device and threads, as they stand in a run's record."""
    name = processor()
    if device.startswith("cuda"):
        import torch

        name = f"{torch.cuda.get_device_name(device)}; {name}"
    return {
        "packages": versions(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "machine": name,
        "instructions": instructions(),
        "cores": cores(),
        "device": device,
        "workers": workers,
        "threads_per_worker": 1,
        "commit": commit(),
    }
