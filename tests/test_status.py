"""bpl status and the log that it reads: what is done, running, failed and left, and why."""

import contextlib
import json
import os
import shutil
import signal

import pytest
import yaml
from support import (  # noqa: F401
    SMALL,
    files_below,
    made_up_record,
    no_stopwatch_fixture,
    places_fixture,
    run_module,
    small,
    train_module,
    tree_fixture,
)

from bpl import runlog
from bpl.cli import main
from bpl.data import CARDS, load_images, source_of
from bpl.machine.ending import Stopped, Terminated, on_sigterm
from bpl.machine.run_lock import is_held, only_here
from bpl.records import record_path, save_record
from bpl.run import run
from bpl.runlog import RunLog, logged, read_log
from bpl.sweep.durations import Durations, in_words
from bpl.sweep.status import as_json, as_table, status_of_grid, status_of_work

pytestmark = pytest.mark.usefixtures("places", "no_stopwatch")


@pytest.fixture
def grid(tree, tmp_path):
    path = tmp_path / "grid.yaml"
    entry = {"dataset": str(tree), **SMALL, "method": ["dense", "kd", "bpl"], "seed": [0, 1]}
    path.write_text(yaml.safe_dump([entry]))
    return path


def place_of(places, config):
    return places / "work" / config.run_name("real")


# -- status -------------------------------------------------------------------------------------------------------
def test_every_run_of_a_grid_is_in_the_state_that_its_files_say(grid, tree, places):
    """Done by a record, running by a lock, failed and stopped by the last event of the log, left by nothing."""
    save_record(made_up_record(small(tree, "dense"), seconds=60.0), record_path(small(tree, "dense"), "real"))
    failed, stopped, broke_off = (small(tree, "kd"), small(tree, "bpl"), small(tree, "dense", seed=1))
    for config, end in ((failed, ValueError("no good\nat all")), (stopped, Stopped("stopped after epoch 1 of 3"))):
        place_of(places, config).mkdir(parents=True)
        with pytest.raises(type(end)), logged(place_of(places, config), config) as log:
            log.epoch(1, {"loss": 1.0})
            raise end
    place_of(places, broke_off).mkdir()
    RunLog(place_of(places, broke_off), 3).write("started")  # and then SIGKILL
    running = small(tree, "kd", seed=1)
    with only_here(place_of(places, running)):
        log = RunLog(place_of(places, running), 3)
        for epoch in (1, 2):
            log.epoch(epoch, {"loss": 1.0})
        status = status_of_grid(grid)
        table = as_table(status)
    runs = {run.name: run for run in status.runs}
    assert [run.state for run in status.runs] == ["done", "failed", "left", "left", "running", "left"]
    assert [status.count(state) for state in ("done", "running", "failed", "left")] == [1, 1, 1, 3]
    assert runs[failed.run_name("real")].cause == "no good"
    assert runs[stopped.run_name("real")].cause == "stopped after epoch 1 of 3"
    assert runs[stopped.run_name("real")].seconds_left == pytest.approx(40.0)  # two epochs of three
    assert runs[broke_off.run_name("real")].cause == "its process ended without a word"
    assert (runs[running.run_name("real")].epoch, runs[running.run_name("real")].epochs) == (2, 3)
    assert runs[running.run_name("real")].seconds_left < 60  # by its own epochs, not by those before
    lines = table.splitlines()
    assert lines[0].startswith(
        f"grid {grid} on real images: 6 runs: 1 done, 1 running, 1 failed, 3 left, about 3 min"
    )  # 40 s, 60 s and 60 s
    assert [line.split()[0] for line in lines[1:]] == ["running", "failed", "left", "left", "left"]
    assert "epoch 2 of 3" in lines[1]
    assert lines[2].endswith("epoch 1 of 3, no good")
    parsed = json.loads(as_json(status))
    assert (parsed["done"], parsed["left"], len(parsed["runs"])) == (1, 3, 6)
    assert parsed["runs"][0] == {
        "name": small(tree, "dense").run_name("real"), "state": "done", "epoch": 3, "epochs": 3, "seconds_left": None,
        "test": 50.0, "cause": None,
    }  # fmt: skip


def test_without_a_grid_the_runs_of_the_work_folder_are_shown(tree, places):
    run(small(tree, "dense", epochs=1), progress=False)
    with pytest.raises(FloatingPointError):
        run(small(tree, "dense", epochs=4, learning_rate=1e30), progress=False)
    status = status_of_work()
    assert sorted(run.state for run in status.runs) == ["done", "failed"]
    assert "the loss became" in as_table(status)


def test_a_run_that_finished_and_whose_record_is_elsewhere_says_so(tree, places):
    """As after `bpl run --out elsewhere`: nothing broke off, and nothing of it can be taken up again."""
    config = small(tree, "dense", epochs=1)
    run(config, folder=places / "elsewhere", progress=False)
    (shown,) = status_of_work().runs
    assert shown.state == "left"
    assert shown.cause == f"it finished, but its record is not in {places / 'results'}"
    (shown,) = status_of_work(folder=places / "elsewhere").runs
    assert (shown.state, shown.cause) == ("done", None)


def test_images_that_cannot_be_split_are_why_a_run_failed(tree, tmp_path):
    images = tmp_path / "images"
    for number, path in enumerate(sorted(tree.glob("*/*"))):
        name = "single" if number == 0 else path.parent.name
        (images / name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, images / name)
    config = small(images, "dense")
    with pytest.raises(ValueError, match="class 'single' has 1 different images"):
        run(config, progress=False)
    grid = tmp_path / "one.yaml"
    grid.write_text(yaml.safe_dump([{"dataset": str(images), **SMALL, "method": "dense"}]))
    (shown,) = status_of_grid(grid).runs
    assert (shown.state, shown.cause[:34]) == ("failed", "class 'single' has 1 different ima")


def test_looking_changes_no_file_and_hides_no_run(grid, places):
    before = files_below(places)
    assert status_of_grid(grid).count("left") == 6
    assert files_below(places) == before


def test_a_table_of_many_runs_stays_short(tree, tmp_path):
    path = tmp_path / "many.yaml"
    path.write_text(yaml.safe_dump([{"dataset": str(tree), **SMALL, "method": "dense", "seed": list(range(40))}]))
    lines = as_table(status_of_grid(path)).splitlines()
    assert len(lines) == 12
    assert lines[-1].split() == ["left", "and", "30", "more"]


def test_the_command_prints_a_table_or_json_and_refuses_a_bad_grid(grid, capsys):
    def bpl(*words):
        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in words])
        return ended.value.code or 0, *capsys.readouterr()

    code, out, err = bpl("status", grid)
    assert (code, err) == (0, "")
    assert out.splitlines()[0].endswith("6 runs: 0 done, 0 running, 0 failed, 6 left")
    code, out, err = bpl("status", grid, "--json")
    assert (code, err, json.loads(out)["left"]) == (0, "", 6)
    grid.write_text("- {dataset: ucm}")
    code, out, err = bpl("status", grid)
    assert (code, out, err.count("\n")) == (2, "", 1)


# -- locks --------------------------------------------------------------------------------------------------------
def test_whether_a_run_is_held_is_seen_without_getting_in_its_way(tmp_path):
    place = tmp_path / "run"
    assert not is_held(place)
    with only_here(place):
        assert is_held(place)
        with pytest.raises(run_module.RunBusy, match="another process"), only_here(place):
            pass
    assert not is_held(place)
    with only_here(place, wait=True):
        assert is_held(place)


# -- the log ------------------------------------------------------------------------------------------------------
def test_a_run_writes_down_what_it_does(tree, places, monkeypatch):
    monkeypatch.setattr(train_module, "CHECKPOINT_SECONDS", -1.0)
    config = small(tree, "kd", epochs=2)
    record = run(config, progress=False)
    events = read_log(place_of(places, config))
    assert [event["event"] for event in events] == [
        "started", "dense", "epoch", "checkpoint", "epoch", "checkpoint", "finished",
    ]  # fmt: skip
    assert events[0]["epochs"] == 2
    assert events[0]["command"] == config.command()
    assert [event["values"]["loss"] for event in events if event["event"] == "epoch"] == record.curves["loss"]
    assert events[-1]["test"] == record.accuracy["test"]
    assert events == sorted(events, key=lambda event: event["time"])
    dense = read_log(place_of(places, config.dense()))
    assert [event["event"] for event in dense][-1] == "finished"


def test_a_log_stays_small_however_long_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(runlog, "LIMIT", 2000)
    log = RunLog(tmp_path, 1000)
    for epoch in range(1, 1001):
        log.epoch(epoch, {"loss": 0.5})
    assert files_below(tmp_path) == ["log.1.jsonl", "log.jsonl"]
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 5000
    events = read_log(tmp_path)
    assert [event["epoch"] for event in events] == list(range(1001 - len(events), 1001))
    assert len(events) > 10


@pytest.mark.parametrize("torn", [b'{"time": "2026', b'{"event": "epoch", "epoch": 2}', b"\xff\xfe"])
def test_a_line_that_a_kill_left_torn_spoils_no_other(tmp_path, torn):
    log = RunLog(tmp_path, 3)
    log.write("started")
    with open(tmp_path / "log.jsonl", "ab") as file:
        file.write(torn)
    log.write("finished", test=float("nan"))
    events = read_log(tmp_path)
    assert (events[0]["event"], events[-1]["event"], events[-1]["test"]) == ("started", "finished", None)


SPOILT = {
    "a word for an epoch": '{"event": "epoch", "epoch": "x", "epochs": 3}',
    "a list for an epoch": '{"event": "epoch", "epoch": [1], "epochs": {"a": 1}}',
    "part of an epoch": '{"event": "epoch", "epoch": 1.5, "epochs": 3}',
    "an epoch beyond all": '{"event": "epoch", "epoch": 1e400, "epochs": 3}',
    "an epoch too long": f'{{"event": "epoch", "epoch": 1{"0" * 400}, "epochs": 3}}',
    "a word for epochs": '{"event": "epoch", "epoch": 2, "epochs": "9"}',
    "a word for a time": '{"event": "epoch", "epoch": 2, "epochs": 9, "seconds_left": "soon"}',
    "no time": '{"event": "epoch", "epoch": 2, "epochs": 9, "seconds_left": NaN}',
    "a mapping for a cause": '{"event": "failed", "cause": {"a": 1}}',
    "a number for a cause": '{"event": "stopped", "cause": 5}',
    "a list for an event": '{"event": ["epoch"]}',
    "nested without end": "[" * 5000,
}


@pytest.mark.parametrize("what", SPOILT)
@pytest.mark.parametrize("held", [False, True])
def test_a_line_that_is_no_event_of_ours_is_passed_over(grid, tree, places, what, held):
    place = place_of(places, small(tree, "dense"))
    place.mkdir(parents=True)
    RunLog(place, 3).write("started")
    with open(place / "log.jsonl", "a") as file:
        file.write(SPOILT[what] + "\n")
    with only_here(place) if held else contextlib.nullcontext():
        for status in (status_of_grid(grid), status_of_work()):
            assert status.runs[0].state == ("running" if held else "left")
            as_table(status), as_json(status)
    assert [event["event"] for event in read_log(place)] == ["started"]


def test_a_cause_is_shown_in_one_line_without_what_a_terminal_obeys(grid, tree, places):
    place = place_of(places, small(tree, "dense"))
    place.mkdir(parents=True)
    cause = "a\x1b[2Jb\nX\u202e" + "y" * 5000
    RunLog(place, 3).write("failed", cause=cause)
    status = status_of_grid(grid)
    line = as_table(status).splitlines()[1]
    assert "a [2Jb X y" in line and line.isprintable() and len(line) < 500
    assert json.loads(as_json(status))["runs"][0]["cause"] == cause


def test_the_log_of_a_run_that_fails_says_where(tree, places, monkeypatch):
    def defect(*_, **__):
        raise TypeError("a defect")

    monkeypatch.setattr(run_module, "train", defect)
    config = small(tree, "dense")
    with pytest.raises(TypeError):
        run(config, progress=False)
    event = read_log(place_of(places, config))[-1]
    assert (event["event"], event["cause"], event["error"]) == ("failed", "a defect", "TypeError")
    assert "in defect" in event["traceback"]


def test_a_log_that_cannot_be_written_stops_no_run(tree, places):
    config = small(tree, "dense", epochs=1)
    (place_of(places, config) / "log.jsonl").mkdir(parents=True)
    assert run(config, progress=False).seconds > 0
    assert read_log(place_of(places, config)) == []


# -- SIGTERM ------------------------------------------------------------------------------------------------------
def test_sigterm_ends_a_process_at_once_where_there_is_nothing_to_save():
    with pytest.raises(Terminated) as ended, on_sigterm():
        os.kill(os.getpid(), signal.SIGTERM)
    assert ended.value.code == 143


def test_sigterm_lets_an_epoch_end_and_the_training_stop_with_a_checkpoint(tree, places):
    """It comes in the second epoch; the third is never begun, and the run goes on from there."""
    config, before = small(tree, "dense", epochs=4), signal.getsignal(signal.SIGTERM)

    with on_sigterm() as ending:

        def watch(epoch, row):
            if epoch == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            return ending.watch(epoch, row)

        with pytest.raises(Stopped, match="stopped after epoch 2 of 4"):
            run(config, progress=False, watch=watch)
    assert signal.getsignal(signal.SIGTERM) is before
    epochs = []
    run(config, progress=False, watch=lambda epoch, row: epochs.append(epoch) or False)
    assert epochs == [3, 4]


# -- how long -----------------------------------------------------------------------------------------------------
def test_a_run_is_expected_to_take_as_long_as_its_kind_and_other_kinds_as_their_arithmetic_says():
    from bpl.config import RunConfig
    from bpl.sweep.estimate import size_of, training_macs

    took = Durations()
    dense = RunConfig("ucm", "dense")
    assert took.of(dense) is None
    assert took.of_all([dense]) is None
    for seed, seconds in enumerate((100.0, 130.0, 900.0)):
        took.add(RunConfig("ucm", "dense", seed=seed), seconds)
    assert took.of(RunConfig("ucm", "dense", seed=9)) == 130.0
    other = RunConfig("ucm", "scratch", ratio=0.78)
    assert took.of_its_kind(other) is None
    share = training_macs(other, *size_of(other)) / training_macs(dense, *size_of(dense))
    assert took.of(other) == pytest.approx(130.0 * share)
    assert took.of_all([dense, other]) == pytest.approx(130.0 * (1 + share))


def test_the_pace_of_the_closest_kind_counts():
    """Of its architecture and its method, else of its architecture, else of any."""
    from bpl.config import RunConfig
    from bpl.sweep.estimate import size_of, training_macs

    def of_mobilenet(method: str, ratio: float) -> RunConfig:
        return RunConfig("ucm", method, arch="mobilenet_v2", ratio=ratio)

    took, asked = Durations(), of_mobilenet("scratch", 0.5)
    closer = (RunConfig("ucm", "dense"), of_mobilenet("dense", 0.0), of_mobilenet("scratch", 0.7))
    for config, seconds in zip(closer, (100.0, 1000.0, 7000.0), strict=True):
        took.add(config, seconds)
        expected = seconds * training_macs(asked, *size_of(asked)) / training_macs(config, *size_of(config))
        assert took.of(asked) == pytest.approx(expected)


def test_a_folder_of_unknown_size_is_expected_to_take_as_long_as_any_run(tree):
    took = Durations()
    took.add(small(tree, "dense"), 10.0)
    assert took.of(small(tree, "bpl")) == 10.0


@pytest.mark.parametrize(("seconds", "said"), [(4, "4 s"), (89, "89 s"), (1200, "20 min"), (12600, "3.5 h")])
def test_a_time_is_said_in_words(seconds, said):
    assert in_words(seconds) == said


# -- which images -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("data", ["auto", "synthetic"])
def test_the_source_is_known_without_reading_an_image(tree, tmp_path, monkeypatch, data):
    monkeypatch.setenv("BPL_DATA", str(tmp_path))
    assert source_of(str(tree), data) == load_images(str(tree), 32, data, progress=False).source
    if data == "auto":
        monkeypatch.setattr("bpl.data.folders.roots", lambda _: (tmp_path,))
        assert source_of("ucm", "auto") == "synthetic"
        from PIL import Image

        place = tmp_path / CARDS["ucm"].folders[0] / CARDS["ucm"].classes[0]
        place.mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(place / "a.png")
        assert source_of("ucm", "auto") == "real"
