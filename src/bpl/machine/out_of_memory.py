"""Memory that runs out in a training step: told from other errors, and said with the batch size to try."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_SAID = ("can't allocate memory", "not enough memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
_SMALLEST_BATCH = 2  # images, as in `bpl.config`


class OutOfMemory(MemoryError):
    """A step needs more memory than there is; the message says how many images it had and how many to try."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or on the host.

    torch has a class of its own for a GPU; its allocator on the host, and cuBLAS, raise a bare RuntimeError.
    """
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(said in str(error) for said in _SAID)


@contextmanager
def out_of_memory_said(batch_size: int, image_size: int) -> Iterator[None]:
    """Within, memory that runs out becomes an `OutOfMemory`.

    Args:
        batch_size: images a step.
        image_size: height and width of the images in pixels.

    Raises:
        OutOfMemory: memory ran out.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        smaller = max(_SMALLEST_BATCH, batch_size // 2)
        hint = f"batch_size {smaller}" if smaller < batch_size else "a smaller image_size or width"
        raise OutOfMemory(
            f"memory ran out in a step with {batch_size} images of {image_size} x {image_size} pixels: try {hint}"
        ) from error
