"""Archives, records and checkpoints of strangers: read, or refused in one sentence; nothing gets out of its folder."""

import dataclasses
import hashlib
import io
import json
import random
import shutil
import stat
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from fuzzing import LONG, SHORT, Tally, fuzz, hostile_text, mutated_bytes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from support import files_below, made_up_record

from bpl.config import RunConfig
from bpl.data import CARDS, DataError
from bpl.data.download import _unpack, check_members
from bpl.data.folders import decode, list_images
from bpl.data.packed import open_packed
from bpl.machine.checkpoint import _HEADER, _MAGIC, CheckpointError, load_checkpoint, save_checkpoint
from bpl.records import RecordError, load_records, record_path, save_record
from bpl.sweep.bundle import BundleError, merge_bundles, write_bundle

long = pytest.mark.parametrize("count", [SHORT, pytest.param(LONG, marks=pytest.mark.slow)])
CARD = dataclasses.replace(CARDS["ucm"], classes=("a", "b"), folders=("set",), images_total=4)


def archive(members: dict[str | zipfile.ZipInfo, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """The content of a .zip file."""
    content = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(content, "w", compression) as opened:
        warnings.simplefilter("ignore")  # names that occur twice
        for name, member in members.items():
            opened.writestr(name, member, compression)
    return content.getvalue()


def png() -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (8, 8), (9, 9, 9)).save(content, "PNG")
    return content.getvalue()


IMAGES = {f"set/{label}/{number}.png": png() for label in "ab" for number in range(2)}
KINDS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)


@long
def test_damaged_image_archives_are_refused_or_read_where_they_lie(tmp_path, count):
    whole = [archive(IMAGES, kind) for kind in KINDS[:2]]

    def use(content: bytes) -> None:
        (tmp_path / "images.zip").write_bytes(content)
        listing = list_images(open_packed(tmp_path / "images.zip") / "set")
        for file in listing.files:
            decode(listing.folder / file, 8)

    fuzz("packed images", count, lambda chance: mutated_bytes(chance.choice(whole), chance), use, (DataError,))


@long
def test_damaged_downloads_are_refused_or_unpacked_and_nothing_else_is_left(tmp_path, count):
    whole = [archive(IMAGES, kind) for kind in KINDS]

    def use(content: bytes) -> None:
        root = tmp_path / "root"
        root.mkdir()
        try:
            (root / "set.zip.part").write_bytes(content)
            _unpack(CARD, root / "set.zip.part", root / "set", progress=False)
        except DataError:
            assert files_below(root) == []
            raise
        else:
            assert {name.split("/")[0] for name in files_below(root)} == {"set", "set.zip.part"}
        finally:
            shutil.rmtree(root)

    tally = fuzz("downloads", count, lambda chance: mutated_bytes(chance.choice(whole), chance), use, (DataError,))
    assert tally.refused["DataError"] > count / 4


def member(name: str, kind: int = stat.S_IFREG) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = (kind | 0o777) << 16
    return info


BOMB = bytes(30 << 20)
HOSTILE_MEMBERS = {
    "way out": (member("../evil"), b"x"),
    "way out below": (member("set/a/../../../evil"), b"x"),
    "absolute": (member("/tmp/evil"), b"x"),
    "of Windows": (member("..\\evil"), b"x"),
    "drive": (member("C:evil"), b"x"),
    "link": (member("set/link", stat.S_IFLNK), b"/etc/passwd"),
    "character device": (member("set/zero", stat.S_IFCHR), b""),
    "block device": (member("set/disk", stat.S_IFBLK), b""),
    "pipe": (member("set/pipe", stat.S_IFIFO), b""),
    "socket": (member("set/socket", stat.S_IFSOCK), b""),
    "two lines": (member("set/a/x\ny.png"), b"x"),
    "escape": (member("set/a/\x1b[2J.png"), b"x"),
    "below a file": (member("set/a/0.png/x.png"), b"x"),
    "too long a name": (member(f"set/a/{'x' * 5000}.png"), b"x"),
    "bomb": (member("set/a/bomb.png"), BOMB),
}


@pytest.mark.parametrize("kind", HOSTILE_MEMBERS)
@pytest.mark.parametrize("compression", KINDS[1:])
def test_a_hostile_member_is_refused_before_anything_is_unpacked(tmp_path, kind, compression):
    name, content = HOSTILE_MEMBERS[kind]
    root = tmp_path / "root"
    root.mkdir()
    part = root / "set.zip.part"
    part.write_bytes(archive(IMAGES | {name: content}, compression))
    with pytest.raises(DataError) as error:
        _unpack(CARD, part, root / "set", progress=False)
    assert "\n" not in str(error.value) and len(str(error.value)) < 600
    assert list(tmp_path.iterdir()) == [root] and list(root.iterdir()) == []


names = st.text(st.sampled_from("a/.\\:~ -\0\n\x1b\u202eä\ud800"), min_size=1, max_size=12)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.lists(names, min_size=1, max_size=4))
def test_whatever_members_are_called_they_stay_inside(tmp_path, names):
    """What the check lets through is unpacked below the folder and nowhere else."""
    members = [zipfile.ZipInfo(name) for name in names]
    (tmp_path / "x.zip").write_bytes(b"x")
    try:
        check_members(members, tmp_path / "x.zip")
    except DataError as error:
        assert "\n" not in str(error)
    else:
        for one in members:
            assert (tmp_path / one.filename).resolve().is_relative_to(tmp_path.resolve())


# -- records ------------------------------------------------------------------------------------------------------
@pytest.fixture
def recorded(tmp_path) -> tuple[Path, str]:
    """A results folder with a record, and that record's name in it."""
    config = RunConfig("ucm", "bpl")
    record = made_up_record(config, data={"source": "real", "name": "ucm", "digest": "d", "split_digest": "s"})
    folder = tmp_path / "results"
    path = save_record(record, record_path(config, "real", folder))
    return folder, path.relative_to(folder).as_posix()


@long
def test_hostile_records_are_refused_or_read(recorded, count):
    folder, name = recorded
    content = json.loads((folder / name).read_text())

    def use(text: str) -> None:
        (folder / name).write_text(text, errors="surrogateescape")
        load_records(folder)

    fuzz("records", count, lambda chance: hostile_text(content, chance), use, (RecordError,))


@long
def test_hostile_bundles_are_refused_or_taken(recorded, tmp_path, count):
    """Half of them damaged as a file, half with a hostile record in a sound file."""
    folder, name = recorded
    write_bundle(tmp_path / "whole.zip", folder)
    whole, content = (tmp_path / "whole.zip").read_bytes(), json.loads((folder / name).read_text())

    def make(chance: random.Random) -> bytes:
        if chance.random() < 0.5:
            return mutated_bytes(whole, chance)
        return archive(
            {chance.choice((name, "../x.json", "a/b.json")): hostile_text(content, chance).encode(errors="replace")}
        )

    def use(damaged: bytes) -> None:
        (tmp_path / "bundle.zip").write_bytes(damaged)
        try:
            merge_bundles([tmp_path / "bundle.zip"], tmp_path / "into")
        finally:
            assert set(files_below(tmp_path / "into")) <= {name}

    fuzz("bundles", count, make, use, (BundleError,))


def test_a_bundle_that_would_fill_the_memory_is_refused_unread(tmp_path, monkeypatch):
    monkeypatch.setattr("bpl.sweep.bundle.LARGEST_BUNDLE", 1000)
    (tmp_path / "bundle.zip").write_bytes(archive({f"a/{n}.json": b" " * 300 for n in range(4)}, zipfile.ZIP_DEFLATED))
    with pytest.raises(BundleError, match="would unpack to 1,200 bytes: at most 1,000"):
        merge_bundles([tmp_path / "bundle.zip"], tmp_path / "into")


# -- checkpoints --------------------------------------------------------------------------------------------------
def _checkpoint_fuzz(tmp_path: Path, count: int, name: str, make_of) -> Tally:
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"epoch": 3, "model": {"w": torch.arange(6.0)}, "run": "x"})
    whole = path.read_bytes()

    def use(content: bytes) -> None:
        path.write_bytes(content)
        load_checkpoint(path)

    return fuzz(name, count, lambda chance: make_of(whole, chance), use, (CheckpointError,))


@long
def test_a_checkpoint_with_changed_bytes_is_refused(tmp_path, count):
    """All but those whose changes left it as it was."""
    tally = _checkpoint_fuzz(tmp_path, count, "checkpoints", mutated_bytes)
    assert tally.refused["CheckpointError"] > 0.9 * count


@long
def test_a_forged_checkpoint_is_refused_or_read(tmp_path, count):
    """With a checksum that fits: whoever changes the bytes on purpose can count it anew."""

    def forged(whole: bytes, chance: random.Random) -> bytes:
        rest = mutated_bytes(whole[_HEADER:], chance)
        if chance.random() < 0.3:  # the list of the further pieces
            pieces = [[chance.choice(("../../etc/passwd", "/etc/passwd", "a\0", "", "checkpoint.pt")), "0" * 64]]
            rest = hostile_text(pieces, chance).encode(errors="replace") + b"\n" + whole[_HEADER:].partition(b"\n")[2]
        return _MAGIC + hashlib.sha256(rest).digest() + rest

    _checkpoint_fuzz(tmp_path, count, "forged checkpoints", forged)
