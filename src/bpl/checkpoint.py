"""Checkpoints of a run under way: written whole or not at all, checked when read, never executed."""

import hashlib
import io
from pathlib import Path
from typing import Any

import torch

from bpl.atomic import write_atomic

_MAGIC = b"bpl-checkpoint-1"  # 16 bytes, then the SHA-256 of the rest (32 bytes), then torch's own format


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
    payload = buffer.getvalue()
    write_atomic(path, [_MAGIC, hashlib.sha256(payload).digest(), payload])


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint, with ``weights_only=True``.

    Args:
        path: its file.

    Returns:
        What was saved, on the CPU.

    Raises:
        CheckpointError: not a checkpoint of this version, or its bytes are not those that were written.
    """
    content = path.read_bytes()
    payload = content[len(_MAGIC) + 32 :]
    if not content.startswith(_MAGIC) or hashlib.sha256(payload).digest() != content[len(_MAGIC) : len(_MAGIC) + 32]:
        raise CheckpointError(f"checkpoint {path} is corrupt: delete it to start this run again from its first epoch")
    return torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
