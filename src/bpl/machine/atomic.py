"""Write a file whole or not at all.

A record, a cache entry or a model that is half written is worse than none: the next run would trust it. Everything goes
into a temporary file in the same folder (the same file system, so that the rename is one step), is flushed to the disk
and takes the final name only then.

A kill cannot be caught, so it leaves that temporary file. Its writer holds it locked, and the operating system lets go
of the lock however the writer ends: the next writer of the same file removes what nobody holds any more.

Taking a name destroys what bore it. Only a file may be destroyed so: a pipe, a device or a folder is refused, and a
link stays, for it is the file at its end that is written.
"""

import contextlib
import errno
import fcntl
import os
import stat
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
        OSError: The folder is missing or read-only, the disk is full, or the path is of no file.
    """
    write_together({Path(path): data})


def write_together(files: Mapping[Path, Buffer | Iterable[Buffer]], gone: Iterable[Path] = ()) -> None:
    """Write several files that belong together, such as a model's weights and their description.

    All of them are on the disk, and every name can be taken, before the first one takes its name: a full disk or a
    folder in the way of one leaves all the old ones as they were.

    Args:
        files: Path -> content, as for `write_atomic`; the folders must exist.
        gone: files of before that do not belong to these; they go in the same step, where they are there.

    Raises:
        OSError: A folder is missing or read-only, the disk is full, or one of the paths is of no file.
    """
    targets: dict[Path, Path] = {}  # path -> where it leads
    staged: dict[Path, str] = {}
    aside: dict[Path, str] = {}
    path = None
    with contextlib.ExitStack() as held:
        try:
            for path in files:
                targets[path] = _end_of(path)
            for path in (gone := list(gone)):
                _end_of(path)
            _remove_leftovers([*targets.values(), *gone])
            for path, data in files.items():
                descriptor, staged[path] = _temporary(targets[path])
                held.callback(os.close, descriptor)  # and with it the lock, when the file has its name
                _fill(descriptor, (data,) if isinstance(data, Buffer) else data)
                # mkstemp makes the file private; give it the mode an ordinary open() would have given.
                os.chmod(staged[path], 0o666 & ~_umask())
            for path in files:
                _end_of(path)  # all once more: none takes its name where another cannot
            for path in gone:
                if os.path.lexists(path):
                    name = str(path.with_name(f".{path.name}.{os.getpid()}.tmp"))  # a leftover where we are killed
                    os.rename(path, name)
                    aside[path] = name
            for path, temporary in staged.items():
                os.replace(temporary, targets[path])
        except BaseException as error:  # KeyboardInterrupt included: nothing half-written stays
            for temporary in staged.values():
                with contextlib.suppress(OSError):
                    os.unlink(temporary)
            for before, name in aside.items():
                with contextlib.suppress(OSError):
                    os.rename(name, before)
            if isinstance(error, OSError) and path is not None:
                # "No space left on device" alone does not say where, and the temporary file's name helps nobody.
                error.filename = str(path)
                del error.filename2  # set to None it would be shown
            raise
        for name in aside.values():
            with contextlib.suppress(OSError):
                os.unlink(name)
    for folder in {path.parent for path in (*targets.values(), *aside)}:
        _sync_folder(folder)


def check_target(path: Path) -> None:
    """Check beforehand that a file can be written: its folder, which is made where there is none, and its name.

    Args:
        path: the file that will be written later.

    Raises:
        OSError: it cannot be; the message names the folder or the file.
    """
    check_writable(_end_of(path).parent)


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
def folder_held(folder: Path, wait: bool = True) -> Iterator[None]:
    """Hold a folder, which is made where there is none, against others that hold it so.

    Between a look whether a file is there and writing it, nobody else writes it. On a file system without locks that
    is not so.

    Args:
        folder: where the file is.
        wait: for one's turn; else an error where another process holds it.

    Raises:
        BlockingIOError: another process holds it, and `wait` is False.
        OSError: the folder cannot be made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(descriptor)


def _end_of(path: Path) -> Path:
    """Where a path leads through its links; refused where it leads to something else than a file."""
    with contextlib.suppress(FileNotFoundError):  # nothing there yet
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "It is no file, and would be destroyed by one", str(path))
    return Path(os.path.realpath(path))


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
