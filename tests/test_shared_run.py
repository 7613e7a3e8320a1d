"""One run shared by two processes (gloo, started by torchrun): the numbers of one, one record, kill and resume."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import shared_runs
import torch
from safetensors.torch import load_file
from support import SMALL, files_below, places_fixture, tree_fixture  # noqa: F401
from trials import keep

import bpl
from bpl.cli import main
from bpl.config import RunConfig
from bpl.machine import processes
from bpl.machine.checkpoint import load_checkpoint
from bpl.machine.exit_codes import TERMINATED, TRY_AGAIN
from bpl.memory import step_memory
from bpl.methods import REGISTRY
from bpl.methods.sharing import check_shared
from bpl.records import load_record
from bpl.runlog import read_log

pytestmark = pytest.mark.usefixtures("places")

RATE = {"learning_rate": 0.005, "epochs": 4}
JOBS = [
    SMALL | RATE | {"method": "bpl", "mask": "soft", "freeze_at": 0.5},
    SMALL | RATE | {"method": "bpl", "ratio": 0.5, "slim_at": "none", "augmentation": "released"},
    SMALL | RATE | {"method": "kd", "teacher_epochs": 2, "epochs": 2},
]
MORE_JOBS = [
    SMALL | RATE | {"method": "scratch", "stored_size": 48, "image_size": 40},
    SMALL | RATE | {"method": "sfp", "scope": "all"},
    SMALL | RATE | {"method": "fpgm", "schedule": "released"},
    SMALL | RATE | {"method": "random"},
    SMALL | RATE | {"method": "l1", "target": "macs:0.5"},
    SMALL | RATE | {"method": "self_kd"},
    SMALL | RATE | {"method": "hrank", "teacher_epochs": 1},
    SMALL | RATE | {"method": "bpl", "partner": "dbb", "kernel_norm": "fixed"},
    SMALL | {"method": "dense", "arch": "mobilenet_v2", "epochs": 2, "learning_rate": 5e-4},  # has dropout
]


def started(place: Path, tree: Path, jobs: list[dict], *words: object) -> subprocess.CompletedProcess:
    """Two processes at work on the jobs."""
    words = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        Path(shared_runs.__file__), place, tree, json.dumps(jobs), *words,
    ]  # fmt: skip
    return subprocess.run([str(word) for word in words], capture_output=True, text=True, timeout=600)


def records_below(place: Path) -> dict[str, object]:
    return {path.name: load_record(path) for path in sorted(place.glob("results/*/*.json"))}


def check_same(one: Path, two: Path) -> dict[str, float]:
    """Losses, masks, accuracies and shipped weights of runs in one process and in two agree up to rounding.

    Returns:
        How many runs, and the largest differences of a loss and of a weight, relative to the loss and to the largest
        weight of its tensor.
    """
    seen = {"runs": 0, "loss": 0.0, "weight": 0.0}
    alone, shared = records_below(one), records_below(two)
    assert alone.keys() == shared.keys() and alone
    for name, record in alone.items():
        other = shared[name]
        assert (record.environment["devices"], other.environment["devices"]) == (1, 2)
        assert record.widths == other.widths and record.cost["training_macs"] == other.cost["training_macs"]
        assert len(other.curves["loss"]) == record.config["epochs"]
        for curve in record.curves.keys() - {"test", "validation"}:
            assert other.curves[curve] == pytest.approx(record.curves[curve], rel=1e-4, abs=1e-6), (name, curve)
        for part in ("test", "validation"):  # 16 and 8 images: one may lie on the border between two classes
            assert other.curves[part] == pytest.approx(record.curves[part], abs=13), (name, part)
        weights, others = (load_file(p / "work" / record.name / "model.safetensors") for p in (one, two))
        assert weights.keys() == others.keys()
        for key, weight in weights.items():
            bound = 2e-3 * float(weight.abs().max()) + 1e-6  # a beta before another normalisation is rounding alone
            difference = float((weight - others[key]).abs().max())
            assert difference < bound, (name, key)
            if float(weight.abs().max()) > 1e-3:
                seen["weight"] = max(seen["weight"], difference / float(weight.abs().max()))
        losses = zip(record.curves["loss"], other.curves["loss"], strict=True)
        seen["loss"] = max(seen["loss"], *(abs(a - b) / abs(a) for a, b in losses))
        seen["runs"] += 1
    return seen


@pytest.fixture(scope="module")
def two_processes(tree, tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("two")
    environment = {"BPL_CACHE": str(place / "cache"), "OMP_NUM_THREADS": "1"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        done = started(place, tree, JOBS)
    assert done.returncode == 0, done.stderr
    assert "Error" not in done.stderr, done.stderr
    return place


def test_two_processes_give_what_one_does(two_processes, tree, tmp_path, monkeypatch):
    """BPL with masks, partners, slimming; held masks; a teacher. The layers are compared in float64 in the script."""
    shared_runs.perform(tmp_path, str(tree), JOBS, monkeypatch.setattr)
    check_same(tmp_path, two_processes)


def test_only_the_first_process_writes(two_processes):
    """A record, a log and a network for each of the runs (a teacher among them), and nothing half-written."""
    names = [name.removesuffix(".json") for name in records_below(two_processes)]
    assert len(names) == 4
    left = ["images.sha256", "lock", "log.jsonl", "model.json", "model.safetensors"]
    assert files_below(two_processes / "work") == sorted(f"{name}/{file}" for name in names for file in left)
    for name in names:
        log = [json.loads(line) for line in (two_processes / "work" / name / "log.jsonl").read_text().splitlines()]
        epochs = [event["epoch"] for event in log if event["event"] == "epoch"]
        assert epochs == list(range(1, len(epochs) + 1))
        assert [event["event"] for event in log].count("finished") == 1


def test_a_killed_process_ends_the_job_and_a_restart_goes_on(two_processes, tree, tmp_path):
    """The second of two processes dies in the third epoch, after the slimming; the end is that of the run unkilled."""
    died = started(tmp_path, tree, JOBS[:1], 8)
    assert died.returncode != 0
    assert len(list((tmp_path / "work").glob("*/checkpoint.pt"))) == 1
    assert not records_below(tmp_path)
    done = started(tmp_path, tree, JOBS[:1])
    assert done.returncode == 0, done.stderr
    ((name, record),) = records_below(tmp_path).items()
    unkilled = records_below(two_processes)[name]
    assert record.curves == unkilled.curves
    weights, others = (load_file(p / "work" / record.name / "model.safetensors") for p in (tmp_path, two_processes))
    assert all(torch.equal(weights[key], others[key]) for key in others)
    log = [json.loads(line) for line in (tmp_path / "work" / record.name / "log.jsonl").read_text().splitlines()]
    assert [event["event"] for event in log].count("started") == 2
    assert [event["epoch"] for event in log if event["event"] == "epoch"] == [1, 2, 3, 4]


def test_sigterm_to_one_process_stops_both_with_a_checkpoint(tree, tmp_path):
    """The second process is asked to end: both finish the epoch, and the first one saves. Started without torchrun,
    which ends with a code of its own."""
    config = RunConfig(dataset=str(tree), method="dense", **SMALL | {"epochs": 100_000})
    words = [*config.command().split()[1:], "--device", "cpu", "--quiet"]
    words = [sys.executable, "-m", "bpl", *words, "--out", tmp_path / "results", "--work", tmp_path / "work"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    two = [
        subprocess.Popen(
            [str(word) for word in words],
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    place = tmp_path / "work" / config.run_name("real")
    try:
        end = time.monotonic() + 120
        while not any(event["event"] == "epoch" and event["epoch"] > 1 for event in read_log(place)):
            assert time.monotonic() < end and all(process.poll() is None for process in two)
            time.sleep(0.05)
        two[1].send_signal(signal.SIGTERM)
        said = [process.communicate(timeout=60)[1] for process in two]
    finally:
        for process in two:
            process.kill()
    assert [process.returncode for process in two] == [TRY_AGAIN, TERMINATED], said
    assert all(re.search(r"stopped after epoch \d+ of 100000; start the same command again", one) for one in said)
    assert load_checkpoint(place / "checkpoint.pt")["epoch"] == read_log(place)[-3]["epoch"]
    assert [event["event"] for event in read_log(place)[-3:]] == ["epoch", "checkpoint", "stopped"]


@pytest.mark.slow
def test_all_methods_in_two_processes_give_what_one_does(tree, tmp_path, monkeypatch):
    jobs = JOBS + MORE_JOBS
    assert {job["method"] for job in jobs} == {name for name, method in REGISTRY.items() if method.shares_batches}
    done = started(tmp_path / "two", tree, jobs)
    assert done.returncode == 0, done.stderr
    shared_runs.perform(tmp_path / "one", str(tree), jobs, monkeypatch.setattr)
    keep("two processes", **check_same(tmp_path / "one", tmp_path / "two"))


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "fabric"])
def test_either_launcher_starts_bpl_run(tree, tmp_path, launcher):
    """The command line, as the book gives it: two processes, one record, one that speaks."""
    programs = Path(sys.executable).parent
    if not (programs / launcher).exists():
        pytest.skip(f"{launcher} is not installed here")
    start = {
        "torchrun": ["--standalone", "--nproc-per-node", "2", "-m", "bpl"],
        "fabric": ["run", "--accelerator", "cpu", "--devices", "2", programs / "bpl", "--"],
    }[launcher]
    options = [word for name, value in SMALL.items() for word in (f"--{name.replace('_', '-')}", value)]
    words = ["run", "--dataset", tree, "--method", "dense", *options, "--epochs", 1, "--quiet"]
    places = ["--out", tmp_path / "results", "--work", tmp_path / "work"]
    command = [str(word) for word in (programs / launcher, *start, *words, *places)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("top-1 test") == 1
    (record,) = records_below(tmp_path).values()
    assert record.environment["devices"] == 2


# -- what is refused ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"method": "oed"}, "method 'oed' runs in one process, and 3 were started: .* dense, scratch, bpl, l1, sfp"),
        ({"method": "dense", "batch_size": 16}, "batch_size is 16: with 3 processes it must be a multiple of 3"),
        ({"method": "dense", "batch_size": 18, "compile": "default"}, "compile is 'default': with 3 processes .* off"),
        ({"method": "bpl", "batch_size": 18, "diversity_form": "feature-cosine"}, "diversity_form is 'feature-cosine'"),
    ],
)
def test_what_cannot_be_shared_is_refused_in_a_sentence(fields, said, tree, monkeypatch):
    config = RunConfig(dataset=str(tree), **SMALL | fields)
    check_shared(config)  # in one process anything goes
    monkeypatch.setattr(processes, "count", lambda: 3)
    with pytest.raises(ValueError, match=said):
        check_shared(config)


def test_every_other_command_is_refused_under_torchrun(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit) as ended:
        main(["data"])
    assert ended.value.code == 2
    assert "2 processes were started, as by torchrun: they can share 'bpl run' only" in capsys.readouterr().err


def test_how_many_devices_shared_a_run_is_no_part_of_its_identity(two_processes, tree):
    names = {RunConfig(dataset=str(tree), **fields).run_name("real") for fields in JOBS}
    assert names < {name.removesuffix(".json") for name in records_below(two_processes)}


@pytest.mark.parametrize("arch", ["resnet50", "resnet101"])
def test_what_the_book_says_of_fsdp_is_counted(arch):
    page = (Path(__file__).parent.parent / "book" / "scale.md").read_text()
    ((parameters, state, peak),) = re.findall(
        rf"\| {arch.replace('resnet', 'ResNet-')} \| ([\d.]+) million \| (\d+) MB \| ([\d.]+) GB \|", page
    )
    model = bpl.grow_partners(bpl.build_model(arch, 21, image_size=256))
    memory = step_memory(model, 256, 64)
    assert parameters == f"{bpl.count_params(model) / 1e6:.1f}"
    assert state == f"{3 * memory.momentum / 1e6:.0f}"
    assert peak == f"{memory.peak / 1e9:.1f}"


def test_the_end_of_another_process_is_one_sentence(monkeypatch):
    monkeypatch.setattr(processes, "count", lambda: 2)
    said = "another of the 2 processes of this run has ended"
    with pytest.raises(processes.ProcessLost, match=said), processes.loss_said():
        raise RuntimeError("[pair.cc:553] Connection closed by peer [127.0.0.1]:1234")
    with pytest.raises(RuntimeError, match="something else"), processes.loss_said():
        raise RuntimeError("something else")


def test_auto_is_cuda_or_the_cpu_whatever_other_accelerator_there_is(monkeypatch):
    """As on a Mac, whose accelerator has no float64 and was never tried."""
    accelerators = pytest.importorskip("lightning_fabric.accelerators")
    monkeypatch.setattr(accelerators.MPSAccelerator, "is_available", staticmethod(lambda: True))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert processes.fabric_of(RunConfig("synthetic", "dense")).device.type == "cpu"
