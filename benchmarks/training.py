"""What a training step of the partner network costs, as ratios measured side by side in one run.

    python benchmarks/training.py [--arch resnet50] [--image-size 256] [--batch 8] [--rounds 5]

Compared are the partner network in plain NCHW float32 eager (the reference), with channels_last, and with channels_last
and bf16 autocast (what `bpl run` uses), and the dense network in the first and the last of these. All take turns, so
that a drift of the machine's speed hits all alike, and medians over rounds are printed. The diversity loss (forward and
backward) and the masks (weights and momentum) are timed alone, as shares of the bf16 step.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

import bpl
from bpl.pruning import MaskHolder


class Step:
    """One training step of a network.

    Args:
        model: the network.
        batch: images a step.
        image_size: height and width in pixels.
        channels_last: memory format of weights and images.
        bf16: autocast to bfloat16.
    """

    def __init__(self, model: nn.Module, batch: int, image_size: int, *, channels_last: bool, bf16: bool):
        form = torch.channels_last if channels_last else torch.contiguous_format
        self.model = model.to(memory_format=form).train()
        self.images = torch.randn(batch, 3, image_size, image_size).contiguous(memory_format=form)
        self.labels = torch.randint(0, 21, (batch,))
        self.optimizer = torch.optim.SGD(model.parameters(), 1e-3, 0.9, weight_decay=1e-4, fused=True)
        self.bf16 = bf16

    def __call__(self) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            loss = F.cross_entropy(self.model(self.images).float(), self.labels)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def in_turns(steps: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each step, the steps taking turns; the first round is not counted."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if turn:
                times[name].append(1e3 * (time.perf_counter() - start))
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", default="resnet50")
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()

    def make(partners: bool, *, channels_last: bool, bf16: bool) -> Step:
        model = bpl.build_model(options.arch, 21, options.image_size)
        model = bpl.grow_partners(model) if partners else model
        return Step(model, options.batch, options.image_size, channels_last=channels_last, bf16=bf16)

    fast = make(True, channels_last=True, bf16=True)
    holder = MaskHolder(fast.model, bpl.prune_masks(fast.model, 0.7))

    def diversity() -> None:
        bpl.diversity_loss(fast.model).backward()

    def masks() -> None:
        holder.apply()
        holder.apply_to_momentum(fast.optimizer)

    steps = {
        "partners, NCHW float32": make(True, channels_last=False, bf16=False),
        "partners, channels_last float32": make(True, channels_last=True, bf16=False),
        "partners, channels_last bf16": fast,
        "diversity loss alone": diversity,
        "masks alone": masks,
        "dense, NCHW float32": make(False, channels_last=False, bf16=False),
        "dense, channels_last bf16": make(False, channels_last=True, bf16=True),
    }
    times = in_turns(steps, options.rounds)
    reference, step = times["partners, NCHW float32"], times["partners, channels_last bf16"]
    print(f"{options.arch}, {options.image_size} pixels, batch {options.batch}, {torch.get_num_threads()} threads,")
    print(f"medians of {options.rounds} rounds; throughput as a ratio to partners in NCHW float32")
    for name, values in times.items():
        if name.endswith("alone"):
            share = statistics.median(a / b for a, b in zip(values, step, strict=True))
            print(f"  {name:32} {statistics.median(values):8.1f} ms   {100 * share:5.1f} % of the bf16 step")
        else:
            ratio = statistics.median(a / b for a, b in zip(reference, values, strict=True))
            print(f"  {name:32} {statistics.median(values):8.1f} ms   {ratio:5.2f} x")


if __name__ == "__main__":
    main()
