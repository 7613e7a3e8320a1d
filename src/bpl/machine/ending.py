"""A training that stops before its end: asked to, or by SIGTERM, which schedulers send some seconds before they kill.

Where several processes share a run, each takes the signal for itself, and one that was asked stops them all.

It stops after its epoch, with a checkpoint: that is the state between two epochs, so the one under way is finished
first. Where a scheduler's patience is shorter than an epoch, its kill leaves the checkpoint before: the training loop
saves one every 20 seconds or so.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from bpl.machine.exit_codes import TERMINATED, TRY_AGAIN

# What a training asks after every epoch, with the number of epochs done and the values of the last: whether to stop.
Watch = Callable[[int, dict[str, float]], bool]


class Stopped(Exception):
    """A training was told to stop before its last epoch; where it has a checkpoint, it is that of the moment."""

    exit_code = TRY_AGAIN


class Terminated(SystemExit):
    """SIGTERM while there was nothing to save: the program ends at once, by way of every `finally`."""

    def __init__(self) -> None:
        super().__init__(TERMINATED)


class Ending:
    """Whether the process was asked to end.

    Attributes:
        asked: SIGTERM has arrived, and the training under way is to stop after its epoch.
    """

    def __init__(self) -> None:
        self.asked = False
        self._has_trained = False

    def watch(self, epoch: int, row: dict[str, float]) -> bool:
        """What `bpl.run` asks after every epoch, in every process that shares the run: whether to stop.

        Args:
            epoch: number of epochs done.
            row: the epoch's values.
        """
        self._has_trained = True
        return self.asked

    def _arrived(self, *_: object) -> None:
        self.asked = True
        if not self._has_trained:  # nothing that a checkpoint of this process could hold
            raise Terminated


@contextmanager
def on_sigterm() -> Iterator[Ending]:
    """Within, SIGTERM ends the process as said above; afterwards it does what it did before.

    Yields:
        What tells whether it has arrived. In a thread other than the main one, which alone may take signals, it never
        does.
    """
    ending = Ending()
    if threading.current_thread() is not threading.main_thread():
        yield ending
        return
    before = signal.signal(signal.SIGTERM, ending._arrived)
    try:
        yield ending
    finally:
        signal.signal(signal.SIGTERM, before)
