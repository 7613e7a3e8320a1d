"""Images that stay on the disk: a data set larger than memory, read batch by batch by worker processes.

`StreamedImages` stands where the tensor of all pixels would: it has a shape and a device, is indexed by a tensor of
indices, and `bpl.data.batches` goes through it in the same order with the same pixels. What is in memory at any time is
the batches that the workers have ready. Their pixels come from a file of decoded pixels, one row an image, where there
was room on the disk for one (`bpl.data.rows`), else from the image files, decoded anew in every epoch.
"""

import os
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from bpl.data.catalog import DataError
from bpl.data.folders import Listing, decode

MOST_WORKERS = 8
READY = 2  # batches that each worker has ready at most
_SAID = "a process that reads images was killed: memory, or shared memory (/dev/shm), may have run out"


class WorkerDied(OSError):
    """A process that reads images has ended before its work was done."""


class Pixels(Protocol):
    """Where the pixels of images come from."""

    def read(self, index: int) -> np.ndarray:
        """One image: uint8, 3 x H x W."""


@dataclass(frozen=True)
class DecodedRows:
    """Pixels in a file, decoded before.

    Args:
        file: The images one after the other, uint8, 3 x size x size each.
        size: Height and width in pixels.
    """

    file: Path
    size: int

    def read(self, index: int) -> np.ndarray:
        """One image: uint8, 3 x size x size."""
        count = 3 * self.size * self.size
        # Not a memory map: its pages would count as this process's memory, and grow to the whole file.
        row = np.fromfile(self.file, np.uint8, count, offset=index * count)
        if len(row) < count:
            raise DataError(f"'{self.file}' ends before its image number {index}; delete it, and it is made anew.")
        return row.reshape(3, self.size, self.size)


@dataclass(frozen=True)
class ImageFiles:
    """Pixels that are decoded whenever they are asked for.

    Args:
        listing: The images.
        size: Height and width in pixels.
    """

    listing: Listing
    size: int

    def read(self, index: int) -> np.ndarray:
        """One image: uint8, 3 x size x size."""
        return decode(self.listing.folder / self.listing.files[index], self.size).transpose(2, 0, 1)


@dataclass(frozen=True)
class StreamedImages:
    """All pixels of a data set, none of them in memory; used as a tensor uint8, N x 3 x H x W, is.

    Args:
        pixels: Where they come from.
        shape: N, 3, H, W.
        device: Where batches go.
    """

    pixels: Pixels
    shape: tuple[int, int, int, int]
    device: torch.device = torch.device("cpu")

    def __len__(self) -> int:
        return self.shape[0]

    def to(self, device: torch.device | str) -> "StreamedImages":
        """The same images for another device."""
        return replace(self, device=torch.device(device))

    def __getitem__(self, which: int | torch.Tensor) -> torch.Tensor:
        """The image of an index (3 x H x W), or those of several (B x 3 x H x W), read by this process."""
        indices = torch.as_tensor(which)
        found = torch.from_numpy(_read(self.pixels, indices.reshape(-1).tolist(), self.shape[1:])).to(self.device)
        return found if indices.dim() else found[0]

    def batches(self, parts: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Batches read ahead by worker processes.

        Args:
            parts: The indices of each batch, int64.

        Returns:
            An iterator over the batches, uint8, B x 3 x H x W, on the device.

        Raises:
            DataError: An image cannot be read; the message names it.
            WorkerDied: A worker process has ended.
        """
        loader = DataLoader(
            _Batches(self.pixels, self.shape[1:]),
            sampler=[part.tolist() for part in parts],
            batch_size=None,  # the sampler's items are batches
            num_workers=workers(),
            prefetch_factor=READY,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # else the loader would draw from the global one, as training does
        )
        reading = iter(loader)
        with death_said():
            try:
                for batch in reading:
                    if isinstance(batch, DataError):
                        raise batch
                    yield batch.to(self.device, non_blocking=True)
            except (OSError, EOFError) as error:  # of the connection to a worker: what it meets itself, it hands over
                raise WorkerDied(_SAID) from error
            finally:
                _end(reading)


class _Batches(Dataset):
    """What a worker process does: from the indices of a batch to the batch, or to the error to raise in its place."""

    def __init__(self, pixels: Pixels, shape: tuple[int, int, int]):
        self.pixels, self.shape = pixels, shape

    def __getitem__(self, indices: list[int]) -> torch.Tensor | DataError:
        try:
            return torch.from_numpy(_read(self.pixels, indices, self.shape))
        except DataError as error:  # raised here, it would reach the user with the worker's traceback in its message
            return error
        except OSError as error:
            return DataError(f"an image cannot be read: {error}.")


def _read(pixels: Pixels, indices: list[int], shape: tuple[int, int, int]) -> np.ndarray:
    batch = np.empty((len(indices), *shape), np.uint8)
    for row, index in enumerate(indices):
        batch[row] = pixels.read(index)
    return batch


def _end(reading: Any) -> None:
    """End the workers here and now. For one that was killed, torch's handler of their end would raise once more."""
    if threading.current_thread() is not threading.main_thread():
        reading._shutdown_workers()
        return
    handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        reading._shutdown_workers()
    finally:
        signal.signal(signal.SIGCHLD, handler)


def workers() -> int:
    """How many processes read: the cores that this process may use, shared with the others of its run."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(MOST_WORKERS, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


@contextmanager
def death_said() -> Iterator[None]:
    """Within it, the end of a process that reads images is a `WorkerDied`.

    Torch raises a RuntimeError wherever the program is when it learns of it, so this goes around all of a training.

    Raises:
        WorkerDied: A worker process has ended.
    """
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise WorkerDied(_SAID) from error
