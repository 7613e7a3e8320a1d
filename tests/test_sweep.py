"""Sweeps: what a grid stands for, in which order, what is done, what is left, what is refused."""

import itertools
import multiprocessing
import os
import signal

import pytest
import yaml
from support import (  # noqa: F401
    files_below,
    made_up_record,
    no_stopwatch_fixture,
    places_fixture,
    small,
    tree_fixture,
)

import bpl.sweep.local as sweep_module
import bpl.train as train_module
from bpl.data import load_images
from bpl.machine.run_lock import RunBusy, only_here
from bpl.records import load_records, record_path, save_record
from bpl.sweep import GridError, load_grid, seconds_of, sweep

pytestmark = pytest.mark.usefixtures("places", "no_stopwatch")


def recorded(config, **changes):
    """A made-up record of a run on the images that are there."""
    images = load_images(config.dataset, config.image_size, progress=False)
    data = {"source": images.source, "name": images.name, "digest": images.digest, "split_digest": "s"}
    return made_up_record(config, images.source, **{"data": data} | changes)


@pytest.fixture
def grid(tmp_path):
    """Writes a grid file."""

    def write(content):
        path = tmp_path / "grid.yaml"
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        return path

    return write


@pytest.fixture
def started(monkeypatch):
    """Runs that take no time: each only leaves a record. Lists the runs; `started.act` may do something before."""

    class Started(list):
        act = staticmethod(lambda config: None)
        seconds = 3.5

    configs = Started()

    def run(config, *, folder=None, **_):
        configs.append(config)
        configs.act(config)
        record = recorded(config, seconds=configs.seconds)
        save_record(record, record_path(config, "real", folder))
        return record

    monkeypatch.setattr(sweep_module, "run", run)
    return configs


# -- grids --------------------------------------------------------------------------------------------------------
def test_lists_stand_for_all_combinations_and_single_values_for_themselves(grid):
    configs = load_grid(grid([{"dataset": "ucm", "method": ["bpl", "sfp"], "ratio": [0.5, 0.7], "epochs": 3}]))
    assert [(c.method, c.ratio, c.epochs) for c in configs] == [
        ("bpl", 0.5, 3), ("bpl", 0.7, 3), ("sfp", 0.5, 3), ("sfp", 0.7, 3),
    ]  # fmt: skip


def test_every_row_gets_its_first_seed_before_any_gets_its_second(grid):
    entries = [
        {"dataset": "ucm", "method": ["scratch", "bpl"], "ratio": [0.5, 0.7], "seed": [0, 1, 2]},
        {"dataset": "ucm", "method": "dense", "seed": [1, 0]},
    ]
    configs = load_grid(grid(entries))
    rows = [("scratch", 0.5), ("scratch", 0.7), ("bpl", 0.5), ("bpl", 0.7), ("dense", 0.0)]
    expected = [(*row, seed) for seed in (0, 1) for row in rows] + [(*row, 2) for row in rows[:4]]
    assert [(c.method, c.ratio, c.seed) for c in configs] == expected


def test_a_run_named_twice_is_run_once(grid):
    entry = {"dataset": "ucm", "method": "bpl", "seed": [0, 1]}
    assert len(load_grid(grid([entry, entry, {"dataset": "ucm", "method": "dense", "ratio": [0.5, 0.7]}]))) == 3


def test_comments_and_the_words_of_yaml_are_read(grid):
    path = grid("# the table\n- {dataset: ucm, method: bpl, slim_at: [freeze, none, 30], width: null}\n")
    assert [c.slim_at for c in load_grid(path)] == ["freeze", "none", 30]


def test_numbers_and_words_are_those_of_yaml_1_2(grid):
    """As the tables of the book and the command line write them."""
    path = grid(
        "- {dataset: ucm, method: bpl, learning_rate: [5e-4, 5.0e-4, .1, 1E+1], weight_decay: 1, compile: off}\n"
    )
    configs = load_grid(path)
    assert [c.learning_rate for c in configs] == [5e-4, 0.1, 10.0]
    assert {c.compile for c in configs} == {"off"} and {c.weight_decay for c in configs} == {1.0}
    configs = load_grid(grid("- {dataset: ucm, method: bpl, seed: [010, 0x1F, 0o17, +3], epochs: 060}\n"))
    assert [c.seed for c in configs] == [3, 10, 15, 31]  # 010 was 8, and 060 was 48, in YAML 1.1
    assert {c.epochs for c in configs} == {60}


def test_a_key_given_twice_in_json_is_refused(tmp_path):
    path = tmp_path / "grid.json"
    path.write_text('[{"dataset": "ucm", "method": "bpl", "seed": 1, "seed": 2}]')
    with pytest.raises(GridError, match="the key 'seed' is given 2 times"):
        load_grid(path)


BAD_GRIDS = {
    "not YAML": ("- {dataset: ucm", "cannot be read"),
    "tabs": ("-\tdataset: ucm\n\tmethod: [", "cannot be read"),
    "a tag that makes objects": ("- !!python/object/apply:os.system ['touch hacked']", "cannot be read"),
    "a tag that names an object": ("- {dataset: !!python/name:os.system '', method: bpl}", "cannot be read"),
    "nested without end": ("[" * 5000, "cannot be read"),
    "empty": ("", "not a list"),
    "a mapping": ("dataset: ucm\nmethod: bpl\n", "not a list"),
    "a word": ("ucm", "not a list"),
    "an empty list": ("[]", "not a list"),
    "an entry that is no mapping": ("- {dataset: ucm, method: bpl}\n- ucm\n", "entry 2: 'ucm' is not a mapping"),
    "an unknown key": (
        "- {dataset: ucm, methd: bpl}",
        "entry 1: unknown key 'methd' with value 'bpl': allowed",
    ),
    "a missing key": ("- {dataset: ucm}", "lacks the key 'method'"),
    "a bad value": ("- {dataset: ucm, method: bpl, ratio: [0.5, 1.5]}", "ratio is 1.5"),
    "a word for a number": ("- {dataset: ucm, method: bpl, ratio: '0.5'}", "ratio is '0.5': it must be a number of at"),
    "a key given twice": ("- {dataset: ucm, method: bpl, epochs: 1, epochs: 3}", "the key 'epochs' is given 2 times"),
    "a nested list": ("- {dataset: ucm, method: bpl, ratio: [[0.5]]}", "ratio is [0.5]"),
    "a mapping for a value": ("- {dataset: {a: b}, method: bpl}", "dataset is {'a': 'b'}"),
    "an empty list of values": ("- {dataset: ucm, method: bpl, seed: []}", "the list of 'seed' is empty"),
    "an empty list beside others": (
        "- {dataset: ucm, method: bpl}\n- {dataset: ucm, method: dense, seed: []}",
        "entry 2: the list of 'seed' is empty",
    ),
    "a time for a number": ("- {dataset: ucm, method: bpl, epochs: 1:30}", "epochs is '1:30'"),
    "digits apart": ("- {dataset: ucm, method: bpl, epochs: 1_6}", "epochs is '1_6'"),
}


@pytest.mark.parametrize("kind", BAD_GRIDS)
def test_a_bad_grid_is_refused_in_one_sentence_that_names_the_file(grid, tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    content, reason = BAD_GRIDS[kind]
    path = grid(content)
    with pytest.raises(GridError) as error:
        load_grid(path)
    assert str(path) in str(error.value)
    assert reason in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "hacked").exists()


@pytest.mark.parametrize("make", [lambda p: None, lambda p: p.mkdir(), lambda p: p.write_bytes(b"\xff\xfe\x00")])
def test_a_grid_that_is_missing_or_a_folder_or_not_text_is_named(tmp_path, make):
    make(tmp_path / "grid.yaml")
    with pytest.raises(GridError, match="grid.yaml cannot be read"):
        load_grid(tmp_path / "grid.yaml")


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("90s", 90), ("25m", 1500), ("2h", 7200), ("0.5h", 1800)])
def test_a_time_budget_may_be_given_in_seconds_minutes_or_hours(text, seconds):
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "5d", "-5m", "1h30m", "m", "nan", "inf"])
def test_a_time_budget_that_is_no_time_is_refused_with_an_example(text):
    with pytest.raises(ValueError, match="such as 25m") as error:
        seconds_of(text)
    assert repr(text) in str(error.value)


# -- sweeps -------------------------------------------------------------------------------------------------------
@pytest.fixture
def four(tree):
    return [small(tree, method, seed=seed) for seed in (0, 1) for method in ("dense", "bpl")]


def test_a_sweep_runs_what_is_lacking_in_the_order_of_the_grid(four, started):
    save_record(recorded(four[1]), record_path(four[1], "real"))
    result = sweep(four, progress=False)
    assert list(started) == [four[0], four[2], four[3]]
    assert (result.done, result.ran, result.failed, result.left) == (1, 3, {}, [])


def test_a_sweep_that_is_done_does_nothing(four, started):
    sweep(four, progress=False)
    assert sweep(four, progress=False).done == 4
    assert len(started) == 4


def test_two_spellings_of_one_run_are_run_once(four, started):
    import dataclasses

    sweep([four[0], dataclasses.replace(four[0], tier="quick", device="auto")], progress=False)
    assert len(started) == 1


def test_a_run_that_another_sweep_finished_meanwhile_is_not_started(four, started):
    def other_sweep(config):
        if config is four[0]:
            save_record(recorded(four[1]), record_path(four[1], "real"))

    started.act = other_sweep
    result = sweep(four, progress=False)
    assert list(started) == [four[0], four[2], four[3]]
    assert (result.done, result.ran) == (1, 3)


def test_a_run_that_is_under_way_elsewhere_is_skipped_and_said_so(four, started, capsys):
    def busy(config):
        if config is four[1]:
            raise RunBusy("busy")

    started.act = busy
    result = sweep(four, progress=False)
    assert (result.ran, result.busy, result.failed) == (3, 1, {})
    assert f"{four[1].run_name('real')}: it is under way in another process" in capsys.readouterr().out


@pytest.mark.parametrize(
    "error",
    [
        ValueError("no good\nmore"),
        OSError(28, "No space left on device"),
        FloatingPointError("nan"),
        RuntimeError(),
        TypeError("a defect\nof some lines"),
        KeyError("x"),
        AssertionError(),
    ],  # fmt: skip
    ids=repr,
)
def test_a_run_that_fails_is_reported_and_the_others_go_on(four, started, capsys, error):
    def fail(config):
        if config is four[0]:
            raise error

    started.act = fail
    result = sweep(four, progress=False)
    name = four[0].run_name("real")
    assert result.ran == 3
    assert list(result.failed) == [name]
    assert result.failed[name]
    assert "\n" not in result.failed[name]
    assert f"failed {name}: {result.failed[name]}" in capsys.readouterr().out


def test_no_run_is_started_that_would_not_fit_into_the_time_budget(four, started, tree):
    """Runs of one kind are expected to take as long as those before: 3.5 s by the record."""
    save_record(recorded(four[0]), record_path(four[0], "real"))
    result = sweep([four[0], four[2]], progress=False, budget=3.0)
    assert (list(started), result.left) == ([], [four[2]])
    assert result.estimate == 3.5
    result = sweep([four[0], four[2]], progress=False, budget=1000.0)
    assert (list(started), result.left) == ([four[2]], [])


def test_a_budget_that_is_used_up_leaves_all_the_rest(four, started, monkeypatch):
    clock = itertools.count(0, 10)  # every look at the clock, ten seconds later
    monkeypatch.setattr(sweep_module.time, "monotonic", lambda: next(clock))
    result = sweep(four, progress=False, budget=35)
    assert list(started) == four[: len(started)]
    assert 1 <= len(started) <= 2
    assert result.left == four[len(started) :]
    assert result.estimate > 0


def test_without_any_experience_there_is_no_estimate(four, started):
    assert sweep(four, progress=False, budget=0).estimate is None
    assert not started


def test_a_damaged_record_stops_a_sweep_and_is_named(four, started):
    path = record_path(four[0], "real")
    path.parent.mkdir(parents=True)
    path.write_text("{")
    with pytest.raises(ValueError, match=path.name):
        sweep(four, progress=False)
    assert not started


def test_a_record_of_other_images_stops_a_sweep_and_is_named(four, started):
    path = save_record(made_up_record(four[0]), record_path(four[0], "real"))
    with pytest.raises(ValueError, match="was made from other images") as error:
        sweep(four, progress=False)
    assert str(path) in str(error.value)
    assert not started


@pytest.mark.parametrize("end", [None, RunBusy("busy"), ValueError("no good")], ids=["ran", "busy", "failed"])
def test_sigterm_that_no_epoch_of_a_run_sees_any_more_ends_the_sweep_after_it(four, monkeypatch, end):
    """It comes in the last epoch, or while the run is measured: the run is finished, and no other is started."""
    started = []

    def run(config, *, watch, folder=None, **_):
        started.append(config)
        assert not watch(1, {})
        os.kill(os.getpid(), signal.SIGTERM)
        if end is not None:
            raise end
        record = recorded(config)
        save_record(record, record_path(config, "real", folder))
        return record

    monkeypatch.setattr(sweep_module, "run", run)
    result = sweep(four, progress=False)
    assert (started, result.ended, result.left) == (four[:1], True, four[1:])
    assert result.ran + result.busy + len(result.failed) == 1


# -- real ones ----------------------------------------------------------------------------------------------------
def _sweep_until_killed(configs, environment):
    """In another process: a sweep that is killed inside its third run."""
    os.environ.update(environment)
    train_module.CHECKPOINT_SECONDS = -1.0
    real, runs = sweep_module.run, []

    def run(config, **options):
        runs.append(config)
        if len(runs) == 3:
            save = train_module.save_checkpoint

            def die(*arguments):
                save(*arguments)
                os.kill(os.getpid(), 9)

            train_module.save_checkpoint = die
        return real(config, **options)

    sweep_module.run = run
    sweep(configs, progress=False)


def test_a_killed_sweep_goes_on_and_repeats_no_finished_run(tree, places, capsys):
    configs = [small(tree, "dense", epochs=2, seed=seed) for seed in range(4)]
    environment = {name: os.environ[name] for name in ("BPL_CACHE", "BPL_RESULTS", "BPL_WORK", "OMP_NUM_THREADS")}
    other = multiprocessing.get_context("spawn").Process(target=_sweep_until_killed, args=(configs, environment))
    other.start()
    other.join(300)
    assert other.exitcode == -9
    records = {path: (places / "results" / path).stat().st_mtime_ns for path in files_below(places / "results")}
    assert len(records) == 2
    checkpoints = [path for path in files_below(places / "work") if path.endswith("checkpoint.pt")]
    assert len(checkpoints) == 1
    result = sweep(configs, progress=True)
    assert (result.done, result.ran) == (2, 2)
    assert all((places / "results" / path).stat().st_mtime_ns == written for path, written in records.items())
    assert len(load_records()) == 4
    assert not [path for path in files_below(places) if path.endswith(("checkpoint.pt", ".tmp"))]
    assert f"2/2 {configs[3].run_name('real')}: test " in capsys.readouterr().out


def test_of_two_sweeps_the_second_skips_the_run_of_the_first(tree, places):
    configs = [small(tree, "dense", epochs=1, seed=seed) for seed in (0, 1)]
    with only_here(places / "work" / configs[0].run_name("real")):
        result = sweep(configs, progress=False)
    assert (result.ran, result.busy) == (1, 1)
    assert list(load_records().seed) == [1]
