"""Sweeps in stages, against the clock, and with several runs beside each other."""

import contextlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support import (  # noqa: F401
    SMALL,
    files_below,
    made_up_record,
    no_stopwatch_fixture,
    places_fixture,
    same_weights,
    small,
    trained,
    tree_fixture,
)

import bpl.sweep.jobs as jobs_module
import bpl.sweep.local as sweep_module
import bpl.train as train_module
from bpl.config import RunConfig
from bpl.data import load_images
from bpl.export import load_model
from bpl.machine import exit_codes
from bpl.machine.checkpoint import load_checkpoint
from bpl.machine.ending import Stopped
from bpl.machine.run_lock import only_here
from bpl.records import load_record, record_path, save_record
from bpl.run import run
from bpl.sweep import GridError, Outcome, load_grid, sweep
from bpl.sweep.bundle import merge_bundles
from bpl.sweep.jobs import ProcessDied, side_by_side

pytestmark = pytest.mark.usefixtures("places", "no_stopwatch")


def recorded(config, **changes):
    """A made-up record of a run on the images that are there."""
    images = load_images(config.dataset, config.image_size, progress=False)
    data = {"source": images.source, "name": images.name, "digest": images.digest, "split_digest": "s"}
    return made_up_record(config, images.source, **{"data": data} | changes)


# -- stages -------------------------------------------------------------------------------------------------------
STAGES = """
# worth most
- {dataset: ucm, method: [dense, bpl], seed: [0, 1]}
---
- {dataset: aid, method: dense, seed: [0, 1]}
- {dataset: ucm, method: dense, seed: [0, 2]}
"""
IN_ORDER = [
    ("ucm", "dense", 0), ("ucm", "bpl", 0), ("ucm", "dense", 1), ("ucm", "bpl", 1),
    ("aid", "dense", 0), ("aid", "dense", 1), ("ucm", "dense", 2),
]  # fmt: skip


def keys(configs: list[RunConfig]) -> list[tuple]:
    return [(config.dataset, config.method, config.seed) for config in configs]


def test_all_seeds_of_a_stage_come_before_the_next_stage_and_a_run_named_twice_stays_in_its_first(tmp_path):
    (tmp_path / "grid.yaml").write_text(STAGES)
    assert keys(load_grid(tmp_path / "grid.yaml")) == IN_ORDER


def test_a_grid_in_json_stands_for_the_same_runs(tmp_path):
    import yaml

    stages = list(yaml.safe_load_all(STAGES))
    (tmp_path / "grid.json").write_text(json.dumps(stages))
    assert keys(load_grid(tmp_path / "grid.json")) == IN_ORDER
    (tmp_path / "grid.json").write_text(json.dumps(stages[0]))
    assert keys(load_grid(tmp_path / "grid.json")) == IN_ORDER[:4]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        (
            "g.yaml",
            "- {dataset: ucm, method: dense}\n---\n- {dataset: ucm, method: bpl, ratio: 2}",
            "stage 2, entry 1",
        ),
        ("g.yaml", "- {dataset: ucm, method: dense}\n---\nucm", "stage 2 is not a list"),
        ("g.yaml", "- {dataset: ucm, method: dense}\n---\n", "stage 2 is not a list"),
        ("g.yaml", "- {dataset: ucm, method: dense}\n---\n- [", "cannot be read"),
        ("g.json", "{", "cannot be read"),
        ("g.json", '{"dataset": "ucm"}', "is not a list of run configs"),
        ("g.json", "[]", "is not a list of run configs"),
        ("g.json", "[[]]", "is not a list of run configs"),
        ("g.json", '[[{"dataset": "ucm", "method": "dense"}], 3]', "stage 2 is not a list"),
    ],
)
def test_a_bad_stage_is_named(tmp_path, name, content, reason):
    (tmp_path / name).write_text(content)
    with pytest.raises(GridError, match=name) as error:
        load_grid(tmp_path / name)
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


# -- against the clock --------------------------------------------------------------------------------------------
def test_a_run_under_way_when_the_budget_ends_stops_with_a_checkpoint_and_goes_on_from_there(tree, places, monkeypatch):
    config = small(tree, "bpl", mask="soft", freeze_at=0.5, epochs=4)
    whole = trained(config)
    clock, run_now = [0.0], sweep_module.run

    def run_late(config, *, watch, **options):
        def late(epoch, row):
            clock[0] = {1: 0.0, 2: 99.0}[epoch]
            return watch(epoch, row)

        return run_now(config, watch=late, **options)

    with monkeypatch.context() as patch:
        patch.setattr(sweep_module, "time", SimpleNamespace(monotonic=lambda: clock[0]))
        patch.setattr(sweep_module, "run", run_late)
        result = sweep([config], budget=50.0, progress=False)
    name = config.run_name("real")
    assert (result.ran, result.left, result.failed) == (0, [config], {})
    assert load_checkpoint(places / "work" / name / "checkpoint.pt")["epoch"] == 2
    assert files_below(places / "results") == []
    epochs = []
    record = run(config, progress=False, watch=lambda epoch, row: epochs.append(epoch) or False)
    assert epochs == [3, 4]
    assert record.curves == whole.curves
    assert same_weights(load_model(places / "work" / name / "model.safetensors"), whole.small)


def test_a_run_that_is_told_to_stop_after_its_last_epoch_is_finished(tree):
    assert len(run(small(tree, "dense", epochs=2), progress=False, watch=lambda epoch, row: epoch == 2).curves) > 0


def test_a_run_that_waits_for_another_process_stops_too(tree, places):
    """Knowledge distillation waits for its dense network, which somebody else is training."""
    config = small(tree, "kd", epochs=1)
    with only_here(places / "work" / config.dense().run_name("real")), pytest.raises(Stopped):
        run(config, progress=False, watch=lambda epoch, row: True)


def test_saving_that_is_slow_is_done_less_often(tree, places, monkeypatch):
    """A checkpoint every 20 seconds, but at most a fiftieth of the time."""
    clock, saved = [0.0], []

    def save(*_):
        saved.append(clock[0])
        clock[0] += 2.0

    def an_epoch_takes_10_seconds(epoch, row):
        clock[0] += 10.0
        return False

    monkeypatch.setattr(train_module.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(train_module, "save_checkpoint", save)
    trained(small(tree, "dense", epochs=30), checkpoint=places / "c.pt", watch=an_epoch_takes_10_seconds)
    assert saved[0] == 30.0
    assert saved[1] - saved[0] > 100.0


# -- beside each other: the order of things, without processes -----------------------------------------------------
@pytest.fixture
def pretend(monkeypatch):
    """Two runs at a time in this process; `pretend.outcome` says what comes of a config."""

    class Pretend:
        outcome = staticmethod(lambda config: Outcome("ran", "50.00", 1.0))
        started: list = []

    def beside(next_job, perform, jobs, show):
        running = []
        while True:
            while len(running) < jobs and (job := next_job()) is not None:
                running.append(job)
                Pretend.started.append(job)
            if not running:
                return
            show([(job, "1/3") for job in running])
            job = running.pop(0)
            outcome = Pretend.outcome(job)
            if isinstance(outcome, Outcome) and outcome.kind == "ran":
                save_record(recorded(job), record_path(job, "real", perform.keywords["folder"]))
            yield job, outcome

    monkeypatch.setattr(sweep_module, "side_by_side", beside)
    Pretend.started = []
    return Pretend


@pytest.fixture
def four(tree):
    return [small(tree, method, seed=seed) for seed in (0, 1) for method in ("dense", "bpl")]


@pytest.mark.parametrize("code", [-signal.SIGTERM, exit_codes.TERMINATED])
def test_a_process_that_was_asked_to_end_before_it_could_answer_is_left_and_not_failed(four, pretend, code):
    pretend.outcome = {config: ProcessDied(code) for config in four}.get
    result = sweep(four, jobs=2)
    assert result.left == four and not result.failed


def test_every_outcome_is_counted_and_said(four, pretend, capsys):
    outcomes = {
        four[0]: Outcome("busy", "it is under way"),
        four[1]: ProcessDied(-signal.SIGKILL),
        four[2]: Outcome("stopped", "the time budget is over"),
        four[3]: Outcome("ran", "61.90", 2.0),
    }
    pretend.outcome = outcomes.get
    result = sweep(four, jobs=2)
    assert pretend.started == four
    assert (result.done, result.ran, result.busy, result.left) == (0, 1, 1, [four[2]])
    assert result.failed == {four[1].run_name("real"): "its process was ended by SIGKILL, as when memory runs out"}
    assert result.estimate == 1.0  # two seconds, two at a time
    out, err = capsys.readouterr()
    names = [config.run_name("real") for config in four]
    assert out.splitlines() == [
        f"skipped {names[0]}: it is under way",
        f"failed {names[1]}: its process was ended by SIGKILL, as when memory runs out",
        f"stopped {names[2]}: the time budget is over",
        f"4/4 {names[3]}: test 61.90 %",
    ]
    assert "dense 0 s0 1/3, bpl 0.7 s0 1/3" in err
    assert "4/4" in err


def test_quiet_says_only_what_went_wrong(four, pretend, capsys):
    pretend.outcome = lambda config: Outcome("failed", "no") if config is four[0] else Outcome("ran", "1.00", 1.0)
    sweep(four, jobs=2, progress=False)
    out, err = capsys.readouterr()
    assert (out, err) == (f"failed {four[0].run_name('real')}: no\n", "")


def test_what_is_left_counts_no_run_that_others_have_finished(tree, pretend, capsys):
    six = [small(tree, "dense", seed=seed) for seed in range(6)]

    def outcome(config):
        for other in six[2:]:  # another sweep is faster
            save_record(recorded(other), record_path(other, "real"))
        return Outcome("ran", "50.00", 3600.0)

    pretend.outcome = outcome
    result = sweep(six, jobs=2)
    assert (result.done, result.ran, result.left) == (4, 2, [])
    assert [line.partition(": test ")[2] for line in capsys.readouterr().out.splitlines()] == [
        "50.00 %, about 2.5 h left",  # the others are not looked at before there is room for a run
        "50.00 %",
    ]


def test_a_run_that_another_process_finished_by_the_end_counts_as_recorded(four, pretend):
    def outcome(config):
        if config is four[0]:
            return Outcome("busy", "elsewhere")
        save_record(recorded(four[0]), record_path(four[0], "real"))
        return Outcome("ran", "50.00", 1.0)

    pretend.outcome = outcome
    result = sweep(four, jobs=2, progress=False)
    assert (result.done, result.ran, result.busy) == (1, 3, 0)


def test_with_several_jobs_no_run_is_started_that_would_not_fit(tree, pretend):
    three = [small(tree, "dense", seed=seed) for seed in range(3)]
    save_record(recorded(three[0], seconds=30.0), record_path(three[0], "real"))
    result = sweep(three, jobs=2, budget=20.0, progress=False)
    assert (result.done, pretend.started, result.left) == (1, [], three[1:])
    assert result.estimate == 30.0
    assert sweep(three, jobs=2, budget=1000.0, progress=False).ran == 2


def test_the_bundle_is_up_to_date_after_every_run(four, pretend, places):
    seen = []

    def outcome(config):
        seen.append(merge_bundles([places / "b.zip"], places / f"at{len(seen)}").added)
        return Outcome("ran", "50.00", 1.0)

    pretend.outcome = outcome
    save_record(recorded(four[0]), record_path(four[0], "real"))  # of an earlier sweep
    sweep(four, jobs=2, bundle=places / "b.zip", progress=False)
    assert seen == [1, 2, 3]
    assert merge_bundles([places / "b.zip"], places / "end").added == 4


def test_what_others_have_recorded_by_the_end_is_in_the_bundle(four, pretend, places):
    def busy(config):
        save_record(recorded(config), record_path(config, "real"))
        return Outcome("busy", "elsewhere")

    pretend.outcome = busy
    assert sweep(four, jobs=2, bundle=places / "b.zip", progress=False).done == 4
    assert merge_bundles([places / "b.zip"], places / "end").added == 4


def test_a_record_that_cannot_be_bundled_is_named_before_anything_runs(four, pretend, places):
    path = save_record(recorded(four[0]), places / "results" / "other" / "broken.json")
    path.write_text("{")
    with pytest.raises(ValueError, match=r"broken\.json"):
        sweep(four, jobs=2, bundle=places / "b.zip", progress=False)
    assert pretend.started == []


@pytest.mark.parametrize("jobs", [0, -1])
def test_fewer_than_one_job_is_refused(four, jobs):
    with pytest.raises(ValueError, match=f"jobs is {jobs}: it must be at least 1"):
        sweep(four, jobs=jobs, progress=False)


# -- beside each other: real processes ----------------------------------------------------------------------------
def act(what: str, report, *, place: Path):
    """A job in another process: one dies at once; two meet there, and one of these then fails."""
    report("there")
    if what == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    (place / what).touch()
    other = place / {"meets": "fails", "fails": "meets"}[what]
    end = time.monotonic() + 120
    while not other.exists() and time.monotonic() < end:
        time.sleep(0.01)
    if what == "fails":
        raise TypeError("a defect")
    return other.exists(), torch.get_num_threads(), signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_jobs_run_at_the_same_time_and_one_that_dies_or_fails_stops_no_other(tmp_path, capfd):
    torch.set_num_threads(4)
    jobs, shown = iter(["dies", "meets", "fails"]), []
    ends = dict(side_by_side(lambda: next(jobs, None), partial(act, place=tmp_path), 2, shown.append))
    assert ends["meets"] == (True, 2, True)  # both were there at once, with half of the threads each, deaf to Ctrl-C
    assert isinstance(ends["dies"], ProcessDied)
    assert str(ends["dies"]) == "its process was ended by SIGKILL, as when memory runs out"
    assert str(ends["fails"]) == "its process ended with exit code 1"
    assert "TypeError: a defect" in capfd.readouterr().err
    assert max(map(len, shown)) == 2
    assert ("meets", "there") in [pair for pairs in shown for pair in pairs]
    assert not multiprocessing.active_children()


def stay(seconds: float, report, *, place: Path):
    """A job that takes a while to end, as a run does that finishes its epoch first."""

    def end(*_):
        time.sleep(seconds)
        (place / f"saved{seconds:g}").touch()
        raise SystemExit(0)

    signal.signal(signal.SIGTERM, end)
    report("there")
    time.sleep(120)


def test_jobs_that_are_ended_have_one_span_of_time_for_all_to_finish_their_epochs(tmp_path, monkeypatch):
    monkeypatch.setattr(jobs_module, "GRACE", 6.0)
    jobs, asked = iter([1.0, 90.0, 91.0]), []

    def show(under_way):
        if [said for _, said in under_way] == ["there"] * 3:
            asked.append(time.monotonic())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(side_by_side(lambda: next(jobs, None), partial(stay, place=tmp_path), 3, show))
    assert time.monotonic() - asked[0] < 2 * jobs_module.GRACE
    assert not multiprocessing.active_children()
    assert [path.name for path in tmp_path.iterdir()] == ["saved1"]


def test_runs_beside_each_other_leave_the_records_of_runs_one_after_another(tree, places):
    configs = [small(tree, "bpl", epochs=2), small(tree, "dense", epochs=4, learning_rate=1e30)]
    result = sweep(configs, jobs=2, folder=places / "beside", bundle=places / "records.zip", progress=False)
    assert (result.ran, list(result.failed)) == (1, [configs[1].run_name("real")])
    assert "the loss became" in result.failed[configs[1].run_name("real")]
    record = load_record(record_path(configs[0], "real", places / "beside"))
    assert record.environment["runs_beside_each_other"] == 2
    alone = run(configs[0], folder=places / "alone", work=places / "alone", progress=False)
    assert (record.curves, record.accuracy, record.equivalence) == (alone.curves, alone.accuracy, alone.equivalence)
    assert alone.environment["runs_beside_each_other"] == 1
    assert merge_bundles([places / "records.zip"], places / "taken").added == 1
    sweep(configs[:1], jobs=4, folder=places / "one", work=places / "one", progress=False)  # nothing to be beside
    record = load_record(record_path(configs[0], "real", places / "one"))
    assert record.environment["runs_beside_each_other"] == 1


def _long_sweep(tree: Path, places: Path) -> tuple[subprocess.Popen, list[Path]]:
    """A sweep of two endless runs beside each other, in a session of its own, once both are under way."""
    configs = [small(tree, "dense", epochs=100_000, seed=seed) for seed in (0, 1)]
    (places / "grid.json").write_text(
        json.dumps([{"dataset": str(tree), "method": "dense", **SMALL, "epochs": 100_000, "seed": [0, 1]}])
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "bpl", "sweep", places / "grid.json", "--jobs", "2", "--quiet"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    locks = [places / "work" / config.run_name("real") / "lock" for config in configs]
    end = time.monotonic() + 240
    while not all(lock.exists() for lock in locks) and process.poll() is None and time.monotonic() < end:
        time.sleep(0.05)
    assert process.poll() is None
    return process, [lock.parent for lock in locks]


def _session_is_empty(session: int, seconds: float) -> bool:
    """Whether no process of a session is left, or none after some seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        listed = subprocess.run(["ps", "-o", "pid=", "-o", "stat=", "-s", str(session)], capture_output=True, text=True)
        if not [line for line in listed.stdout.splitlines() if "Z" not in line]:
            return True
        time.sleep(0.1)
    return False


def test_ctrl_c_ends_all_runs_with_one_sentence_and_leaves_nothing_half_written(tree, places):
    process, folders = _long_sweep(tree, places)
    try:
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to every process
        out, err = process.communicate(timeout=120)
        assert (process.returncode, out) == (130, "")
        go_on = "start the same command again to go on from the last checkpoint, where one was saved"
        assert err == f"bpl: interrupted; {go_on}\n"
        assert _session_is_empty(process.pid, 20)
    finally:
        _end_session(process)
    assert not [name for name in files_below(places) if name.endswith(".tmp")]
    for folder in folders:
        with only_here(folder):
            pass


@pytest.mark.slow
def test_when_the_sweep_is_killed_its_runs_end_too(tree, places):
    process, folders = _long_sweep(tree, places)
    try:
        process.kill()
        process.communicate(timeout=60)
        assert _session_is_empty(process.pid, 60)
    finally:
        _end_session(process)
    for folder in folders:
        with only_here(folder):
            pass


def _end_session(process: subprocess.Popen) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
