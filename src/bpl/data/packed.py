"""A data set in one file: written for a machine that can receive only one, and read there without unpacking.

The file is a .zip that holds the class folders as they lie under a data root, stored, since JPEGs do not compress. Its
members are opened like files of a folder (a `Traversable`), so finding, listing and decoding are those of
`bpl.data.folders`, and images, labels and splits have the digests of the folder that was packed. Official archives,
which are deflated, are read the same way.
"""

import io
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from pathlib import Path, PurePosixPath
from typing import IO

from bpl.data.catalog import CARDS, DataError
from bpl.data.download import check_members
from bpl.data.folders import MAX_PIXELS
from bpl.data.image_set import find_real, list_known
from bpl.data.splits import AITLAS_FOLDER, aitlas_files
from bpl.machine.atomic import write_atomic

MAX_MEMBER_BYTES = 6 * MAX_PIXELS  # the largest image that is decoded, as 16-bit RGB without compression

_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time a .zip knows; when images were packed must not change the bytes
_ENCRYPTED = 0x01 | 0x40
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, lengths of name and extra field; the rest repeats the directory
_CHUNK = 1 << 20

Tree = dict[str, "Tree | zipfile.ZipInfo"]


def pack_images(dataset: str, target: str | Path, data: str | Path = "auto") -> Path:
    """Write the real images of a data set, and the split files published for it, into one file.

    That file then is a data root: ``BPL_DATA=ucm.zip``, or ``data="ucm.zip"``. Equal images give equal bytes.

    Args:
        dataset: A name from `CARDS`.
        target: The .zip file to write; its folder must exist.
        data: ``"auto"`` or ``"real"`` (the usual data roots), or a path to a data root.

    Returns:
        The file.

    Raises:
        DataError: Unknown name, drawn scenes, a target that exists, or images that are not found or cannot be packed.
        OSError: An image cannot be read, or the file cannot be written; nothing is left of it then.
    """
    if dataset == "synthetic" or data == "synthetic":
        raise DataError("drawn scenes are not packed; every machine draws the same ones.")
    card = CARDS.get(dataset)
    if card is None:
        allowed = ", ".join(name for name, known in CARDS.items() if known.folders)
        raise DataError(f"there is nothing to pack for {dataset!r}; allowed are {allowed}.")
    target = Path(target).expanduser()
    if target.exists():
        raise DataError(f"'{target}' exists already; move it away or give another name.")
    root, folder = find_real(card, "real" if data == "auto" else data)
    listing = list_known(card, folder)
    content = {f"{card.folders[0]}/{file}": folder / file for file in listing.files}
    content |= {f"{AITLAS_FOLDER}/{file.name}": file for file in aitlas_files(card.name, root).values()}
    with tempfile.TemporaryDirectory(prefix=".pack-", dir=target.parent) as beside:
        written = Path(beside, target.name)
        try:
            _write(written, content)
            _tree(written)  # folders allow names that archives must not have: hand out what can be read again
        except ValueError as error:
            raise DataError(f"'{folder}' cannot be packed: {error}") from error
        with written.open("rb") as file:
            write_atomic(target, iter(lambda: file.read(_CHUNK), b""))
    return target


def open_packed(archive: Path) -> "PackedPath":
    """Read an archive's directory.

    Args:
        archive: The .zip file.

    Returns:
        The top of what it holds.

    Raises:
        DataError: It is no archive, damaged, encrypted, or has members that are not safe; the message names it.
    """
    try:
        return PackedPath(archive, PurePosixPath(), _tree(archive))
    except Exception as error:  # zipfile raises BadZipFile, struct.error, UnicodeDecodeError, ... on damaged files
        raise DataError(f"'{archive}' cannot be read as packed images: {str(error).rstrip('.')}.") from error


@dataclass(frozen=True, eq=False)
class PackedPath(Traversable):
    """A file or folder inside an archive, with as much of `pathlib.Path` as the data layer uses.

    Every read opens the archive itself, as it would open a file of a folder: threads share no handle, and none is left
    to be closed. (One handle per thread would read the whole directory once more each.)

    Args:
        archive: The .zip file.
        at: The way from its top.
        node: The folder's entries, the file's description, or ``None`` where there is nothing.
    """

    archive: Path
    at: PurePosixPath
    node: Tree | zipfile.ZipInfo | None

    def __str__(self) -> str:
        return str(self.archive / self.at)

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.at.name or self.archive.name

    @property
    def stamp(self) -> tuple[int, int]:
        """Size in bytes and CRC of a file."""
        return self.node.file_size, self.node.CRC

    def is_dir(self) -> bool:
        """Whether there is a folder."""
        return isinstance(self.node, dict)

    def is_file(self) -> bool:
        """Whether there is a file."""
        return isinstance(self.node, zipfile.ZipInfo)

    def iterdir(self) -> Iterator["PackedPath"]:
        """The folder's entries."""
        return (PackedPath(self.archive, self.at / name, node) for name, node in self.node.items())

    def joinpath(self, *descendants: str) -> "PackedPath":
        """The path below this one; there may be nothing."""
        way = PurePosixPath(*descendants)
        node = self.node
        for part in way.parts:
            node = node.get(part) if isinstance(node, dict) else None
        return PackedPath(self.archive, self.at / way, node)

    def open(self, mode: str = "r", *args, **kwargs) -> IO:
        """The file's content, checked against its CRC, as a stream to read from.

        Args:
            mode: ``"rb"``, or ``"r"`` for text.
            *args: Of `io.TextIOWrapper`, for text.
            **kwargs: Of `io.TextIOWrapper`, for text.

        Raises:
            DataError: There is no such file, or it is damaged; the message names it.
        """
        if not self.is_file():
            raise DataError(f"there is no file '{self}'.")
        try:
            content = io.BytesIO(_content(self.archive, self.node))
        except (OSError, ValueError, OverflowError, struct.error, zlib.error) as error:
            raise DataError(f"'{self}' cannot be read: {error}.") from error
        return content if mode == "rb" else io.TextIOWrapper(content, *args, **kwargs)


def _content(archive: Path, member: zipfile.ZipInfo) -> bytes:
    """The bytes of one member; `ValueError` where they are not what the directory says."""
    if (size := max(member.file_size, member.compress_size)) > MAX_MEMBER_BYTES:
        raise ValueError(f"it has {size:,} bytes, at most {MAX_MEMBER_BYTES:,} are allowed")
    with archive.open("rb") as file:
        file.seek(member.header_offset)
        signature, name_length, extra_length = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
        if signature != zipfile.stringFileHeader:
            raise ValueError("it does not lie where the archive's directory says")
        file.seek(name_length + extra_length, io.SEEK_CUR)
        content = file.read(member.compress_size)
    if member.compress_type == zipfile.ZIP_DEFLATED:
        content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(content, member.file_size + 1)
    if len(content) != member.file_size or zlib.crc32(content) != member.CRC:
        raise ValueError("its content does not match its checksum")
    return content


def _tree(archive: Path) -> Tree:
    """An archive's members, sorted into folders; `ValueError` for what is not read."""
    with zipfile.ZipFile(archive) as opened:
        members = opened.infolist()
    check_members(members, archive)
    tree: Tree = {}
    for member in members:
        if member.flag_bits & _ENCRYPTED:
            raise ValueError(f"its member {member.filename!r} is encrypted")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"its member {member.filename!r} is neither stored nor deflated")
        way = PurePosixPath(member.filename).parts
        if member.is_dir() or not way:
            continue  # an empty folder holds no images, any other is known by what lies in it
        folder = tree
        for part in way[:-1]:
            folder = folder.setdefault(part, {})
            if not isinstance(folder, dict):
                raise ValueError(f"its member {member.filename!r} lies below a file")
        if folder.setdefault(way[-1], member) is not member:
            raise ValueError(f"its member {member.filename!r} occurs twice")
    return tree


def _write(target: Path, content: Mapping[str, Traversable]) -> None:
    """Write files into a new archive, sorted, without anything that tells when or where."""
    with zipfile.ZipFile(target, "x") as archive:
        for name in sorted(content):
            member = zipfile.ZipInfo(name, _EPOCH)
            member.create_system = 3  # Unix on every platform
            member.external_attr = 0o100644 << 16
            archive.writestr(member, content[name].read_bytes(), zipfile.ZIP_STORED)
