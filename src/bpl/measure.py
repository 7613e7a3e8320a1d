"""What a network costs: multiply-accumulates, parameters, time."""

import math
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from bpl.copies import check_has_values, check_is_network, copy_of, with_shapes_only
from bpl.shown import check_whole, kind_and_line, shown

BACKENDS = ("eager", "compile", "onnxruntime")
CLOCKS = ("wall", "processor")


def check_backend(backend: str) -> None:
    """Raise a ValueError for what is none of `BACKENDS`."""
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {shown(backend)}: allowed are {', '.join(BACKENDS)}")


def clock_of(clock: str) -> Callable[[], float]:
    """What reads a clock, in seconds.

    Args:
        clock: ``wall``: the time that a user waits. ``processor``: the time that all threads of this process computed.
            On one thread the two are the same on an idle machine, and the second stays the same on a busy one; on
            several threads it adds up what they computed, and what they waited for each other without sleeping.

    Raises:
        ValueError: unknown clock.
    """
    if clock not in CLOCKS:
        raise ValueError(f"unknown clock {clock!r}: allowed are {', '.join(CLOCKS)}")
    return time.process_time if clock == "processor" else time.perf_counter


def on_meta(model: nn.Module) -> nn.Module:
    """A copy of a network in evaluation mode that has shapes only: a pass through it computes nothing."""
    return with_shapes_only(model).eval()


@torch.no_grad()
def pass_shapes(shapes: nn.Module, channels: int, image_size: int) -> None:
    """Send one image without values through a network of `on_meta`.

    Args:
        shapes: the network.
        channels: of the image.
        image_size: its height and width in pixels.

    Raises:
        ValueError: a size below 1, or an image that the network does not take.
    """
    check_whole("image_size", image_size, 1)
    _, dtype = where_it_computes(shapes)
    try:
        with torch.device("meta"):  # what the forward pass makes of numbers has no values either
            shapes(torch.empty(1, channels, image_size, image_size, dtype=dtype))
    except Exception as error:  # whatever a layer raises on an image that is not its own
        raise ValueError(
            f"{type(shapes).__name__} does not take an image of {channels} x {image_size} x {image_size} by itself: "
            f"{kind_and_line(error)}"
        ) from error


def where_it_computes(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Device and type of a network's first parameter; of one without any, the processor and torch's default type."""
    first = next(model.parameters(), torch.empty(0, device="cpu"))
    return first.device, first.dtype


@contextmanager
def blamed_on_images(model: nn.Module, image_size: int, channels: int | None) -> Iterator[None]:
    """What fails within and has its reason in the images is said as `pass_shapes` says it.

    Args:
        model: the network that images are sent through.
        image_size: their height and width in pixels.
        channels: as of `count_macs`.
    """
    try:
        yield
    except Exception:
        pass_shapes(on_meta(model), image_channels(model, image_size, channels), image_size)
        raise


def image_channels(model: nn.Module, image_size: int, channels: int | None = None) -> int:
    """How many channels the images of a network have.

    Args:
        model: the network; it is not changed, and nothing is computed.
        image_size: height and width of the images in pixels.
        channels: what is known; None to look at the network.

    Returns:
        What is known, or the input channels of its first convolution. Where these are not 3, the network may still take
        images with 3 channels (it rearranges them first, or has a convolution of a head before its stem): if so, 3.

    Raises:
        ValueError: channels below 1.
    """
    if channels is not None:
        check_whole("channels", channels, 1)
        return channels
    convs = (module for module in model.modules() if isinstance(module, nn.Conv2d))
    channels = next((conv.in_channels for conv in convs), 3)
    if channels != 3:
        try:
            pass_shapes(on_meta(model), 3, image_size)
        except ValueError:
            return channels
    return 3


def widths_of(model: nn.Module) -> dict[str, int]:
    """How many filters each convolution of a network has, by its name."""
    return {name: module.out_channels for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}


def count_macs(model: nn.Module, image_size: int, channels: int | None = None) -> int:
    """Multiply-accumulates of one image's forward pass in convolutions and linear layers.

    Args:
        model: a network; it is not changed.
        image_size: height and width of the image in pixels.
        channels: of the image; None for what the network's first convolution reads, or 3 where it takes that too.

    Returns:
        MACs (half of what `torch.utils.flop_counter` counts as FLOPs). Batch normalisation, activations and biases are
        not counted. Nothing is computed: the count runs on the meta device.

    Raises:
        ValueError: a size below 1, or an image that the network does not take.
    """
    return macs_of_modules(model, image_size, channels)[""]


def macs_of_modules(model: nn.Module, image_size: int, channels: int | None = None) -> dict[str, int]:
    """`count_macs` of every module of a network that has any, by name; "" is the whole network.

    Args:
        model: a network; it is not changed.
        image_size: height and width of the image in pixels.
        channels: as of `count_macs`.

    Raises:
        ValueError: a size or a number of channels below 1, or an image that the network does not take.
    """
    shapes = on_meta(model)
    channels = image_channels(shapes, image_size, channels)
    with FlopCounterMode(display=False) as counter:
        pass_shapes(shapes, channels, image_size)
    counts = counter.get_flop_counts()  # "ResNet.layer1.0.conv1" -> operation -> FLOPs
    macs = {path.partition(".")[2]: sum(of.values()) // 2 for path, of in counts.items()}
    return macs | {"": counter.get_total_flops() // 2}


def count_params(model: nn.Module) -> int:
    """Number of parameters of a network, biases and batch normalisation included, buffers not.

    Args:
        model: the network.

    Raises:
        TypeError: not a network.
    """
    check_is_network(model)
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


def forward_pass(
    model: nn.Module, image_size: int, backend: str, channels: int | None = None
) -> Callable[[int], Callable[[], object]]:
    """Make ready what runs a network in evaluation mode.

    Args:
        model: the network, on the device to run on; it is not changed.
        image_size: height and width of the images in pixels.
        backend: ``eager``, ``compile`` (torch.compile) or ``onnxruntime`` (CPU).
        channels: of the images; as of `count_macs`.

    Returns:
        A function from a batch size to a function without arguments that runs one forward pass of noise to its end.

    Raises:
        ValueError: unknown backend.
    """
    check_backend(backend)
    network = copy_of(model).eval().to(memory_format=torch.channels_last)
    channels = image_channels(network, image_size, channels)

    def noise(batch_size: int) -> torch.Tensor:
        device, dtype = where_it_computes(network)
        images = torch.randn(batch_size, channels, image_size, image_size, device=device, dtype=dtype)
        return images.to(memory_format=torch.channels_last)

    if backend == "onnxruntime":
        from bpl.onnx_files import in_a_precision_of_onnx, onnx_session

        network = in_a_precision_of_onnx(network)
        session = onnx_session(network, image_size, channels)

        def make(batch_size: int) -> Callable[[], object]:
            array = noise(batch_size).cpu().numpy()
            return lambda: session.run(None, {"images": array})

        return make
    if backend == "compile":
        network = torch.compile(network)

    def make(batch_size: int) -> Callable[[], object]:
        images = noise(batch_size)

        @torch.inference_mode()
        def run() -> None:
            network(images)
            if images.device.type == "cuda":
                torch.cuda.synchronize()

        return run

    return make


def measure_latency(
    model: nn.Module,
    image_size: int,
    batch_size: int = 1,
    backend: str = "eager",
    *,
    channels: int | None = None,
    seconds: float = 1.0,
    warm_up: int = 3,
) -> Latency:
    """Time the forward pass of a network in evaluation mode.

    Args:
        model: the network, on the device to measure on; it is not changed.
        image_size: height and width of the images in pixels.
        batch_size: images in a pass.
        backend: ``eager``, ``compile`` (torch.compile) or ``onnxruntime`` (CPU).
        channels: of the images; as of `count_macs`.
        seconds: time to spend on counted passes; at least 5 passes are made.
        warm_up: passes made before, not counted.

    Returns:
        Median and quartiles, with all that they depend on.

    Raises:
        ValueError: unknown backend, a size, a number of passes or a time that cannot be, weights without values, or
            images that the network does not take.
    """
    for what, value, least in (("image_size", image_size, 1), ("batch_size", batch_size, 1), ("warm_up", warm_up, 0)):
        check_whole(what, value, least)
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds < math.inf:
        raise ValueError(f"seconds is {shown(seconds)}: it must be a number of at least 0")
    check_has_values(model)
    device, _ = where_it_computes(model)
    with blamed_on_images(model, image_size, channels):
        run = forward_pass(model, image_size, backend, channels)(batch_size)
        for _ in range(warm_up):
            run()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 5 or time.perf_counter() < end:
        start = time.perf_counter()
        run()
        times.append((time.perf_counter() - start) * 1e3)
    low, median, high = quartiles(times)
    return Latency(
        median_ms=median,
        low_ms=low,
        high_ms=high,
        passes=len(times),
        backend=backend,
        batch_size=batch_size,
        image_size=image_size,
        threads=torch.get_num_threads(),
        device="cpu" if backend == "onnxruntime" or device.type == "cpu" else torch.cuda.get_device_name(device),
    )


def in_turns(
    runs: Mapping[str, Callable[[], object]], rounds: int, warm_up: int = 1, clock: str = "wall"
) -> dict[str, list[float]]:
    """Time several things that take turns, so that a drift of the machine's speed hits all of them alike.

    Times of different things may then be compared round by round (`quartiles` of their ratios), also on a machine that
    is at work for others.

    Args:
        runs: name -> what to run.
        rounds: rounds that count.
        warm_up: rounds before, that do not.
        clock: one of `CLOCKS`.

    Returns:
        name -> milliseconds, one a round.

    Raises:
        ValueError: unknown clock.
    """
    now = clock_of(clock)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(-warm_up, rounds):
        for name, run in runs.items():
            start = now()
            run()
            if turn >= 0:
                times[name].append(1e3 * (now() - start))
    return times


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """The 25th percentile, the median and the 75th percentile; of one value three times that value."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


class OtherWork:
    """How busy other programs kept the machine while this one measured: what a reader of the times has to know.

    Args:
        stat: where Linux counts the time of its processors; on a system without it nothing is known.
    """

    def __init__(self, stat: Path = Path("/proc/stat")):
        self._stat = stat
        self._start = self._now()

    def _now(self) -> tuple[float, float, float] | None:
        """Seconds so far: all processors busy, all processors there, this process busy."""
        try:
            fields = [int(field) for field in self._stat.read_text().split("\n", 1)[0].split()[1:9]]
        except OSError:
            return None
        idle = fields[3] + fields[4]  # user, nice, system, idle, waiting for a disk, two of interrupts, stolen
        ticks = os.sysconf("SC_CLK_TCK")  # a second
        return (sum(fields) - idle) / ticks, sum(fields) / ticks, time.process_time()

    def share(self) -> float | None:
        """Share of the processors' time since this object was made that went to other programs; None if not known."""
        if self._start is None or (now := self._now()) is None:
            return None
        busy, there, own = (after - before for before, after in zip(self._start, now, strict=True))
        return round(min(1.0, max(0.0, (busy - own) / there)), 3) if there else None
