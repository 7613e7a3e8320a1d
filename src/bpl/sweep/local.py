"""A campaign on one machine: the runs that a grid still lacks, most valuable first.

A grid is a YAML list. Each entry is a run config whose values may be lists; the entry stands for all combinations:

    - {dataset: ucm, method: [scratch, bpl], ratio: [0.5, 0.7], seed: [0, 1, 2]}

Every row of a table gets its first seed before any gets its second, and within a seed the order is the file's. Where a
grid has stages (lists with a line ``---`` between them), all seeds of a stage come before the next stage. A file that
ends in .json holds the same as JSON, with a list of lists for stages.

A run is done when its record is there; a killed sweep goes on from the last checkpoint when it is started again.
"""

import itertools
import math
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bpl.config import RunConfig
from bpl.data import load_images
from bpl.machine.ending import Stopped, on_sigterm
from bpl.machine.run_lock import RunBusy
from bpl.records import check_images, load_record, record_path
from bpl.run import run
from bpl.shown import kind_and_line, one_line, shown
from bpl.sweep.bundle import write_bundle
from bpl.sweep.durations import Durations, in_words
from bpl.sweep.grid_file import GridError, read_grid_file
from bpl.sweep.jobs import ProcessDied, Report, side_by_side

MOST_RUNS = 20_000  # of a grid: ten lists of ten values each would be ten thousand million


def load_grid(path: Path) -> list[RunConfig]:
    """The runs of a grid file, in the order in which they are worth having, each once (`load_stages` in one list)."""
    return list(itertools.chain.from_iterable(load_stages(path)))


def load_stages(path: Path) -> list[list[RunConfig]]:
    """The runs of a grid file, stage by stage, in the order in which they are worth having, each once.

    Args:
        path: a YAML or JSON file.

    Returns:
        The configs.

    Raises:
        GridError: unreadable, not lists of mappings, an unknown key, or a value that is not allowed.
    """
    contents, stages, known = read_grid_file(Path(path)), [], set()
    for stage, entries in enumerate(contents, 1):
        where = f"grid {path}" if len(contents) == 1 else f"grid {path}, stage {stage}"
        if not isinstance(entries, list) or not entries:
            raise GridError(f"{where} is not a list of run configs")
        found: list[RunConfig] = []
        for number, entry in enumerate(entries, 1):
            if not isinstance(entry, dict):
                raise GridError(f"{where}, entry {number}: {shown(entry)} is not a mapping of config keys to values")
            try:
                found += _expand(entry)
                if len(found) + len(known) > MOST_RUNS:
                    raise ValueError(f"with it there are more than {MOST_RUNS:,} runs")
            except (TypeError, ValueError, OverflowError) as error:
                raise GridError(f"{where}, entry {number}: {error}") from error
        found.sort(key=lambda config: config.seed)  # stable: the file's order within a seed
        stages.append([config for config in dict.fromkeys(found) if config not in known])
        known.update(found)
    if not known:
        raise GridError(f"grid {path} stands for no run")
    return stages


def _expand(entry: dict[str, Any]) -> list[RunConfig]:
    if empty := next((key for key, value in entry.items() if value == []), None):
        raise ValueError(f"the list of {empty!r} is empty: it stands for no run")
    lists = [value if isinstance(value, list) else [value] for value in entry.values()]
    if (runs := math.prod(map(len, lists))) > MOST_RUNS:
        raise ValueError(f"it stands for {runs:,} runs: at most {MOST_RUNS:,} are allowed")
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
        left: runs not reached or not finished when the time budget was over or the sweep was told to stop.
        estimate: seconds that the runs left may take; None where nothing is known.
        ended: SIGTERM has ended it.
    """

    done: int = 0
    ran: int = 0
    busy: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    left: list[RunConfig] = field(default_factory=list)
    estimate: float | None = None
    ended: bool = False


@dataclass(frozen=True)
class Outcome:
    """What came of one run.

    Attributes:
        kind: "ran", "busy", "failed", "stopped" (the time budget is over) or "ended" (by SIGTERM).
        said: test accuracy, or why not.
        seconds: wall time.
        ended: SIGTERM has arrived, whatever came of the run: no other is to be started.
    """

    kind: str
    said: str
    seconds: float = 0.0
    ended: bool = False


def sweep(
    configs: list[RunConfig],
    *,
    folder: Path | None = None,
    work: Path | None = None,
    budget: float | None = None,
    jobs: int = 1,
    bundle: Path | None = None,
    progress: bool = True,
) -> Sweep:
    """Run what is lacking.

    A run is started only while the median time of its like fits into what is left of the budget; one that is under way
    when the budget ends stops after its epoch and leaves a checkpoint.

    Args:
        configs: the runs, most valuable first.
        folder: the results folder.
        work: folder for checkpoints.
        budget: seconds; None for no limit.
        jobs: runs beside each other; more than one have a process each, and on a CPU divide its threads.
        bundle: a .zip file to keep all records of the results folder in, written anew after every run.
        progress: show progress bars on standard error, and a line a run on standard output.

    Returns:
        What was done, and what is left.

    Raises:
        ValueError: fewer than one job, a record that is there and broken or of other images, or images that cannot be
            used.
    """
    if jobs < 1:
        raise ValueError(f"jobs is {jobs}: it must be at least 1")
    result, started = Sweep(), time.monotonic()
    # The clock that no one sets; it is the same in all processes of a machine.
    stop_at = None if budget is None else time.monotonic() + budget
    if bundle is not None:
        write_bundle(bundle, folder)  # now, too: what is wrong with it must not come out after the first run
    lacking, took = _lacking(configs, folder, progress, result)
    jobs = max(1, min(jobs, len(lacking)))  # they divide the threads between them, and records say how many there are
    waiting = iter(lacking.items())
    path_of = {config: path for path, config in lacking.items()}
    left = dict(lacking)  # what is under way or may still be started

    def next_run() -> RunConfig | None:
        for path, config in waiting:
            expected = took.of_its_kind(config) or 0
            if path.exists():  # another sweep has finished it meanwhile
                result.done += 1
            elif result.ended or (budget is not None and time.monotonic() - started + expected > budget):
                result.left.append(config)
            else:
                return config
            del left[path]
        return None

    perform = partial(
        _perform,
        folder=folder,
        work=work,
        progress=progress and jobs == 1,
        beside=jobs,
        stop_at=stop_at,
    )
    busy: list[Path] = []
    with tqdm(total=len(lacking), desc="sweep", bar_format=_BAR, disable=not progress or jobs == 1) as bar:
        if jobs == 1:
            outcomes = _one_after_another(next_run, perform)
        else:
            outcomes = side_by_side(next_run, perform, jobs, partial(_show, bar, left, took, jobs))
        with closing(outcomes):
            for number, (config, outcome) in enumerate(outcomes, 1):
                if isinstance(outcome, ProcessDied):  # one that was asked to end before it could answer is to go on
                    outcome = Outcome("stopped" if outcome.asked_to else "failed", str(outcome))
                path = path_of[config]
                del left[path]
                if outcome.kind == "ran":
                    result.ran += 1
                    took.add(config, outcome.seconds)
                elif outcome.kind == "failed":
                    result.failed[path.stem] = outcome.said
                elif outcome.kind in ("stopped", "ended"):
                    result.left.append(config)
                else:
                    busy.append(path)
                result.ended |= outcome.ended and jobs == 1  # the signal was for this process
                bar.update()
                if outcome.kind != "ran":
                    _say(f"{_WORDS[outcome.kind]} {path.stem}: {outcome.said}")
                elif progress:
                    rest = _about(took.of_all(left.values()), jobs, ", ", " left")
                    _say(f"{number}/{len(lacking)} {path.stem}: test {outcome.said} %{rest}")
                if bundle is not None and outcome.kind == "ran":
                    write_bundle(bundle, folder)
    if bundle is not None:
        write_bundle(bundle, folder)  # with what others have recorded meanwhile
    recorded = sum(path.exists() for path in busy)  # by now, by the process that was at work on it
    result.done, result.busy = result.done + recorded, len(busy) - recorded
    estimate = took.of_all(result.left)
    result.estimate = None if estimate is None else estimate / jobs
    return result


_BAR = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} runs [{elapsed}{postfix}]"
_WORDS = {"busy": "skipped", "failed": "failed", "stopped": "stopped", "ended": "stopped"}


def _say(line: str) -> None:
    """A line on standard output, above the bar where there is one, at once."""
    tqdm.write(line)
    sys.stdout.flush()


def _lacking(
    configs: list[RunConfig], folder: Path | None, progress: bool, result: Sweep
) -> tuple[dict[Path, RunConfig], Durations]:
    """The runs without a record, by the record's path, and the seconds that each kind of run took; counts the others.

    By path, so that two spellings of one run are run once. The images are decoded here, before any run asks for them.
    """
    found: dict[tuple, tuple[str, str, int]] = {}
    lacking: dict[Path, RunConfig] = {}
    took = Durations()
    for config in configs:
        for size in (config.stored_size, config.image_size):
            key = (config.dataset, size, config.data)
            if key not in found:
                images = load_images(*key, progress)
                found[key] = images.source, images.digest, len(images.files)
        source, digest, count = found[key]
        path = record_path(config, source, folder)
        if path.exists():
            record = load_record(path)
            check_images(record, path, digest, count)
            result.done += 1
            took.add(config, record.seconds)
        else:
            lacking.setdefault(path, config)
    return lacking, took


def _one_after_another(
    next_run: Callable[[], RunConfig | None], perform: Callable[[RunConfig, Report | None], Outcome]
) -> Iterator[tuple[RunConfig, Outcome]]:
    """The runs in this process."""
    while (config := next_run()) is not None:
        yield config, perform(config, None)


def _perform(
    config: RunConfig,
    report: Report | None,
    *,
    folder: Path | None,
    work: Path | None,
    progress: bool,
    beside: int,
    stop_at: float | None,
) -> Outcome:
    """One run, in this process or another.

    Args:
        config: the run.
        report: told the epoch after every epoch.
        folder: the results folder.
        work: folder for checkpoints.
        progress: show a progress bar on standard error.
        beside: how many runs share the machine.
        stop_at: by `time.monotonic`, when to stop it.
    """

    def watch(epoch: int, row: dict[str, float]) -> bool:
        try:
            if report is not None:
                report(f"{epoch}/{config.epochs}")
        except BrokenPipeError:
            return True  # the sweep is gone: save the checkpoint and go too
        return ending.watch(epoch, row) or (stop_at is not None and time.monotonic() > stop_at)

    begun = time.monotonic()
    try:
        with on_sigterm() as ending:
            record = run(config, folder=folder, work=work, progress=progress, watch=watch, beside=beside)
    except RunBusy:
        return Outcome("busy", "it is under way in another process", ended=ending.asked)
    except Stopped as stopped:
        if ending.asked:
            return Outcome("ended", f"SIGTERM, {stopped}", ended=True)
        return Outcome("stopped", f"the time budget is over, {stopped}")
    except (ValueError, OSError, ArithmeticError, MemoryError, RuntimeError) as error:
        return Outcome("failed", one_line(error), ended=ending.asked)
    except Exception as error:  # a defect: the traceback is in the run's log, and the other runs go on
        return Outcome("failed", kind_and_line(error), ended=ending.asked)
    return Outcome("ran", f"{record.accuracy['test']:.2f}", time.monotonic() - begun, ending.asked)


def _show(
    bar: tqdm,
    left: dict[Path, RunConfig],
    took: Durations,
    jobs: int,
    under_way: list[tuple[RunConfig, str]],
) -> None:
    """One line for all runs under way (method, ratio, seed, epochs done), after the time that all of them may take."""
    runs = (f"{config.method} {config.ratio:g} s{config.seed} {said}" for config, said in under_way)
    bar.set_postfix_str(_about(took.of_all(left.values()), jobs, "", " left, ") + ", ".join(runs))


def _about(seconds: float | None, jobs: int, before: str, after: str) -> str:
    """A time that runs beside each other may take, in words; nothing where it is not known or over."""
    return f"{before}about {in_words(seconds / jobs)}{after}" if seconds else ""
