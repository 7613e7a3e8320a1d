"""What of a campaign is done, running, failed and left, as it lies on the disk: records, locks, logs.

A run is done when its record is there, and running when a process holds its folder's lock. Of the others, the last
event in the log says whether they failed, were stopped or broke off. Nothing is written, and no process is asked, so
that it works from any machine that sees the folders.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from bpl.config import RunConfig
from bpl.data import source_of
from bpl.machine.run_lock import is_held
from bpl.paths import results_folder, work_folder
from bpl.records import iterate_records, load_record, record_path
from bpl.runlog import read_log
from bpl.sweep.durations import Durations, in_words
from bpl.sweep.local import load_grid

STATES = ("done", "running", "failed", "left")
SHOWN = 10  # runs of the grid that are left; the others are counted
LONGEST = 300  # characters of a cause


@dataclass(frozen=True)
class RunStatus:
    """One run as it stands.

    Attributes:
        name: the run.
        state: a word of `STATES`.
        epoch: epochs done so far, of a run that is running, failed or broke off.
        epochs: all of them.
        seconds_left: that it may take from here; None where nothing is known.
        test: top-1 of a run that is done, in percent.
        cause: why it failed or was stopped, in one line.
    """

    name: str
    state: str
    epoch: int | None = None
    epochs: int | None = None
    seconds_left: float | None = None
    test: float | None = None
    cause: str | None = None


@dataclass(frozen=True)
class Status:
    """A campaign as it stands.

    Attributes:
        of: what the runs are of: the grid with the images that are at hand for it, or the work folder.
        runs: the runs, those of a grid in its order.
        seconds_left: that the runs left and running may take one after another; None where nothing is known.
    """

    of: str
    runs: list[RunStatus]
    seconds_left: float | None

    def count(self, state: str) -> int:
        """Number of runs in a state.

        Args:
            state: a word of `STATES`.
        """
        return sum(run.state == state for run in self.runs)


def status_of_grid(grid: Path, folder: Path | None = None, work: Path | None = None) -> Status:
    """How the runs of a grid stand.

    Args:
        grid: its file.
        folder: the results folder; None for the checkout's.
        work: the folder of checkpoints and logs; None for ``_build/runs``.

    Returns:
        The runs in the order of the grid, each once.

    Raises:
        GridError: a grid that cannot be used.
        RecordError: a record that is there and broken.
        DataError: images that are asked for and not there.
    """
    runs: dict[Path, RunConfig] = {}
    sources: dict[tuple[str, str], str] = {}
    for config in load_grid(grid):
        key = (config.dataset, config.data)
        if key not in sources:
            sources[key] = source_of(*key)
        runs.setdefault(record_path(config, sources[key], folder), config)
    took, records = Durations(), {path: load_record(path) for path in runs if path.exists()}
    for path, record in records.items():
        took.add(runs[path], record.seconds)
    found = []
    for path, config in runs.items():
        if path in records:
            done = records[path].accuracy["test"]
            found.append(RunStatus(path.stem, "done", config.epochs, config.epochs, None, done))
        else:
            place = (work or work_folder()) / path.stem
            found.append(_unfinished(place, path.parent, took.of(config), config.epochs))
    return Status(f"grid {grid} on {' and '.join(sorted(set(sources.values())))} images", found, _seconds_left(found))


def status_of_work(folder: Path | None = None, work: Path | None = None) -> Status:
    """How the runs stand that have left a folder with a log.

    Args:
        folder: the results folder; None for the checkout's.
        work: the folder of checkpoints and logs; None for ``_build/runs``.

    Returns:
        The runs by name.

    Raises:
        RecordError: a record that is there and broken.
    """
    work = work or work_folder()
    records = {path.stem: record for path, record in iterate_records(folder)}
    found = []
    for log in sorted(work.glob("*/log.jsonl")):
        place = log.parent
        if place.name in records and not is_held(place):
            found.append(RunStatus(place.name, "done", test=records[place.name].accuracy["test"]))
        else:
            found.append(_unfinished(place, folder or results_folder(), None, None))
    return Status(f"work folder {work}", found, _seconds_left(found))


def _unfinished(place: Path, results: Path, expected: float | None, epochs: int | None) -> RunStatus:
    """A run without a record, by its lock and its log.

    Args:
        place: its folder, which may not exist.
        results: where its record was looked for.
        expected: seconds that it may take from its start.
        epochs: of the run, where the grid says.
    """
    events = read_log(place)
    start = max((i for i, event in enumerate(events) if event["event"] == "started"), default=0)
    last = next((event for event in reversed(events) if event["event"] == "epoch"), {})
    end = events[-1] if events else {}
    epoch, epochs = last.get("epoch"), epochs or last.get("epochs")
    if is_held(place):
        here = next((event for event in reversed(events[start:]) if event["event"] == "epoch"), {})
        left = here.get("seconds_left", expected)
        return RunStatus(place.name, "running", epoch, epochs, left)
    if end.get("event") == "failed":
        return RunStatus(place.name, "failed", epoch, epochs, expected, cause=end.get("cause"))
    if end.get("event") == "finished":  # its checkpoint is gone: it would start anew
        missing = f"it finished, but its record is not in {results}"
        return RunStatus(place.name, "left", epoch, epochs, expected, cause=missing)
    cause = None
    if events:
        cause = end.get("cause") if end["event"] == "stopped" else "its process ended without a word"
    share = max(0.0, 1 - epoch / epochs) if epoch and epochs else 1
    return RunStatus(place.name, "left", epoch, epochs, None if expected is None else expected * share, cause=cause)


def _seconds_left(runs: list[RunStatus]) -> float | None:
    ahead = [run.seconds_left for run in runs if run.state in ("left", "running")]
    known = [seconds for seconds in ahead if seconds is not None]
    return sum(known) if len(known) == len(ahead) else None


def as_json(status: Status) -> str:
    """All of it, for a program.

    Args:
        status: the campaign.
    """
    counts = {state: status.count(state) for state in STATES}
    runs = [dataclasses.asdict(run) for run in status.runs]
    return json.dumps({"of": status.of, **counts, "seconds_left": status.seconds_left, "runs": runs}, indent=1)


def as_table(status: Status) -> str:
    """What matters of it, for a person: the counts, and a line for every run that is running, failed or left.

    Args:
        status: the campaign.
    """
    counts = ", ".join(f"{status.count(state)} {state}" for state in STATES)
    about = f", about {in_words(status.seconds_left)}" if status.seconds_left else ""
    lines = [f"{status.of}: {len(status.runs)} runs: {counts}{about}"]
    for state in STATES[1:]:
        runs = [run for run in status.runs if run.state == state]
        some = [(_printable(run.name), run) for run in (runs if state != "left" else runs[:SHOWN])]
        width = max((len(name) for name, _ in some), default=0)
        lines += [f"  {state:8}{name:{width}}  {_said(run)}".rstrip() for name, run in some]
        if len(runs) > len(some):
            lines.append(f"  {state:8}and {len(runs) - len(some):,} more")
    return "\n".join(lines)


def _said(run: RunStatus) -> str:
    """The rest of a run's line."""
    epochs = f"epoch {run.epoch or 0} of {run.epochs}" if run.epochs and (run.epoch or run.state == "running") else None
    about = f"about {in_words(run.seconds_left)}" if run.seconds_left and run.state != "failed" else None
    return ", ".join(filter(None, (epochs, about, run.cause and _printable(run.cause))))


def _printable(text: str) -> str:
    """A text as one line that a terminal only shows: without control characters, and cut where it is long."""
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    return line if len(line) <= LONGEST else f"{line[:LONGEST]}..."
