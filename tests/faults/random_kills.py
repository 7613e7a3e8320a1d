"""Kill whole runs and whole campaigns at random moments; a script of its own, to fork before torch has any threads.

    python tests/faults/random_kills.py run TREE WORK KILLS SEED
    python tests/faults/random_kills.py campaign TREE WORK RUNS KILLS SEED

Every attempt is a process that this one ends by SIGKILL after a random time, wherever it is then: training, measuring,
or writing a checkpoint, the shipped network or the record. Writing takes little time, so that every fifth kill of a run
waits, after its random time, until something is being written. What was seen is written to standard output as JSON.
"""

import dataclasses
import importlib
import json
import os
import random
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import lightning_fabric  # noqa: F401  train imports it late; here once for all attempts
import torch

from bpl import recording
from bpl import train as train_module
from bpl.config import RunConfig
from bpl.machine import atomic
from bpl.measure import Latency
from bpl.records import load_record, record_path
from bpl.sweep import sweep
from bpl.sweep.bundle import merge_bundles, write_bundle

run_module = importlib.import_module("bpl.run")  # `bpl.run` is the function of that name
PATIENCE = 600.0  # seconds that a sweep has to come as far as it is wanted
FIELDS = {"arch": "resnet18", "width": 8, "image_size": 32, "batch_size": 16, "device": "cpu", "precision": "float32"}


def forked(work: Callable[[], object]) -> int:
    """The id of a process that does some work and ends with 0, or with 1 after an error."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return pid


def killed(pid: int, after: float | None, writing: Path | None = None) -> bool:
    """Kill a process after a time, or wait for its own end; whether it was killed.

    Args:
        pid: its id.
        after: seconds; None for its own end.
        writing: after that time, wait until it writes something below this folder, or has ended.
    """
    if after is not None:
        time.sleep(after)
        while writing is not None and not leftovers(writing) and not has_ended(pid):
            pass
        os.kill(pid, signal.SIGKILL)  # it is not waited for yet, so that its id is still its own even if it has ended
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code not in (0, -signal.SIGKILL):
        raise SystemExit(f"an attempt ended with {code}")
    return code != 0


def has_ended(pid: int) -> bool:
    """Whether a child process that is not waited for yet has ended."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.suffix == ".tmp"]


# -- runs ---------------------------------------------------------------------------------------------------------
def outcome(folder: Path, config: RunConfig) -> dict:
    """What must not depend on kills: the record without times and the machine, and the shipped network's bytes."""
    path = record_path(config, "real", folder / "results")
    record = dataclasses.asdict(load_record(path))
    place = folder / "work" / path.stem
    shipped = {name: (place / name).read_bytes().hex() for name in ("model.safetensors", "model.json")}
    return {key: record[key] for key in record if key not in ("seconds", "environment")} | shipped


def kill_runs(tree: str, work: Path, kills: int, seed: int) -> dict:
    """Kill runs of changing methods until there were so many kills; each is finished and compared with its twin."""
    chance, number = random.Random(seed), 0
    seen: dict = {"kills": 0, "while_writing": 0, "resumed": 0, "runs": 0, "different": [], "left": []}
    while seen["kills"] < kills:
        method = ("bpl", "dense", "sfp")[number % 3]
        config = RunConfig(dataset=tree, method=method, seed=number, epochs=4, **FIELDS)
        whole, place = work / f"{number}-whole", work / f"{number}-killed"
        number += 1
        began = time.monotonic()
        killed(forked(partial(run_in, whole, config)), None)
        longest = time.monotonic() - began
        done = False
        while not done:
            wait = chance.uniform(0, longest) if seen["kills"] < kills else None
            seen["resumed"] += any(place.rglob("checkpoint.pt"))
            done = not killed(forked(partial(run_in, place, config)), wait, place if seen["kills"] % 5 == 4 else None)
            seen["kills"] += not done
            seen["while_writing"] += not done and bool(leftovers(place))
        seen["runs"] += 1
        if outcome(whole, config) != outcome(place, config):
            seen["different"].append(config.run_name("real"))
        seen["left"] += leftovers(place) + [file.name for file in place.rglob("checkpoint*")]
    return seen


def run_in(place: Path, config: RunConfig) -> None:
    """A run with its results and work below a folder of its own."""
    run_module.run(config, folder=place / "results", work=place / "work", progress=False)


# -- campaigns ----------------------------------------------------------------------------------------------------
def kill_campaign(tree: str, work: Path, runs: int, kills: int, seed: int) -> dict:
    """Kill two sweeps that share a campaign, together or one of them, and let a last one end it."""
    chance = random.Random(seed)
    configs = [RunConfig(dataset=tree, method="dense", seed=number, epochs=1, **FIELDS) for number in range(runs)]
    results, log = work / "results", work / "renamed"
    names = {record_path(config, "real", results).name for config in configs}
    real_replace = os.replace

    def replace(temporary, path) -> None:
        real_replace(temporary, path)
        if Path(path).name in names and results in Path(path).parents:
            with log.open("a") as file:  # one write of a line shorter than a page: whole, whoever else writes
                file.write(f"{Path(path).name}\n")

    atomic.os.replace = replace

    def sweep_in(bundle: str) -> None:
        sweep(configs, folder=results, work=work / "work", bundle=work / bundle, progress=False)

    seen: dict = {"kills": 0, "lost": 0, "changed": 0}
    there: dict[str, bytes] = {}
    began = time.monotonic()
    killed(forked(lambda: sweep(configs[:4], folder=work / "timing", work=work / "timing", progress=False)), None)
    a_run = (time.monotonic() - began) / 4
    while seen["kills"] < kills and len(there) < runs:
        pids = [forked(partial(sweep_in, name)) for name in ("one.zip", "two.zip")[: chance.randint(1, 2)]]
        ahead = 2 * (runs - len(there)) // (kills - seen["kills"] + 1)  # twice the share of the kills that are left
        goal, waited = len(there) + chance.randrange(max(1, ahead)), time.monotonic()
        while len(list(results.rglob("*.json"))) < goal and time.monotonic() - waited < PATIENCE:
            time.sleep(0.01)
        for pid in pids:
            seen["kills"] += killed(pid, chance.uniform(0, a_run))
        now = {path.name: path.read_bytes() for path in results.rglob("*.json")}
        seen["lost"] += len(there.keys() - now.keys())
        seen["changed"] += sum(now.get(name) != content for name, content in there.items())
        there = now
        for path in results.rglob("*.json"):
            load_record(path)
    seen["recorded_at_last_kill"] = len(there)
    killed(forked(lambda: sweep_in("one.zip")), None)
    now = {path.name: path.read_bytes() for path in results.rglob("*.json")}
    seen["lost"] += len(names - now.keys()) + len(there.keys() - now.keys())
    seen["changed"] += sum(now.get(name) != content for name, content in there.items())
    written = Counter(log.read_text().splitlines())
    write_bundle(work / "all.zip", results)
    return seen | {
        "records": len(now),
        "written_twice": [name for name, times in written.items() if times > 1],
        "in_bundle": merge_bundles([work / "one.zip"], work / "into").added,
        "left": leftovers(work),
        "checkpoints": [path.name for path in (work / "work").rglob("checkpoint*")],
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    train_module.CHECKPOINT_SECONDS = -1.0
    recording.measure_latency = lambda model, image_size, batch_size=1, **_: Latency(
        1.0, 0.9, 1.1, 5, "eager", batch_size, image_size, 1, "cpu"
    )
    what, tree, work, *numbers = sys.argv[1:]
    print(json.dumps({"run": kill_runs, "campaign": kill_campaign}[what](tree, Path(work), *map(int, numbers))))
