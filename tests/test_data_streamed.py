"""Data sets larger than memory: the same images and the same training from the disk, in memory that does not grow."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support import (
    make_tree,
    no_stopwatch_fixture,  # noqa: F401
    places_fixture,  # noqa: F401
    run_module,
    same_weights,
    small,
    trained,
    tree_fixture,  # noqa: F401
)
from torch import multiprocessing
from trials import keep

from bpl.data import DataError, batches, load_images, make_split
from bpl.data import rows as rows_module
from bpl.data.memory_limit import in_bytes, memory_limit
from bpl.data.streamed import DecodedRows, ImageFiles, StreamedImages, WorkerDied, workers

pytestmark = pytest.mark.usefixtures("places")


@pytest.fixture
def little_memory(monkeypatch):
    """No room for any image; returns a function that takes it back."""
    monkeypatch.setenv("BPL_MEMORY", "1KB")
    return lambda: monkeypatch.delenv("BPL_MEMORY")


@pytest.fixture
def full_disk(monkeypatch):
    monkeypatch.setattr(rows_module, "_SPARE", 1 << 60)


def both(tree, size, little_memory):
    streamed = load_images(str(tree), size, progress=False)
    little_memory()
    return streamed, load_images(str(tree), size, progress=False)


# -- the same images ----------------------------------------------------------------------------------------------
def test_everything_known_of_the_images_is_the_same(tree, little_memory, capsys):
    streamed, whole = both(tree, 40, little_memory)
    assert isinstance(streamed.images, StreamedImages) and isinstance(whole.images, torch.Tensor)
    for field in ("name", "source", "classes", "files", "digest", "mean", "std", "root"):
        assert getattr(streamed, field) == getattr(whole, field), field
    assert torch.equal(streamed.labels, whole.labels)
    assert tuple(streamed.images.shape) == tuple(whole.images.shape) and len(streamed.images) == len(whole.images)
    assert make_split(streamed, "protocol", 3).digest == make_split(whole, "protocol", 3).digest
    assert torch.equal(streamed.images[5], whole.images[5])
    which = torch.tensor([7, 3, 79, 3])
    assert torch.equal(streamed.images[which], whole.images[which])
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "take 384,000 bytes, more than the 1,000 bytes" in said and "BPL_MEMORY" in said


def test_the_second_time_nothing_is_decoded(tree, little_memory, monkeypatch):
    first = load_images(str(tree), 40, progress=False)
    monkeypatch.setattr(rows_module, "decode_all", None)
    again = load_images(str(tree), 40, progress=False)
    assert again.digest == first.digest and again.mean == first.mean
    assert isinstance(again.images.pixels, DecodedRows)


@pytest.mark.parametrize("drop_last", [True, False])
def test_batches_come_in_the_same_order(tree, little_memory, drop_last):
    streamed, whole = both(tree, 32, little_memory)
    part = torch.arange(3, 70)
    before = torch.get_rng_state()
    pairs = [list(batches(s.images, s.labels, part, 16, 5, drop_last)) for s in (streamed, whole)]
    assert torch.equal(torch.get_rng_state(), before)
    assert len(pairs[0]) == len(pairs[1]) == (4 if drop_last else 5)
    for (x, y), (other_x, other_y) in zip(*pairs, strict=True):
        assert torch.equal(x, other_x) and torch.equal(y, other_y)


def test_without_room_on_the_disk_images_are_decoded_when_they_are_read(tree, little_memory, full_disk, places, capsys):
    streamed, whole = both(tree, 40, little_memory)
    assert isinstance(streamed.images.pixels, ImageFiles)
    assert streamed.digest == whole.digest and torch.equal(streamed.images[torch.arange(80)], whole.images)
    assert not list((places / "cache").glob("*.rows"))
    assert "has no room: they are decoded in every epoch" in capsys.readouterr().err


# -- the same training --------------------------------------------------------------------------------------------
def test_training_from_disk_is_training_from_memory_to_the_bit(tree, little_memory):
    config = small(tree, "bpl", epochs=2, stored_size=40, freeze_at=0.5)
    streamed = trained(config)
    little_memory()
    whole = trained(config)
    assert streamed.curves == whole.curves
    assert same_weights(streamed.network, whole.network) and same_weights(streamed.small, whole.small)


@pytest.mark.usefixtures("no_stopwatch")
def test_a_record_says_where_the_pixels_were(tree, little_memory, monkeypatch):
    config, said = small(tree, "dense", epochs=1), []
    monkeypatch.setattr(run_module, "save_record", lambda record, path: said.append(record.data["pixels"]))
    run_module.run(config, progress=False)
    little_memory()
    run_module.run(config, progress=False)
    assert said == ["on disk", "in memory"]


# -- what can go wrong --------------------------------------------------------------------------------------------
def test_a_worker_that_dies_is_one_clear_sentence(tree, little_memory):
    streamed = load_images(str(tree), 32, progress=False)
    read = batches(streamed.images, streamed.labels, torch.arange(80).repeat(20), 8, 0)
    next(read)
    with pytest.raises(WorkerDied, match="^a process that reads images was killed: memory, or shared memory .*$"):
        os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
        for _ in read:
            pass


def test_an_image_that_cannot_be_read_is_named(tmp_path, little_memory, full_disk):
    tree = make_tree(tmp_path / "tree", classes=2, per_class=4)
    streamed = load_images(str(tree), 32, progress=False)
    (tree / "class_1" / "1_02.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"image '.*1_02.png' cannot be decoded") as error:
        list(batches(streamed.images, streamed.labels, torch.arange(8), 4, None))
    assert "Traceback" not in str(error.value)


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_damaged_rows_are_noticed_and_made_anew(tree, little_memory, places, damage, capsys):
    first = load_images(str(tree), 32, progress=False)
    (file,) = (places / "cache").glob("*.rows")
    content = bytearray(file.read_bytes())
    content[100] ^= 1
    file.write_bytes(content[:-5] if damage == "cut" else content)
    again = load_images(str(tree), 32, progress=False)
    assert again.digest == first.digest and torch.equal(again.images[0], first.images[0])
    assert "is damaged; decoding the images again" in capsys.readouterr().err


def test_rows_that_vanish_under_a_run_are_an_error(tree, little_memory, places):
    streamed = load_images(str(tree), 32, progress=False)
    (file,) = (places / "cache").glob("*.rows")
    os.truncate(file, 1000)
    with pytest.raises(DataError, match="ends before its image number"):
        list(batches(streamed.images, streamed.labels, torch.arange(8), 4, None))


# -- the limit ----------------------------------------------------------------------------------------------------
def test_the_limit_is_half_of_what_is_free_here_or_in_the_control_group(tmp_path, monkeypatch):
    monkeypatch.delenv("BPL_MEMORY", raising=False)
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:       16000 kB\nMemAvailable:    8000 kB\n")
    assert memory_limit(meminfo, tmp_path) == 4000 * 1024
    for name, content in (("max", "max\n"), ("current", "900\n"), ("stat", "anon 600\ninactive_file 300\n")):
        (tmp_path / f"memory.{name}").write_text(content)
    assert memory_limit(meminfo, tmp_path) == 4000 * 1024
    (tmp_path / "memory.max").write_text("2000\n")
    assert memory_limit(meminfo, tmp_path) == 700
    assert 0 < memory_limit(tmp_path / "none", tmp_path / "none") < 1 << 50


@pytest.mark.parametrize(("text", "count"), [("8GB", 8e9), ("500MB", 5e8), ("1.5 g", 1.5e9), ("0", 0), ("77", 77)])
def test_the_limit_can_be_set(text, count, monkeypatch):
    monkeypatch.setenv("BPL_MEMORY", text)
    assert memory_limit() == count


@pytest.mark.parametrize("text", ["much", "-1", "8 GiB", "GB"])
def test_a_limit_that_is_no_number_of_bytes_is_refused(text, tree, monkeypatch):
    monkeypatch.setenv("BPL_MEMORY", text)
    with pytest.raises(DataError, match="BPL_MEMORY is .*; allowed is a number of bytes such as 500MB or 8GB"):
        load_images(str(tree), 32, progress=False)


def test_bytes_in_words_and_workers(monkeypatch):
    assert [in_bytes(n) for n in (999, 2_500_000, 23e9)] == ["999 bytes", "2.5 MB", "23.0 GB"]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1000")
    assert workers() == 1


# -- flat memory --------------------------------------------------------------------------------------------------
MEASURE = """
import json, resource, sys, torch
from bpl.data import batches, load_images, make_split
peaks = []
for tree in sys.argv[2:]:
    images = load_images(tree, int(sys.argv[1]), progress=False)
    split = make_split(images, "protocol", 0)
    for x, y in batches(images.images, images.labels, split.train, 64, 0):
        pass
    peaks.append([resource.getrusage(who).ru_maxrss * 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)])
json.dump(peaks, sys.stdout)
"""


def linked_tree(folder: Path, images: int, classes: int = 20) -> Path:
    """A tree of very many files, of few different images."""
    originals, chance = folder / "originals", np.random.default_rng(0)
    originals.mkdir(parents=True)
    for number in range(50):
        pixels = chance.integers(0, 255, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).save(originals / f"{number}.jpg", quality=50)
    tree = folder / "tree"
    for label in range(classes):
        (tree / f"class_{label:02d}").mkdir(parents=True)
        for index in range(images // classes):
            os.link(originals / f"{index % 50}.jpg", tree / f"class_{label:02d}" / f"{index:05d}.jpg")
    return tree


def peaks(size: int, *trees: Path) -> list[list[int]]:
    """Peak memory in bytes, of the process itself and of the largest worker, after each of the trees."""
    words = [sys.executable, "-c", MEASURE, str(size), *map(str, trees)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_memory_does_not_grow_with_the_data_set(tmp_path, monkeypatch):
    """Four times as many images, 66 MB more of pixels: a fraction of that, in this process and in its workers."""
    monkeypatch.setenv("BPL_MEMORY", "1MB")
    few, many = linked_tree(tmp_path / "few", 800), linked_tree(tmp_path / "many", 3200)
    (own, worker), (own_later, worker_later) = peaks(96, few, many)
    more = 2400 * 3 * 96**2
    assert own_later - own < more / 4
    assert worker_later - worker < more / 4


@pytest.mark.slow
def test_memory_does_not_grow_with_117000_images(tmp_path, monkeypatch):
    """As many images as RSD46-WHU, 1.4 GB of pixels."""
    monkeypatch.setenv("BPL_MEMORY", "10MB")
    few, many = linked_tree(tmp_path / "few", 5000), linked_tree(tmp_path / "many", 117_000)
    (own, worker), (own_later, worker_later) = peaks(64, few, many)
    print(f"own {own / 1e6:.0f} -> {own_later / 1e6:.0f} MB, worker {worker / 1e6:.0f} -> {worker_later / 1e6:.0f} MB")
    assert own_later - own < 150e6  # 117,000 names and stamps are 60 MB of it
    assert worker_later - worker < 150e6
    sizes = {"own": own, "own_later": own_later, "worker": worker, "worker_later": worker_later}
    megabytes = {name: round(size / 1e6) for name, size in sizes.items()}
    keep("memory", few=5000, many=117_000, pixels_mb=round(112_000 * 3 * 64**2 / 1e6), **megabytes)
