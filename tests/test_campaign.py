"""The campaign as a graph: what depends on what, what is asked for, and that a kill neither loses nor repeats a run."""

import importlib.util
import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from support import SMALL, made_up_record, places_fixture, small, tree_fixture  # noqa: F401
from trials import keep

from bpl.cli.commands import COMMANDS
from bpl.cli.words import read
from bpl.config import RunConfig
from bpl.data import load_images
from bpl.machine.run_lock import only_here
from bpl.records import load_record, record_path, save_record
from bpl.runlog import read_log
from bpl.sweep import load_stages
from bpl.sweep.campaign import START, Campaign

ROOT = Path(__file__).resolve().parents[1]
WORKFLOW = ROOT / "workflow"

pytestmark = pytest.mark.usefixtures("places")


def needs_package(name: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(
        importlib.util.find_spec(name) is None, reason=f"{name} is not installed: make campaign installs it"
    )


def write_grid(folder: Path, *stages: list[dict]) -> Path:
    path = folder / "grid.yaml"
    path.write_text(yaml.safe_dump_all(stages))
    return path


@pytest.fixture
def two_stages(tree, places):
    """Knowledge distillation and BPL, then a dense run of other length; the dense teachers are in no stage."""
    common = {"dataset": str(tree), "epochs": 2, "image_size": 32, "width": 4}
    grid = write_grid(
        places,
        [{**common, "method": ["kd", "bpl"], "seed": [0, 1]}],
        [{**common, "method": "dense", "epochs": 3}],
    )
    return Campaign.of_grid(grid, places / "ended")


# -- the graph ----------------------------------------------------------------------------------------------------
def test_what_a_run_learns_from_comes_first_and_is_worth_as_much(two_stages):
    runs = two_stages.runs
    ranks = [[(runs[name].method, runs[name].seed) for name in rank] for rank in two_stages.ranks]
    assert ranks == [[("kd", 0), ("bpl", 0), ("dense", 0)], [("kd", 1), ("bpl", 1), ("dense", 1)], [("dense", 0)]]
    assert [runs[name].method for name in two_stages.wanted] == ["kd", "bpl", "kd", "bpl", "dense"]
    for name, config in runs.items():
        first = [config.dense().run_name("real")] if config.method == "kd" else []
        assert two_stages.needed[name] == first
        assert two_stages.needs(name) == [two_stages.marker(before) for before in first]


def test_a_run_starts_from_what_it_was_pretrained_on(tmp_path):
    entry = {"dataset": "synthetic", "data": "synthetic", "method": "kd", "pretrain": "aid:2"}
    campaign = Campaign.of_grid(write_grid(tmp_path, [entry]), tmp_path / "ended")
    (name,) = campaign.wanted
    teacher, before = (campaign.runs[needed] for needed in campaign.needed[name])
    assert (teacher.dataset, teacher.method, before.dataset, before.epochs) == ("synthetic", "dense", "aid", 2)
    assert campaign.needed[campaign.needed[name][0]] == [campaign.needed[name][1]]  # the teacher starts from it too


def test_a_record_is_the_proof_and_a_marker_without_one_is_none(two_stages):
    name = two_stages.wanted[-1]
    assert two_stages.records[name] == record_path(two_stages.runs[name], "real")
    two_stages.markers.mkdir()
    two_stages.marker(name).touch()
    two_stages.forget_markers()
    assert not two_stages.marker(name).exists()
    save_record(made_up_record(two_stages.runs[name]), two_stages.records[name])
    two_stages.marker(name).touch()
    two_stages.forget_markers()
    assert two_stages.marker(name).exists()
    assert two_stages.proof(name) == two_stages.records[name]


def test_the_command_makes_exactly_this_run(tree, tmp_path):
    """Every config of a grid with odd values comes back from the words of its command, device and all."""
    odd = {"dataset": str(tree), "epochs": 2, "device": "cpu", "compile": "default", "width": 5, "learning_rate": 0.07}
    grid = write_grid(tmp_path, [{**odd, "method": ["bpl", "oed", "ddsl", "fcs_mlft"], "ratio": [0.3, 0.78]}])
    campaign = Campaign.of_grid(grid, tmp_path / "ended", tmp_path / "o ut", tmp_path / "work")
    for name in campaign.wanted:
        words = shlex.split(campaign.command(name, beside=3))
        assert words[:3] == [sys.executable, "-m", "bpl"]
        command = read(COMMANDS, words[3:], prog="bpl", description="")
        assert RunConfig(**vars(command.config)) == campaign.runs[name]
        assert (command.out, command.work, command.wait, command.beside) == (
            tmp_path / "o ut", tmp_path / "work", True, 3,
        )  # fmt: skip


def test_a_job_is_told_which_images_the_campaign_was_planned_on(tmp_path):
    """One that sees no images then fails, and does not train on drawn scenes in their place."""
    grid = write_grid(tmp_path, [{"dataset": "ucm", "method": ["dense", "kd"], "epochs": 2}])
    names = {}
    for source in ("real", "synthetic"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("bpl.sweep.campaign.source_of", lambda dataset, data, source=source: source)
            campaign = Campaign.of_grid(grid, tmp_path / "ended")
        assert {config.data for config in campaign.runs.values()} == {source}
        assert all(f"--data {source}" in campaign.command(name) for name in campaign.runs)
        names[source] = set(campaign.runs)
    as_they_come = {config.run_name("real") for stage in load_stages(grid) for config in stage}
    assert names["real"] >= as_they_come and not names["real"] & names["synthetic"]  # it renames no run


def test_a_job_without_a_record_fails_in_a_sentence(tree, tmp_path):
    out = tmp_path / "it's o ut"
    grid = write_grid(tmp_path, [{"dataset": str(tree), "method": "dense", "epochs": 2}])
    campaign = Campaign.of_grid(grid, tmp_path / "ended", out)
    (name,) = campaign.wanted
    words = ["bash", "-euo", "pipefail", "-c", f"(true && {campaign.check(name)})"]
    failed = called(words)
    assert (failed.returncode, failed.stderr) == (1, "")
    assert failed.stdout.startswith(f"bpl: no record {campaign.records[name]} after its run: ")
    assert failed.stdout.count("\n") == 1
    save_record(made_up_record(campaign.runs[name]), campaign.records[name])
    assert (called(words).returncode, called(words).stdout) == (0, "")


def test_gpus_memory_and_minutes_follow_the_run(tmp_path):
    entries = [
        {"dataset": "synthetic", "method": "dense", "tier": "paper", "seed": [0, 1]},
        {"dataset": "synthetic", "method": ["dense", "bpl"], "tier": "cpu"},
        {"dataset": "synthetic", "method": "dense", "tier": "paper", "device": "cpu", "epochs": 2},
    ]
    grid = write_grid(tmp_path, entries)
    campaign = Campaign.of_grid(grid, tmp_path / "ended", tmp_path)
    paper, dense, grown, paper_cpu, again = campaign.wanted
    assert [campaign.gpus(name) for name in campaign.wanted] == [1, 0, 0, 0, 1]
    memory = {name: campaign.memory_mb(name) for name in campaign.wanted}
    assert 1500 < memory[dense] < memory[grown] < 8000
    assert memory[paper_cpu] > 8000  # ResNet-50, 64 images of 256 x 256 in float32
    assert campaign.minutes(paper) > START
    assert campaign.minutes(dense) == 240
    save_record(made_up_record(campaign.runs[paper], "synthetic", seconds=3600.0), campaign.records[paper])
    assert Campaign.of_grid(grid, tmp_path / "ended", tmp_path).minutes(again) == START + 120


# -- Snakemake ----------------------------------------------------------------------------------------------------
def snakemake(place: Path, *words: object, **config: object) -> list[str]:
    """The words of a call with `place` as the working directory."""
    settings = {"grid": place / "grid.yaml", "out": place / "out", "work": place / "work", "threads": 1} | config
    words = [*map(str, words), "--config", *(f"{key}={value}" for key, value in settings.items())]
    return [sys.executable, "-m", "snakemake", *words, "-s", str(WORKFLOW / "Snakefile"), "--directory", str(place)]


def called(words: list[str]) -> subprocess.CompletedProcess:
    return subprocess.run(words, capture_output=True, text=True, timeout=3600)


QUICK = {
    "dataset": "synthetic", "tier": "quick", "width": 4, "epochs": 1, "image_size": 32, "stored_size": 32,
}  # fmt: skip


def killed_campaign(place: Path, kills: int, patience: tuple[float, float], cores: int) -> int:
    """Start a campaign, kill its whole process group after some seconds, and again; then let it end.

    Returns:
        How often it was killed before its end.
    """
    chance, killed = random.Random(0), 0
    for _ in range(kills):
        seen = {path: path.read_bytes() for path in place.glob("out/*/*.json")}
        process = subprocess.Popen(
            snakemake(place, "records", "--cores", cores),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        begun = {path: path.stat().st_mtime_ns for path in place.glob("work/*/log.jsonl")}
        end = time.monotonic() + 300  # not before a run has done something in this round
        while process.poll() is None and time.monotonic() < end:
            if {path: path.stat().st_mtime_ns for path in place.glob("work/*/log.jsonl")} != begun:
                break
            time.sleep(0.05)
        time.sleep(chance.uniform(*patience))
        killed += process.poll() is None
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert {path: path.read_bytes() for path in seen} == seen  # what was there is there, byte for byte
    done = called(snakemake(place, "records", "--cores", cores))
    assert done.returncode == 0, done.stderr
    return killed


def check_nothing_lost_or_repeated(place: Path, names: set[str]) -> None:
    assert {path.stem for path in place.glob("out/*/*.json")} == names
    for path in place.glob("out/*/*.json"):
        load_record(path)
        events = [event["event"] for event in read_log(place / "work" / path.stem)]
        assert "finished" not in events[:-1], (path.stem, events)
    for age, path in enumerate(sorted(place.glob("out/*/*.json"))):  # whatever the times of the files
        os.utime(path, (1.5e9 - age, 1.5e9 - age) if age % 2 else None)
    again = called(snakemake(place, "records", "-n"))
    assert again.returncode == 0
    assert "Nothing to be done" in again.stdout + again.stderr


@needs_package("snakemake")
def test_a_killed_campaign_repeats_no_finished_run_and_loses_none(places):
    grid = write_grid(places, [{**QUICK, "method": "kd"}])
    campaign = Campaign.of_grid(grid, places / "ended", places / "out")
    killed_campaign(places, kills=1, patience=(0.0, 6.0), cores=2)
    check_nothing_lost_or_repeated(places, set(campaign.runs))


@pytest.mark.slow
@needs_package("snakemake")
def test_a_campaign_killed_many_times_repeats_no_finished_run_and_loses_none(places):
    """And a sweep of the same grid has nothing left to do."""
    grid = write_grid(places, [{**QUICK, "method": ["kd", "bpl", "sfp"], "seed": list(range(4))}])
    campaign = Campaign.of_grid(grid, places / "ended", places / "out")
    killed = killed_campaign(places, kills=8, patience=(0.0, 15.0), cores=2)
    assert killed > 0
    check_nothing_lost_or_repeated(places, set(campaign.runs))
    words = [sys.executable, "-m", "bpl", "sweep", grid, "--out", places / "out", "--work", places / "work", "--quiet"]
    swept = called(list(map(str, words)))
    assert (swept.returncode, swept.stderr) == (0, "")
    assert swept.stdout.endswith("12 runs: 12 recorded before, 0 run now, 0 failed, 0 under way elsewhere, 0 left\n")
    keep("kills of Snakemake", kills=killed, runs=len(campaign.runs), lost=0, repeated=0)


@pytest.mark.parametrize("profile", ["slurm", "kubernetes"])
def test_a_cluster_is_asked_for_what_a_run_needs(places, profile, monkeypatch):
    """A dry run: the graph, the profile's own words and each job's GPU, memory and minutes."""
    for package in ("snakemake", f"snakemake_executor_plugin_{profile}"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: make campaign installs it")
    paper = {"dataset": "synthetic", "tier": "paper"}
    write_grid(places, [{**paper, "method": ["dense", "kd"]}, {**QUICK, "method": "dense"}])
    profile_folder = WORKFLOW / "profiles" / profile
    monkeypatch.setenv("BPL_DATA", str(places))  # as the profile of Kubernetes asks for
    done = called(snakemake(places, "records", "-n", "--profile", profile_folder))
    assert done.returncode == 0, done.stderr
    said = done.stdout + done.stderr
    asked = {}
    for block in said.split("\nrule ")[1:]:
        found = re.search(r"output: \S*ended/(\w+)-(resnet\d+)", block)
        if found:
            asked[found.groups()] = dict(re.findall(r"(gpu|mem_mb|runtime)=(\d+)", block))
    assert asked.keys() == {("dense", "resnet50"), ("kd", "resnet50"), ("dense", "resnet18")}, said
    assert {key: value.get("gpu") for key, value in asked.items()} == {
        ("dense", "resnet50"): "1", ("kd", "resnet50"): "1", ("dense", "resnet18"): "0",
    }  # fmt: skip
    assert all(int(value["mem_mb"]) > 1500 and int(value["runtime"]) > START for value in asked.values())
    assert not list(places.glob("out/*"))


@pytest.fixture
def built_book():
    """A book that is there before the campaign, as `make reproduce` and `make book` leave one."""
    page = WORKFLOW.parent / "_build" / "html" / "index.html"
    made = not page.exists()
    if made:
        page.parent.mkdir(parents=True, exist_ok=True)
        page.touch()
    yield
    if made:
        page.unlink()


@needs_package("snakemake")
@pytest.mark.usefixtures("built_book")
def test_folders_with_a_space_stay_one_word_and_every_run_is_checked(places):
    """A dry run of all, runs, notebooks and book, with the lines of shell, though there is a book already."""
    place = places / "a space"
    place.mkdir()
    write_grid(place, [{**QUICK, "method": "dense"}])
    done = called(snakemake(place, "all", "-n", "-p", build=place / "build"))
    assert done.returncode == 0, done.stderr
    said = done.stdout + done.stderr
    lines = [line for line in said.splitlines() if " 2>&1" in line]
    of_runs = [line for line in lines if " -m bpl run " in line]
    assert len(lines) > 2 and len(of_runs) == 1 and "test -f" in of_runs[0]
    for line in lines:
        words = [word for word in shlex.split(line) if str(places) in word]
        assert words and all(str(place) in word for word in words), line


@needs_package("snakemake")
def test_a_machine_that_finds_other_images_than_the_campaign_says_so(places):
    """On a cluster each job reads the grid again; this one is asked for a run that its grid does not have."""
    write_grid(places, [{**QUICK, "method": "dense"}])
    target = "run_0:run=dense-resnet18-r0.00-s0-00000000"
    done = called(snakemake(places, "--mode", "remote", "--cores", "1", "--target-jobs", target))
    said = done.stdout + done.stderr
    assert done.returncode == 1
    assert "s0-00000000 is a run of other images than this machine finds: does it see BPL_DATA?" in said
    assert "Traceback" not in said


@needs_package("snakemake")
def test_a_grid_that_cannot_be_used_is_said_in_a_sentence(places):
    (places / "grid.yaml").write_text("- {dataset: ucm, methd: bpl}")
    done = called(snakemake(places, "records", "-n"))
    assert done.returncode == 1
    assert "entry 1: unknown key 'methd'" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_a_second_start_of_a_run_waits_where_it_is_told_to(tree, places):
    """As the campaign's own jobs do, so that a sweep beside it does not make them fail."""
    config = small(tree, "dense", epochs=1)
    words = [*config.command().split()[1:], "--device", "cpu", "--wait", "--quiet"]
    with only_here(places / "work" / config.run_name("real")):
        process = subprocess.Popen([sys.executable, "-m", "bpl", *words], stdout=subprocess.PIPE, text=True)
        images = load_images(config.dataset, config.image_size, progress=False)
        data = {"source": "real", "name": "tiny", "digest": images.digest, "split_digest": "s"}
        save_record(made_up_record(config, data=data), record_path(config, "real"))
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert "top-1 test 50.00 %" in out
    assert json.loads(record_path(config, "real").read_text())["seconds"] == 3.5
