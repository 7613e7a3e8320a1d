"""Write a file whole or not at all.

A record, a cache entry or a model that is half written is worse than none: the next run would trust it. Everything goes
into a temporary file in the same folder (the same file system, so that the rename is one step), is flushed to the disk
and takes the final name only then.

A kill cannot be caught, so it leaves that temporary file. Its writer holds it locked, and the operating system lets go
of the lock however the writer ends: the next writer of the same file removes what nobody holds any more.
"""

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

Buffer = bytes | bytearray | memoryview


def write_atomic(path: str | Path, data: Buffer | Iterable[Buffer]) -> None:
    """Write ``data`` to ``path``; on any error the old file stays as it was and no temporary file is left.

    Args:
        path: The file to write. Its folder must exist.
        data: The content, as one buffer or as several that are written one after the other (which spares a copy where
            a header precedes gigabytes of pixels).

    Raises:
        OSError: The folder is missing or read-only, or the disk is full.
    """
    write_together({Path(path): data})


def write_together(files: Mapping[Path, Buffer | Iterable[Buffer]]) -> None:
    """Write several files that belong together, such as a model's weights and their description.

    All of them are on the disk before the first one takes its name, so that a full disk leaves the old ones as they
    were, and no file is left without the others.

    Args:
        files: Path -> content, as for `write_atomic`; the folders must exist.

    Raises:
        OSError: A folder is missing or read-only, or the disk is full.
    """
    staged: dict[Path, str] = {}
    path = None
    with contextlib.ExitStack() as held:
        try:
            _remove_leftovers(files)
            for path, data in files.items():
                descriptor, staged[path] = _temporary(path)
                held.callback(os.close, descriptor)  # and with it the lock, when the file has its name
                _fill(descriptor, (data,) if isinstance(data, Buffer) else data)
                # mkstemp makes the file private; give it the mode an ordinary open() would have given.
                os.chmod(staged[path], 0o666 & ~_umask())
            for path, temporary in staged.items():
                os.replace(temporary, path)
        except BaseException as error:  # KeyboardInterrupt included: nothing half-written stays
            for temporary in staged.values():
                with contextlib.suppress(OSError):
                    os.unlink(temporary)
            if isinstance(error, OSError) and path is not None:
                # "No space left on device" alone does not say where, and the temporary file's name helps nobody.
                error.filename, error.filename2 = str(path), None
            raise
    for folder in {path.parent for path in files}:
        _sync_folder(folder)


def check_writable(folder: Path) -> None:
    """Make a folder where there is none, and a file in it that has no name and leaves no trace.

    Args:
        folder: where something will be written later.

    Raises:
        OSError: it cannot be; the message names the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        error.filename = str(folder)
        raise


@contextmanager
def folder_held(folder: Path) -> Iterator[None]:
    """Hold a folder, which is made where there is none, against others that hold it so; wait for its turn.

    Between a look whether a file is there and writing it, nobody else writes it. On a file system without locks that
    is not so.

    Args:
        folder: where the file is.

    Raises:
        OSError: the folder cannot be made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _temporary(path: Path) -> tuple[int, str]:
    """A new temporary file beside ``path``, locked: its descriptor and name."""
    while True:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        with contextlib.suppress(OSError):  # a file system without locks: leftovers are not told from files under way
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            return descriptor, name
        os.close(descriptor)  # another writer took it for a leftover before it was locked


def _remove_leftovers(paths: Iterable[Path]) -> None:
    """Remove what killed writers left of these files: temporary files that no living process holds."""
    names: dict[Path, set[str]] = {}
    for path in paths:
        names.setdefault(path.parent, set()).add(path.name)
    for folder, wanted in names.items():
        for entry in _entries(folder):
            if entry.endswith(".tmp") and entry[1:].rsplit(".", 2)[0] in wanted:
                with contextlib.suppress(OSError), (folder / entry).open("rb") as file:  # held, or gone by now
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    os.unlink(folder / entry)


def _entries(folder: Path) -> list[str]:
    """A folder's entries; none where it cannot be listed, which writing into it does not need."""
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _fill(descriptor: int, buffers: Iterable[Buffer]) -> None:
    """Write buffers to an open file and flush them to the disk; the descriptor stays open."""
    with os.fdopen(descriptor, "wb", closefd=False) as file:
        for buffer in buffers:
            file.write(buffer)
        file.flush()
        os.fsync(file.fileno())


def _umask() -> int:
    """The process's file mode mask, which can only be read by setting it."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    """Make the rename itself survive a power cut, where the platform can open a folder for that."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
