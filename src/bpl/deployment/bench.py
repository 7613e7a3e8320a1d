"""What pruned networks of one architecture cost on this machine: the measurements behind the latency page.

Every network is timed in turns with all the others and with the dense one, so that a ratio of two times holds also
where other work slowed the machine down; how far the ratios spread from round to round is kept beside them.
"""

import gc
import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from bpl.budget import TARGETS, Budget
from bpl.channels import ChannelGraph
from bpl.hardware import measured_share, widths_for
from bpl.layer_times import LatencyCost, LayerTimes, layers_of
from bpl.machine.atomic import write_atomic
from bpl.machine.this_machine import machine
from bpl.measure import OtherWork, clock_of, count_macs, count_params, forward_pass, in_turns, quartiles, widths_of
from bpl.memory import inference_memory
from bpl.models import build_model
from bpl.pruning import prune_masks, slim
from bpl.pruning.masks import kept_filters, prunable_sets

SCHEMA = 1
RATIOS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
ROUNDINGS = (1, 8, 16)
LAYERS_OF = (0.0, 0.7)  # ratios whose layers are timed one by one
TURN = 0.15  # seconds: a network is run so long in its turn, once at least


def survey(
    arch: str,
    image_size: int,
    *,
    width: int | None = None,
    classes: int = 21,
    ratios: Sequence[float] = RATIOS,
    target: float = 0.3,
    batch_sizes: Sequence[int] = (1, 16),
    backends: Sequence[str] = ("eager", "onnxruntime"),
    rounds: int = 7,
    clock: str = "wall",
    progress: bool = True,
) -> dict[str, Any]:
    """Measure the dense network, the uniformly pruned ones at every rounding, and the one that meets a latency target.

    The pruned networks have random weights: time and memory depend on shapes only.

    Args:
        arch: a name of `bpl.models.NAMES`.
        image_size: height and width of the images in pixels.
        width: filters of the first stage; None for the published width.
        classes: number of classes.
        ratios: shares of the filters removed per layer.
        target: share of the dense network's latency (onnxruntime, batch 1) that hardware-aware widths have to meet.
        batch_sizes: images in a pass.
        backends: what runs the networks: of `bpl.measure.BACKENDS`.
        rounds: rounds that count, in which all networks take turns.
        clock: one of `bpl.measure.CLOCKS`; on a machine that is shared ``processor``, and one thread.
        progress: show progress bars on standard error.

    Returns:
        Plain values, as in the JSON file that the page reads (`bpl.report.survey.load_survey`).

    Raises:
        ValueError: unknown network, clock or backend, or a target that cannot be met.
    """
    clock_of(clock)  # what is unknown is refused now
    Budget.parse(f"latency:{target:g}", "target", TARGETS)
    others = OtherWork()
    torch.manual_seed(0)
    dense = build_model(arch, classes, image_size, width)
    plan: list[dict[str, Any]] = [{"name": "dense", "ratio": 0.0, "round_to": 1, "target": None}]
    models: dict[str, nn.Module] = {"dense": dense}
    for round_to in ROUNDINGS:
        for ratio in ratios:
            name = f"ratio {ratio:g}, rounded to {round_to}"
            plan.append({"name": name, "ratio": ratio, "round_to": round_to, "target": None})
            models[name] = slim(dense, prune_masks(dense, ratio, round_to=round_to))
    times = LayerTimes()
    for entry, model in _for_target(dense, image_size, target, times, clock):
        plan.append(entry)
        models[entry["name"]] = model

    networks = []
    for entry in plan:
        model = models[entry["name"]]
        memory = inference_memory(model, image_size)
        costs = {"macs": count_macs(model, image_size), "params": count_params(model), "memory": memory}
        networks.append(entry | costs | {"widths": widths_of(model)})
    result = {
        "schema": SCHEMA,
        "network": {"arch": arch, "image_size": image_size, "width": width, "classes": classes},
        "machine": machine() | {"date": time.strftime("%Y-%m-%d"), "clock": clock},
        "peak": peak_rates(clock=clock),
        "networks": networks,
        "layers": _layers(models, plan, image_size, times),
        "times": [],
    }
    bar = tqdm(total=len(models) * len(backends), desc="networks made ready", disable=not progress)
    for backend in backends:
        passes = {}
        for name, model in models.items():
            passes[name] = forward_pass(model, image_size, backend)
            bar.update()
        for batch_size in batch_sizes:
            result["times"] += _times(passes, backend, batch_size, rounds, clock)
        del passes
        gc.collect()  # some gigabytes of sessions
    bar.close()
    result["machine"]["others"] = others.share()
    return result


Passes = dict[str, Callable[[int], Callable[[], object]]]  # name -> batch size -> one forward pass


def _times(passes: Passes, backend: str, batch_size: int, rounds: int, clock: str) -> list[dict[str, Any]]:
    """Times of all networks in turns, and how many times faster than the dense one each is, round by round."""
    runs = {name: make(batch_size) for name, make in passes.items()}
    first = in_turns(runs, rounds=1, clock=clock)
    repeats = {name: max(1, round(1e3 * TURN / once)) for name, (once,) in first.items()}

    def turn(name: str) -> None:
        for _ in range(repeats[name]):
            runs[name]()

    turns = in_turns({name: partial(turn, name) for name in runs}, rounds, clock=clock)
    measured = {name: [value / repeats[name] for value in values] for name, values in turns.items()}
    rows = []
    for name, values in measured.items():
        low, middle, high = quartiles(values)
        faster = quartiles([a / b for a, b in zip(measured["dense"], values, strict=True)])
        rows.append(
            {
                "network": name, "backend": backend, "batch_size": batch_size, "rounds": rounds,
                "median_ms": round(middle, 4), "low_ms": round(low, 4), "high_ms": round(high, 4),
                "speed_up": [round(value, 4) for value in faster],
            }
        )  # fmt: skip
    return rows


def _for_target(
    dense: nn.Module, image_size: int, share: float, times: LayerTimes, clock: str
) -> list[tuple[dict[str, Any], nn.Module]]:
    """The network of hardware-aware widths for a latency target, and the uniformly pruned one that takes as long.

    Both have widths rounded to 8, so that they differ only in how the widths are spread over the layers. The uniform
    ratio is the smallest, in hundredths, whose network was measured to take no longer than the other; the sum of its
    layers' times says where to begin.
    """
    round_to, target = 8, f"latency:{share:g}"
    measure = measured_share(dense, image_size, clock=clock)
    found = widths_for(dense, target, image_size, round_to=round_to, times=times, measure=measure)
    graph = ChannelGraph(dense)
    sets = prunable_sets(graph)
    cost = LatencyCost(graph, sets, image_size, times)
    limit = cost.total([found.widths[channels.convs[0]] for channels in sets])
    ratios: dict[tuple[int, ...], float] = {}  # widths -> the first of the ratios that give them
    for step in range(100):
        ratios.setdefault(tuple(kept_filters(channels.size, step / 100, round_to) for channels in sets), step / 100)
    widths, steps = list(ratios), list(ratios.values())

    def is_as_fast(index: int) -> bool:
        return measure(slim(dense, prune_masks(dense, steps[index], round_to=round_to))) <= found.share

    at = next((index for index, kept in enumerate(widths) if cost.total(kept) <= limit), len(steps) - 1)
    if is_as_fast(at):
        while at > 0 and is_as_fast(at - 1):
            at -= 1
    else:
        while at < len(steps) - 1 and not is_as_fast(at := at + 1):
            pass
    aware = {"name": f"target {target}", "ratio": round(1 - share, 6), "round_to": round_to, "target": target}
    uniform = {"name": f"as fast, ratio {steps[at]:g}", "ratio": steps[at], "round_to": round_to, "target": None}
    return [
        (aware, slim(dense, prune_masks(dense, 0, widths=found.widths))),
        (uniform, slim(dense, prune_masks(dense, steps[at], round_to=round_to))),
    ]


def _layers(
    models: dict[str, nn.Module], plan: list[dict[str, Any]], image_size: int, times: LayerTimes
) -> dict[str, list[dict[str, Any]]]:
    """Multiply-accumulates, least traffic and time of every convolution, of the dense network and of some others."""
    chosen = [e["name"] for e in plan if e["ratio"] in LAYERS_OF and e["target"] is None and e["round_to"] in (1, 16)]
    return {
        name: [
            {"name": conv, "macs": layer.macs, "bytes": layer.traffic, "ms": round(times(layer), 4)}
            for conv, layer in layers_of(models[name], image_size)
            if isinstance(models[name].get_submodule(conv), nn.Conv2d)
        ]
        for name in chosen
    }


def peak_rates(size: int = 768, megabytes: int = 64, clock: str = "wall") -> dict[str, float]:
    """What this machine can do at best: the two roofs of a roofline.

    Args:
        size: rows and columns of the matrices that are multiplied.
        megabytes: size of the array that is copied.
        clock: one of `bpl.measure.CLOCKS`.

    Returns:
        ``macs_per_second`` of a float32 matrix product, and ``bytes_per_second`` read and written by a copy: the best
        of some tries, on as many threads as torch uses.
    """
    a, b = torch.rand(size, size), torch.rand(size, size)
    source = torch.rand(megabytes * 2**20 // 4)
    target = torch.empty_like(source)
    times = in_turns({"product": lambda: torch.mm(a, b), "copy": lambda: target.copy_(source)}, rounds=40, clock=clock)
    return {
        "macs_per_second": round(size**3 / (min(times["product"]) / 1e3)),
        "bytes_per_second": round(2 * source.nbytes / (min(times["copy"]) / 1e3)),
    }


def save_survey(result: dict[str, Any], path: Path) -> Path:
    """Write a survey as JSON, one entry of a list on a line, whole or not at all.

    Args:
        result: what `survey` returned.
        path: the file; its folder is made.

    Returns:
        The path.
    """
    parts = []
    for key, value in result.items():
        if isinstance(value, list):
            lines = ",\n".join(f"  {json.dumps(entry)}" for entry in value)
            parts.append(f" {json.dumps(key)}: [\n{lines}\n ]")
        else:
            parts.append(f" {json.dumps(key)}: {json.dumps(value)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, ("{\n" + ",\n".join(parts) + "\n}\n").encode())
    return path
