"""Memory that runs out, numbers that are none, clocks that jump, bytes that change, and two processes on one run."""

import dataclasses
import os
import subprocess
import sys
import threading
import time

import pytest
import torch
from support import (  # noqa: F401
    files_below,
    no_stopwatch_fixture,
    places_fixture,
    run_module,
    same_weights,
    small,
    trained,
    tree_fixture,
)

from bpl.cli import main
from bpl.machine import finite
from bpl.machine.atomic import write_atomic
from bpl.machine.checkpoint import load_checkpoint, previous_of
from bpl.machine.out_of_memory import OutOfMemory, is_out_of_memory, out_of_memory_said
from bpl.methods import REGISTRY
from bpl.records import load_record, record_path
from bpl.run import run
from bpl.runlog import read_log
from bpl.sweep import sweep

pytestmark = pytest.mark.usefixtures("places", "no_stopwatch")
train_module = sys.modules["bpl.train"]


# -- memory -------------------------------------------------------------------------------------------------------
def host_allocator() -> None:
    torch.empty(1 << 60, dtype=torch.uint8)


def gpu_allocator() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has a total capacity of ...")


def cublas() -> None:
    raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")


def python() -> None:
    raise MemoryError


@pytest.mark.parametrize("allocate", [host_allocator, gpu_allocator, cublas, python])
@pytest.mark.parametrize(("batch", "hint"), [(64, "batch_size 32"), (3, "batch_size 2"), (2, "a smaller image_size")])
def test_memory_that_runs_out_in_a_step_names_the_batch_size_to_try(allocate, batch, hint):
    said = f"in a step with {batch} images of 32 x 32 pixels: try {hint}"
    with pytest.raises(OutOfMemory, match=said) as error, out_of_memory_said(batch, 32):
        allocate()
    assert "\n" not in str(error.value)


def test_other_errors_stay_what_they_are():
    with pytest.raises(RuntimeError, match="shapes") as error, out_of_memory_said(64, 32):
        raise RuntimeError("shapes do not fit")
    assert not is_out_of_memory(error.value)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_memory_that_runs_out_on_a_gpu_names_the_batch_size_to_try():
    with pytest.raises(OutOfMemory, match="try batch_size 32"), out_of_memory_said(64, 32):
        torch.empty(1 << 50, dtype=torch.uint8, device="cuda")


def _fails_from_step(monkeypatch, method: str, step: int, fail) -> None:
    """From its `step`-th optimiser step on, a method calls `fail`."""
    after_step, steps = REGISTRY[method].after_step, []

    def counted(self, training) -> None:
        after_step(self, training)
        steps.append(1)
        if len(steps) >= step:
            fail(training)

    monkeypatch.setattr(REGISTRY[method], "after_step", counted)


def test_a_run_and_a_sweep_say_that_memory_ran_out_and_go_on_later(tree, places, monkeypatch, capsys):
    monkeypatch.setattr(train_module, "CHECKPOINT_SECONDS", -1.0)
    config = small(tree, "dense")
    words = [f"--{name.replace('_', '-')}={value}" for name, value in config.to_dict().items() if value is not None]
    with monkeypatch.context() as patch:
        _fails_from_step(patch, "dense", 5, lambda _: host_allocator())
        with pytest.raises(SystemExit) as ended:
            main(["run", *words, "--quiet"])
        assert ended.value.code == 1
        assert (
            "memory ran out in a step with 16 images of 32 x 32 pixels: try batch_size 8\n" in capsys.readouterr().err
        )
        done = sweep([config, dataclasses.replace(config, seed=1)], progress=False)
        said = "memory ran out in a step with 16 images of 32 x 32 pixels: try batch_size 8"
        assert list(done.failed.values()) == [said] * 2
    assert load_checkpoint(places / "work" / config.run_name("real") / "checkpoint.pt")["epoch"] == 1
    assert len(run(config, progress=False).curves["loss"]) == 3


# -- numbers ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_weights_broken_by_the_last_step_of_an_epoch_stop_the_run_and_are_never_saved(tree, tmp_path, monkeypatch, bad):
    """The losses of the epoch are fine, for they were computed before: the weights are looked at too."""
    monkeypatch.setattr(train_module, "CHECKPOINT_SECONDS", -1.0)

    def spoil(training) -> None:
        next(training.model.parameters()).data[0, 0, 0, 0] = bad

    config, checkpoint = small(tree, "dense"), tmp_path / "checkpoint.pt"
    with monkeypatch.context() as patch:
        _fails_from_step(patch, "dense", 6, spoil)  # an epoch has 3 steps
        with pytest.raises(
            FloatingPointError, match=r"the weights of conv1.weight became infinite or NaN in epoch 2 of 3"
        ):
            trained(config, checkpoint=checkpoint)
    state = load_checkpoint(checkpoint)
    assert state["epoch"] == 1
    assert all(tensor.isfinite().all() for tensor in state["model"].values())
    assert same_weights(trained(config, checkpoint=checkpoint).small, trained(config).small)


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), float("-inf")])
def test_a_loss_of_any_such_kind_is_named(loss):
    with pytest.raises(FloatingPointError, match=f"the loss became {loss} in epoch 7: lower learning_rate"):
        finite.check_finite(loss, torch.nn.Linear(2, 2), "epoch 7")


# -- clocks -------------------------------------------------------------------------------------------------------
def test_a_wall_clock_that_jumps_changes_nothing(tree, places, monkeypatch):
    """Set forward and back by a year at every look: neither the budget nor the checkpoints nor the times follow it."""
    looks = []

    def jumping() -> float:
        looks.append(1)
        return 1.7e9 + (3e7 if len(looks) % 2 else -3e7)

    for name in ("time", "time_ns"):
        monkeypatch.setattr(time, name, jumping if name == "time" else lambda: int(jumping() * 1e9))
    monkeypatch.setattr(train_module, "CHECKPOINT_SECONDS", 1000.0)
    configs = [small(tree, "dense", epochs=2, seed=seed) for seed in range(2)]
    done = sweep(configs, budget=3600.0, progress=False)
    assert (done.ran, done.left, done.failed) == (2, [], {})
    for config in configs:
        assert 0 <= load_record(record_path(config, "real")).seconds < 600


# -- changed bytes ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("place", [0.0, 0.5, 0.999])
def test_a_run_goes_on_from_the_checkpoint_before_one_whose_bytes_have_changed(
    tree, tmp_path, monkeypatch, capsys, place
):
    monkeypatch.setattr(train_module, "CHECKPOINT_SECONDS", -1.0)
    config, path = small(tree, "dense"), tmp_path / "own" / "checkpoint.pt"
    whole = trained(config, checkpoint=path)
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1
    path.write_bytes(content)
    assert load_checkpoint(path)["epoch"] == load_checkpoint(previous_of(path))["epoch"] == 2
    assert f"bpl: checkpoint {path} is damaged: this run goes on from the one before it" in capsys.readouterr().err
    assert same_weights(trained(config, checkpoint=path).small, whole.small)
    assert load_checkpoint(path)["epoch"] == 3  # sound again


# -- two processes ------------------------------------------------------------------------------------------------
def test_the_same_run_from_two_work_folders_is_recorded_once(tree, places, monkeypatch):
    """Machines that share only the results: no lock tells one of the other, and the first record stays."""
    config = small(tree, "dense", epochs=1)
    train, records = run_module.train, []

    def slower(*arguments, **named):
        trained = train(*arguments, **named)
        if not records:
            with monkeypatch.context() as patch:
                patch.setattr(run_module, "train", train)
                records.append(run(config, work=places / "other", progress=False))
        return trained

    monkeypatch.setattr(run_module, "train", slower)
    path = record_path(config, "real")
    assert run(config, progress=False) == records[0] == load_record(path)
    assert files_below(path.parent) == [path.name]


def test_two_that_end_the_same_run_at_one_moment_record_it_once(tree, places, monkeypatch):
    """From two work folders: both have trained, and neither has seen a record when it comes to write one."""
    config, both = small(tree, "dense", epochs=1), threading.Barrier(2)
    ship, save, written, results = run_module._save_shipped, run_module.save_record, [], []

    def ship_together(*arguments) -> None:
        ship(*arguments)
        both.wait(60)

    def save_slowly(record, path):
        time.sleep(0.3)
        written.append(record)
        return save(record, path)

    monkeypatch.setattr(run_module, "_save_shipped", ship_together)
    monkeypatch.setattr(run_module, "save_record", save_slowly)
    threads = [
        threading.Thread(target=lambda work=work: results.append(run(config, work=places / work, progress=False)))
        for work in ("one", "two")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(written) == 1
    assert results == written * 2 == [load_record(record_path(config, "real"))] * 2


def test_processes_that_start_the_same_run_at_once_do_it_once(tree, places):
    """Two wait for whoever is first, the third says that the run is under way, or finds its record."""
    config = small(tree, "dense")
    words = [sys.executable, "-m", "bpl", *config.command().split()[1:], "--device", "cpu", "--quiet"]
    started = [
        subprocess.Popen([*words, *wait], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for wait in (["--wait"], ["--wait"], [])
    ]
    said = [process.communicate(timeout=300) for process in started]
    codes = [process.returncode for process in started]
    assert codes[:2] == [0, 0] and codes[2] in (0, 75), said
    assert said[0] == said[1] and "top-1 test" in said[0][0]
    assert said[2] == said[0] if codes[2] == 0 else "is under way in another process" in said[2][1]
    path = record_path(config, "real")
    assert files_below(path.parent) == [path.name]
    load_record(path)
    events = [event["event"] for event in read_log(places / "work" / path.stem)]
    assert events == ["started", *["epoch"] * 3, "finished"]


def test_many_writers_of_one_file_leave_one_of_their_contents_and_nothing_else(tmp_path):
    """Each removes what killed writers left, and never what another one is writing."""
    (tmp_path / ".file.abcdefgh.tmp").write_bytes(b"of a killed writer")
    errors = []

    def write(content: bytes) -> None:
        try:
            for _ in range(20):
                write_atomic(tmp_path / "file", content)
        except OSError as error:
            errors.append(error)

    contents = [bytes([number]) * 10_000 for number in range(4)]
    threads = [threading.Thread(target=write, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert (tmp_path / "file").read_bytes() in contents
    assert os.listdir(tmp_path) == ["file"]
