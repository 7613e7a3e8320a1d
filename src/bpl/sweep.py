"""A campaign on one machine: the runs that a grid still lacks, most valuable first.

A grid is a YAML list. Each entry is a run config whose values may be lists; the entry stands for all combinations:

    - {dataset: ucm, method: [scratch, bpl], ratio: [0.5, 0.7], seed: [0, 1, 2]}

Every row of a table gets its first seed before any gets its second, and within a seed the order is the file's. A run
is done when its record is there; a killed sweep goes on from the last checkpoint when it is started again.
"""

import itertools
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from bpl.config import RunConfig
from bpl.data import load_images
from bpl.records import load_record, record_path
from bpl.run import RunBusy, run


class GridError(ValueError):
    """A grid that cannot be used; the message names the file and the entry."""


def load_grid(path: Path) -> list[RunConfig]:
    """The runs of a grid file, in the order in which they are worth having, each once.

    Args:
        path: a YAML file.

    Returns:
        The configs.

    Raises:
        GridError: unreadable, not a list of mappings, an unknown key, or a value that is not allowed.
    """
    try:
        entries = yaml.safe_load(Path(path).read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise GridError(f"grid {path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(entries, list) or not entries:
        raise GridError(f"grid {path} is not a list of run configs")
    configs: list[RunConfig] = []
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry, dict):
            raise GridError(f"grid {path}, entry {number}: {entry!r} is not a mapping of config keys to values")
        try:
            configs += _expand(entry)
        except (TypeError, ValueError) as error:
            raise GridError(f"grid {path}, entry {number}: {error}") from error
    if not configs:
        raise GridError(f"grid {path} stands for no run: one of its lists is empty")
    unique = list(dict.fromkeys(configs))
    return sorted(unique, key=lambda config: config.seed)  # stable: the file's order within a seed


def _expand(entry: dict[str, Any]) -> list[RunConfig]:
    lists = [value if isinstance(value, list) else [value] for value in entry.values()]
    return [RunConfig.from_dict(dict(zip(entry, values, strict=True))) for values in itertools.product(*lists)]


def seconds_of(text: str) -> float:
    """A time such as ``90``, ``90s``, ``25m`` or ``2h`` in seconds.

    Raises:
        ValueError: anything else.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text)
    if match is None:
        raise ValueError(f"time budget is {text!r}: it must be a number with s, m or h, such as 25m")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


@dataclass
class Sweep:
    """What a sweep did.

    Attributes:
        done: runs recorded before.
        ran: runs finished now.
        busy: runs that another process is at work on.
        failed: run name -> reason.
        left: runs not reached within the time budget.
        estimate: seconds that the runs left may take; None where nothing is known.
    """

    done: int = 0
    ran: int = 0
    busy: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    left: list[RunConfig] = field(default_factory=list)
    estimate: float | None = None


def sweep(
    configs: list[RunConfig],
    *,
    folder: Path | None = None,
    work: Path | None = None,
    budget: float | None = None,
    progress: bool = True,
) -> Sweep:
    """Run what is lacking.

    A run is started only while the median time of its like fits into what is left of the budget.

    Args:
        configs: the runs, most valuable first.
        folder: the results folder.
        work: folder for checkpoints.
        budget: seconds; None for no limit.
        progress: show progress bars on standard error, and a line a run on standard output.

    Returns:
        What was done, and what is left.
    """
    result, started = Sweep(), time.monotonic()
    sources: dict[tuple, str] = {}
    lacking: dict[Path, RunConfig] = {}  # by record, so that two spellings of one run are run once
    took: dict[tuple, list[float]] = {}
    for config in configs:
        key = (config.dataset, config.image_size, config.data)
        if key not in sources:
            sources[key] = load_images(*key, progress).source
        path = record_path(config, sources[key], folder)
        if path.exists():
            result.done += 1
            took.setdefault(_like(config), []).append(load_record(path).seconds)
        else:
            lacking.setdefault(path, config)

    for number, (path, config) in enumerate(lacking.items(), 1):
        if path.exists():  # another sweep has finished it meanwhile
            result.done += 1
            continue
        expected = _median(took.get(_like(config)))
        if budget is not None and time.monotonic() - started + (expected or 0) > budget:
            result.left.append(config)
            continue
        begun = time.monotonic()
        try:
            record = run(config, folder=folder, work=work, progress=progress)
        except RunBusy:
            result.busy += 1
            print(f"skipped {path.stem}: it is under way in another process", flush=True)
            continue
        except (ValueError, OSError, ArithmeticError, RuntimeError) as error:
            result.failed[path.stem] = (str(error).splitlines() or [type(error).__name__])[0]
            print(f"failed {path.stem}: {result.failed[path.stem]}", flush=True)
            continue
        result.ran += 1
        took.setdefault(_like(config), []).append(time.monotonic() - begun)
        if progress:
            print(f"{number}/{len(lacking)} {path.stem}: test {record.accuracy['test']:.2f} %", flush=True)
    result.estimate = _estimate(result.left, took)
    return result


def _like(config: RunConfig) -> tuple:
    """Runs of one kind take about the same time."""
    return config.dataset, config.arch, config.width, config.method, config.ratio, config.epochs, config.image_size


def _median(values: list[float] | None) -> float | None:
    return sorted(values)[len(values) // 2] if values else None


def _estimate(left: list[RunConfig], took: dict[tuple, list[float]]) -> float | None:
    overall = _median([value for values in took.values() for value in values])
    if overall is None:
        return None
    return sum(_median(took.get(_like(config))) or overall for config in left)
