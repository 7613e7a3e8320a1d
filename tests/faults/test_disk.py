"""What goes wrong outside: no space, no permission, damaged images. Nothing is lost, nothing is half-written."""

import errno
import os
import shutil
import subprocess
import sys

import pytest
from support import (  # noqa: F401
    files_below,
    made_up_record,
    no_stopwatch_fixture,
    places_fixture,
    run_module,
    small,
    tree_fixture,
)

from bpl.config import RunConfig
from bpl.data import DataError
from bpl.machine import atomic
from bpl.machine.atomic import write_atomic, write_together
from bpl.machine.checkpoint import save_checkpoint
from bpl.records import load_record, record_path, save_record
from bpl.run import run

pytestmark = pytest.mark.usefixtures("places", "no_stopwatch")


def no_space(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class _FullFile:
    """A file on a full disk."""

    def __init__(self, file):
        self.file = file

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def write(self, _):
        no_space()

    def fileno(self):
        return self.file.fileno()

    def flush(self):
        self.file.flush()


@pytest.fixture(params=["write", "fsync", "replace"])
def full_disk(request, monkeypatch):
    """Switches on a disk that is full at one of the steps of writing."""

    def switch():
        if request.param == "write":
            fdopen = os.fdopen
            monkeypatch.setattr(atomic.os, "fdopen", lambda *a, **k: _FullFile(fdopen(*a, **k)))
        else:
            monkeypatch.setattr(atomic.os, request.param, no_space)

    return switch


WRITERS = {
    "bytes": lambda path, what: write_atomic(path, what.encode()),
    "record": lambda path, what: save_record(made_up_record(RunConfig("ucm", "bpl"), name=what), path),
    "checkpoint": lambda path, what: save_checkpoint(path, {"what": what}),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_leaves_the_old_file_and_no_temporary_one_and_names_the_file(tmp_path, full_disk, writer):
    path = tmp_path / "file"
    WRITERS[writer](path, "old")
    old = path.read_bytes()
    full_disk()
    with pytest.raises(OSError, match="No space left on device") as error:
        WRITERS[writer](path, "new")
    assert str(path) in str(error.value)
    assert path.read_bytes() == old
    assert files_below(tmp_path) == ["file"]


@pytest.mark.parametrize("failing", [1, 2])
def test_of_files_that_belong_together_all_are_new_or_none(tmp_path, monkeypatch, failing):
    """The disk is full at the first or at the second file: both old ones stay."""
    write_together({tmp_path / "weights": b"old", tmp_path / "widths": [b"o", b"ld"]})
    fsync, calls = os.fsync, []

    def full_at_some_file(descriptor):
        calls.append(descriptor)
        if len(calls) == failing:
            no_space()
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(atomic.os, "fsync", full_at_some_file)
        with pytest.raises(OSError, match=f"No space left on device: .*{['weights', 'widths'][failing - 1]}"):
            write_together({tmp_path / "weights": b"new", tmp_path / "widths": b"new"})
    assert files_below(tmp_path) == ["weights", "widths"]
    assert [(tmp_path / name).read_bytes() for name in ("weights", "widths")] == [b"old", b"old"]
    write_together({tmp_path / "weights": b"new", tmp_path / "widths": b"new"})
    assert [(tmp_path / name).read_bytes() for name in ("weights", "widths")] == [b"new", b"new"]


def test_an_interrupt_while_writing_leaves_no_temporary_file(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(atomic.os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(tmp_path / "file", b"x")
    assert files_below(tmp_path) == []


def test_a_disk_full_at_the_end_of_a_run_loses_no_epoch(tree, places, monkeypatch):
    """The record could not be written: the next start goes on from the checkpoint and trains nothing again."""
    train_module = sys.modules["bpl.train"]
    monkeypatch.setattr(train_module, "CHECKPOINT_SECONDS", -1.0)
    config = small(tree, "bpl", epochs=2)
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "save_record", no_space)
        with pytest.raises(OSError, match="No space"):
            run(config, progress=False)
    assert files_below(places / "results") == []
    monkeypatch.setattr(train_module, "_epoch", lambda *_: pytest.fail("an epoch was trained again"))
    record = run(config, progress=False)
    assert len(record.curves["loss"]) == 2
    assert load_record(record_path(config, "real")) == record


def test_a_disk_full_at_a_checkpoint_stops_the_run_and_leaves_the_checkpoint_before(tree, places, monkeypatch):
    train_module = sys.modules["bpl.train"]
    monkeypatch.setattr(train_module, "CHECKPOINT_SECONDS", -1.0)
    config = small(tree, "dense", epochs=3)
    replace, calls = os.replace, []

    def second_time_full(*where):
        calls.append(where)
        if len(calls) == 2:
            no_space()
        replace(*where)

    place = places / "work" / record_path(config, "real").stem
    with monkeypatch.context() as patch:
        patch.setenv("BPL_CACHE", str(places / "cache"))
        run_module.load_images(config.dataset, 32, "auto", False)  # its cache entry is not what this test is about
        patch.setattr(atomic.os, "replace", second_time_full)
        with pytest.raises(OSError, match="checkpoint.pt"):
            run(config, progress=False)
    assert {"checkpoint.pt", "lock"} <= set(files_below(place))
    assert not [name for name in files_below(places) if name.endswith(".tmp")]
    assert train_module.load_checkpoint(place / "checkpoint.pt")["epoch"] == 1
    assert len(run(config, progress=False).curves["loss"]) == 3


def test_a_results_folder_that_cannot_be_written_is_named(tree, tmp_path):
    """A file stands where the folder should be: true for root too, whom permissions do not stop."""
    (tmp_path / "taken").write_text("")
    config = small(tree, "dense", epochs=1)
    with pytest.raises(OSError, match="taken"):
        run(config, folder=tmp_path / "taken", progress=False)


@pytest.fixture
def read_only(tmp_path):
    """A folder that cannot be written into: by its permissions, or for root, whom these do not stop, by a mount."""
    folder = tmp_path / "results" / "tiny"
    folder.mkdir(parents=True)
    if os.geteuid() == 0:
        for options in (["--bind", folder, folder], ["-o", "remount,ro,bind", folder]):
            if subprocess.run(["mount", *options], capture_output=True).returncode:
                pytest.skip("root may not mount here")
        yield folder
        subprocess.run(["umount", folder], check=True)
    else:
        folder.chmod(0o555)
        yield folder
        folder.chmod(0o755)


def test_a_read_only_results_folder_is_named_before_anything_is_trained(tree, read_only, monkeypatch):
    monkeypatch.setattr(run_module, "train", lambda *_, **__: pytest.fail("hours were spent first"))
    with pytest.raises(OSError, match=str(read_only)):
        run(small(tree, "dense", epochs=1), progress=False)
    assert files_below(read_only) == []


@pytest.mark.parametrize("content", [b"", b"no image at all", None], ids=["empty", "text", "truncated"])
def test_a_damaged_image_is_named_and_nothing_is_left(tree, places, content):
    copy = shutil.copytree(tree, places / "copy")
    victim = copy / "class_2" / "2_07.png"
    victim.write_bytes(victim.read_bytes()[:300] if content is None else content)
    with pytest.raises(DataError) as error:
        run(small(copy, "dense"), progress=False)
    assert str(victim) in str(error.value)
    assert "\n" not in str(error.value)
    assert not (places / "results").exists()
    assert not (places / "work").exists()


def test_too_few_images_for_the_split_are_named_before_anything_is_written(tree, places):
    copy = shutil.copytree(tree, places / "copy")
    for image in sorted((copy / "class_1").iterdir())[2:]:
        image.unlink()
    with pytest.raises(DataError, match="class 'class_1' has 2 .* at least 3"):
        run(small(copy, "dense"), progress=False)
    assert not (places / "results").exists()
