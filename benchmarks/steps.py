"""Training steps to be timed, the library's and one in the style of the released BPL code, and their records."""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bpl.data import augment, normalise
from bpl.diversity import diversity_loss
from bpl.machine.atomic import write_atomic
from bpl.machine.compiled import Compiled
from bpl.machine.this_machine import machine, use_threads
from bpl.measure import OtherWork, clock_of
from bpl.partner import partner_blocks
from bpl.pruning import MaskHolder
from bpl.sweep.chips import wait_for

MEAN, STD = (0.5, 0.5, 0.5), (0.2, 0.2, 0.2)
CLASSES = 21
CPU = torch.device("cpu")
SCHEMA = 1  # of the files that `as_file` writes


def some_images(batch: int, image_size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Noise as uint8 pixels (B, 3, H, W), as the data set is kept, and labels (B,)."""
    pixels = torch.randint(0, 256, (batch, 3, image_size, image_size), dtype=torch.uint8, device=device)
    return pixels, torch.randint(CLASSES, (batch,), device=device)


class Step:
    """A training step as `bpl.train` makes it: images from uint8, one backward pass, fused optimiser, masks at once.

    Args:
        model: the network, with or without partners.
        batch: images a step.
        image_size: height and width in pixels.
        bf16: autocast to bfloat16, else float32.
        masks: conv name -> mask held after every step; None for none.
        diversity: weight of the diversity loss, where there are partners.
        device: where.
        compile: off, or a mode of torch.compile.
        clock: one of `bpl.measure.CLOCKS`, for the parts.

    Attributes:
        parts: milliseconds of each part of the step, one value a call.
    """

    def __init__(
        self,
        model: nn.Module,
        batch: int,
        image_size: int,
        *,
        bf16: bool,
        masks: dict[str, Tensor] | None = None,
        diversity: float = 0.01,
        device: torch.device = CPU,
        compile: str = "off",
        clock: str = "wall",
    ):
        self.model = model.to(device, memory_format=torch.channels_last).train()
        self.called = self.model if compile == "off" else Compiled(self.model, compile)
        self.device = device
        self.pixels, self.labels = some_images(batch, image_size, device)
        self.optimizer = torch.optim.SGD(model.parameters(), 1e-3, 0.9, weight_decay=1e-4, fused=True)
        self.holder = None if masks is None else MaskHolder(model, masks)
        self.diversity = diversity if partner_blocks(model) else 0.0
        self.bf16, self.image_size = bf16, image_size
        self.chance = torch.Generator(device).manual_seed(0)
        self.parts: dict[str, list[float]] = {}
        self.now = clock_of(clock)

    def __call__(self) -> None:
        with self._part("images"):
            x = normalise(augment(self.pixels, "released", self.image_size, self.chance), MEAN, STD)
            x = x.contiguous(memory_format=torch.channels_last)
        with self._part("forward"), torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            loss = F.cross_entropy(self.called(x).float(), self.labels)
        if self.diversity:
            with self._part("diversity loss"):
                loss = loss + self.diversity * diversity_loss(self.model)
        with self._part("backward"):
            loss.backward()
        with self._part("optimiser"):
            self.optimizer.step()
            self.optimizer.zero_grad()
        if self.holder is not None:
            with self._part("masks"):
                self.holder.apply()
                self.holder.apply_to_momentum(self.optimizer)

    @contextmanager
    def _part(self, name: str) -> Iterator[None]:
        start = self.now()
        yield
        wait_for(self.device)
        self.parts.setdefault(name, []).append(1e3 * (self.now() - start))


class ReleasedStep:
    """The same work in the style of the released code (book: "The released code"), the baseline.

    NCHW float32; the kernels of a stage are concatenated anew in every step for the diversity loss, which has a
    backward pass of its own; then a Python loop over all parameters zeroes the gradients of masked filters; plain SGD.

    Args:
        model: the network with partners.
        batch: images a step.
        image_size: height and width in pixels.
        masks: conv name -> mask.
        device: where.
    """

    def __init__(
        self, model: nn.Module, batch: int, image_size: int, masks: dict[str, Tensor], device: torch.device = CPU
    ):
        self.model, self.device = model.to(device).train(), device
        self.pixels, self.labels = some_images(batch, image_size, device)
        self.optimizer = torch.optim.SGD(model.parameters(), 1e-3, 0.9, weight_decay=1e-4)
        self.image_size, self.chance = image_size, torch.Generator(device).manual_seed(0)
        self.stages: dict[int, list[nn.Module]] = {}
        self.masks: dict[str, Tensor] = {}
        for name, block in partner_blocks(model).items():
            self.stages.setdefault(block.stage, []).append(block)
            if name in masks:
                self.masks[f"{name}.branches.0.conv.weight"] = masks[name].to(device).float()[:, None, None, None]
        for name, mask in masks.items():
            if name not in partner_blocks(model):
                self.masks[f"{name}.weight"] = mask.to(device).float()[:, None, None, None]

    def __call__(self) -> None:
        x = normalise(augment(self.pixels, "released", self.image_size, self.chance), MEAN, STD)
        F.cross_entropy(self.model(x), self.labels).backward()
        diversity = 0
        for blocks in self.stages.values():
            one, other = (
                torch.cat([block.branches[branch].conv.weight.reshape(-1) for block in blocks]) for branch in (0, 1)
            )
            diversity = diversity + F.cosine_similarity(one, other, dim=0) + 1
        (0.01 * diversity).backward()
        for name, parameter in self.model.named_parameters():
            if name in self.masks:
                parameter.grad.data = parameter.grad.data * self.masks[name]
        self.optimizer.step()
        self.optimizer.zero_grad()
        wait_for(self.device)


def make_grown(
    arch: str,
    image_size: int,
    change: Callable[[nn.Module], nn.Module] | None = None,
    *,
    width: int | None = None,
) -> nn.Module:
    """A fresh network, changed where a function says how (such as `bpl.grow_partners`), the same weights every time."""
    import bpl

    torch.manual_seed(0)
    model = bpl.build_model(arch, CLASSES, image_size, width)
    return model if change is None else change(model)


def device_here() -> tuple[torch.device, str]:
    """The GPU of this machine and its name, or the CPU where there is none."""
    if torch.cuda.is_available():
        return torch.device("cuda"), torch.cuda.get_device_name()
    return CPU, "CPU"


def set_threads(parser: argparse.ArgumentParser, threads: int | None) -> None:
    """Compute with the ``--threads`` that were asked for, if any; it ends where the machine has not as many."""
    try:
        if threads is not None:
            use_threads(threads)
    except ValueError as error:
        parser.error(str(error))


def gpu_options(description: str, rounds: int) -> argparse.ArgumentParser:
    """The command line that the benchmarks for a GPU share.

    Args:
        description: what the benchmark does.
        rounds: how many there are where none is named.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--small", action="store_true", help="a tiny network, for a look on a CPU")
    parser.add_argument("--arch", default="resnet50")
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--out", type=Path, help="a JSON file to write, as the book reads it")
    return parser


def measured_here(clock: str, others: OtherWork) -> dict[str, Any]:
    """The machine, the day, the clock, and how much of the machine other programs took while it was measured."""
    return machine() | {"date": time.strftime("%Y-%m-%d"), "clock": clock, "others": others.share()}


def in_words(machine: dict[str, Any]) -> str:
    """Threads, clock and other work of what `measured_here` returned."""
    others = machine["others"]
    shared = "" if others is None else f"; {100 * others:.0f} % of the processors' time went to other programs"
    return f"{machine['threads']} threads, {machine['clock']} time{shared}"


def as_file(measured: dict[str, Any], path: Path) -> None:
    """Write measurements as JSON, one part on a line, whole or not at all; the folder is made."""
    parts = ",\n".join(f" {json.dumps(key)}: {json.dumps(value)}" for key, value in measured.items())
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, f'{{\n "schema": {SCHEMA},\n{parts}\n}}\n'.encode())
