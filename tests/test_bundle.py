"""Bundles: what goes in comes out, what is broken is refused, nothing is overwritten unasked."""

import dataclasses
import json
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support import files_below, made_up_record, places_fixture  # noqa: F401

from bpl.cli import main
from bpl.config import RunConfig
from bpl.machine.atomic import folder_held
from bpl.records import RecordError, load_record, record_path, save_record
from bpl.sweep import bundle as bundle_module
from bpl.sweep.bundle import BundleError, Merged, merge_bundles, write_bundle

pytestmark = pytest.mark.usefixtures("places")

CONFIGS = [
    RunConfig("ucm", "bpl"),
    RunConfig("ucm", "dense", seed=1),
    RunConfig("aid", "scratch", data="auto"),
    RunConfig("synthetic", "bpl"),
]
SOURCES = ["real", "real", "synthetic", "synthetic"]  # the third: drawn scenes in place of a data set


def fill(folder: Path, **changes) -> list[str]:
    """Records below a folder; returns their names."""
    for config, source in zip(CONFIGS, SOURCES, strict=True):
        data = {"source": source, "name": config.dataset, "digest": "d", "split_digest": "s"}
        save_record(made_up_record(config, source, data=data, **changes), record_path(config, source, folder))
    return files_below(folder)


@pytest.fixture
def bundle(tmp_path) -> Path:
    """A bundle of four records; they lie below ``there``."""
    fill(tmp_path / "there")
    write_bundle(tmp_path / "records.zip", tmp_path / "there")
    return tmp_path / "records.zip"


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in files_below(folder)} if folder.exists() else {}


def test_what_is_bundled_comes_out_byte_for_byte(bundle, tmp_path):
    assert merge_bundles([bundle], tmp_path / "here") == Merged(added=4, same=0, replaced=0)
    assert contents(tmp_path / "here") == contents(tmp_path / "there")
    assert {name.split("/")[0] for name in contents(tmp_path / "here")} == {"ucm", "aid-drawn", "synthetic"}


def test_equal_records_give_equal_bytes_and_an_older_bundle_is_replaced(bundle, tmp_path):
    before = bundle.read_bytes()
    write_bundle(bundle, tmp_path / "there")
    assert bundle.read_bytes() == before
    next((tmp_path / "there" / "ucm").iterdir()).unlink()
    assert write_bundle(bundle, tmp_path / "there") == 3
    assert merge_bundles([bundle], tmp_path / "here").added == 3


def test_a_folder_without_records_gives_an_empty_bundle(tmp_path):
    assert write_bundle(tmp_path / "deep" / "records.zip", tmp_path / "none") == 0
    assert merge_bundles([tmp_path / "deep" / "records.zip"], tmp_path / "here") == Merged(0, 0, 0)


@pytest.mark.parametrize("content", [b"- {dataset: ucm, method: bpl}", b"PK"], ids=["a grid", "a damaged archive"])
def test_a_file_that_is_no_bundle_is_not_replaced(tmp_path, content):
    """As where the grid is named twice: ``bpl sweep grid.yaml --bundle grid.yaml``."""
    (tmp_path / "mine").write_bytes(content)
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        archive.writestr("beach/1.tif", b"pixels")
    for name in ("mine", "images.zip"):
        before = (tmp_path / name).read_bytes()
        with pytest.raises(BundleError, match=f"{name} is there and is no bundle of records: it is not replaced"):
            write_bundle(tmp_path / name, tmp_path / "none")
        assert (tmp_path / name).read_bytes() == before


def test_a_results_folder_that_is_not_there_is_named(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["records", "bundle", str(tmp_path / "new.zip"), "--out", str(tmp_path / "mistyped")])
    assert ended.value.code == 2 and "mistyped: there is no such folder of records" in capsys.readouterr().err
    assert not (tmp_path / "new.zip").exists()


def test_a_broken_record_is_not_bundled_and_the_older_bundle_stays(bundle, tmp_path):
    before, victim = bundle.read_bytes(), next((tmp_path / "there" / "ucm").iterdir())
    victim.write_text(victim.read_text()[:-20])
    with pytest.raises(RecordError, match=victim.name):
        write_bundle(bundle, tmp_path / "there")
    assert bundle.read_bytes() == before


def test_of_two_that_write_one_bundle_none_takes_a_record_out_again(tmp_path, monkeypatch):
    """The first has read one record, and writes after the second was told to write two."""
    write, reached, go_on = bundle_module.write_atomic, threading.Event(), threading.Event()

    def slow(path, content):
        if threading.current_thread().name == "first":
            reached.set()
            go_on.wait(30)
        write(path, content)

    monkeypatch.setattr(bundle_module, "write_atomic", slow)
    save_record(made_up_record(CONFIGS[0]), record_path(CONFIGS[0], "real", tmp_path / "there"))
    given = (tmp_path / "b" / "records.zip", tmp_path / "there")
    first, second = (threading.Thread(target=write_bundle, args=given, name=name) for name in ("first", "second"))
    first.start()
    assert reached.wait(30)
    save_record(made_up_record(CONFIGS[1]), record_path(CONFIGS[1], "real", tmp_path / "there"))
    second.start()
    time.sleep(0.3)
    go_on.set()
    first.join()
    second.join()
    assert len(zipfile.ZipFile(given[0]).namelist()) == 2


def test_records_that_are_there_already_are_left_as_they_are(bundle, tmp_path):
    fill(tmp_path / "here")
    (tmp_path / "here" / files_below(tmp_path / "here")[0]).unlink()
    times = {name: (tmp_path / "here" / name).stat().st_mtime_ns for name in files_below(tmp_path / "here")}
    assert merge_bundles([bundle], tmp_path / "here") == Merged(added=1, same=3, replaced=0)
    assert all((tmp_path / "here" / name).stat().st_mtime_ns == time for name, time in times.items())


def test_a_different_record_is_never_replaced_unasked_and_then_nothing_is_taken(bundle, tmp_path):
    here = tmp_path / "here"
    fill(here, seconds=9.0)
    own = [name for name in files_below(here) if name.startswith("synthetic")]
    for name in set(files_below(here)) - set(own):
        (here / name).unlink()
    before = contents(here)
    with pytest.raises(BundleError, match=f"1 records are in .*, such as {own[0]}: nothing was taken"):
        merge_bundles([bundle], here)
    assert contents(here) == before
    assert merge_bundles([bundle], here, replace=True) == Merged(added=3, same=0, replaced=1)
    assert contents(here) == contents(tmp_path / "there")


def test_a_record_that_a_run_writes_meanwhile_is_not_written_over(bundle, tmp_path, monkeypatch):
    """The run holds the folder as `bpl.run` does, between its look and its writing; the merge waits for its turn."""
    (name, *_) = zipfile.ZipFile(bundle).namelist()
    target = tmp_path / "taken" / name
    with ThreadPoolExecutor(1) as pool:
        with folder_held(target.parent):
            merging = pool.submit(merge_bundles, [bundle], tmp_path / "taken")
            time.sleep(0.3)
            assert not merging.done()
            target.write_bytes(b"another run's")
        with pytest.raises(BundleError, match="are different"):
            merging.result(timeout=30)
    assert target.read_bytes() == b"another run's"


def test_two_bundles_that_differ_on_a_record_are_refused(bundle, tmp_path):
    fill(tmp_path / "other", seconds=9.0)
    write_bundle(tmp_path / "second.zip", tmp_path / "other")
    with pytest.raises(BundleError, match="different in another bundle"):
        merge_bundles([bundle, tmp_path / "second.zip"], tmp_path / "here")
    assert not (tmp_path / "here").exists()
    assert merge_bundles([bundle, bundle], tmp_path / "here").added == 4


def rewritten(bundle: Path, change) -> Path:
    """The bundle with its first record changed: `change` gets its name and its values, and returns both."""
    other = bundle.with_name("changed.zip")
    with zipfile.ZipFile(bundle) as old, zipfile.ZipFile(other, "w") as new:
        for number, name in enumerate(old.namelist()):
            content = old.read(name)
            if number == 0:
                name, content = change(name, json.loads(content))
            new.writestr(name, content if isinstance(content, bytes) else json.dumps(content))
    return other


def config_of(**changes):
    return lambda name, values: (name, values | {"config": values["config"] | changes})


CHANGES = {
    "half a record": (lambda name, values: (name, json.dumps(values).encode()[:-9]), "cannot be read"),
    "not text": (lambda name, values: (name, b"\xff\xfe\x00"), "cannot be read"),
    "not finished": (lambda name, values: (name, values | {"state": "running"}), "only finished runs count"),
    "another schema": (lambda name, values: (name, values | {"schema": 99}), "schema version 99"),
    "a key less": (lambda name, values: (name, {k: v for k, v in values.items() if k != "curves"}), "lacks curves"),
    "another seed": (config_of(seed=4), "that of the run of its config, "),
    "another recipe": (config_of(learning_rate=0.5), "is not the run that its config says"),
    "an unknown knob": (config_of(magic=1), "unknown key 'magic'"),
    "another ratio": (config_of(ratio=2.0), "that of the run of its config, "),
    "a bad value": (config_of(epochs=0), "epochs is 0"),
    "another source": (
        lambda name, values: (name, values | {"data": values["data"] | {"source": "real"}}),
        "is not the run that its config says",
    ),
    "a name within that is another": (
        lambda name, values: (name, values | {"name": "other"}),
        "that of the run of its config, ",
    ),
    "another name": (lambda name, values: (name.replace("-s0-", "-s1-"), values), "is not the run"),
    "a way out": (lambda name, values: (f"../{name}", values), "is no name of a record"),
    "an absolute path": (lambda name, values: (f"/tmp/{name}", values), "is no name of a record"),
    "no folder": (lambda name, values: (name.split("/")[1], values), "is no name of a record"),
    "a hidden folder": (lambda name, values: (f".git/{name.split('/')[1]}", values), "is no name of a record"),
    "too large": (lambda name, values: (name, b" " * (17 << 20)), "is no record: it has 17,825,792 bytes"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_record_that_is_not_what_it_says_is_refused_and_nothing_is_taken(bundle, tmp_path, what):
    change, reason = CHANGES[what]
    other = rewritten(bundle, change)
    with pytest.raises(BundleError) as error:
        merge_bundles([other], tmp_path / "here")
    assert reason in str(error.value)
    assert str(other) in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "here").exists()


@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "flipped", "a folder"])
def test_a_damaged_bundle_is_named_and_nothing_is_taken(bundle, tmp_path, damage):
    content = bundle.read_bytes()
    bundle.unlink()
    if damage == "a folder":
        bundle.mkdir()
    elif damage != "missing":
        flipped = content[:200] + bytes([content[200] ^ 1]) + content[201:]
        bundle.write_bytes({"empty": b"", "cut": content[: len(content) // 2], "flipped": flipped}[damage])
    with pytest.raises(BundleError, match="records.zip"):
        merge_bundles([bundle], tmp_path / "here")
    assert not (tmp_path / "here").exists()


def test_a_record_of_a_tree_of_ones_own_is_taken_where_the_tree_is_not(tmp_path):
    tree = tmp_path / "machine" / "my scenes"
    (tree / "class").mkdir(parents=True)
    config = RunConfig(str(tree), "dense")
    record = made_up_record(config, data={"source": "real", "name": "my scenes", "digest": "d", "split_digest": "s"})
    path = save_record(record, record_path(config, "real", tmp_path / "there"))
    write_bundle(tmp_path / "b.zip", tmp_path / "there")
    (tree / "class").rmdir()
    tree.rmdir()
    assert merge_bundles([tmp_path / "b.zip"], tmp_path / "here").added == 1
    assert load_record(tmp_path / "here" / "my scenes" / path.name) == record


def test_a_record_of_packed_images_is_taken_where_the_packed_file_is_not(tmp_path):
    (tmp_path / "ucm.zip").touch()
    config = RunConfig("ucm", "bpl", data=str(tmp_path / "ucm.zip"))
    data = {"source": "real", "name": "ucm", "digest": "d", "split_digest": "s"}
    save_record(made_up_record(config, data=data), record_path(config, "real", tmp_path / "there"))
    write_bundle(tmp_path / "b.zip", tmp_path / "there")
    (tmp_path / "ucm.zip").unlink()
    assert merge_bundles([tmp_path / "b.zip"], tmp_path / "here").added == 1


# -- bpl records --------------------------------------------------------------------------------------------------
def words(capsys, *given) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in given])
    return ended.value.code or 0, *capsys.readouterr()


def test_bpl_records_bundles_and_merges(tmp_path, capsys):
    fill(tmp_path / "there")
    code, out, _ = words(capsys, "records", "bundle", tmp_path / "b.zip", "--out", tmp_path / "there")
    assert (code, out) == (0, f"4 records in {tmp_path / 'b.zip'}\n")
    for expected in ("4 records added, 0 there already", "0 records added, 4 there already"):
        code, out, _ = words(capsys, "records", "merge", tmp_path / "b.zip", "--into", tmp_path / "here")
        assert (code, out) == (0, f"{expected}, 0 replaced\n")
    victim = tmp_path / "here" / files_below(tmp_path / "here")[0]
    save_record(dataclasses.replace(load_record(victim), seconds=1.0), victim)
    code, out, err = words(capsys, "records", "merge", tmp_path / "b.zip", "--into", tmp_path / "here")
    assert (code, out) == (2, "")
    assert err.startswith("bpl: 1 records are in")
    assert err.count("\n") == 1
    code, out, _ = words(capsys, "records", "merge", tmp_path / "b.zip", "--into", tmp_path / "here", "--replace")
    assert (code, out) == (0, "0 records added, 3 there already, 1 replaced\n")


def test_bpl_records_merge_takes_into_the_usual_folder_by_default(bundle, tmp_path, capsys):
    assert words(capsys, "records", "merge", bundle)[0] == 0
    assert contents(tmp_path / "results") == contents(tmp_path / "there")  # $BPL_RESULTS of this test
