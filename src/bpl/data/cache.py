"""Keep decoded pixels between runs, checked.

One file per (listing, image size): a line of JSON, then the raw pixels. The key covers names, sizes and times
of the images, so a changed folder never meets an old cache; the SHA-256 of the pixels is checked at every load, so a
damaged file is never trained on. A cache that cannot be read or written costs time, never the run.
"""

import contextlib
import functools
import hashlib
import json
import math
import os
import sys
from pathlib import Path

import numpy as np

from bpl.machine.atomic import write_atomic

_FORMAT = 1  # raise it whenever decoding changes: old entries are then not found


def cache_folder() -> Path:
    """Where decoded pixels are kept: ``$BPL_CACHE``, else ``~/.cache/bpl``."""
    return Path(os.environ.get("BPL_CACHE") or "~/.cache/bpl").expanduser()


def cache_key(**parts: object) -> str:
    """Name a cache entry by everything that its pixels depend on.

    Args:
        **parts: JSON-serialisable facts (listing, image size, ...).

    Returns:
        64 hexadecimal digits.
    """
    return hashlib.sha256(json.dumps([_FORMAT, parts], sort_keys=True).encode()).hexdigest()


def load(name: str, key: str) -> tuple[np.ndarray, str] | None:
    """Read cached pixels.

    Args:
        name: Data set name, for the file name.
        key: From `cache_key`.

    Returns:
        The pixels (uint8, N x 3 x H x W, writable) and their SHA-256, or ``None`` where there is no sound entry. A
        corrupt one is remarked upon in one sentence on stderr.
    """
    path = entry(name, key)
    try:
        with path.open("rb") as file:
            header = json.loads(file.readline(4096))
            shape = tuple(header["shape"])
            if header["key"] != key or len(shape) != 4:
                raise ValueError("its header belongs to other images")
            if os.fstat(file.fileno()).st_size != file.tell() + math.prod(shape):
                raise ValueError("its length is wrong")
            pixels = np.fromfile(file, np.uint8, math.prod(shape)).reshape(shape)
        digest = hashlib.sha256(pixels).hexdigest()
        if digest != header["sha256"]:
            raise ValueError("its SHA-256 does not match")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, MemoryError) as error:
        say(f"cache file '{path}' is not usable ({error}); decoding the images again.")
        return None
    return pixels, digest


def store(name: str, key: str, pixels: np.ndarray) -> str:
    """Keep pixels for the next run; where that fails, say so on stderr and go on.

    Args:
        name: Data set name, for the file name.
        key: From `cache_key`.
        pixels: uint8, N x 3 x H x W, contiguous.

    Returns:
        The SHA-256 of the pixels.
    """
    path = entry(name, key)
    digest = hashlib.sha256(pixels).hexdigest()
    header = json.dumps({"key": key, "shape": pixels.shape, "sha256": digest}).encode() + b"\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):  # a corrupt entry must not take the room of its successor
            path.unlink()
        write_atomic(path, (header, memoryview(pixels).cast("B")))
    except OSError as error:
        say(f"decoded images are not kept in '{path.parent}' ({error.strerror or error}); the next run decodes again.")
    return digest


def entry(name: str, key: str) -> Path:
    """The file of one entry; the name is there for people, the key makes it unique."""
    readable = "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in name)[:40]
    return cache_folder() / f"{readable}-{key[:24]}.pixels"


def say(sentence: str) -> None:
    """Tell the user a sentence on stderr; not a Python warning, which a strict caller would turn into an error."""
    print(f"bpl: {sentence}", file=sys.stderr)


@functools.cache
def say_once(sentence: str) -> None:
    """Say a sentence the first time only that this process has it to say."""
    say(sentence)
