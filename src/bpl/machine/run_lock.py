"""One process at a time in a run's folder."""

import fcntl
import itertools
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bpl.machine import processes
from bpl.machine.ending import Stopped, Watch
from bpl.machine.exit_codes import TRY_AGAIN

LOOKS = 3  # at a run's lock before it counts as held: `is_held` holds it too, for an instant
WAIT = 1.0  # seconds between two looks at the lock of a run that is waited for


class RunBusy(ValueError):
    """Another process is at work on the same run."""

    exit_code = TRY_AGAIN


@contextmanager
def only_here(place: Path, wait: bool = False, watch: Watch | None = None) -> Iterator[None]:
    """Hold a run's folder against other processes; the operating system lets go of it however this one ends.

    Args:
        place: the run's folder; it is made.
        wait: where another process holds it, wait until it lets go.
        watch: asked while it waits, as in training, for epoch 0.

    Raises:
        RunBusy: another process holds it.
        Stopped: `watch` said so.
    """
    with ExitStack() as held:
        processes.decide(lambda: held.enter_context(_locked(place, wait, watch)))
        yield


@contextmanager
def _locked(place: Path, wait: bool, watch: Watch | None) -> Iterator[None]:
    """`only_here` of one process: the first one holds the folder for all that share a run."""
    place.mkdir(parents=True, exist_ok=True)
    with open(place / "lock", "w") as file:
        for attempt in itertools.count(1):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if attempt < LOOKS:
                    time.sleep(0.05)
                elif not wait:
                    raise RunBusy(f"run {place.name} is under way in another process") from None
                elif watch is not None and watch(0, {}):
                    raise Stopped("stopped while another process is at work on this run") from None
                else:
                    time.sleep(WAIT)
        yield


def is_held(place: Path) -> bool:
    """Whether a process is at work on a run.

    Args:
        place: the run's folder.
    """
    try:
        with open(place / "lock") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False
