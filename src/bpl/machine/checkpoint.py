"""Checkpoints of a run under way: written whole or not at all, checked when read, never executed.

A machine that is lent by the minute may hand back small files only, so a checkpoint is cut into pieces. The first
piece lies in the checkpoint's own file (a small checkpoint is that file and nothing else), with the names and the
SHA-256 of the others, which lie beside it. A piece is named by its content, so that none of an older checkpoint is
ever overwritten, and the file itself is replaced last: a kill at any moment leaves the older checkpoint or the new one.

The checkpoint before the newest one is kept as well (``<name>.previous``): where bytes of the newest have changed on
the disk, a run goes on from the one before.
"""

import contextlib
import hashlib
import io
import json
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from bpl.machine.atomic import write_atomic, write_together
from bpl.shown import flat

PIECE = 15 << 20  # bytes of payload in a file: with the list of the other pieces still below 16 MiB

_MAGIC = b"bpl-checkpoint-2"  # 16 bytes, then the SHA-256 of the rest (32 bytes), a line of JSON, the first piece
_HEADER = len(_MAGIC) + 32
_PIECE_OF = r"{}\.\d+-[0-9a-f]{{16}}"  # file name of a further piece


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names the file and what to do."""


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint; the one that was there is kept as the previous one, unless it is damaged.

    Args:
        path: its file; the folder is made.
        state: tensors and plain values.

    Raises:
        OSError: no space or no permission; the older checkpoints are left as they were.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    torch.save(state, buffer)
    payload = buffer.getbuffer()
    first, others = payload[:PIECE], [payload[i : i + PIECE] for i in range(PIECE, len(payload), PIECE)]
    digests = [hashlib.sha256(piece).hexdigest() for piece in others]
    names = [f"{path.name}.{number}-{digest[:16]}" for number, digest in enumerate(digests, 1)]
    listing = json.dumps(list(zip(names, digests, strict=True))).encode() + b"\n"
    digest = hashlib.sha256(listing)
    digest.update(first)
    files = {path: [_MAGIC, digest.digest(), listing, first]}
    if not path.exists():  # somebody deleted it to start anew
        previous_of(path).unlink(missing_ok=True)
    older = _pieces(path)
    try:
        kept: list[str] = []
        with contextlib.suppress(FileNotFoundError, CheckpointError):  # reads it all: a damaged one is not kept
            kept = [name for name, _ in _parts(path, path)]
            files = {previous_of(path): path.read_bytes()} | files  # it takes its name before the new one does
        for name, piece in zip(names, others, strict=True):
            write_atomic(path.with_name(name), piece)
        write_together(files)
    except BaseException:  # Ctrl-C after the files took their names, too: what these name now has to stay
        in_use = _named(path, path) | _named(previous_of(path), path)
        _remove(piece for piece in _pieces(path) if piece not in older and piece.name not in in_use)
        raise
    if previous_of(path) not in files:
        with contextlib.suppress(FileNotFoundError, CheckpointError):
            kept = [name for name, _ in _parts(previous_of(path), path)]
    _remove(piece for piece in _pieces(path) if piece.name not in (*names, *kept))


def previous_of(path: Path) -> Path:
    """The file of the checkpoint before the one at ``path``."""
    return path.with_name(f"{path.name}.previous")


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint, with ``weights_only=True``; where it is damaged, the one before it, with a line on stderr.

    Args:
        path: its file; its further pieces are beside it.

    Returns:
        What was saved, on the CPU.

    Raises:
        CheckpointError: not a checkpoint of this version, or its bytes are not those that were written, and there is no
            sound one before it.
        FileNotFoundError: there is none.
    """
    try:
        return _load(path, path)
    except CheckpointError as error:
        if not previous_of(path).exists():
            raise
        try:
            state = _load(previous_of(path), path)
        except CheckpointError:
            raise CheckpointError(f"{error}; the checkpoint before it cannot be used either") from error
    print(f"bpl: checkpoint {path} is damaged: this run goes on from the one before it", file=sys.stderr)
    return state


def _load(file: Path, path: Path) -> dict[str, Any]:
    """What is saved in a file, which is the checkpoint at `path` or the one before it."""
    payload = io.BytesIO()
    for _, part in _parts(file, path):
        payload.write(part)
    payload.seek(0)
    try:
        state = torch.load(payload, map_location="cpu", weights_only=True)
    except Exception as error:  # UnpicklingError, RuntimeError, ...: its bytes are those that somebody wrote
        raise CheckpointError(
            f"checkpoint {path} was not written by this library ({flat(error, 150)}): delete it to start this run anew"
        ) from error
    if not isinstance(state, dict):
        raise CheckpointError(f"checkpoint {path} was not written by this library: delete it to start this run anew")
    return state


def _parts(file: Path, path: Path) -> Iterator[tuple[str, bytes]]:
    """The name and content of a checkpoint's parts one after the other, each checked; the first is the file itself."""
    content = file.read_bytes()
    rest = content[_HEADER:]
    if not content.startswith(_MAGIC) or hashlib.sha256(rest).digest() != content[len(_MAGIC) : _HEADER]:
        raise CheckpointError(f"checkpoint {path} is corrupt: delete it to start this run again from its first epoch")
    listing, _, first = rest.partition(b"\n")
    yield file.name, first
    for name, digest in _listed(listing, path):
        with contextlib.suppress(FileNotFoundError):
            piece = path.with_name(name).read_bytes()
            if hashlib.sha256(piece).hexdigest() == digest:
                yield name, piece
                continue
        raise CheckpointError(
            f"piece {name} of checkpoint {path} is missing or corrupt: delete {path.name} to start this run again "
            "from its first epoch"
        )


def _listed(listing: bytes, path: Path) -> list[tuple[str, str]]:
    """The names and digests of the further pieces; only names that `save_checkpoint` gives, none that leads away."""
    try:
        pieces = [(str(name), str(digest)) for name, digest in json.loads(listing)]
    except (ValueError, TypeError, RecursionError):
        pieces = [("", "")]
    if not all(re.fullmatch(_PIECE_OF.format(re.escape(path.name)), name) for name, _ in pieces):
        raise CheckpointError(f"checkpoint {path} was not written by this library: delete it to start this run anew")
    return pieces


def _named(file: Path, path: Path) -> set[str]:
    """The further pieces that a file names, without a look at them; none where it is missing or cannot be read."""
    try:
        return {name for name, _ in _listed(file.read_bytes()[_HEADER:].partition(b"\n")[0], path)}
    except (OSError, CheckpointError):
        return set()


def delete_checkpoint(path: Path) -> None:
    """Remove a checkpoint and the one before it, where there are any: the pieces last, so that no broken one is left.

    Args:
        path: its file.
    """
    previous_of(path).unlink(missing_ok=True)
    path.unlink(missing_ok=True)
    _remove(_pieces(path))


def _pieces(path: Path) -> list[Path]:
    """The further pieces beside a checkpoint's file, and what a kill left of pieces and of the file itself."""
    own = re.escape(path.name)
    name = re.compile(rf"{_PIECE_OF.format(own)}|\.{own}\..+\.tmp")
    return [file for file in path.parent.iterdir() if name.fullmatch(file.name)]


def _remove(files: Iterable[Path]) -> None:
    for file in files:
        file.unlink(missing_ok=True)
