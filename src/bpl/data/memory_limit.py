"""How many bytes of pixels are kept in memory; a larger data set stays on the disk."""

import os
import re
from pathlib import Path

from bpl.data.catalog import DataError

SHARE = 0.5  # of the memory that is free: training needs the rest
VARIABLE = "BPL_MEMORY"

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def memory_limit(meminfo: Path = Path("/proc/meminfo"), group: Path = Path("/sys/fs/cgroup")) -> int:
    """The most bytes that the pixels of one image size may take.

    Args:
        meminfo: Where Linux says how much memory is free.
        group: Where Linux says how much this process's control group may have, as in a container or a Slurm job.

    Returns:
        ``$BPL_MEMORY``, such as ``8GB``, else half of the memory that is free.

    Raises:
        DataError: ``$BPL_MEMORY`` is no number of bytes.
    """
    given = os.environ.get(VARIABLE)
    if given:
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)B?", given.strip(), re.IGNORECASE)
        if match is None:
            raise DataError(f"{VARIABLE} is {given!r}; allowed is a number of bytes such as 500MB or 8GB.")
        return int(float(match[1]) * _UNITS[match[2].upper()])
    return int(SHARE * min(_free_of_machine(meminfo), _free_of_group(group)))


def in_bytes(count: int) -> str:
    """A number of bytes in words, such as ``23.0 GB``."""
    for unit in ("TB", "GB", "MB"):
        if count >= (one := _UNITS[unit[0]]):
            return f"{count / one:.1f} {unit}"
    return f"{count:,} bytes"


def _free_of_machine(meminfo: Path) -> float:
    try:
        found = re.search(r"^MemAvailable:\s+(\d+) kB", meminfo.read_text(), re.MULTILINE)
        return 1024 * int(found[1]) if found else float("inf")
    except OSError:  # no Linux
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _free_of_group(group: Path) -> float:
    try:
        most, used = (int((group / f"memory.{what}").read_text()) for what in ("max", "current"))
        cached = re.search(r"^inactive_file (\d+)", (group / "memory.stat").read_text(), re.MULTILINE)
        return max(0, most - used + (int(cached[1]) if cached else 0))  # cached files make room when it is needed
    except (OSError, ValueError):  # no control group, or one without a limit ("max")
        return float("inf")
