"""Speed of pruned networks on this machine's GPU: images a second of a forward pass, beside the dense network.

    python benchmarks/gpu_inference.py [--out FILE] [--arch resnet50] [--image-size 256] [--ratio 0.7] [--rounds 20]
    python benchmarks/gpu_inference.py --small      # a tiny network: shows on a CPU, in seconds, that everything runs

Each network is timed in turns with all others, in bf16 and channels_last, batch normalisation folded. On a GPU every
pass is captured as a CUDA graph and replayed, so that what is timed is the GPU and not Python starting its kernels;
the same pass as Python starts it (eager) stands beside it. Weights are random: times depend on shapes only.
"""

import json
from collections.abc import Callable
from typing import Any

import torch
from steps import as_file, device_here, gpu_options, make_grown, measured_here
from torch import nn
from torch.fx.experimental.optimization import fuse

import bpl
from bpl.measure import OtherWork, count_macs, in_turns, quartiles
from bpl.sweep.chips import wait_for

ROUNDINGS = (1, 8, 16)
BATCHES = (1, 64)
REPEATS = 10  # passes in a turn, so that starting and waiting for the device do not count


def eager(model: nn.Module, x: torch.Tensor) -> Callable[[], None]:
    """A turn of passes as Python starts them; returns when the device has done them."""

    @torch.no_grad()
    def turn() -> None:
        for _ in range(REPEATS):
            model(x)
        wait_for(x.device)

    return turn


def captured(model: nn.Module, x: torch.Tensor) -> Callable[[], None]:
    """A turn of replays of one pass that was captured as a CUDA graph."""
    side = torch.cuda.Stream()
    with torch.no_grad(), torch.cuda.stream(side):
        for _ in range(3):  # libraries set up what may not be captured
            model(x)
    side.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        model(x)

    def turn() -> None:
        for _ in range(REPEATS):
            graph.replay()
        wait_for(x.device)

    return turn


def measure(arch: str, width: int | None, image_size: int, ratio: float, rounds: int) -> dict[str, Any]:
    """Median milliseconds of a pass: one row a network, batch size and way of starting it."""
    device, device_name = device_here()
    others = OtherWork()
    dense = make_grown(arch, image_size, width=width).eval()
    models = {"dense": dense}
    for rounding in ROUNDINGS:
        models[f"rounded to {rounding}"] = bpl.slim(dense, bpl.prune_masks(dense, ratio, round_to=rounding)).eval()
    on_device = {
        name: fuse(model).to(device, torch.bfloat16, memory_format=torch.channels_last)
        for name, model in models.items()
    }
    ways = {"eager": eager} | ({"graph": captured} if device.type == "cuda" else {})
    rows = []
    for batch in BATCHES:
        x = torch.randn(batch, 3, image_size, image_size, device=device, dtype=torch.bfloat16)
        x = x.contiguous(memory_format=torch.channels_last)
        turns = {(name, way): start(model, x) for name, model in on_device.items() for way, start in ways.items()}
        times = in_turns(turns, rounds, warm_up=2)
        for (name, way), milliseconds in times.items():
            low, middle, high = (value / REPEATS for value in quartiles(milliseconds))
            rows.append({"network": name, "batch": batch, "way": way, "ms": middle, "ms_quartiles": [low, high]})
    return {
        "network": {"arch": arch, "width": width, "image_size": image_size, "ratio": ratio, "rounds": rounds},
        "machine": measured_here("wall", others),
        "device": device_name,
        "macs": {name: count_macs(model, image_size) for name, model in models.items()},
        "rows": rows,
    }


def as_text(measured: dict[str, Any]) -> str:
    """The rows, each beside the dense network at the same batch size and started the same way."""
    dense = {(row["batch"], row["way"]): row["ms"] for row in measured["rows"] if row["network"] == "dense"}
    lines = [json.dumps(measured["network"]) + f" on {measured['device']}, torch {measured['machine']['torch']}"]
    for row in measured["rows"]:
        times = dense[row["batch"], row["way"]] / row["ms"]
        lines.append(
            f"  batch {row['batch']:3} {row['way']:6} {row['network']:14} {row['ms']:9.3f} ms "
            f"{1e3 * row['batch'] / row['ms']:10.1f} images/s, {times:5.2f} of dense"
        )
    return "\n".join(lines)


def main() -> None:
    parser = gpu_options(__doc__.splitlines()[0], rounds=20)
    parser.add_argument("--ratio", type=float, default=0.7)
    o = parser.parse_args()
    shape = ("resnet18", 8, 32) if o.small else (o.arch, None, o.image_size)
    measured = measure(*shape, o.ratio, 3 if o.small else o.rounds)
    print(as_text(measured))
    if o.out is not None:
        as_file(measured, o.out)


if __name__ == "__main__":
    main()
