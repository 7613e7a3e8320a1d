"""Checkpoints of a run under way: written whole or not at all, checked when read, never executed.

A machine that is lent by the minute may hand back small files only, so a checkpoint is cut into pieces. The first
piece lies in the checkpoint's own file (a small checkpoint is that file and nothing else), with the names and the
SHA-256 of the others, which lie beside it. A piece is named by its content, so that none of an older checkpoint is
ever overwritten, and the file itself is replaced last: a kill at any moment leaves the older checkpoint or the new one.
"""

import contextlib
import hashlib
import io
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from bpl.atomic import write_atomic

PIECE = 15 << 20  # bytes of payload in a file: with the list of the other pieces still below 16 MiB

_MAGIC = b"bpl-checkpoint-2"  # 16 bytes, then the SHA-256 of the rest (32 bytes), a line of JSON, the first piece
_HEADER = len(_MAGIC) + 32


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names the file and what to do."""


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint.

    Args:
        path: its file; the folder is made.
        state: tensors and plain values.

    Raises:
        OSError: no space or no permission; an older checkpoint is left as it was.
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
    older = _pieces(path)
    try:
        for name, piece in zip(names, others, strict=True):
            write_atomic(path.with_name(name), piece)
        write_atomic(path, [_MAGIC, digest.digest(), listing, first])
    except BaseException:
        _remove(piece for piece in _pieces(path) if piece not in older)  # what the older checkpoint does not name
        raise
    _remove(piece for piece in _pieces(path) if piece.name not in names)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint, with ``weights_only=True``.

    Args:
        path: its file; its further pieces are beside it.

    Returns:
        What was saved, on the CPU.

    Raises:
        CheckpointError: not a checkpoint of this version, or its bytes are not those that were written.
    """
    content = path.read_bytes()
    rest = content[_HEADER:]
    if not content.startswith(_MAGIC) or hashlib.sha256(rest).digest() != content[len(_MAGIC) : _HEADER]:
        raise CheckpointError(f"checkpoint {path} is corrupt: delete it to start this run again from its first epoch")
    listing, _, first = rest.partition(b"\n")
    payload = io.BytesIO()
    payload.write(first)
    for name, digest in json.loads(listing):
        with contextlib.suppress(FileNotFoundError):
            piece = path.with_name(name).read_bytes()
            if hashlib.sha256(piece).hexdigest() == digest:
                payload.write(piece)
                continue
        raise CheckpointError(
            f"piece {name} of checkpoint {path} is missing or corrupt: delete {path.name} to start this run again "
            "from its first epoch"
        )
    payload.seek(0)
    return torch.load(payload, map_location="cpu", weights_only=True)


def delete_checkpoint(path: Path) -> None:
    """Remove a checkpoint, where there is one: its file first, so that no broken one is left.

    Args:
        path: its file.
    """
    path.unlink(missing_ok=True)
    _remove(_pieces(path))


def _pieces(path: Path) -> list[Path]:
    """The further pieces beside a checkpoint's file, and what a kill left of pieces and of the file itself."""
    name = re.compile(rf"{re.escape(path.name)}\.\d+-[0-9a-f]{{16}}|\.{re.escape(path.name)}\..+\.tmp")
    return [file for file in path.parent.iterdir() if name.fullmatch(file.name)]


def _remove(files: Iterable[Path]) -> None:
    for file in files:
        file.unlink(missing_ok=True)
