"""Widths that meet a target on this machine: a share of the dense network's latency, MACs or parameters.

A uniform ratio cuts every layer alike; what a layer's channels cost differs from layer to layer, and time is no
multiple of multiply-accumulates. `widths_for` takes each layer's cost (counted, or measured by `bpl.layer_times`), lets
`bpl.pruning.width_search` choose, and for a latency then times the whole network, in turns with the dense one, and
searches again with a corrected limit until the target is met: what lies between the convolutions is in no table.

A latency is that of the network as it is deployed: under onnxruntime, on the threads that torch uses, one image at a
time unless asked otherwise. It belongs to this machine: elsewhere the same target gives other widths. The widths do not
depend on weights or seeds where no criterion is given, so that the runs of one table row are networks of one size.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from bpl.budget import TARGETS, Budget
from bpl.channels import ChannelGraph
from bpl.layer_times import LatencyCost, LayerTimes
from bpl.measure import forward_pass, in_turns
from bpl.pruning.channel_cost import ChannelCost
from bpl.pruning.criteria import CRITERIA
from bpl.pruning.masks import prunable_sets, prune_masks, scores_of
from bpl.pruning.slim import slim
from bpl.pruning.width_search import OutOfReach, kept_importance, search_widths, width_options

TRIES = 5  # searches with a corrected limit, each followed by a measurement
CLOSE = 0.95  # of the target: near enough to it to stop searching
ROUNDS = 25  # in which the dense and the smaller network take turns


@dataclass(frozen=True)
class Found:
    """Widths that meet a target.

    Attributes:
        widths: conv name -> how many of its filters stay, as `prune_masks` takes them.
        share: share of the dense network's cost that they leave, counted or measured.
    """

    widths: dict[str, int]
    share: float


def widths_for(
    model: nn.Module,
    target: Budget | str,
    image_size: int,
    *,
    scope: str = "inner",
    round_to: int = 1,
    criterion: str | None = None,
    batch_size: int = 1,
    times: LayerTimes | None = None,
    measure: Callable[[nn.Module], float] | None = None,
) -> Found:
    """Choose how many filters each layer keeps so that the network meets a target.

    Args:
        model: the dense network, without partners.
        target: such as ``latency:0.3``, ``macs:0.3`` or ``params:0.3``: the share that may stay.
        image_size: height and width of the images in pixels.
        scope: ``inner`` or ``all``, as for `prune_masks`.
        round_to: multiple that widths are rounded to.
        criterion: a key of `bpl.pruning.CRITERIA` that says which channels of a trained network matter; None for all
            channels of a layer alike.
        batch_size: images in a pass whose latency is meant.
        times: a table of layer times to go on with; None for a new one.
        measure: from a smaller network to its share of the dense one's time; None to time both under onnxruntime.

    Returns:
        The widths, and the share that they leave: at most the target's.

    Raises:
        ValueError: the target cannot be read, or cannot be met (the message says what the smallest reachable is),
            round_to is below 1, or the criterion is unknown.
    """
    target = Budget.parse(target, "target", TARGETS) if isinstance(target, str) else target
    if criterion is not None and criterion not in CRITERIA:
        raise ValueError(f"unknown criterion {criterion!r}: allowed are {', '.join(CRITERIA)}")
    graph = ChannelGraph(model)
    sets = prunable_sets(graph, scope)
    options = [width_options(channels.size, round_to) for channels in sets]
    chance = torch.Generator().manual_seed(0)
    importance = [
        kept_importance(s.size, None if criterion is None else scores_of(graph, s, criterion, chance)) for s in sets
    ]
    timed = target.cost == "latency"
    if timed:
        cost = LatencyCost(graph, sets, image_size, times or LayerTimes(batch_size))
        measure = measure or measured_share(model, image_size, batch_size)
    else:
        cost = ChannelCost(graph, sets, target.cost, image_size)

    def named(widths: Sequence[int]) -> dict[str, int]:
        return {name: width for channels, width in zip(sets, widths, strict=True) for name in channels.convs}

    @functools.cache
    def share_of(widths: tuple[int, ...]) -> float:
        if not timed:
            return cost.total(widths) / cost.full
        return measure(slim(model, prune_masks(model, 0, scope=scope, widths=named(widths))))

    narrowest = tuple(widths[0] for widths in options)
    best, limit = None, target.share * cost.full
    for _ in range(TRIES if timed else 1):
        try:
            widths = tuple(search_widths(options, importance, cost.total, limit))
        except OutOfReach:
            widths = narrowest
        share = share_of(widths)
        if share <= target.share and (best is None or share > best.share):
            best = Found(named(widths), share)
        if widths == narrowest or CLOSE * target.share <= share <= target.share:
            break
        limit *= 0.99 * target.share / share
    if best is None and share_of(narrowest) <= target.share:
        best = Found(named(narrowest), share_of(narrowest))
    if best is None:
        raise ValueError(
            f"target {target} cannot be met by {type(model).__name__} with scope {scope!r} and widths rounded to "
            f"{round_to}: the smallest reachable is {target.cost}:{share_of(narrowest):.3f}"
        )
    return best


def measured_share(
    model: nn.Module, image_size: int, batch_size: int = 1, clock: str = "wall"
) -> Callable[[nn.Module], float]:
    """Times smaller networks against a dense one under onnxruntime.

    Args:
        model: the dense network.
        image_size: height and width of the images in pixels.
        batch_size: images in a pass.
        clock: one of `bpl.measure.CLOCKS`.

    Returns:
        A function from a smaller network to its share of the dense one's time. Both take turns, and the fastest pass of
        each counts: other work on the machine only ever adds time.
    """
    dense = forward_pass(model, image_size, "onnxruntime")(batch_size)

    def share(small: nn.Module) -> float:
        run = forward_pass(small, image_size, "onnxruntime")(batch_size)
        times = in_turns({"dense": dense, "small": run}, ROUNDS, warm_up=2, clock=clock)
        return min(times["small"]) / min(times["dense"])

    return share
