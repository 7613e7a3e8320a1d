"""Runs that several processes share; a script of its own, since torchrun starts it once a process.

    torchrun --nproc-per-node 2 tests/shared_runs.py PLACE TREE JOBS [STEP]

JOBS are the fields of configs as JSON. They are run one after the other to records and networks below PLACE. With STEP
the second process kills itself at that optimiser step. The networks have a smooth activation: a ReLU whose input is
within rounding of 0 takes the other side, which no sum in another order could reproduce.
"""

import copy
import importlib
import json
import os
import signal
import sys
from pathlib import Path

import torch
from torch import distributed as dist
from torch import nn

from bpl import export, recording
from bpl.config import RunConfig
from bpl.machine import processes
from bpl.machine.synchronised import Synchronised
from bpl.measure import Latency
from bpl.methods import REGISTRY

run_module, train_module = (importlib.import_module(name) for name in ("bpl.run", "bpl.train"))
build_model = train_module.build_model


def smooth_model(*arguments: object, **options: object) -> nn.Module:
    """A network of the library with SiLU in place of ReLU."""
    model = build_model(*arguments, **options)
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.ReLU | nn.ReLU6):
                setattr(module, name, nn.SiLU())
    return model


def instant(model: nn.Module, image_size: int, batch_size: int = 1, backend: str = "eager") -> Latency:
    """In place of a latency that takes seconds to measure."""
    return Latency(1.0, 0.9, 1.1, 5, backend, batch_size, image_size, 1, "cpu")


def perform(place: Path, tree: str, jobs: list[dict], set_attribute=setattr) -> None:
    """Run the jobs, with a checkpoint after every epoch.

    Args:
        place: folder for results and work.
        tree: the images.
        jobs: fields of the configs.
        set_attribute: as `setattr`, or that of a monkeypatch.
    """
    for module in (train_module, export):  # trained, and loaded by its name
        set_attribute(module, "build_model", smooth_model)
    set_attribute(train_module, "CHECKPOINT_SECONDS", -1.0)
    set_attribute(recording, "measure_latency", instant)
    for fields in jobs:
        config = RunConfig(dataset=tree, **fields)
        run_module.run(config, folder=place / "results", work=place / "work", progress=False)


def check_layers() -> None:
    """In float64: two steps' worth of a network on shares of a batch against one on all of it."""
    number, count = processes.rank(), processes.count()
    for affine in (True, False):
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8, affine=affine), nn.SiLU(), nn.Dropout(0.4)]
        whole = nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * 49, 5)).double()
        shared = copy.deepcopy(whole)
        x, target = 3 * torch.randn(8, 3, 9, 9).double() + 5, torch.randn(8, 5).double()
        x[:4] *= 4  # processes whose own statistics differ
        mine = slice(8 // count * number, 8 // count * (number + 1))
        for module, rows in ((whole, slice(None)), (shared, mine)):
            called = module if module is whole else Synchronised(module)
            torch.manual_seed(1)
            for _ in range(2):
                (called(x[rows]) - target[rows]).square().mean().backward()
        for (name, one), other in zip(whole.named_parameters(), shared.parameters(), strict=True):
            summed = other.grad.clone()
            dist.all_reduce(summed)
            assert torch.allclose(summed / count, one.grad, rtol=1e-9, atol=1e-12), name
        for (name, one), other in zip(whole.named_buffers(), shared.buffers(), strict=True):
            assert torch.allclose(one, other, rtol=1e-9), name
        x = x[mine]
        assert torch.allclose(Synchronised(shared).eval()(x), whole.eval()(x), rtol=1e-9)


def kill_second_process_at(step: int) -> None:
    """SIGKILL, as when memory runs out, in a run of a method that prunes."""

    def after_step(self, training) -> None:
        nonlocal step
        real(self, training)
        step -= 1
        if step == 0 and processes.rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    pruned = REGISTRY["l1"]
    real = pruned.after_step
    pruned.after_step = after_step


if __name__ == "__main__":
    torch.set_num_threads(1)
    place, tree, jobs = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
    if len(sys.argv) > 4:
        kill_second_process_at(int(sys.argv[4]))
    perform(place, tree, jobs)
    if len(jobs) > 1:
        check_layers()
