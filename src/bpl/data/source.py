"""Which images a run will use, without reading any."""

from pathlib import Path

from bpl.data.catalog import CARDS
from bpl.data.image_set import find_real


def source_of(dataset: str, data: str | Path = "auto") -> str:
    """What `bpl.data.load_images` would load: the ``source`` that is part of a record's name.

    Args:
        dataset: A name from `CARDS`, or a path to a folder of class folders.
        data: As of `bpl.data.load_images`.

    Returns:
        ``"real"`` or ``"synthetic"``.

    Raises:
        DataError: The images asked for are not there.
    """
    if dataset == "synthetic" or data == "synthetic":
        return "synthetic"
    if dataset not in CARDS:
        return "real"
    return "synthetic" if find_real(CARDS[dataset], data) is None else "real"
