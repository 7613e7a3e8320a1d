"""Jobs beside each other, each in a process of its own: what fails, dies or hangs on to memory hurts no other job.

The processes are started anew for every job (spawned, not forked: a GPU and threads do not survive a fork). They never
see Ctrl-C, which a terminal sends to all: this process alone takes it and ends them. They end with this process,
however that ends.
"""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

import torch

from bpl.machine import exit_codes
from bpl.machine.ending import Terminated

Job = TypeVar("Job")
Result = TypeVar("Result")
Report = Callable[[str], None]

GRACE = 30.0  # seconds that all have to end when they are asked to: a run finishes its epoch and saves a checkpoint


class ProcessDied(RuntimeError):
    """A job's process ended without a result; the message says how.

    Args:
        exit_code: of the process, or minus the number of the signal that ended it.

    Attributes:
        asked_to: it was ended by SIGTERM.
    """

    def __init__(self, exit_code: int):
        super().__init__(_how_it_ended(exit_code))
        self.asked_to = exit_code in (-signal.SIGTERM, exit_codes.TERMINATED)


def side_by_side(
    next_job: Callable[[], Job | None],
    perform: Callable[[Job, Report], Result],
    jobs: int,
    show: Callable[[list[tuple[Job, str]]], None],
) -> Iterator[tuple[Job, Result | ProcessDied]]:
    """Do jobs, several at a time. Closing the iterator ends what is under way.

    Args:
        next_job: the next job to start; None when none is to be started now. Asked again whenever one has ended.
        perform: does a job; both are pickled. It is given a function that reports in a few words how far it is.
        jobs: how many at a time, at least 1. On a CPU they divide the threads between them.
        show: called with what each job under way has last reported, whenever that changes.

    Yields:
        Each job with its result, in the order in which they end; a `ProcessDied` where its process broke off.
    """
    threads = max(1, torch.get_num_threads() // jobs)
    running: dict[Connection, tuple[multiprocessing.Process, Job]] = {}
    reported: dict[Connection, str] = {}
    try:
        while True:
            while len(running) < jobs and (job := next_job()) is not None:
                connection, process = _start(perform, job, threads)
                running[connection], reported[connection] = (process, job), "starting"
            if not running:
                return
            show([(job, reported[connection]) for connection, (_, job) in running.items()])
            for connection in wait(list(running)):
                try:
                    message = connection.recv()
                except (EOFError, ConnectionError):
                    message = None
                if isinstance(message, str):
                    reported[connection] = message
                    continue
                process, job = running.pop(connection)
                process.join()
                connection.close()
                yield job, message[0] if message else ProcessDied(process.exitcode)
    finally:
        _end([process for process, _ in running.values()])


def _start(perform: Callable, job: Any, threads: int) -> tuple[Connection, multiprocessing.Process]:
    """A process at work on a job, and the end of the pipe that it talks into."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(perform, job, threads, theirs))
    with _without_ctrl_c():
        process.start()
    theirs.close()  # so that ours ends when the process does
    return ours, process


def _work(perform: Callable, job: Any, threads: int, connection: Connection) -> None:
    """What a process does."""
    signal.signal(signal.SIGTERM, _interrupt)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    result = perform(job, connection.send)
    with suppress(BrokenPipeError):  # nobody is left to tell
        connection.send((result,))  # a tuple: a report is a string


def _interrupt(*_: object) -> None:
    """Ends the process by way of every `finally`, so that no temporary file stays."""
    raise Terminated


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def _without_ctrl_c() -> Iterator[None]:
    """Processes started within ignore Ctrl-C from their first instruction on."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may say how signals are taken
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _end(processes: list[multiprocessing.Process]) -> None:
    for process in processes:
        process.terminate()
    last = time.monotonic() + GRACE
    for process in processes:
        process.join(max(0.0, last - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()


def _how_it_ended(code: int) -> str:
    if code >= 0:
        return f"its process ended with exit code {code}"
    return f"its process was ended by {signal.Signals(-code).name}" + (
        ", as when memory runs out" if -code == signal.SIGKILL else ""
    )
