"""What a network costs: multiply-accumulates, parameters, time."""

import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

BACKENDS = ("eager", "compile", "onnxruntime")


@torch.no_grad()
def count_macs(model: nn.Module, image_size: int) -> int:
    """Multiply-accumulates of one image's forward pass in convolutions and linear layers.

    Args:
        model: a network for images with 3 channels; it is not changed.
        image_size: height and width of the image in pixels.

    Returns:
        MACs (half of what `torch.utils.flop_counter` counts as FLOPs). Batch normalisation, activations and biases are
        not counted. Nothing is computed: the count runs on the meta device.
    """
    shapes = copy.deepcopy(model).to("meta").eval()
    with FlopCounterMode(display=False) as counter:
        shapes(torch.empty(1, 3, image_size, image_size, device="meta", dtype=next(shapes.parameters()).dtype))
    return counter.get_total_flops() // 2


def count_params(model: nn.Module) -> int:
    """Number of parameters of a network, biases and batch normalisation included, buffers not."""
    return sum(parameter.numel() for parameter in model.parameters())


@dataclass(frozen=True)
class Latency:
    """Time of one forward pass.

    Attributes:
        median_ms: median over the counted passes, milliseconds for the whole batch.
        low_ms: 25th percentile, milliseconds.
        high_ms: 75th percentile, milliseconds.
        passes: number of counted passes.
        backend: what ran it.
        batch_size: images in a pass.
        image_size: height and width in pixels.
        threads: threads allowed to one operation.
        device: "cpu" or the name of the accelerator.
    """

    median_ms: float
    low_ms: float
    high_ms: float
    passes: int
    backend: str
    batch_size: int
    image_size: int
    threads: int
    device: str


def _runner(model: nn.Module, images: torch.Tensor, backend: str) -> Callable[[], object]:
    """A function without arguments that runs one forward pass to its end."""
    if backend == "onnxruntime":
        from bpl.export import onnx_session

        session = onnx_session(model, images.shape[-1])
        array = images.cpu().numpy()
        return lambda: session.run(None, {"images": array})
    if backend == "compile":
        model = torch.compile(model)
    if images.device.type == "cuda":

        def run() -> None:
            model(images)
            torch.cuda.synchronize()

        return run
    return lambda: model(images)


@torch.inference_mode()
def measure_latency(
    model: nn.Module,
    image_size: int,
    batch_size: int = 1,
    backend: str = "eager",
    *,
    seconds: float = 1.0,
    warm_up: int = 3,
) -> Latency:
    """Time the forward pass of a network in evaluation mode.

    Args:
        model: the network, on the device to measure on; it is not changed.
        image_size: height and width of the images in pixels.
        batch_size: images in a pass.
        backend: ``eager``, ``compile`` (torch.compile) or ``onnxruntime`` (CPU).
        seconds: time to spend on counted passes; at least 5 passes are made.
        warm_up: passes made before, not counted.

    Returns:
        Median and quartiles, with all that they depend on.

    Raises:
        ValueError: unknown backend, or a batch size below 1.
    """
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}: allowed are {', '.join(BACKENDS)}")
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}: it must be at least 1")
    device = next(model.parameters()).device
    network = copy.deepcopy(model).eval().to(memory_format=torch.channels_last)
    dtype = next(model.parameters()).dtype
    images = torch.randn(batch_size, 3, image_size, image_size, device=device, dtype=dtype)
    run = _runner(network, images.to(memory_format=torch.channels_last), backend)
    for _ in range(warm_up):
        run()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 5 or time.perf_counter() < end:
        start = time.perf_counter()
        run()
        times.append((time.perf_counter() - start) * 1e3)
    low, _, high = statistics.quantiles(times, n=4)
    return Latency(
        median_ms=statistics.median(times),
        low_ms=low,
        high_ms=high,
        passes=len(times),
        backend=backend,
        batch_size=batch_size,
        image_size=image_size,
        threads=torch.get_num_threads(),
        device="cpu" if device.type == "cpu" else torch.cuda.get_device_name(device),
    )
