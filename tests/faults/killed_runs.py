"""Kill runs and resume them; a script of its own, so that it can fork before torch has any threads.

    python tests/faults/killed_runs.py TREE WORK < jobs.json > results.json

A job is a name, the config's fields, and at which of its events each attempt is killed. Events are an optimiser step, a
checkpoint written but not yet renamed, and a checkpoint renamed. Every attempt is a process that ends itself by
SIGKILL; the last one is left alone. Beside it the same run goes through without a kill.
"""

import json
import os
import signal
import sys
import traceback
from pathlib import Path

import lightning_fabric  # noqa: F401  train imports it late; here once for all attempts
import torch

from bpl import train as train_module
from bpl.config import RunConfig
from bpl.data import load_images, make_split
from bpl.machine import atomic
from bpl.machine.checkpoint import load_checkpoint


def attempt(config: RunConfig, checkpoint: Path, result: Path, kill_at: int | None) -> None:
    """Train to the end and save what came out, or die at the event `kill_at`."""
    left = kill_at

    def event() -> None:
        nonlocal left
        if left is not None:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    real_replace = os.replace

    def replace(*places) -> None:
        event()
        real_replace(*places)
        event()

    method = train_module.REGISTRY[config.method]
    real_step = method.after_step

    def after_step(self, training) -> None:
        real_step(self, training)
        event()

    atomic.os.replace = replace
    method.after_step = after_step
    images = load_images(config.dataset, config.image_size, config.data, progress=False)
    split = make_split(images, config.split, config.seed)
    train_module.CHECKPOINT_SECONDS = -1.0
    out = train_module.train(config, images, split, checkpoint=checkpoint, progress=False)
    saved = {
        "network": out.network.state_dict(),
        "small": out.small.state_dict(),
        "curves": out.curves,
        "training_macs": out.training_macs,
    }
    torch.save(saved, result)


def in_child(*arguments) -> bool:
    """Run an attempt in a child process; returns whether it was killed."""
    pid = os.fork()
    if pid == 0:
        try:
            attempt(*arguments)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status not in (0, -signal.SIGKILL):
        raise SystemExit(f"an attempt ended with {status}")
    return status != 0


def identical(one: object, other: object) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(identical(one[k], other[k]) for k in one)
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def job(tree: str, work: Path, name: str, fields: dict, kills: list[int]) -> dict:
    config = RunConfig(dataset=tree, **fields)
    place = work / name
    place.mkdir()
    resumed = []
    killed = 0
    for kill_at in [*kills, None]:
        if (place / "checkpoint.pt").exists():
            state = load_checkpoint(place / "checkpoint.pt")
            resumed.append([state["epoch"], bool(state["method"].get("frozen"))])
        killed += in_child(config, place / "checkpoint.pt", place / "interrupted", kill_at)
    in_child(config, place / "other.pt", place / "whole", None)
    one, other = (torch.load(place / end, weights_only=True) for end in ("interrupted", "whole"))
    return {"killed": killed, "resumed": resumed, "identical": {k: identical(one[k], other[k]) for k in other}}


if __name__ == "__main__":
    torch.set_num_threads(1)
    tree, work = sys.argv[1], Path(sys.argv[2])
    json.dump({name: job(tree, work, name, *rest) for name, rest in json.load(sys.stdin).items()}, sys.stdout)
