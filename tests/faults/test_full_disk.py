"""A disk that is full at any step of any write: one sentence, a non-zero exit, nothing half-written, and it goes on."""

import errno
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from PIL import Image
from support import SMALL, files_below, made_up_record, no_stopwatch_fixture, places_fixture, tree_fixture  # noqa: F401
from trials import keep

from bpl import train as train_module
from bpl.cli import main
from bpl.config import RunConfig
from bpl.machine import atomic
from bpl.machine.checkpoint import load_checkpoint, save_checkpoint
from bpl.records import iterate_records, record_path, save_record

pytestmark = pytest.mark.usefixtures("places", "no_stopwatch")
ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO)
MOST = 200  # steps of a command; more would mean that its end is not noticed


@contextmanager
def full_at(step: int, below: Path, code: int = errno.ENOSPC) -> Iterator[list[str]]:
    """Let a step of writing below a folder fail, counted from 0; yields what the steps so far were.

    A step is a file or folder made, opened for writing, written into, flushed to the disk, or renamed. The step that
    fails leaves things as a full disk does: half of the bytes are written, the rest is not.
    """
    steps: list[str] = []
    real = {name: getattr(os, name) for name in ("fsync", "replace", "mkdir", "write")}

    def counted(what: str, place: object) -> None:
        if not str(place).startswith(str(below)):
            return
        steps.append(f"{what} {Path(str(place)).name}")
        if len(steps) == step + 1:
            raise OSError(code, os.strerror(code), *([str(place)] if what == "mkdir" else []))

    class Writes:
        """A file whose writes are counted."""

        def __init__(self, file) -> None:
            self.file, self.place = file, os.readlink(f"/proc/self/fd/{file.fileno()}")

        def __enter__(self):
            return self

        def __exit__(self, *error) -> None:
            self.file.close()

        def __getattr__(self, name: str):
            return getattr(self.file, name)

        def write(self, content) -> None:
            try:
                counted("write", self.place)
            except OSError:
                self.file.write(memoryview(content).cast("B")[: len(memoryview(content).cast("B")) // 2])
                self.file.flush()
                raise
            self.file.write(content)

    def fsync(descriptor: int) -> None:
        counted("fsync", os.readlink(f"/proc/self/fd/{descriptor}"))
        real["fsync"](descriptor)

    def replace(temporary, path) -> None:
        counted("replace", path)
        real["replace"](temporary, path)

    def mkdir(path, *rest, **named) -> None:
        if not os.path.isdir(path):
            counted("mkdir", path)
        real["mkdir"](path, *rest, **named)

    mkstemp, fdopen = tempfile.mkstemp, os.fdopen

    def make(*, prefix: str, suffix: str, dir: Path) -> tuple[int, str]:
        counted("make", Path(dir, prefix))
        return mkstemp(prefix=prefix, suffix=suffix, dir=dir)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        patch.setattr(os, "replace", replace)
        patch.setattr(os, "mkdir", mkdir)
        patch.setattr(atomic.os, "fdopen", lambda *a, **k: Writes(fdopen(*a, **k)))
        patch.setattr(atomic.tempfile, "mkstemp", make)
        yield steps


def ended(capsys, *words: object) -> tuple[int, str]:
    """Exit code and standard error of a command."""
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    return end.value.code, capsys.readouterr().err


def fail_everywhere(capsys, places: Path, stride: int, words: list, prepare, check) -> int:
    """Give a command a full disk at every `stride`-th of its steps in turn; returns at how many.

    Args:
        capsys: of pytest.
        places: the folder whose writes count.
        stride: 1 for every step.
        words: the command.
        prepare: sets the scene anew.
        check: looks at what a failure has left.
    """
    failed = 0
    for step in range(0, MOST, stride):
        prepare()
        with full_at(step, places, ERRORS[step % len(ERRORS)]) as steps:
            code, said = ended(capsys, *words)
        assert not [name for name in files_below(places) if name.endswith(".tmp")], steps
        if len(steps) <= step:
            assert code == 0, said
            return failed
        if code:  # decoded images that cannot be kept cost time, not the run
            assert code == 1 and said.count("\n") == 1 and said.startswith("bpl: "), (steps, said)
            assert os.strerror(ERRORS[step % len(ERRORS)]) in said and str(places) in said
            check()
            failed += 1
        assert ended(capsys, *words)[0] == 0, steps  # and it goes on
    raise AssertionError(f"more than {MOST} steps")


every = pytest.mark.parametrize("stride", [17, pytest.param(1, marks=pytest.mark.slow)])


@every
def test_a_run_whose_disk_is_full_at_any_step_is_ended_with_one_sentence_and_goes_on(
    tree, places, capsys, monkeypatch, stride
):
    monkeypatch.setattr(train_module, "CHECKPOINT_SECONDS", -1.0)
    options = [word for key, value in (SMALL | {"epochs": 2}).items() for word in (f"--{key.replace('_', '-')}", value)]
    words = ["run", "--dataset", tree, "--method", "dense", *options, "--quiet"]

    def prepare() -> None:
        for name in ("cache", "results", "work"):
            shutil.rmtree(places / name, ignore_errors=True)

    def check() -> None:
        assert all(record.state == "finished" for _, record in iterate_records(places / "results"))
        for checkpoint in places.rglob("checkpoint.pt"):
            assert load_checkpoint(checkpoint)["epoch"] >= 1

    failed = fail_everywhere(capsys, places, stride, words, prepare, check)
    assert failed >= 17 // stride
    if stride == 1:
        keep("full disk", steps=failed, half_written=0, went_on=failed)


@pytest.fixture
def bundled(places) -> Path:
    """A bundle of two records."""
    for seed in range(2):
        config = RunConfig("ucm", "bpl", seed=seed)
        record = made_up_record(config, data={"source": "real", "name": "ucm", "digest": "d", "split_digest": "s"})
        save_record(record, record_path(config, "real", places / "from"))
    return places / "bundle.zip"


def test_a_bundle_whose_disk_is_full_at_any_step_leaves_the_older_one(bundled, places, capsys):
    older = b"PK\5\6" + bytes(18)  # a bundle without records

    def check() -> None:
        assert bundled.read_bytes() == older

    words = ["records", "bundle", bundled, "--out", places / "from"]
    assert fail_everywhere(capsys, places, 1, words, lambda: bundled.write_bytes(older), check) >= 4


def test_records_that_are_merged_onto_a_full_disk_are_whole_or_not_there(bundled, places, capsys):
    assert ended(capsys, "records", "bundle", bundled, "--out", places / "from")[0] == 0
    whole = {path.name: path.read_bytes() for path in (places / "from").rglob("*.json")}

    def check() -> None:
        assert all(path.read_bytes() == whole[path.name] for path in (places / "into").rglob("*.json"))

    words = ["records", "merge", bundled, "--into", places / "into"]
    prepare = lambda: shutil.rmtree(places / "into", ignore_errors=True)  # noqa: E731
    assert fail_everywhere(capsys, places, 3, words, prepare, check) >= 3


def test_a_table_of_classes_whose_disk_is_full_at_any_step_leaves_the_older_one(places, capsys):
    Image.new("RGB", (64, 64)).save(places / "image.png")
    table = places / "table.csv"

    def check() -> None:
        assert table.read_text() == "older"

    words = ["predict", "demo", places / "image.png", "--csv", table]
    assert fail_everywhere(capsys, places, 1, words, lambda: table.write_text("older"), check) >= 4


def test_standard_output_on_a_full_disk_is_said_and_ends_with_1():
    """The table goes to a device that is always full: not a word of Python's own, and no exit code of its own."""
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-m", "bpl", "data"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("bpl: ") and done.stderr.endswith("No space left on device\n")
    assert done.stderr.count("\n") == 1


def test_standard_output_that_is_closed_is_no_error():
    """As under a service that gives its processes none: ``bpl data >&-``."""
    done = subprocess.run(
        ["bash", "-c", '"$0" -m bpl data >&-', sys.executable], stderr=subprocess.PIPE, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_reader_that_leaves_gets_no_message():
    """As in ``bpl data | head -1``: the pipe has no reader when the table is written."""
    reads, writes = os.pipe()
    os.close(reads)
    with os.fdopen(writes, "w") as pipe:
        done = subprocess.run([sys.executable, "-m", "bpl", "data"], stdout=pipe, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (1, "")


def test_a_file_that_the_system_cuts_off_leaves_the_older_one(tmp_path):
    """The kernel's own refusal, in the middle of a write: files of this process may have 100,000 bytes."""
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"epoch": 1})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        with pytest.raises(OSError, match="File too large: .*checkpoint.pt"):
            save_checkpoint(path, {"epoch": 2, "weights": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert load_checkpoint(path) == {"epoch": 1}
    assert files_below(tmp_path) == ["checkpoint.pt"]


@pytest.mark.slow
def test_a_small_disk_that_fills_up_while_a_run_is_under_way(tree, places, capsys, monkeypatch):
    """A real file system without room for a second checkpoint; with room, the same command goes on."""
    disk = places / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("no file system may be mounted here")
    monkeypatch.setattr(train_module, "CHECKPOINT_SECONDS", -1.0)
    monkeypatch.setenv("BPL_WORK", str(disk / "work"))
    options = [word for key, value in SMALL.items() for word in (f"--{key.replace('_', '-')}", value)]
    words = ["run", "--dataset", tree, "--method", "bpl", *options, "--quiet"]
    try:
        (disk / "filler").write_bytes(bytes(400_000))
        code, said = ended(capsys, *words)
        assert code == 1 and "No space left on device" in said and said.count("\n") == 1
        assert not [name for name in files_below(places) if name.endswith(".tmp")]
        subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
        assert ended(capsys, *words)[0] == 0
    finally:
        subprocess.run(["umount", disk], check=True)
