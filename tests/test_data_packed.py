"""A data set in one file: the same images as the folder, equal bytes for equal images, nothing unsafe read."""

import errno
import io
import os
import stat
import sys
import zipfile
from importlib.resources.abc import Traversable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bpl.config import RunConfig
from bpl.data import CARDS, DataError, load_images, make_split, pack_images, packed
from bpl.data.folders import find_folder, list_images
from bpl.data.packed import open_packed
from bpl.machine import atomic

UCM = CARDS["ucm"]
FOLDER = UCM.folders[0]
PARTS = {"train": 0, "val": 1, "test": 2}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """No test reads or writes the user's cache, nor finds the user's images."""
    monkeypatch.setenv("BPL_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("BPL_DATA", raising=False)


def noise(seed, suffix=".png"):
    """One small image, as the content of a file."""
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, {".png": "png", ".jpg": "jpeg"}[suffix])
    return buffer.getvalue()


def make_root(root, layout=FOLDER, classes=UCM.classes, per_class=4, suffix=".png"):
    """A data root with a class-folder tree and split files, of this set and of another."""
    for label, name in enumerate(classes):
        (root / layout / name).mkdir(parents=True)
        for index in range(per_class):
            content = noise(label * per_class + index, suffix)
            (root / layout / name / f"{name}{index:02d}{suffix}").write_bytes(content)
    splits = root / "splits" / "aitlas"
    splits.mkdir(parents=True)
    for part, index in PARTS.items():
        lines = "".join(f"{name}/{name}{index:02d}.tif,{name}\n" for name in classes)
        (splits / f"ucmerced_{part}.csv").write_text(lines)
        (splits / f"aid_{part}.csv").write_text(lines)
    return root


def make_zip(path, members, compression=zipfile.ZIP_STORED):
    """An archive of any members; what is changed in the list it yields is what the directory will say."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def ucm_members(per_class=1):
    return {f"{FOLDER}/{name}/{name}{i:02d}.png": noise(i) for name in UCM.classes for i in range(per_class)}


def load(root):
    return load_images("ucm", 8, data=str(root), progress=False)


def is_alone(folder, *names):
    return sorted(entry for entry in os.listdir(folder) if entry != "cache") == sorted(names)


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_the_packed_set_is_the_set(tmp_path, monkeypatch, suffix):
    root = make_root(tmp_path / "root", suffix=suffix)
    target = tmp_path / "ucm.zip"
    assert pack_images("ucm", target, data=root) == target
    folder, archive = load(root), load(target)
    assert (archive.digest, archive.files, archive.classes) == (folder.digest, folder.files, folder.classes)
    assert torch.equal(archive.images, folder.images) and torch.equal(archive.labels, folder.labels)
    assert (archive.name, archive.source, archive.root) == ("ucm", "real", target)
    for split in ("paper", "protocol", "aitlas"):
        assert make_split(archive, split, 1).digest == make_split(folder, split, 1).digest
    monkeypatch.setenv("BPL_DATA", str(target))
    for data in ("auto", "real"):
        again = load_images("ucm", 8, data=data, progress=False)
        assert again.digest == folder.digest and again.root == target
    assert is_alone(tmp_path, "root", "ucm.zip")  # nothing was unpacked


def test_equal_images_give_equal_bytes_wherever_they_lie(tmp_path, monkeypatch):
    one = pack_images("ucm", tmp_path / "one.zip", make_root(tmp_path / "one"))
    other = make_root(tmp_path / "other", layout="UCMerced_LandUse")
    (other / "UCMerced_LandUse" / "beach" / "Thumbs.db").write_bytes(b"x")
    (other / "UCMerced_LandUse" / "beach" / "._beach00.png").write_bytes(b"x")
    for file in other.rglob("*.png"):
        os.utime(file, (1, 1))
    monkeypatch.setenv("BPL_DATA", str(other))
    assert pack_images("ucm", tmp_path / "other.zip").read_bytes() == one.read_bytes()
    assert pack_images("ucm", tmp_path / "again.zip", data=one).read_bytes() == one.read_bytes()
    with zipfile.ZipFile(one) as archive:
        members = archive.infolist()
        assert archive.testzip() is None  # other programs read it too
    names = [member.filename for member in members]
    assert names == sorted(names) and len(names) == 84 + 3
    assert {name for name in names if "splits" in name} == {f"splits/aitlas/ucmerced_{part}.csv" for part in PARTS}
    assert {member.compress_type for member in members} == {zipfile.ZIP_STORED}
    assert {member.date_time[0] for member in members} == {1980}


def test_split_files_of_another_root_come_along_and_none_need_to(tmp_path, monkeypatch):
    elsewhere = make_root(tmp_path / "elsewhere", classes=("a",))
    root = make_root(tmp_path / "root")
    for file in (root / "splits" / "aitlas").iterdir():
        file.unlink()
    without = pack_images("ucm", tmp_path / "without.zip", data=root)
    with pytest.raises(DataError, match=r"no split files ucmerced_train.csv.*without.zip/splits/aitlas"):
        make_split(load(without), "aitlas", 0)
    monkeypatch.setenv("BPL_DATA", str(elsewhere))  # where make_split looks as well
    come_along = pack_images("ucm", tmp_path / "with.zip", data=root)
    text = (open_packed(come_along) / "splits/aitlas/ucmerced_val.csv").read_text(encoding="utf-8")
    assert text == "a/a01.tif,a\n"


def test_a_share_is_packed_alone_and_not_under_the_name_of_the_whole(tmp_path):
    root = make_root(tmp_path / "root", "NWPU-RESISC45", CARDS["nwpu"].classes, per_class=1)
    share = pack_images("nwpu-21", tmp_path / "share.zip", data=root)
    images = load_images("nwpu-21", 8, data=share, progress=False)
    assert images.digest == load_images("nwpu-21", 8, data=root, progress=False).digest and len(images.files) == 21
    with pytest.raises(DataError, match="'nwpu-45'"):
        pack_images("nwpu", tmp_path / "whole.zip", data=root)
    with pytest.raises(DataError, match=r"no images of 'ucm' found in '.*share.zip'"):
        load(share)
    assert is_alone(tmp_path, "root", "share.zip")


def test_what_cannot_be_packed(tmp_path, monkeypatch):
    root = make_root(tmp_path / "root", per_class=1)
    target = tmp_path / "ucm.zip"
    for dataset, data in (("synthetic", "auto"), ("ucm", "synthetic")):
        with pytest.raises(DataError, match="drawn scenes are not packed"):
            pack_images(dataset, target, data=data)
    with pytest.raises(DataError, match="nothing to pack for 'ucmm'; allowed are ucm, nwpu"):
        pack_images("ucmm", target)
    monkeypatch.setenv("BPL_DATA", str(tmp_path / "nothing"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="no images of 'rsd46' found in .*nothing"):
        pack_images("rsd46", target)
    with pytest.raises(DataError, match="an existing folder or packed .zip file"):
        pack_images("ucm", target, data=tmp_path / "ucmm.zip")
    with pytest.raises(FileNotFoundError, match="no/such"):
        pack_images("ucm", "no/such/ucm.zip", data=root)
    target.write_bytes(b"mine")
    with pytest.raises(DataError, match=r"ucm.zip' exists already; move it away"):
        pack_images("ucm", target, data=root)
    assert target.read_bytes() == b"mine" and is_alone(tmp_path, "root", "ucm.zip")


def test_a_failure_while_packing_leaves_nothing(tmp_path, monkeypatch):
    root = make_root(tmp_path / "root", per_class=1)

    def full_disk(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(atomic.os, "fsync", full_disk)
        with pytest.raises(OSError, match="No space left"):
            pack_images("ucm", tmp_path / "ucm.zip", data=root)
    (root / FOLDER / "beach" / "beach00.png").rename(root / FOLDER / "beach" / "12:30.png")
    with pytest.raises(DataError, match=r"Images' cannot be packed: 'ucm' is .*12:30.png' leads outside"):
        pack_images("ucm", tmp_path / "ucm.zip", data=root)
    assert is_alone(tmp_path, "root")


def test_the_cache_answers_and_notices_a_changed_archive(tmp_path, monkeypatch):
    path = make_zip(tmp_path / "ucm.zip", ucm_members())
    first = load(path)
    with monkeypatch.context() as patch:
        patch.setattr("bpl.data.folders.decode", lambda *_: pytest.fail("decoded in spite of the cache"))
        path.rename(tmp_path / "moved.zip")
        os.utime(tmp_path / "moved.zip", (1, 1))
        assert load(tmp_path / "moved.zip").digest == first.digest  # time and place do not matter
    other = noise(1)
    assert len(other) == len(noise(0))  # sizes do not tell, the CRC does
    make_zip(path, ucm_members() | {f"{FOLDER}/beach/beach00.png": other})
    assert load(path).digest != first.digest


def test_official_archives_are_read_as_they_are(tmp_path):
    plain = load(make_zip(tmp_path / "stored.zip", ucm_members()))
    clutter = {"__MACOSX/beach/x.png": b"x", f"{FOLDER}/beach/._beach00.png": b"x", f"{FOLDER}/readme.txt": b"x"}
    members = {f"./{name}": content for name, content in (ucm_members() | clutter).items()}
    members |= {f"{FOLDER}/": b"", f"{FOLDER}/empty/": b"", "./": b""}
    deflated = load(make_zip(tmp_path / "deflated.zip", members, zipfile.ZIP_DEFLATED))
    assert deflated.digest == plain.digest
    shifted = tmp_path / "self-extracting.zip"
    shifted.write_bytes(b"#!/bin/sh\n" * 9 + (tmp_path / "stored.zip").read_bytes())
    assert load(shifted).digest == plain.digest


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("../a.png", "leads outside"),
        ("a/../../b.png", "leads outside"),
        ("/etc/a.png", "leads outside"),
        ("C:a.png", "leads outside"),
        ("a\\b.png", "leads outside"),
        (f"{FOLDER}/bea\nch/a.png", "control characters"),
        (f"{FOLDER}/\x1b[2Jbeach/a.png", "control characters"),
        (f"{FOLDER}/beach\u202e/a.png", "control characters"),
        (f"{FOLDER}/beach/beach00.png/a.png", "lies below a file"),
    ],
)
def test_hostile_names_are_refused(tmp_path, name, fault):
    path = make_zip(tmp_path / "ucm.zip", ucm_members() | {name: noise(0)})
    with pytest.raises(DataError, match=fault) as caught:
        load(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("fault", ["encrypted", "neither stored nor deflated", "occurs twice", "link or a device"])
def test_hostile_members_are_refused(tmp_path, fault):
    path = tmp_path / "ucm.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in ucm_members(2).items():
            archive.writestr(name, content)
        member = archive.filelist[7]
        if fault == "encrypted":
            member.flag_bits |= 1
        elif fault == "occurs twice":
            member.filename = archive.filelist[6].filename
        elif fault == "link or a device":
            member.external_attr = (stat.S_IFLNK | 0o777) << 16
        else:
            member.compress_type = zipfile.ZIP_LZMA
    with pytest.raises(DataError, match=f"ucm.zip' cannot be read as packed images: .*{fault}"):
        load(path)


def test_number_and_sizes_are_bounded_as_for_downloads(tmp_path, monkeypatch):
    bomb = make_zip(tmp_path / "bomb.zip", ucm_members() | {"x": bytes(9_000_000)}, zipfile.ZIP_DEFLATED)
    with pytest.raises(DataError, match=r"bomb.zip.*would unpack to"):
        load(bomb)
    path = make_zip(tmp_path / "ucm.zip", ucm_members())
    with monkeypatch.context() as patch:
        patch.setattr(packed, "MAX_MEMBER_BYTES", 100)
        with pytest.raises(DataError, match=r"agricultural00.png' cannot be read: it has .* at most 100"):
            load(path)
    monkeypatch.setattr(sys.modules["bpl.data.download"], "MAX_MEMBERS", 20)
    with pytest.raises(DataError, match=r"ucm.zip.*has 21 members; at most 20"):
        load(path)


@pytest.mark.parametrize("damage", ["cut", "text", "empty"])
def test_a_damaged_file_is_named_and_never_passed_over(tmp_path, monkeypatch, damage):
    path = make_zip(tmp_path / "ucm.zip", ucm_members())
    content = {"cut": path.read_bytes()[:-500], "text": b"no archive", "empty": b""}[damage]
    path.write_bytes(content)
    monkeypatch.setenv("BPL_DATA", str(path))
    for data in ("auto", "real", path):  # drawn scenes in place of images that are there would hide the damage
        with pytest.raises(DataError, match=r"ucm.zip' cannot be read as packed images"):
            load_images("ucm", 8, data=data)


@pytest.mark.parametrize("damage", ["content", "header", "beyond", "shorter", "deflated"])
def test_a_damaged_member_is_named(tmp_path, damage):
    method = zipfile.ZIP_DEFLATED if damage == "deflated" else zipfile.ZIP_STORED
    path = make_zip(tmp_path / "ucm.zip", ucm_members(), method)
    with zipfile.ZipFile(path, "a") as archive:
        member = archive.getinfo(f"{FOLDER}/harbor/harbor00.png")
        start = member.header_offset
        if damage == "beyond":
            member.header_offset = 10**8
        elif damage == "shorter":
            member.compress_size -= 5
        archive._didModify = True  # write the directory anew
    content = bytearray(path.read_bytes())
    if damage == "header":
        content[start] ^= 1
    elif damage in ("content", "deflated"):
        content[start + 30 + len(member.filename) + 50] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"^'[^']*ucm.zip/{FOLDER}/harbor/harbor00.png' cannot be read: "):
        load(path)


def test_a_member_that_is_no_image_is_named(tmp_path):
    path = make_zip(tmp_path / "ucm.zip", ucm_members() | {f"{FOLDER}/river/river00.png": b"no image"})
    with pytest.raises(DataError, match=r"ucm.zip/UCMerced_LandUse/Images/river/river00.png' cannot be decoded"):
        load(path)


def test_trees_that_cannot_be_learnt_from(tmp_path):
    members = {name: content for name, content in ucm_members().items() if "tenniscourt" not in name}
    with pytest.raises(DataError, match=r"ucm.zip/UCMerced_LandUse/Images' lacks 1 of 21 class folders: tenniscourt"):
        load(make_zip(tmp_path / "ucm.zip", members))
    with pytest.raises(DataError, match="no images of 'ucm' found"):
        load(make_zip(tmp_path / "none.zip", {}))


def test_a_packed_folder_behaves_like_a_folder(tmp_path):
    root = make_root(tmp_path / "root", per_class=2)
    top = open_packed(pack_images("ucm", tmp_path / "ucm.zip", data=root))
    assert isinstance(top, Traversable) and isinstance(root, Traversable) and top.name == "ucm.zip"
    for way in ("", ".", FOLDER, f"{FOLDER}/beach", f"{FOLDER}/beach/beach00.png", "nowhere", f"{FOLDER}/a/b"):
        inside, outside = top / way, root / way
        assert str(inside) == str(Path(tmp_path, "ucm.zip", way))
        assert (inside.is_dir(), inside.is_file()) == (outside.is_dir(), outside.is_file())
        if inside.is_file():
            assert inside.read_bytes() == outside.read_bytes()
    one, other = (
        list_images(find_folder(UCM, [place])[1], UCM.classes) for place in (tmp_path / "ucm.zip", tmp_path / "root")
    )
    assert (one.files, one.labels, one.classes) == (other.files, other.labels, other.classes)
    assert [stamp[0] for stamp in one.stamps] == [stamp[0] for stamp in other.stamps]
    with pytest.raises(DataError, match=r"there is no file '.*nowhere'"):
        (top / "nowhere").read_bytes()


def test_a_run_may_name_a_packed_file(tmp_path):
    path = make_zip(tmp_path / "ucm.zip", ucm_members())
    assert RunConfig(dataset="ucm", method="dense", data=path).data == str(path)
