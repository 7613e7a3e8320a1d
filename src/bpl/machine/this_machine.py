"""What a measured time depends on besides the network: the processor, the threads and the versions."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch


def machine() -> dict[str, Any]:
    """What a time depends on besides the network."""

    def version_of(package: str) -> str | None:
        try:
            return version(package)
        except PackageNotFoundError:
            return None

    return {
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{package: version_of(package) for package in ("torch", "onnxruntime")},
    }


def use_threads(threads: int) -> None:
    """Compute with so many threads: torch starts as many as it is told, and a machine ends before they do.

    Args:
        threads: of an operation.

    Raises:
        ValueError: less than one, or more than this machine has cores.
    """
    cores = os.cpu_count() or 1
    if not 1 <= threads <= cores:
        raise ValueError(f"--threads is {threads}: it must be 1 to {cores}, the cores of this machine")
    torch.set_num_threads(threads)


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Name of the processor, as the system gives it."""
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return " ".join(line.partition(":")[2].split())
    return platform.processor() or platform.machine()
