"""Feature maps: what the filters of a network make of given images, and the statistics that criteria rank them by.

The output map of a filter is taken behind the batch normalisation and the activation that alone read its convolution:
it is what the next layer reads. Where an addition comes before the activation, the map is what is added.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, fx, nn

from bpl.channels import ChannelGraph
from bpl.channels.operations import ACTIVATION_CALLS, ACTIVATION_MODULES
from bpl.partner_conv import NORMS

Statistic = Callable[[Tensor], Tensor]  # maps (B, N, H, W) -> its sum over the images, the first dimension being N


def l1_norms(maps: Tensor) -> Tensor:
    """Sum of a channel's absolute values.

    Args:
        maps: (B, N, H, W).

    Returns:
        (N,) float64, summed over the images.
    """
    return maps.double().abs().sum((0, 2, 3))


def inner_products(maps: Tensor) -> Tensor:
    """Inner products of every two channels, each taken as one vector of all its pixels.

    Args:
        maps: (B, N, H, W).

    Returns:
        (N, N) float64, summed over the images.
    """
    vectors = maps.double().transpose(0, 1).flatten(1)  # (N, B H W)
    return vectors @ vectors.T


def ranks(maps: Tensor) -> Tensor:
    """Rank of a channel's map as an H x W matrix (HRank, Lin et al. 2020).

    A singular value counts if it is above max(H, W) eps times the largest, eps being that of float32: `numpy`'s rule.

    Args:
        maps: (B, N, H, W).

    Returns:
        (N,) float64, summed over the images.
    """
    return torch.linalg.matrix_rank(maps.float()).sum(0).double()


@torch.no_grad()
def mean_over_images(
    graph: ChannelGraph, convs: Iterable[str], batches: Iterable[Tensor], *statistics: Statistic
) -> dict[str, tuple[Tensor, ...]]:
    """Statistics of output maps, averaged over images.

    Args:
        graph: the channel analysis of a network; the network computes in the mode it is in, normally evaluation.
        convs: names of the convolutions to look at.
        batches: normalised images, each batch (B, 3, H, W), on the network's device.
        statistics: what to compute of each batch of maps.

    Returns:
        Conv name -> one tensor for each statistic, on the CPU.

    Raises:
        ValueError: there is no image, or the network does not use one of the convolutions in the mode that it is in.
    """
    names, modules = set(convs), dict(graph.model.named_modules())
    watched = {
        _output_node(node, modules): node.target
        for node in graph.traced.nodes
        if node.op == "call_module" and node.target in names
    }
    if missing := sorted(names.difference(watched.values())):
        mode = "training" if graph.model.training else "evaluation"
        raise ValueError(f"convolution {missing[0]!r} is not used in {mode} mode: there are no feature maps of it")
    sums: dict[str, list[Tensor]] = {}

    def look(node: fx.Node, maps: Any) -> None:
        if node in watched:
            found = [statistic(maps).clone() for statistic in statistics]  # not a view of what is overwritten next
            held = sums.get(watched[node])
            sums[watched[node]] = found if held is None else [a + b for a, b in zip(held, found, strict=True)]

    images, network = 0, _Watched(graph, look)
    for batch in batches:
        network.run(batch)
        images += len(batch)
    if images == 0:
        raise ValueError("no image to take feature maps of: at least one is needed")
    return {name: tuple(total.cpu() / images for total in totals) for name, totals in sums.items()}


class _Watched(fx.Interpreter):
    """Runs a network operation by operation and shows each result at once, before another works on it in place."""

    def __init__(self, graph: ChannelGraph, look: Callable[[fx.Node, Any], None]):
        super().__init__(graph.model, graph=graph.traced)
        self.constants, self.look = graph.constants, look

    def fetch_attr(self, target: str) -> Any:
        return self.constants[target] if target in self.constants else super().fetch_attr(target)

    def run_node(self, node: fx.Node) -> Any:
        result = super().run_node(node)
        self.look(node, result)
        return result


def _output_node(conv: fx.Node, modules: dict[str, nn.Module]) -> fx.Node:
    """The operation whose result is a convolution's output map."""
    node = conv
    while len(node.users) == 1:
        follower = next(iter(node.users))
        module = modules[follower.target] if follower.op == "call_module" else None
        if isinstance(module, ACTIVATION_MODULES) or (module is None and follower.target in ACTIVATION_CALLS):
            return follower
        if not isinstance(module, (*NORMS, nn.Identity)):  # an Identity stands behind a block with a partner
            break
        node = follower
    return node
