"""Finding, listing, decoding and caching images."""

import errno
import os
import stat

import numpy as np
import pytest
import torch
from PIL import Image
from support import files_below

from bpl.config import RunConfig
from bpl.data import CARDS, DataError, load_images, make_split
from bpl.data import cache as cache_module
from bpl.data.folders import DECODED_SUFFIXES, FORMATS, MAX_PIXELS, SUFFIXES, decode, list_images
from bpl.machine import atomic
from bpl.machine.atomic import check_target, write_atomic, write_together
from bpl.records import record_path
from bpl.train import train


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """No test reads or writes the user's cache, nor finds the user's images."""
    monkeypatch.setenv("BPL_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("BPL_DATA", raising=False)
    return tmp_path / "cache"


def make_tree(folder, classes=("a", "b"), per_class=3, suffix=".png", size=(12, 12)):
    """A tree of noise images, seeded."""
    generator = np.random.default_rng(0)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for index in range(per_class):
            pixels = generator.integers(0, 256, (*size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{name}{index:02d}{suffix}")
    return folder


@pytest.fixture
def drawn(monkeypatch):
    """Tiny drawn scenes in place of the slow real ones."""
    import bpl.data.synthetic as synthetic

    calls = []

    def draw_scenes(image_size, images_per_class=100, seed=0):
        calls.append(image_size)
        labels = np.repeat(np.arange(len(synthetic.CLASSES)), images_per_class)
        pixels = np.random.default_rng(seed).integers(0, 256, (len(labels), image_size, image_size, 3), dtype=np.uint8)
        return pixels, labels

    monkeypatch.setattr(synthetic, "draw_scenes", draw_scenes)
    return calls


def test_a_tree_is_listed_in_sorted_order_and_other_files_are_passed_over(tmp_path):
    tree = make_tree(tmp_path / "set", classes=("b", "a", "C"))
    (tree / "a" / "Thumbs.db").write_bytes(b"x")
    (tree / "a" / "notes.txt").write_text("x")
    (tree / "a" / "._a00.png").write_bytes(b"x")
    (tree / ".git").mkdir()
    (tree / "readme.txt").write_text("x")
    images = load_images(str(tree), 8, progress=False)
    assert images.classes == ("C", "a", "b")
    assert images.files == tuple(f"{name}/{name}0{i}.png" for name in ("C", "a", "b") for i in range(3))
    assert images.images.shape == (9, 3, 8, 8) and images.images.dtype == torch.uint8
    assert images.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2] and images.labels.dtype == torch.int64
    assert (images.name, images.source, images.root) == ("set", "real", tree.resolve())


def test_that_drawn_scenes_stand_in_is_said_once_in_a_run(monkeypatch, drawn, capsys):
    """Though crops are sampled from finer images than the network sees, which are a second reading."""
    monkeypatch.setenv("BPL_DATA", "/nonexistent")
    config = RunConfig("ucm", "dense", tier="quick", width=4, epochs=1, image_size=32, stored_size=40)
    images = load_images(config.dataset, config.image_size, config.data)
    train(config, images, make_split(images, config.split, config.seed), progress=False)
    assert sorted(drawn) == [32, 40]
    assert capsys.readouterr().out.count("no images of 'ucm' were found") == 1


@pytest.mark.parametrize("suffix", [".tif", ".TIFF", ".png", ".PNG"])
def test_every_lossless_suffix_keeps_the_pixels(tmp_path, suffix):
    tree = make_tree(tmp_path / "set", suffix=suffix)
    images = load_images(str(tree), 12, progress=False)
    expected = np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    assert np.array_equal(images.images[0].permute(1, 2, 0).numpy(), expected)


def test_links_that_lead_nowhere_are_counted_aloud(tmp_path, capsys):
    tree = make_tree(tmp_path / "set")
    (tree / "a" / "lost.png").symlink_to(tmp_path / "gone.png")
    load_images(str(tree), 8)
    assert f"passed over in the class folders of '{tree}': 1 link that leads nowhere. " in capsys.readouterr().err
    (tree / "z").symlink_to(tmp_path / "gone")  # a whole class
    load_images(str(tree), 8)
    assert "2 links that lead nowhere. " in capsys.readouterr().err


@pytest.mark.parametrize("name", [".hidden", "two\nlines", "back\\slash"])
def test_a_folder_whose_name_no_records_could_have_is_refused(tmp_path, name):
    tree = make_tree(tmp_path / name)
    with pytest.raises(DataError, match="the folder of the images is called .*must not begin with a dot"):
        load_images(str(tree), 8)


def test_a_folder_named_like_a_known_set_is_not_taken_for_it(tmp_path):
    tree = make_tree(tmp_path / "ucm")
    assert load_images(str(tree), 8).name == load_images(str(tree), 8, "synthetic").name == "ucm-folder"
    assert record_path(RunConfig(str(tree), "dense"), "real", tmp_path).parent.name == "ucm-folder"


def test_images_one_folder_too_deep_are_not_passed_over(tmp_path):
    make_tree(tmp_path / "RSD46-WHU" / "train")
    for data in ("auto", str(tmp_path)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("BPL_DATA", str(tmp_path))
            with pytest.raises(DataError, match="RSD46-WHU' holds the images of 'rsd46' one folder too deep"):
                load_images("rsd46", 8, data)


def test_what_a_set_without_known_classes_passes_over_is_said_too(tmp_path, capsys):
    tree = make_tree(tmp_path / "RSD46-WHU")
    (tree / "a" / "a00.png").rename(tree / "a" / "a00.bmp")
    load_images("rsd46", 8, str(tmp_path), progress=False)
    assert "1 image of other suffixes (.bmp)" in capsys.readouterr().err


def test_two_folders_of_one_name_and_equal_times_are_not_one_set(tmp_path):
    """As unzip and rsync leave them: names, sizes and times of change agree, pixels do not."""
    found = []
    for place, value in (("one", 0), ("two", 255)):
        for name in ("a", "b"):
            folder = tmp_path / place / "set" / name
            folder.mkdir(parents=True)
            Image.new("RGB", (8, 8), (value,) * 3).save(folder / "0.tif")
            os.utime(folder / "0.tif", (1, 1))
        found.append(load_images(str(tmp_path / place / "set"), 8).images)
    assert found[0].max() == 0 and found[1].min() == 255


def test_what_may_be_meant_to_be_part_of_a_set_of_ones_own_is_counted_aloud(tmp_path, capsys):
    tree = make_tree(tmp_path / "set")
    (tree / "a" / "notes.txt").write_text("x")
    load_images(str(tree), 8)
    assert "passed over" not in capsys.readouterr().err
    (tree / "a" / "a00.png").rename(tree / "a" / "a00.WEBP")
    (tree / "b" / "b00.png").rename(tree / "b" / "b00.bmp")
    (tree / "b" / "more").mkdir()
    load_images(str(tree), 8)
    said = f"passed over in the class folders of '{tree}': 2 images of other suffixes (.bmp, .webp) and 1 folder. "
    assert said in capsys.readouterr().err
    load_images(str(tree), 8, progress=False)
    assert "passed over" not in capsys.readouterr().err


def test_the_digest_covers_pixels_names_and_labels(tmp_path):
    one = load_images(str(make_tree(tmp_path / "one")), 8, progress=False)
    same = load_images(str(make_tree(tmp_path / "same")), 8, progress=False)
    renamed = load_images(str(make_tree(tmp_path / "renamed", classes=("a", "c"))), 8, progress=False)
    larger = load_images(str(tmp_path / "one"), 9, progress=False)
    assert one.digest == same.digest
    assert len({one.digest, renamed.digest, larger.digest}) == 3


def test_statistics_of_an_unknown_set_are_those_of_its_pixels(tmp_path):
    images = load_images(str(make_tree(tmp_path / "set")), 12, progress=False)
    pixels = images.images.double() / 255
    assert torch.allclose(torch.tensor(images.mean).double(), pixels.mean(dim=(0, 2, 3)))
    assert torch.allclose(torch.tensor(images.std).double(), pixels.std(dim=(0, 2, 3), correction=0))


def save_gradient(path, mode, **options):
    """An image whose right half is bright, in a given mode."""
    grey = np.zeros((16, 16), dtype=np.uint8)
    grey[:, 8:] = 200
    if mode == "I;16":
        image = Image.fromarray(grey.astype(np.uint16) * 257)
    elif mode == "F":
        image = Image.fromarray(grey.astype(np.float32))
    elif mode == "P":
        image = Image.fromarray(grey).convert("RGB").quantize(4)
    else:
        image = Image.fromarray(grey).convert(mode)
    image.save(path, **options)


@pytest.mark.parametrize(
    ("mode", "suffix", "tolerance"),
    [
        ("L", "png", 0),
        ("P", "png", 2),
        ("LA", "png", 0),
        ("RGBA", "png", 0),
        ("I;16", "png", 0),
        ("I;16", "tif", 0),
        ("F", "tif", 0),
        ("CMYK", "tif", 0),
        ("CMYK", "jpg", 6),
    ],
)
def test_every_mode_becomes_the_same_rgb(tmp_path, mode, suffix, tolerance):
    path = tmp_path / f"image.{suffix}"
    save_gradient(path, mode)
    pixels = decode(path, 16).astype(int)
    assert abs(pixels[:, :8]).max() <= tolerance
    assert abs(pixels[:, 8:] - 200).max() <= tolerance


def test_two_colour_images_and_transparent_ones(tmp_path):
    Image.new("1", (16, 16), 1).save(tmp_path / "bits.png")
    assert (decode(tmp_path / "bits.png", 8) == 255).all()
    Image.new("RGBA", (16, 16), (255, 0, 0, 0)).save(tmp_path / "unseen.png")
    assert (decode(tmp_path / "unseen.png", 8) == 0).all()


def test_exif_orientation_is_applied(tmp_path):
    pixels = np.zeros((16, 16, 3), dtype=np.uint8)
    pixels[:8] = 255  # bright above
    exif = Image.Exif()
    exif[0x0112] = 3  # turned by 180 degrees
    Image.fromarray(pixels).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    decoded = decode(tmp_path / "turned.jpg", 16)
    assert decoded[:8].max() < 60 and decoded[8:].min() > 200


def test_oblong_images_keep_their_middle_and_fine_stripes_average_out(tmp_path):
    pixels = np.zeros((20, 60, 3), dtype=np.uint8)
    pixels[:, 20:40] = 255
    Image.fromarray(pixels).save(tmp_path / "oblong.png")
    decoded = decode(tmp_path / "oblong.png", 10)
    assert (decoded[:, 1:-1] == 255).all() and decoded.min() > 200  # antialiasing looks a little beyond the crop
    stripes = np.zeros((64, 64, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    Image.fromarray(stripes).save(tmp_path / "stripes.png")
    assert abs(decode(tmp_path / "stripes.png", 8).astype(int) - 127).max() < 16
    Image.new("RGB", (1, 9000), (9, 9, 9)).save(tmp_path / "strip.png")
    assert (decode(tmp_path / "strip.png", 64) == 9).all()


def test_damaged_files_are_named(tmp_path):
    tree = make_tree(tmp_path / "set", size=(64, 64))
    whole = (tree / "a" / "a01.png").read_bytes()
    (tree / "a" / "a01.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="a01.png"):
        load_images(str(tree), 8, progress=False)
    (tree / "a" / "a01.png").write_bytes(b"no image at all")
    with pytest.raises(DataError, match=r"a01.png' cannot be decoded"):
        load_images(str(tree), 8, progress=False)
    assert not list((tmp_path / "cache").glob("*")) if (tmp_path / "cache").exists() else True


def test_hostile_sizes_are_refused(tmp_path, monkeypatch):
    side = int(MAX_PIXELS**0.5) + 1
    Image.new("1", (side, side)).save(tmp_path / "large.png")
    with pytest.raises(DataError, match=f"{side} x {side} pixels; at most 50,000,000"):
        decode(tmp_path / "large.png", 8)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(DataError, match="large.png' is refused"):
        decode(tmp_path / "large.png", 8)
    for size in (0, -5, 7, 5000, 64.0, True):
        with pytest.raises(DataError, match="allowed are whole numbers of pixels from 8 to 1024"):
            load_images("ucm", size)


def test_trees_that_cannot_be_learnt_from(tmp_path):
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="holds 0 class folders"):
        load_images(str(tmp_path / "none"), 8)
    make_tree(tmp_path / "one", classes=("only",))
    with pytest.raises(DataError, match=r"holds 1 class folders \(only\)"):
        load_images(str(tmp_path / "one"), 8)
    (make_tree(tmp_path / "empty") / "c").mkdir()
    with pytest.raises(DataError, match="c' holds no images; allowed are .jpeg"):
        load_images(str(tmp_path / "empty"), 8)
    with pytest.raises(DataError, match="unknown dataset 'ucmm'; allowed are ucm, nwpu"):
        load_images("ucmm", 8)
    with pytest.raises(DataError, match="is not a folder"):
        list_images(tmp_path / "nowhere")


@pytest.mark.parametrize("layout", ["UCMerced_LandUse/Images", "UCMerced_LandUse", "."])
@pytest.mark.parametrize("how", ["argument", "environment"])
def test_a_known_set_is_found_in_every_layout(tmp_path, monkeypatch, capsys, layout, how):
    root = tmp_path / "root"
    make_tree(root / layout, classes=CARDS["ucm"].classes, per_class=1, suffix=".tif")
    if how == "environment":
        monkeypatch.setenv("BPL_DATA", str(root))
    images = load_images("ucm", 8, data=str(root) if how == "argument" else "auto", progress=False)
    assert (images.name, images.source, images.root) == ("ucm", "real", root)
    assert images.classes == CARDS["ucm"].classes and images.mean == CARDS["ucm"].mean
    captured = capsys.readouterr()
    assert captured.out == "" and "holds 21 images, 'ucm' stands for 2,100" in captured.err


def test_a_share_does_not_run_under_the_name_of_the_whole(tmp_path):
    root = tmp_path / "root"
    make_tree(root / "NWPU-RESISC45", classes=CARDS["nwpu"].classes, per_class=1)
    with pytest.raises(DataError, match="holds 45 of the 31,500 images of 'nwpu'.*'nwpu-45'"):
        load_images("nwpu", 8, data=str(root))
    assert len(load_images("nwpu-45", 8, data=str(root), progress=False).classes) == 45
    assert load_images("nwpu-21", 8, data=str(root), progress=False).classes == CARDS["nwpu-21"].classes
    assert set(CARDS["nwpu-21"].classes) < set(CARDS["nwpu"].classes) and len(CARDS["nwpu-21"].classes) == 21


def test_missing_classes_are_named(tmp_path):
    make_tree(tmp_path / "UCMerced_LandUse", classes=CARDS["ucm"].classes[:-2], per_class=1)
    with pytest.raises(DataError, match="lacks 2 of 21 class folders: storagetanks, tenniscourt"):
        load_images("ucm", 8, data=str(tmp_path))


def test_without_images_auto_draws_and_says_so_and_real_refuses(tmp_path, monkeypatch, capsys, drawn):
    monkeypatch.setenv("BPL_DATA", str(tmp_path / "nothing"))
    images = load_images("ucm", 8)
    assert (images.name, images.source, images.root, len(images.files)) == ("ucm", "synthetic", None, 2100)
    assert len(set(images.files)) == 2100 and images.mean != CARDS["ucm"].mean
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1 and "synthetic" in printed and str(tmp_path) not in printed
    with pytest.raises(DataError, match="nothing.*UCMerced_LandUse/Images.*bpl.data.download"):
        load_images("ucm", 8, data="real")
    with pytest.raises(DataError, match="ask its authors"):
        load_images("aid", 8, data="real")
    with pytest.raises(DataError, match="allowed are auto, real, synthetic"):
        load_images("ucm", 8, data="sinthetic")


def test_synthetic_is_quiet_cached_and_the_same_again(capsys, drawn):
    first = load_images("synthetic", 8)
    again = load_images("ucm", 8, data="synthetic")
    assert capsys.readouterr().out == ""
    assert len(drawn) == 1 and first.digest == again.digest and torch.equal(first.images, again.images)


def test_the_cache_answers_and_notices_changed_files(tmp_path, monkeypatch):
    tree = make_tree(tmp_path / "set")
    first = load_images(str(tree), 8, progress=False)
    with monkeypatch.context() as patch:
        patch.setattr("bpl.data.folders.decode", lambda *_: pytest.fail("decoded in spite of the cache"))
        assert load_images(str(tree), 8, progress=False).digest == first.digest
    Image.new("RGB", (12, 12), (1, 2, 3)).save(tree / "a" / "a00.png")
    changed = load_images(str(tree), 8, progress=False)
    assert changed.digest != first.digest and changed.images[0, :, 0, 0].tolist() == [1, 2, 3]


@pytest.mark.parametrize("damage", ["flip", "cut", "header", "empty", "longer"])
def test_a_corrupt_cache_is_remarked_upon_and_decoded_again(tmp_path, own_cache, capsys, damage):
    tree = make_tree(tmp_path / "set")
    first = load_images(str(tree), 8, progress=False)
    (entry,) = own_cache.iterdir()
    content = bytearray(entry.read_bytes())
    if damage == "flip":
        content[-5] ^= 1
    elif damage == "cut":
        del content[-5:]
    elif damage == "header":
        content[:5] = b"\xff\xfe{]!"
    elif damage == "longer":
        content += b"x"
    else:
        content.clear()
    entry.write_bytes(content)
    capsys.readouterr()
    again = load_images(str(tree), 8, progress=False)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and str(entry) in said and "not usable" in said
    assert again.digest == first.digest and torch.equal(again.images, first.images)
    load_images(str(tree), 8, progress=False)
    assert capsys.readouterr().err == ""


def full_disk(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_costs_the_cache_not_the_run(tmp_path, own_cache, capsys, monkeypatch):
    tree = make_tree(tmp_path / "set")
    monkeypatch.setattr(os, "fsync", full_disk)
    images = load_images(str(tree), 8, progress=False)
    assert len(images.files) == 6
    assert "not kept" in (said := capsys.readouterr().err) and "No space left" in said and said.count("\n") == 1
    assert list(own_cache.iterdir()) == []


def test_a_cache_folder_that_cannot_be_made_costs_the_cache_not_the_run(tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("BPL_CACHE", str(tmp_path / "file" / "cache"))
    assert len(load_images(str(make_tree(tmp_path / "set")), 8, progress=False).files) == 6
    assert "not kept" in capsys.readouterr().err


def test_the_cache_lies_where_it_is_told(monkeypatch):
    monkeypatch.delenv("BPL_CACHE")
    assert str(cache_module.cache_folder()).endswith("/.cache/bpl")
    assert cache_module.cache_key(a=1) != cache_module.cache_key(a=2)


def test_write_atomic_replaces_whole_and_with_ordinary_rights(tmp_path):
    path = tmp_path / "file"
    write_atomic(path, b"old")
    write_atomic(path, (b"ne", memoryview(b"w")))
    assert path.read_bytes() == b"new" and os.listdir(tmp_path) == ["file"]
    (tmp_path / "plain").write_bytes(b"")
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_write_atomic_keeps_the_old_file_on_errors(tmp_path, monkeypatch, step):
    path = tmp_path / "file"
    write_atomic(path, b"old")
    monkeypatch.setattr(atomic.os, step, full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["file"]


def test_what_is_no_file_is_not_written_over(tmp_path):
    """A file in its place would destroy it: a pipe that another program reads, a device, a folder."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    (tmp_path / "round").symlink_to("round")
    (tmp_path / "folder").mkdir()
    for name, said in (("pipe", "no file"), ("link", "no file"), ("folder", "Is a directory"), ("round", "symbolic")):
        for refuse in (check_target, lambda path: write_atomic(path, b"x")):
            with pytest.raises(OSError, match=said) as error:
                refuse(tmp_path / name)
            assert str(error.value).endswith(f"{name}'")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    assert os.readlink(tmp_path / "link") == "pipe"
    assert sorted(os.listdir(tmp_path)) == ["folder", "link", "pipe", "round"]


def test_a_link_stays_and_the_file_at_its_end_is_written(tmp_path):
    (tmp_path / "place").mkdir()
    (tmp_path / "place" / "file").write_bytes(b"old")
    for name in ("file", "new"):
        (tmp_path / f"link to {name}").symlink_to(f"place/{name}")
        write_atomic(tmp_path / f"link to {name}", b"x")
        assert os.readlink(tmp_path / f"link to {name}") == f"place/{name}"
        assert (tmp_path / "place" / name).read_bytes() == b"x"
    assert files_below(tmp_path) == ["link to file", "link to new", "place/file", "place/new"]


@pytest.mark.parametrize("last", [False, True])
def test_a_folder_in_the_way_of_one_file_leaves_all_as_they_were(tmp_path, last):
    (tmp_path / "one").write_bytes(b"old")
    (tmp_path / "two").mkdir()
    files = {tmp_path / name: b"new" for name in (("one", "two") if last else ("two", "one"))}
    with pytest.raises(IsADirectoryError) as error:
        write_together(files)
    assert str(error.value) == f"[Errno 21] Is a directory: '{tmp_path / 'two'}'"
    assert (tmp_path / "one").read_bytes() == b"old" and files_below(tmp_path) == ["one"]


def test_a_file_of_before_goes_with_the_new_ones_or_stays_with_the_old_ones(tmp_path, monkeypatch):
    for name in ("file", "stale"):
        (tmp_path / name).write_bytes(b"old")
    gone = [tmp_path / "stale", tmp_path / "never there"]
    with monkeypatch.context() as patch:
        patch.setattr(atomic.os, "replace", full_disk)
        with pytest.raises(OSError, match="No space left") as error:
            write_together({tmp_path / "file": b"new"}, gone)
    assert "None" not in str(error.value)
    assert (tmp_path / "stale").read_bytes() == (tmp_path / "file").read_bytes() == b"old"
    assert files_below(tmp_path) == ["file", "stale"]
    write_together({tmp_path / "file": b"new"}, gone)
    assert (tmp_path / "file").read_bytes() == b"new" and files_below(tmp_path) == ["file"]


def test_the_suffixes_that_are_searched_for_are_those_of_the_formats_that_are_decoded():
    assert {end for end, kind in Image.registered_extensions().items() if kind in FORMATS} == DECODED_SUFFIXES
    assert {".tif", ".tiff", ".jpg", ".jpeg", ".png"} == SUFFIXES  # of data sets: the digests in the records


def test_control_characters_of_a_name_do_not_reach_the_terminal(tmp_path):
    (tmp_path / "\x1b[2J.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"image '.*\\x1b\[2J.png' cannot be decoded") as error:
        decode(tmp_path / "\x1b[2J.png", 8)
    assert str(error.value).isprintable()
