"""Many records in one file, to carry them from the machine that made them to the one that shows them.

A bundle is a .zip with the records under the names that they have below a results folder. Taking one in checks every
record first: whether it can be read, and whether it is what its name says. A record that is there already is never
replaced unasked, and where one is refused none is taken.
"""

import contextlib
import io
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from bpl.config import RunConfig
from bpl.data import CARDS
from bpl.machine.atomic import folder_held, write_atomic
from bpl.names import is_plain
from bpl.paths import results_folder
from bpl.records import Record, RecordError, dataset_folder, iterate_records, parse_record
from bpl.shown import flat, shown

LARGEST_RECORD = 16 << 20  # bytes; a record of 300 epochs has some 50,000
LARGEST_BUNDLE = 1 << 30  # bytes of all records of a bundle, which are in memory together
_SAFE = re.compile(r"[^./\\][^/\\]*/[^./\\][^/\\]*\.json")  # no way out of the results folder
_EPOCH = (1980, 1, 1, 0, 0, 0)  # when records were bundled must not change the bytes


class BundleError(ValueError):
    """A bundle that cannot be used; the message names the file and the reason in one sentence."""


@dataclass(frozen=True)
class Merged:
    """What a merge did.

    Attributes:
        added: records that were not there.
        same: records that were there, byte for byte.
        replaced: records that were there, different, and were replaced.
    """

    added: int
    same: int
    replaced: int


def write_bundle(target: Path, folder: Path | None = None) -> int:
    """Write all records below a results folder into one file, whole or not at all. Equal records give equal bytes.

    Args:
        target: the .zip file; an older bundle is replaced.
        folder: the results folder; None for the checkout's.

    Returns:
        The number of records.

    Raises:
        BundleError: there is another file of that name.
        RecordError: one of the records is broken.
        OSError: the file could not be written.
    """
    folder = folder or results_folder()
    if target.is_file() and not _may_be_replaced(target):
        raise BundleError(f"{target} is there and is no bundle of records: it is not replaced; name another file")
    content, count = io.BytesIO(), 0
    with folder_held(target.parent):  # from reading to writing: what another one reads later is not replaced by this
        with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
            for path, record in iterate_records(folder):
                name = zipfile.ZipInfo(path.relative_to(folder).as_posix(), _EPOCH)
                archive.writestr(name, record.to_json(), zipfile.ZIP_DEFLATED)
                count += 1
        write_atomic(target, content.getbuffer())
    return count


def _may_be_replaced(target: Path) -> bool:
    """Whether a file is a bundle by the names in it, or empty."""
    try:
        with zipfile.ZipFile(target) as archive:
            return all(_SAFE.fullmatch(name) for name in archive.namelist())
    except zipfile.BadZipFile:
        return target.stat().st_size == 0


def merge_bundles(bundles: list[Path], folder: Path | None = None, *, replace: bool = False) -> Merged:
    """Take the records of bundles into a results folder.

    Args:
        bundles: .zip files that `write_bundle` wrote.
        folder: the results folder; None for the checkout's.
        replace: replace records that are there and different.

    Returns:
        What was done.

    Raises:
        BundleError: a bundle or a record in it is broken, is not what its name says, or would replace another record;
            nothing was written then.
        OSError: a file could not be written.
    """
    folder = folder or results_folder()
    new: dict[str, bytes] = {}
    for bundle in bundles:
        for name, content in _read(bundle).items():
            if new.setdefault(name, content) != content:
                raise BundleError(f"{name} of {bundle} is different in another bundle: give the one to be taken alone")
    with contextlib.ExitStack() as held:  # a run that ends meanwhile waits: its record is not written over
        for place in sorted({(folder / name).parent for name in new}):
            held.enter_context(folder_held(place))
        return _take(new, folder, replace=replace)


def _take(new: dict[str, bytes], folder: Path, *, replace: bool) -> Merged:
    """Write records that are not there yet, or, where asked for, in the place of others."""
    there = {name: (folder / name).read_bytes() for name in new if (folder / name).exists()}
    different = [name for name, content in there.items() if content != new[name]]
    if different and not replace:
        raise BundleError(
            f"{len(different)} records are in {folder} already and are different, such as {different[0]}: nothing was "
            "taken; --replace puts the bundle's in their place"
        )
    for name, content in new.items():
        if there.get(name) != content:
            write_atomic(folder / name, content)
    return Merged(len(new) - len(there), len(there) - len(different), len(different))


def _read(bundle: Path) -> dict[str, bytes]:
    """The records of a bundle, each checked: name below a results folder -> content of the file."""
    found: dict[str, bytes] = {}
    try:
        with zipfile.ZipFile(bundle) as archive:
            if (size := sum(member.file_size for member in archive.infolist())) > LARGEST_BUNDLE:
                raise BundleError(f"{bundle} would unpack to {size:,} bytes: at most {LARGEST_BUNDLE:,} are allowed")
            for member in archive.infolist():
                name = member.filename
                if not (_SAFE.fullmatch(name) and is_plain(name)):
                    raise BundleError(f"{shown(name)} of {bundle} is no name of a record: it must be DATASET/RUN.json")
                if member.file_size > LARGEST_RECORD:
                    raise BundleError(f"{name} of {bundle} is no record: it has {member.file_size:,} bytes")
                content = archive.read(member)
                record = parse_record(content, f"{name} of {bundle}")
                expected = _name_of(record)
                if name != expected or record.name != PurePosixPath(name).stem:
                    raise BundleError(f"{name} of {bundle} is not the run that its config says: {shown(expected)}")
                if found.setdefault(name, content) != content:
                    raise BundleError(f"{name} is in {bundle} twice, and different")
    except (BundleError, RecordError) as error:
        raise BundleError(str(error)) from error
    except Exception as error:  # zipfile raises BadZipFile, zlib.error, RuntimeError, ... on damaged files
        raise BundleError(f"bundle {bundle} cannot be read: {flat(error)}") from error
    return found


def _name_of(record: Record) -> str:
    """Where a record belongs below a results folder, by what is in it."""
    source, dataset, name = record.data["source"], record.data["name"], record.name
    if record.config["dataset"] in CARDS:  # the config of a tree of one's own can only be read where the tree is
        name = RunConfig.from_dict(record.config | {"data": "auto"}).run_name(source)
    return f"{dataset_folder(dataset, source)}/{name}.json"
