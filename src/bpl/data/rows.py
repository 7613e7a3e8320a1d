"""Go once through all images of a set that does not fit into memory, and keep what is known afterwards.

Decoded pixels go into a file in the cache, ``*.rows``, one image after the other, where the disk has room for it; their
SHA-256 and the statistics of their channels into ``*.facts.json`` beside it. Both are the numbers that the same images
have in memory. What is in memory meanwhile is a few megabytes of pixels.
"""

import hashlib
import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from bpl.data import cache
from bpl.data.folders import Listing, decode_all
from bpl.data.statistics import ChannelHistograms, Statistics
from bpl.data.streamed import DecodedRows, ImageFiles, Pixels
from bpl.machine.atomic import write_atomic

_BYTES_AT_ONCE = 8 << 20
_SPARE = 1 << 30  # bytes that are left free on the disk: checkpoints and records are worth more


@dataclass(frozen=True)
class Facts:
    """What is known of all pixels of a set.

    Args:
        sha256: Of the pixels, in hex.
        statistics: Mean and standard deviation of each channel, 0..1.
    """

    sha256: str
    statistics: Statistics


def stream(name: str, key: str, listing: Listing, image_size: int, progress: bool = True) -> tuple[Pixels, Facts]:
    """Where to read the pixels of a set from, and what is known of them.

    Args:
        name: Data set name, for file names.
        key: From `bpl.data.cache.cache_key`.
        listing: The images.
        image_size: Height and width in pixels.
        progress: Show a bar on stderr while decoding.

    Returns:
        A source of pixels, and the facts, both made now or taken from the cache.

    Raises:
        DataError: A file is truncated, no image, or too large; the message names it.
    """
    file = cache.entry(name, key).with_suffix(".rows")
    needed = len(listing.files) * 3 * image_size**2
    facts = _load(file, key)
    if facts is not None and file.exists():
        if file.stat().st_size == needed and _digest(file) == facts.sha256:
            return DecodedRows(file, image_size), facts
        cache.say(f"cache file '{file}' is damaged; decoding the images again.")
        file.unlink()
    room = _room(file.parent, needed)
    if room:
        passing = _Pass(listing, image_size, progress)
        try:
            write_atomic(file, passing)
        except OSError as error:
            cache.say(f"decoded images are not kept in '{file.parent}' ({error.strerror or error}).")
            room = False
        else:
            facts = passing.facts()
    if facts is None:
        passing = _Pass(listing, image_size, progress)
        for _ in passing:
            pass
        facts = passing.facts()
    _keep(file, key, facts)
    return (DecodedRows(file, image_size) if room else ImageFiles(listing, image_size)), facts


class _Pass:
    """All images, decoded a few megabytes at a time; knows the facts when it has been gone through."""

    def __init__(self, listing: Listing, image_size: int, progress: bool):
        self._listing, self._size, self._progress = listing, image_size, progress
        self._digest, self._histograms = hashlib.sha256(), ChannelHistograms()

    def __iter__(self) -> Iterator[memoryview]:
        step = max(1, _BYTES_AT_ONCE // (3 * self._size**2))
        total = len(self._listing.files)
        with tqdm(total=total, desc="decode", unit="image", disable=not self._progress, file=sys.stderr) as bar:
            for start in range(0, total, step):
                some = replace(self._listing, files=self._listing.files[start : start + step])
                pixels = np.ascontiguousarray(decode_all(some, self._size, progress=False))
                self._digest.update(pixels)
                self._histograms.add(pixels)
                bar.update(len(pixels))
                yield memoryview(pixels).cast("B")

    def facts(self) -> Facts:
        return Facts(self._digest.hexdigest(), self._histograms.statistics())


def _room(folder: Path, needed: int) -> bool:
    """Whether a folder, which is made, has room for a file."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        cache.say(f"decoded images are not kept in '{folder}' ({error.strerror or error}).")
        return False
    if free < needed + _SPARE:
        cache.say(
            f"decoded images take {needed / 1e9:.1f} GB, for which '{folder}' has no room: they are decoded in every "
            "epoch (BPL_CACHE names another folder)."
        )
    return free >= needed + _SPARE


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _load(file: Path, key: str) -> Facts | None:
    """The facts beside a file of rows; None where there are none that can be used."""
    try:
        values = json.loads(file.with_suffix(".facts.json").read_text())
        mean, std = (tuple(map(float, values[part])) for part in ("mean", "std"))
        if values["key"] == key and len(mean) == len(std) == 3:
            return Facts(values["sha256"], (mean, std))
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def _keep(file: Path, key: str, facts: Facts) -> None:
    mean, std = facts.statistics
    content = json.dumps({"key": key, "sha256": facts.sha256, "mean": mean, "std": std})
    try:
        write_atomic(file.with_suffix(".facts.json"), content.encode())
    except OSError as error:
        cache.say(f"what is known of the images is not kept in '{file.parent}' ({error.strerror or error}).")
