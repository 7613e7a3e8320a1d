"""Runs and their records: written whole or not at all, read with care, never repeated, never mixed."""

import dataclasses
import json
import multiprocessing
import os
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
from PIL import Image
from support import (  # noqa: F401
    files_below,
    made_up_record,
    make_tree,
    no_stopwatch_fixture,
    places_fixture,
    run_module,
    small,
    train_module,
    tree_fixture,
)

from bpl import report
from bpl.config import RunConfig
from bpl.data import load_images
from bpl.export import exports_of, load_model
from bpl.machine.ending import Stopped
from bpl.machine.run_lock import RunBusy, only_here
from bpl.paths import project_root
from bpl.recording import accuracies
from bpl.records import (
    SCHEMA,
    RecordError,
    check_images,
    iterate_records,
    load_record,
    load_records,
    record_path,
    save_record,
    source_digest,
)
from bpl.run import run
from bpl.train import mean_per_class, predict, top1

pytestmark = pytest.mark.usefixtures("places", "no_stopwatch")


def saved(folder, config, source="real", **changes):
    """A made-up record on the disk."""
    return save_record(made_up_record(config, source, **changes), record_path(config, source, folder))


# -- one run ------------------------------------------------------------------------------------------------------
@pytest.fixture
def finished(tree, places):
    config = small(tree, "bpl", epochs=2)
    record = run(config, progress=False)
    return config, record, record_path(config, "real")


def test_a_run_leaves_its_record_and_its_network_and_nothing_else(finished, places):
    config, record, path = finished
    assert path == places / "results" / "tiny" / f"{config.run_name('real')}.json"
    assert files_below(places / "results") == [f"tiny/{path.name}"]
    assert sorted(files_below(places / "work" / path.stem)) == [
        "images.sha256",
        "lock",
        "log.jsonl",
        "model.json",
        "model.safetensors",
    ]
    assert load_record(path) == record


def test_the_record_holds_what_its_table_row_needs(finished, tree):
    config, record, _ = finished
    images = load_images(str(tree), 32, progress=False)
    assert record.config == config.to_dict()
    assert record.data | {"split_digest": None} == {
        "source": "real", "name": "tiny", "pixels": "in memory", "digest": images.digest, "split_digest": None,
        "train": 56, "validation": 8, "test": 16, "classes": 4,
    }  # fmt: skip
    assert record.cost["macs"] < 0.6 * record.cost["dense_macs"]
    assert record.cost["params"] < 0.6 * record.cost["dense_params"]
    assert record.equivalence["relative_error"] < 1e-5
    assert record.equivalence["same_top1"] == 1
    assert record.environment["source"] == source_digest()
    assert record.environment["device"] == "cpu"
    assert {len(values) for values in record.curves.values()} == {2}
    assert record.widths["layer1.0.conv1"] == 3  # 8 - int(8 * 0.7)


def test_the_network_that_ships_has_the_recorded_accuracy_and_cost(finished, places, tree):
    from bpl.data import make_split
    from bpl.measure import count_macs, count_params

    config, record, path = finished
    network = load_model(places / "work" / path.stem / "model.safetensors")
    images = load_images(str(tree), 32, progress=False)
    test = make_split(images, "protocol", 0).test
    assert top1(predict(network, images, test), images.labels[test]) == record.accuracy["test"]
    assert (count_macs(network, 32), count_params(network)) == (record.cost["macs"], record.cost["params"])


def test_a_finished_run_is_not_repeated_unless_asked(finished, monkeypatch):
    config, record, path = finished
    written = path.stat().st_mtime_ns
    trained = []
    train = run_module.train
    monkeypatch.setattr(run_module, "train", lambda *a, **k: trained.append(1) or train(*a, **k))
    assert run(config, progress=False) == record
    assert run(dataclasses.replace(config, device="auto", data="real"), progress=False) == record
    assert (trained, path.stat().st_mtime_ns) == ([], written)
    again = run(config, progress=False, repeat=True)
    assert trained == [1]
    assert path.stat().st_mtime_ns > written
    assert (again.accuracy, again.curves) == (record.accuracy, record.curves)


def test_a_repeated_run_starts_from_its_first_epoch(tree, places, monkeypatch):
    config = small(tree, "dense", epochs=1)
    place = places / "work" / record_path(config, "real").stem
    place.mkdir(parents=True)
    (place / "checkpoint.pt").write_bytes(b"left over")
    with pytest.raises(ValueError, match="corrupt"):
        run(config, progress=False)
    assert len(run(config, progress=False, repeat=True).curves["loss"]) == 1


def _epochs_of(config, **options):
    """The epochs that a run goes through."""
    epochs = []
    run(config, progress=False, watch=lambda epoch, _: epochs.append(epoch) or False, **options)
    return epochs


def test_a_repeated_run_leaves_no_export_of_the_network_that_it_replaces(tree, places):
    config = small(tree, "scratch", epochs=1)
    run(config, progress=False)
    (weights,) = (places / "work").glob("*/model.safetensors")
    for file in exports_of(weights):
        file.write_bytes(b"of the first network")
    run(config, progress=False)  # recorded: nothing is touched
    assert all(file.exists() for file in exports_of(weights))
    run(config, progress=False, repeat=True)
    assert not any(file.exists() for file in exports_of(weights))
    assert weights.exists()


def test_a_repeated_run_that_was_stopped_goes_on_where_it_is_asked_for_again(tree, places, monkeypatch):
    config = small(tree, "dense")
    first = run(config, progress=False)

    def stopped():
        with pytest.raises(Stopped, match="stopped after epoch 2 of 3"):
            run(config, progress=False, repeat=True, watch=lambda epoch, _: epoch == 2)

    stopped()
    assert run(config, progress=False) == first  # which leaves the repetition as it is
    assert _epochs_of(config, repeat=True) == [3]
    place = places / "work" / config.run_name("real")
    assert files_below(place) == ["images.sha256", "lock", "log.jsonl", "model.json", "model.safetensors"]
    assert _epochs_of(config, repeat=True) == [1, 2, 3]
    stopped()
    monkeypatch.setattr(run_module, "source_digest", lambda: "of another code")
    assert _epochs_of(config, repeat=True) == [1, 2, 3]


def test_a_checkpoint_that_a_kill_left_beside_the_record_is_removed_and_no_other(tree, places, monkeypatch):
    monkeypatch.setattr(train_module, "CHECKPOINT_SECONDS", -1.0)
    config = small(tree, "dense", epochs=2)

    def killed(_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "delete_checkpoint", killed)
        with pytest.raises(KeyboardInterrupt):
            run(config, progress=False)
    place = places / "work" / config.run_name("real")
    left = {"checkpoint.pt", "checkpoint.pt.previous"}
    assert left <= set(files_below(place))
    with only_here(place):  # another process is at work there
        run(config, progress=False)
    assert left <= set(files_below(place))
    run(config, progress=False)
    assert not left & set(files_below(place))
    (place / "checkpoint.pt").write_bytes(b"newer than the record, so of another run")
    os.utime(place / "checkpoint.pt", (4e9, 4e9))
    run(config, progress=False)
    assert (place / "checkpoint.pt").exists()


def test_what_was_made_from_other_images_is_not_taken_for_this_runs(places, tmp_path):
    """The images are exchanged under the same path."""
    tree = make_tree(tmp_path / "own")
    dense, kd = small(tree, "dense", epochs=1), small(tree, "kd", epochs=1)
    first = run(dense, progress=False)
    for file in sorted((tree / "class_0").iterdir()):
        Image.fromarray(np.full((32, 32, 3), 7, np.uint8)).save(file)
    now = load_images(str(tree), 32, progress=False).digest
    for config in (dense, kd):
        with pytest.raises(RecordError, match="was made from other images") as error:
            run(config, progress=False)
        for part in (first.data["digest"][:12], now[:12], "--repeat", "--out", record_path(dense, "real").name):
            assert part in str(error.value)
    with pytest.raises(RecordError, match=f"network .*{first.name} was trained on other images"):
        run(kd, folder=tmp_path / "elsewhere", progress=False)
    assert load_record(record_path(dense, "real")) == first
    assert run(dense, progress=False, repeat=True).data["digest"] == now
    assert run(kd, progress=False).data["digest"] == now


def test_a_teacher_from_before_the_labels_were_changed_is_not_taken(places, tmp_path):
    """Mean and spread of the images are what they were: only their digest tells."""
    tree = make_tree(tmp_path / "own")
    kd = small(tree, "kd", epochs=1, teacher_epochs=1)
    run(kd, progress=False)
    one, other = (sorted((tree / name).iterdir())[0] for name in ("class_0", "class_1"))
    one.rename(tmp_path / "kept")
    other.rename(one)
    (tmp_path / "kept").rename(other)
    with pytest.raises(RecordError, match="network .*dense.* was trained on other images"):
        run(kd, folder=tmp_path / "elsewhere", progress=False)
    assert run(kd, folder=tmp_path / "elsewhere", work=tmp_path / "anew", progress=False).accuracy


def test_a_published_set_is_the_same_set_whatever_its_files_were_decoded_with():
    path, record = next(iterate_records(project_root() / "data" / "results"))
    parts = [record.data[part] for part in ("train", "validation", "test")]
    check_images(record, path, "0" * 64, sum(parts))
    own = dataclasses.replace(record, config=record.config | {"dataset": "/some/tree"})
    with pytest.raises(RecordError, match="was made from other images .digest .* .'000000000000'.: "):
        check_images(own, path, "0" * 64, sum(parts))


def test_a_share_of_a_published_set_is_not_the_set():
    path, record = next(iterate_records(project_root() / "data" / "results"))
    parts = [record.data[part] for part in ("train", "validation", "test")]
    counts = rf"other images \({parts[0]}\+{parts[1]}\+{parts[2]} images\) than those at hand \({sum(parts) - 1} images"
    with pytest.raises(RecordError, match=counts):
        check_images(record, path, "0" * 64, sum(parts) - 1)
    check_images(record, path, record.data["digest"], sum(parts))
    without_lines = dataclasses.replace(record, config=record.config | {"split": "aitlas"})
    check_images(without_lines, path, "0" * 64, sum(parts) + 3)  # a published split leaves some out


def test_folders_given_win_over_those_of_the_environment(tree, tmp_path):
    config = small(tree, "dense", epochs=1)
    run(config, folder=tmp_path / "here", work=tmp_path / "there", progress=False)
    assert len(files_below(tmp_path / "here")) == 1
    assert files_below(tmp_path / "there")
    assert not (tmp_path / "results").exists()


def test_a_split_without_validation_part_leaves_those_accuracies_open(tree):
    record = run(small(tree, "dense", epochs=2, split="paper"), progress=False)
    assert record.accuracy["validation"] is None
    assert record.accuracy["test_at_best_validation"] is None
    assert record.accuracy["best_test_epoch"] in (1, 2)
    assert (record.data["train"], record.data["validation"], record.data["test"]) == (64, 0, 16)


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
@pytest.mark.parametrize("seed", range(5))
def test_the_mean_over_classes_is_scikit_learns_balanced_accuracy(seed):
    from sklearn.metrics import balanced_accuracy_score

    chance = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 7, (60,), generator=chance).clamp(max=5 - seed % 2)  # the last classes have no image
    labels = labels[labels != 2]  # nor has one in between
    logits = torch.randn(len(labels), 7, generator=chance)
    assert mean_per_class(logits, labels) == pytest.approx(100 * balanced_accuracy_score(labels, logits.argmax(1)))


def test_a_run_records_the_mean_over_classes_of_its_test_images(tree):
    accuracy = run(small(tree, "dense", epochs=2), progress=False).accuracy
    assert accuracy["mean_per_class"] == pytest.approx(accuracy["test"])  # classes of equally many images


def test_the_epoch_is_chosen_by_validation_and_only_at_the_final_size(tree):
    from bpl.data import make_split
    from bpl.models import build_model

    images = load_images(str(tree), 32, progress=False)
    curves = {
        "validation": [90.0, 50.0, 70.0, 70.0],
        "test": [80.0, 66.0, 33.0, 44.0],
        "at_size": [0.0, 1.0, 1.0, 1.0],
    }
    split, model = make_split(images, "protocol", 0), build_model("resnet18", 4, 32, 8).eval()
    logits = {part: predict(model, images, getattr(split, part)) for part in ("test", "validation")}
    result = accuracies(logits, images, split, curves)
    assert (result["best_validation_epoch"], result["test_at_best_validation"]) == (3, 33.0)
    assert (result["best_test_epoch"], result["best_test"]) == (2, 66.0)


# -- two at once --------------------------------------------------------------------------------------------------
def test_a_run_that_is_under_way_is_left_to_the_process_that_has_it(tree, places):
    config = small(tree, "dense", epochs=1)
    name = config.run_name("real")
    with only_here(places / "work" / name), pytest.raises(RunBusy, match=f"run {name} is under way in another process"):
        run(config, progress=False)
    assert files_below(places / "work" / name) == ["lock"]
    run(config, progress=False)  # and let go of afterwards


def test_a_run_that_waits_for_another_process_asks_whether_to_stop(tree, places):
    config, asked = small(tree, "dense", epochs=1), []
    place = places / "work" / config.run_name("real")
    with only_here(place), pytest.raises(Stopped, match="while another process is at work on this run"):
        run(config, progress=False, wait=True, watch=lambda *given: asked.append(given) or True)
    assert asked == [(0, {})]


def _hold(place, ready, go):
    with only_here(place):
        ready.set()
        go.wait(60)
        os._exit(9)  # as a crash would, without letting go


def test_a_run_is_free_again_when_its_process_dies(tmp_path):
    context = multiprocessing.get_context("spawn")
    ready, go = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(tmp_path / "run", ready, go))
    other.start()
    assert ready.wait(100)
    with pytest.raises(RunBusy), only_here(tmp_path / "run"):
        pass
    go.set()
    other.join(60)
    assert other.exitcode == 9
    with only_here(tmp_path / "run"):
        pass


# -- records on the disk ------------------------------------------------------------------------------------------
def test_a_record_comes_back_as_it_was_written(tmp_path):
    config = RunConfig("ucm", "bpl")
    data = {"source": "real", "name": "ucm", "digest": "d", "split_digest": "s", "ä": "ü"}
    record = made_up_record(config, accuracy={"test": 1 / 3, "validation": None}, data=data)
    path = save_record(record, tmp_path / "new" / f"{record.name}.json")
    assert load_record(path) == record
    assert files_below(tmp_path) == [f"new/{record.name}.json"]
    assert RunConfig.from_dict(load_record(path).config) == config


def test_a_record_is_a_text_that_a_diff_can_show(tmp_path):
    text = made_up_record(RunConfig("ucm", "bpl")).to_json()
    assert json.loads(text)["curves"]["loss"] == [1.5, 0.5]
    assert '    "loss": [1.5, 0.5],\n' in text
    assert text.endswith("}\n")


def _without(key):
    def change(values):
        del values[key]

    return change


def _with(**more):
    return lambda values: values.update(more)


def _inner(table, key, value):
    return lambda values: values[table].update({key: value})


BAD = {
    "empty": (b"", "cannot be read"),
    "cut": (lambda content: content[: len(content) // 2], "cannot be read"),
    "not text": (b"\xff\xfe\x00garbage", "cannot be read"),
    "another JSON": (b"[1, 2]", "has no 'schema'"),
    "no schema": (_without("schema"), "has no 'schema'"),
    "schema of tomorrow": (_with(schema=SCHEMA + 1), f"schema version {SCHEMA + 1}: this library reads {SCHEMA}"),
    "unfinished": (_with(state="running"), "state 'running'"),
    "lacking": (_without("cost"), "lacks cost"),
    "unknown key": (_with(remark="hello"), "unknown keys: ['remark']"),
    "wrong kind": (_with(accuracy=5), "accuracy 5"),
    "no test accuracy": (
        lambda values: values["accuracy"].pop("test"),
        "lacks a number of its table row: accuracy",
    ),
    "null for test accuracy": (_inner("accuracy", "test", None), "accuracy.test"),
    "a word for an accuracy": (
        _inner("accuracy", "validation", "x"),
        "accuracy.validation 'x': it must be a percentage",
    ),
    "no name of the images": (lambda values: values["data"].pop("name"), "has data.name None: it must be a text"),
    "no digest": (lambda values: values["data"].pop("split_digest"), "has data.split_digest None"),
    "no comparison": (lambda values: values["equivalence"].clear(), "row: equivalence.relative_error"),
    "no cost": (lambda values: values["cost"].pop("macs"), "lacks a number of its table row: cost.macs"),
    "more than all": (_inner("accuracy", "test", 900.0), "accuracy.test 900.0: it must be a percentage"),
    "a time before the start": (_with(seconds=-1.0), "seconds -1.0: it must be at least 0"),
    "images of no kind": (_inner("data", "source", "zzz"), "data.source 'zzz': it must be real or synthetic"),
    "a config without a run": (_with(config={}), "config.dataset None: it must be a text"),
    "a list for a data set": (_inner("config", "dataset", ["a"]), "config.dataset ['a']: it must be a text"),
    "a word for a ratio": (_inner("config", "ratio", "x"), "config.ratio 'x': it must be a finite number"),
    "another ratio": (
        _inner("config", "ratio", 0.9),
        "it must be that of the run of its config, bpl-resnet18-r0.90-s0-...",
    ),
    "nothing to divide by": (_inner("cost", "dense_macs", 0), "cost.dense_macs 0: it must be greater than 0"),
    "latency of no kind": (_inner("cost", "latency", [1]), "cost.latency.median_ms"),
    "too large a number": (_inner("cost", "macs", 10**400), "cost.macs"),
    "a word for a number": (_with(seconds="x"), "seconds 'x': it must be a finite number"),
    "NaN": (_with(seconds=float("nan")), "seconds nan: it must be a finite number"),
    "yes for a number": (_with(seconds=True), "seconds True"),
    "no source": (lambda values: values["data"].pop("source"), "data.source None"),
    "a number for a curve": (_inner("curves", "loss", 3), "curves.loss 3"),
    "a list for a name": (_with(name=[1]), "name [1]"),
    "another run's name": (_with(name="other"), "name 'other': it must be that of the run of its config"),
}


def _spoil(path, damage):
    if callable(damage) and damage.__code__.co_varnames[0] == "content":
        path.write_bytes(damage(path.read_bytes()))
    elif callable(damage):
        values = json.loads(path.read_text())
        damage(values)
        path.write_text(json.dumps(values))
    else:
        path.write_bytes(damage)


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_record_is_refused_by_name_with_the_reason(tmp_path, kind):
    path = saved(tmp_path, RunConfig("ucm", "bpl"))
    damage, reason = BAD[kind]
    _spoil(path, damage)
    for read in (lambda: load_record(path), lambda: load_records(tmp_path)):
        with pytest.raises(RecordError) as error:
            read()
        assert str(path) in str(error.value)
        assert reason in str(error.value)
        assert "\n" not in str(error.value)


def test_a_record_without_a_number_of_its_table_row_is_refused_by_name(tmp_path):
    path = saved(tmp_path, RunConfig("ucm", "bpl"), cost={"macs": 5})
    with pytest.raises(RecordError, match="lacks a number") as error:
        load_records(tmp_path)
    assert str(path) in str(error.value)


def test_every_committed_record_can_be_read():
    assert len(list(iterate_records(Path(__file__).parents[1] / "data" / "results"))) > 100


@pytest.mark.parametrize("name", ["._one.json", ".hidden/one.json"])
def test_what_a_system_leaves_beside_records_is_none(folder, name):
    before = len(load_records(folder))
    left = folder / "ucm" / name if "/" not in name else folder / name
    left.parent.mkdir(exist_ok=True)
    left.write_bytes(b"\x00\x05\x16\x07\xff")
    assert len(load_records(folder)) == before


def test_a_missing_record_is_named(tmp_path):
    with pytest.raises(RecordError, match="nowhere.json"):
        load_record(tmp_path / "nowhere.json")


def test_a_run_does_not_pass_over_its_own_damaged_record(finished):
    config, _, path = finished
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(RecordError, match=path.name):
        run(config, progress=False)
    assert path.stat().st_size == 100


# -- the table ----------------------------------------------------------------------------------------------------
@pytest.fixture
def folder(tmp_path):
    """Records of two methods, two seeds, and drawn scenes in place of one data set."""
    for method in ("bpl", "sfp"):
        for seed in (0, 1):
            saved(tmp_path, RunConfig("ucm", method, seed=seed))
    saved(tmp_path, RunConfig("ucm", "bpl"), "synthetic")
    saved(tmp_path, RunConfig("aid", "bpl"))
    return tmp_path


def test_records_are_filtered_by_value_and_by_list(folder):
    assert len(load_records(folder)) == 6
    assert len(load_records(folder, dataset="ucm", source="real")) == 4
    assert len(load_records(folder, method=["bpl", "sfp"], seed=1)) == 2
    assert len(load_records(folder, method="fpgm")) == 0
    (folder / "none").mkdir()
    assert list(load_records(folder / "none", macs=1)) == list(load_records(folder))  # the same columns, no row
    assert len(load_records(folder, seed=range(1))) == len(load_records(folder, seed=np.array([0]))) == 4
    assert len(load_records(folder, method=frozenset(["sfp"]))) == 2
    assert list(load_records(folder, dataset="aid").index) == [0]


def test_records_are_filtered_by_a_value_that_is_not_there(folder):
    """A knob that a method does not have is None in its record, and NaN in a column of numbers."""
    assert set(load_records(folder, diversity_weight=None).method) == {"sfp"}
    assert len(load_records(folder, diversity_weight=[None, 0.01])) == 6
    assert {row.method for row in report.collect(folder, source="real", dataset="ucm", seed=range(2))} == {"bpl", "sfp"}


def test_the_table_begins_with_the_fields_of_a_run(folder):
    names = [field.name for field in dataclasses.fields(RunConfig)]
    assert list(load_records(folder))[: len(names)] == names


def test_the_table_has_percentages_and_where_each_row_comes_from(folder):
    row = load_records(folder, dataset="aid").iloc[0]
    assert (row.macs_reduction, row.params_reduction) == (75.0, 75.0)
    assert (row.latency_ms, row.seconds, row.test) == (1.25, 3.5, 50.0)
    assert load_record(folder / row.path).config["dataset"] == "aid"


def test_an_unknown_column_is_refused_with_the_allowed_ones(folder):
    with pytest.raises(ValueError, match="unknown column 'methd'.*method.*macs_reduction"):
        load_records(folder, methd="bpl")


def test_no_records_are_an_empty_table_that_can_be_filtered(tmp_path):
    table = load_records(tmp_path, dataset="ucm", source="real")
    assert isinstance(table, pandas.DataFrame)
    assert len(table) == 0
    assert "ratio" in table
    with pytest.raises(RecordError, match="results folder .*missing does not exist"):
        load_records(tmp_path / "missing")


def test_records_come_in_the_order_of_their_paths(folder):
    paths = [path for path, _ in iterate_records(folder)]
    assert paths == sorted(paths)
    assert len(paths) == 6


def test_runs_on_real_and_on_drawn_images_have_names_and_folders_of_their_own(tmp_path):
    config = RunConfig("ucm", "bpl")
    real, drawn = (record_path(config, source, tmp_path) for source in ("real", "synthetic"))
    assert real.parent.name == "ucm"
    assert drawn.parent.name == "ucm-drawn"
    assert real.name != drawn.name
    own = record_path(RunConfig("synthetic", "bpl"), "synthetic", tmp_path)
    assert own.parent.name == "synthetic"


def test_a_run_on_drawn_scenes_does_not_count_as_the_run_on_real_ones(tmp_path, monkeypatch, tree):
    """`data=auto` fell back to drawn scenes; then the real images arrive."""
    real = load_images(str(tree), 32, progress=False)
    source = ["synthetic"]
    monkeypatch.setattr(run_module, "load_images", lambda *_: dataclasses.replace(real, source=source[0]))
    config = small(tree, "dense", epochs=1, data="auto")
    first = run(config, progress=False)
    source[0] = "real"
    second = run(config, progress=False)
    assert (first.data["source"], second.data["source"]) == ("synthetic", "real")
    assert len(load_records()) == 2
    assert len(load_records(source="real")) == 1


@pytest.mark.parametrize("spelling", [".", "./", "../{name}"])
def test_the_record_of_a_folder_lies_under_the_folders_own_name(tree, monkeypatch, spelling, tmp_path):
    monkeypatch.chdir(tree)
    path = record_path(RunConfig(spelling.format(name=tree.name), "dense"), "real", tmp_path)
    assert path.parent == tmp_path / "tiny"


def test_the_digest_of_the_source_does_not_follow_edits_made_while_a_run_is_under_way(tmp_path, monkeypatch):
    import bpl.records as records

    before = source_digest()
    (tmp_path / "edited.py").write_text("x = 1\n")
    monkeypatch.setattr(records, "__file__", str(tmp_path / "records.py"))
    assert source_digest() == before
    assert len(before) == 16
