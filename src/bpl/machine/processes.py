"""The processes that share one run, one for each device, where ``torchrun`` or ``fabric run`` has started several.

Every process goes through the same program and holds the same network. What must be decided once (masks, which
checkpoint to go on from, whether to stop) the first process decides and tells the others; it alone writes files. In a
process of its own nothing here does anything.
"""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from bpl.config import RunConfig

Value = TypeVar("Value")

# How long a process waits for the others: the first one measures and writes at the end of a run, and all may decode.
# When one dies, it is torchrun that ends the others, at once.
PATIENCE = timedelta(hours=6)

# How gloo and NCCL say that the other end of a connection is gone; they have no exception for it.
_SIGNS_OF_LOSS = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "NCCL communicator was aborted",
)


class ProcessLost(RuntimeError):
    """A process that shares this run has ended, so that the others cannot go on."""


def count() -> int:
    """How many processes share this run."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this one is, from 0."""
    return dist.get_rank() if count() > 1 else 0


def started() -> int:
    """How many processes were started for one run, whether they have joined yet or not."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def alone_or_refused(command: str) -> None:
    """Refuse what several processes cannot share.

    Args:
        command: what they can share, to be named.

    Raises:
        ValueError: several processes were started.
    """
    if started() > 1:
        raise ValueError(f"{started()} processes were started, as by torchrun: they can share {command!r} only")


def join(config: RunConfig) -> None:
    """Meet the other processes of this run, where there are any and they have not met yet.

    Args:
        config: the run.

    Raises:
        ValueError: the device is not there, or there are fewer devices than processes.
    """
    if started() > 1 and count() == 1:
        fabric_of(config)


def fabric_of(config: RunConfig) -> Any:
    """Device, precision and, where there are several processes, the averaging of gradients (DDP) of a run.

    Args:
        config: the run.

    Returns:
        A `lightning_fabric.Fabric`; its processes have met.

    Raises:
        ValueError: the device is not there, or there are fewer devices than processes.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is 'cuda': this machine has none that torch can use; allowed are auto and cpu")
    try:
        from lightning_fabric import Fabric
        from lightning_fabric.strategies import DDPStrategy
    except ImportError:  # the large package `lightning` holds the same modules under another name
        from lightning.fabric import Fabric
        from lightning.fabric.strategies import DDPStrategy

    for package in ("lightning_fabric", "lightning.fabric"):
        logging.getLogger(package).setLevel(logging.WARNING)  # what it would say is in the record
    # Fabric's own auto would take other accelerators too, where float64 is missing and nothing here was tried.
    accelerator = ("cuda" if torch.cuda.is_available() else "cpu") if config.device == "auto" else config.device
    precision = {"float32": "32-true", "bf16": "bf16-mixed"}[config.precision]
    if started() == 1:
        return Fabric(accelerator=accelerator, devices=1, precision=precision)
    here = int(os.environ.get("LOCAL_WORLD_SIZE", started()))
    if config.device != "cpu" and 0 < torch.cuda.device_count() < here:
        raise ValueError(
            f"{here} processes were started on a machine with {torch.cuda.device_count()} GPUs: allowed are at most as "
            "many, or --device cpu"
        )
    fabric = Fabric(
        accelerator=accelerator,
        devices=here,
        num_nodes=started() // here,
        strategy=DDPStrategy(timeout=PATIENCE),
        precision=precision,
    )
    if not int(os.environ.get("LT_CLI_USED", "0")):  # under `fabric run` a Fabric is launched when it is made
        fabric.launch()
    return fabric


def decide(what: Callable[[], Value]) -> Value:
    """Have something done or decided once, by the first process; all processes call this at the same point.

    Args:
        what: does it, and returns a value that can be pickled, tensors on the CPU.

    Returns:
        The value, in every process.

    Raises:
        Exception: what `what` raised, in every process.
    """
    if count() == 1:
        return what()
    outcome: list[Any] = [None]
    if rank() == 0:
        try:
            outcome = [(what(), None)]
        except Exception as error:  # whatever it is: the others must not wait for a value that does not come
            outcome = [(None, error)]
    dist.broadcast_object_list(outcome, src=0)
    value, error = outcome[0]
    if error is not None:
        raise error
    return value


def any_says(what: Callable[[], bool]) -> bool:
    """Ask something in every process; all of them call this at the same point.

    Args:
        what: the question.

    Returns:
        Whether the answer is True in any process; the same in all of them.

    Raises:
        Exception: what `what` raised in the first process that raised anything, in every process.
    """
    if count() == 1:
        return what()
    try:
        mine = (bool(what()), None)
    except Exception as error:  # whatever it is: the others must not wait for an answer that does not come
        mine = (False, error)
    everyones: list[Any] = [None] * count()
    dist.all_gather_object(everyones, mine)
    for _, error in everyones:
        if error is not None:
            raise error
    return any(answer for answer, _ in everyones)


def meet() -> None:
    """Wait until all processes are here."""
    decide(lambda: None)


def add_up(tensor: Tensor) -> Tensor:
    """The sum of a tensor over the processes, in every one of them; on its device, in place."""
    if count() > 1:
        dist.all_reduce(tensor)
    return tensor


@contextmanager
def loss_said() -> Iterator[None]:
    """Within it, the end of another process is a `ProcessLost`.

    Raises:
        ProcessLost: another process has ended while this one was exchanging values with it.
    """
    try:
        yield
    except RuntimeError as error:
        if count() > 1 and any(sign in str(error) for sign in _SIGNS_OF_LOSS):
            raise ProcessLost(f"another of the {count()} processes of this run has ended") from error
        raise


@contextmanager
def first_of_machine_first() -> Iterator[None]:
    """One process of each machine goes through this block before its others, which then find what it left on the disk.

    An error of the first one is met by the others in their turn.
    """
    first = os.environ.get("LOCAL_RANK", "0") == "0"
    if count() > 1 and not first:
        dist.barrier()
    try:
        yield
    finally:
        if count() > 1 and first:
            dist.barrier()
