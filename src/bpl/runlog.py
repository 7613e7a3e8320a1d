"""What a run does, as it does it: one line of JSON an event, in ``log.jsonl`` of the run's work folder.

Events are ``started``, ``dense`` (the run now needs the trained dense network, which has a log of its own),
``pretrained`` (it starts from a network that was trained on another data set), ``epoch``, ``checkpoint``, ``finished``,
``stopped`` (it can go on) and ``failed``; all have ``time`` (UTC) and ``event``. The log is for looking at: what a run
is worth is in its record, and a log that cannot be written stops no run.
"""

import contextlib
import json
import math
import os
import platform
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bpl.config import RunConfig
from bpl.machine.ending import Stopped
from bpl.machine.processes import rank
from bpl.shown import one_line

LIMIT = 256 << 10  # bytes; some 1,000 epochs. Then the file becomes log.1.jsonl in place of the one before
LONGEST_TRACEBACK = 8 << 10  # characters, the last ones
MOST_EPOCHS = 10**9  # that are believed
RECENT = 5  # epochs that the time left is reckoned from: a network that was slimmed is faster than it was


class RunLog:
    """The log of one run.

    Args:
        place: the run's work folder; it must exist.
        epochs: of the run.
    """

    def __init__(self, place: Path, epochs: int) -> None:
        self._file = place / "log.jsonl"
        self._epochs = epochs
        self._moments: list[tuple[int, float]] = []  # epochs done, and when

    def write(self, event: str, **values: Any) -> None:
        """Append an event; of several processes that share the run the first one does.

        Args:
            event: its name.
            **values: what JSON can hold; numbers that are not finite become null.
        """
        if rank() > 0:
            return
        line = json.dumps({"time": datetime.now(UTC).isoformat(timespec="seconds"), "event": event} | _plain(values))
        with contextlib.suppress(OSError):
            if self._file.exists() and self._file.stat().st_size > LIMIT:
                os.replace(self._file, self._file.with_suffix(".1.jsonl"))
            with open(self._file, "ab+") as file:
                start = file.tell() and file.seek(-1, os.SEEK_END)
                torn = bool(start) and file.read(1) != b"\n"  # a kill while a line was being written
                file.write((b"\n" if torn else b"") + line.encode() + b"\n")

    def epoch(self, epoch: int, row: dict[str, float]) -> None:
        """Append the values of an epoch, and the seconds that the rest may take.

        Args:
            epoch: number of epochs done.
            row: the epoch's values of the curves.
        """
        self._moments = [*self._moments[-RECENT:], (epoch, time.monotonic())]
        (first, began), (last, now) = self._moments[0], self._moments[-1]
        left = (now - began) / (last - first) * (self._epochs - epoch) if last > first else None
        self.write("epoch", epoch=epoch, epochs=self._epochs, seconds_left=left, values=row)

    def checkpoint(self, epoch: int) -> None:
        """Append that a checkpoint was saved.

        Args:
            epoch: number of epochs done.
        """
        self.write("checkpoint", epoch=epoch)


@contextmanager
def logged(place: Path, config: RunConfig) -> Iterator[RunLog]:
    """The log of a run that is under way within: how it started, and how it ended where it was not finished.

    Args:
        place: the run's work folder; it must exist.
        config: the run.
    """
    log = RunLog(place, config.epochs)
    log.write("started", epochs=config.epochs, process=os.getpid(), machine=platform.node(), command=config.command())
    try:
        yield log
    except Stopped as stopped:
        log.write("stopped", cause=one_line(stopped))
        raise
    except (KeyboardInterrupt, SystemExit) as end:
        log.write("stopped", cause="interrupted" if isinstance(end, KeyboardInterrupt) else "ended by SIGTERM")
        raise
    except BaseException as error:
        where = "".join(traceback.format_exception(error))[-LONGEST_TRACEBACK:]
        log.write("failed", cause=one_line(error), error=type(error).__name__, traceback=where)
        raise


def read_log(place: Path) -> list[dict[str, Any]]:
    """The events of a run, oldest first; without lines that are torn or hold what is never written.

    Args:
        place: the run's work folder.
    """
    events = []
    for name in ("log.1.jsonl", "log.jsonl"):
        with contextlib.suppress(OSError):
            for line in (place / name).read_bytes().splitlines():
                with contextlib.suppress(ValueError, RecursionError):
                    event = json.loads(line)
                    if _is_event(event):
                        events.append(event)
    return events


def _is_event(event: Any) -> bool:
    """Whether what is reckoned with and shown of an event is of the kind that it is written with."""
    if not isinstance(event, dict) or not isinstance(event.get("event"), str):
        return False
    if not isinstance(event.get("cause", ""), str):
        return False
    counts, left = (event.get("epoch", 0), event.get("epochs", 0)), event.get("seconds_left")
    if not all(type(count) is int and 0 <= count <= MOST_EPOCHS for count in counts):
        return False
    return left is None or (type(left) in (int, float) and 0 <= left < math.inf)


def _plain(value: Any) -> Any:
    """The same with null for numbers that JSON has no word for."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
