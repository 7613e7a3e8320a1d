"""Fetch a data set's archive: resumed where it broke off, checked before it is opened, unpacked safely.

Until everything is checked, only ``<archive>.part`` and a hidden temporary folder exist below the root; a
failure leaves at most the ``.part`` behind, from which the next call goes on. What a kill left of the folder, that call
removes. One process at a time fetches into a root.
"""

import errno
import hashlib
import http.client
import os
import re
import shutil
import ssl
import stat
import sys
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from tqdm import tqdm

from bpl.data.catalog import CARDS, Archive, Card, DataError
from bpl.data.folders import find_folder, list_images
from bpl.machine.atomic import folder_held
from bpl.machine.exit_codes import TRY_AGAIN
from bpl.names import is_plain
from bpl.shown import flat, shown

MAX_ARCHIVE_BYTES = 8 << 30
MAX_UNPACKED_BYTES = 32 << 30
MAX_RATIO = 50  # images hardly compress: what grows more than this is a zip bomb
MAX_MEMBERS = 500_000

_CHUNK = 1 << 20
_TIMEOUT_S = 60
# Errors of the place that is written to, not of the archive.
_OF_THE_DISK = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EIO,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EMFILE,
}


class NotNow(DataError):
    """Nothing is wrong but the moment: the same call may do later."""

    exit_code = TRY_AGAIN


def download(dataset: str, root: str | Path, progress: bool = True, *, allow_loopback: bool = False) -> Path:
    """Fetch and unpack a data set below a data root.

    Args:
        dataset: A name from `CARDS`.
        root: The data root; made where it does not exist.
        progress: Show bars on stderr.
        allow_loopback: Allow plain http to this very machine (a local mirror, the tests).

    Returns:
        The folder that holds the class folders. Where it already holds the set, nothing is fetched.

    Raises:
        DataError: Unknown name, a set without a direct archive, a wrong checksum, or an unsafe archive.
        NotNow: No connection, or another process is fetching into this root.
        OSError: The root cannot be written.
    """
    card = CARDS.get(dataset)
    if card is None or dataset == "synthetic":
        allowed = ", ".join(name for name, known in CARDS.items() if known.archives)
        raise DataError(f"there is nothing to download for {dataset!r}; allowed are {allowed}.")
    root = Path(root).expanduser()
    if not card.archives:
        raise DataError(
            f"{card.title} has no official direct archive; ask its authors at {card.home} and put the class folders "
            f"into '{root / card.folders[0]}'."
        )
    target = root / PurePosixPath(card.folders[0]).parts[0]
    if (present := find_folder(card, [root])) is not None and _is_whole(card, present[1]):
        return present[1]
    if target.exists():
        raise DataError(
            f"'{target}' exists already but is not the whole of '{dataset}'; move it away or use another root."
        )
    archive = card.archives[0]
    part = root / (PurePosixPath(urlsplit(archive.url).path).name + ".part")
    with _only_one(root):
        for leftover in root.glob(".unpack-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        _fetch(archive, part, progress, allow_loopback)
        _verify(archive, part)
        _unpack(card, part, target, progress)
        part.unlink()
    return find_folder(card, [root])[1]


@contextmanager
def _only_one(root: Path) -> Iterator[None]:
    """Hold a data root against other processes; two that append to one ``.part`` would spoil it for both."""
    with ExitStack() as held:
        try:
            held.enter_context(folder_held(root, wait=False))
        except BlockingIOError:
            raise NotNow(f"another process is fetching into '{root}'; wait until it has ended.") from None
        yield


def _is_whole(card: Card, folder: Path) -> bool:
    """Whether a folder holds every class and at least as many images as the card says."""
    try:
        return len(list_images(folder, card.classes).files) >= (card.images_total or 0)
    except DataError:
        return False


def _check_address(address: str, allow_loopback: bool) -> None:
    """Refuse anything but https."""
    parts = urlsplit(address)
    loopback = allow_loopback and parts.scheme == "http" and parts.hostname in ("127.0.0.1", "::1", "localhost")
    if parts.scheme != "https" and not loopback:
        raise DataError(f"the address '{address}' is refused; only https is allowed.")


class _CheckedRedirects(urllib.request.HTTPRedirectHandler):
    """Mirrors redirect to their storage: every hop has to be https too."""

    def __init__(self, allow_loopback: bool) -> None:
        self.allow_loopback = allow_loopback

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        _check_address(newurl, self.allow_loopback)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _fetch(archive: Archive, part: Path, progress: bool, allow_loopback: bool) -> None:
    """Bring ``part`` to its full length, going on from what is there."""
    _check_address(archive.url, allow_loopback)
    have = part.stat().st_size if part.exists() else 0
    if archive.size is not None and have == archive.size:
        return
    if have and archive.size is not None and have > archive.size:
        part.unlink()
        have = 0
    request = urllib.request.Request(archive.url, headers={"User-Agent": "bpl", "Accept-Encoding": "identity"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    opener = urllib.request.build_opener(_CheckedRedirects(allow_loopback))
    try:
        with opener.open(request, timeout=_TIMEOUT_S) as response:
            start, total = _extent(response, have)
            limit = archive.size or MAX_ARCHIVE_BYTES
            if total is not None and total > limit:
                raise DataError(f"'{archive.url}' is {total:,} bytes long; at most {limit:,} are allowed.")
            _receive(response, part, start, total, limit, progress)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and have:  # nothing follows what is there: it may be complete, the checksum tells
            return
        raise DataError(
            f"'{archive.url}' cannot be fetched: the server answers {error.code} {error.reason}."
        ) from error
    except (http.client.HTTPException, urllib.error.URLError, ssl.SSLError, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", None) or error
        again = f"call again to go on from '{part.name}'" if part.exists() else "nothing has come yet; call again"
        raise NotNow(f"fetching '{archive.url}' broke off ({reason}); {again}.") from error
    except OSError as error:
        error.filename = error.filename or str(part)  # "No space left on device" alone does not say where
        raise


def _extent(response: http.client.HTTPResponse, have: int) -> tuple[int, int | None]:
    """Where the answer's bytes start in the file, and how long the whole file is."""
    if response.status == 206:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        if match is None or int(match[1]) != have:
            raise DataError(
                f"the server sends the range {response.headers.get('Content-Range')!r} instead of bytes {have} on."
            )
        return have, None if match[2] == "*" else int(match[2])
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if length.isdecimal() else None  # a server without ranges sends everything again


def _receive(
    response: http.client.HTTPResponse, part: Path, start: int, total: int | None, limit: int, progress: bool
) -> None:
    """Write the answer's bytes into ``part`` from ``start`` on."""
    received = start
    with (
        part.open("ab" if start else "wb") as file,
        tqdm(
            initial=start, total=total, unit="B", unit_scale=True, desc=part.stem, disable=not progress, file=sys.stderr
        ) as bar,
    ):
        while chunk := response.read(_CHUNK):
            received += len(chunk)
            if received > limit:
                break
            file.write(chunk)
            bar.update(len(chunk))
    if received > limit:
        part.unlink()
        raise DataError(f"the server sends more than the {limit:,} bytes that are allowed.")
    if total is not None and received < total:
        raise ConnectionError(f"{received:,} of {total:,} bytes arrived")


def _verify(archive: Archive, part: Path) -> None:
    """Compare length and checksums; a file that fails is worthless and is deleted."""
    if archive.size is not None and (size := part.stat().st_size) != archive.size:
        part.unlink()
        raise DataError(f"'{part.stem}' has {size:,} bytes, {archive.size:,} are expected; it was deleted.")
    for algorithm, expected in (("md5", archive.md5), ("sha256", archive.sha256)):
        if expected is None:
            continue
        with part.open("rb") as file:
            # The digest guards against damage as its publishers recorded it; on FIPS systems md5 needs the second word.
            found = hashlib.file_digest(
                file, lambda name=algorithm: hashlib.new(name, usedforsecurity=False)
            ).hexdigest()
        if found != expected:
            part.unlink()
            raise DataError(f"'{part.stem}' has the {algorithm} {found}, {expected} is expected; it was deleted.")


def _unpack(card: Card, archive: Path, target: Path, progress: bool) -> None:
    """Unpack into a temporary folder, look whether the set is in it, and give it its name in one step."""
    temporary = Path(tempfile.mkdtemp(prefix=".unpack-", dir=target.parent))
    unpacked = temporary / "unpacked"  # mkdtemp's own folder is private, what is moved out of it should not be
    try:
        try:
            with zipfile.ZipFile(archive) as opened:
                members = opened.infolist()
                check_members(members, archive)
                for member in tqdm(members, desc="unpack", unit="file", disable=not progress, file=sys.stderr):
                    opened.extract(member, unpacked)
        except DataError:
            raise
        except Exception as error:  # BadZipFile, zlib.error, LZMAError, bz2's OSError, a file that is a folder too, ...
            if isinstance(error, OSError) and error.errno in _OF_THE_DISK:
                error.filename = error.filename or str(target)
                raise
            raise DataError(f"'{archive.stem}' cannot be unpacked: {flat(error)}.") from error
        found = find_folder(card, [unpacked])
        if found is None:
            raise DataError(f"'{archive.stem}' holds no class folders of '{card.name}' in {' or '.join(card.folders)}.")
        inside = found[1].relative_to(unpacked).parts
        os.rename(unpacked.joinpath(*inside[:1]), target.with_name(inside[0]) if inside else target)
    except DataError:
        archive.unlink()  # whole and with the right checksum, and of no use: fetching it on would not help
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_members(members: list[zipfile.ZipInfo], archive: Path) -> None:
    """Refuse whatever could write outside the folder, or fill the disk."""
    if len(members) > MAX_MEMBERS:
        raise DataError(f"'{archive.stem}' has {len(members):,} members; at most {MAX_MEMBERS:,} are allowed.")
    for member in members:
        path = PurePosixPath(member.filename)
        kind = stat.S_IFMT(member.external_attr >> 16)
        if path.is_absolute() or ".." in path.parts or "\\" in member.orig_filename or ":" in member.filename:
            raise DataError(
                f"'{archive.stem}' is refused: its member {shown(member.filename)} leads outside the folder."
            )
        if not is_plain(member.filename):
            raise DataError(
                f"'{archive.stem}' is refused: its member {shown(member.filename)} has control characters in its name."
            )
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise DataError(f"'{archive.stem}' is refused: its member {shown(member.filename)} is a link or a device.")
    unpacked = sum(member.file_size for member in members)
    allowed = min(MAX_UNPACKED_BYTES, MAX_RATIO * archive.stat().st_size)
    if unpacked > allowed:
        raise DataError(f"'{archive.stem}' would unpack to {unpacked:,} bytes; at most {allowed:,} are allowed.")
