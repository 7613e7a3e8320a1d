"""What every channel costs: a network's multiply-accumulates or parameters as a function of its widths.

Let n_s be the number of channels left in channel set s. A convolution that reads set s and produces set t has
n_s n_t k_h k_w weights, each used once per pixel of its output map, and never in a layer that only training uses.
So the cost of the network is a polynomial

    cost(n) = constant + sum_s a_s n_s + sum_{s <= t} a_st n_s n_t

whose coefficients follow from the shapes of the layers. One channel of s then costs cost(n) - cost(n - e_s), which
depends on how many channels are left on the other side: the weight that MorphNet gives to a channel's batch
normalisation scale (Gordon et al. 2018, who count a channel as alive or not).
"""

import math
from collections import Counter
from collections.abc import Sequence

from torch import Tensor

from bpl.budget import COSTS
from bpl.channels import ChannelGraph, Channels
from bpl.measure import count_macs, count_params, image_channels, on_meta, pass_shapes
from bpl.partner import partner_blocks


class ChannelCost:
    """The cost of a network whose channel sets are cut to given widths, exactly.

    Args:
        graph: the channel analysis of the network at its full widths, without partners.
        sets: the channel sets that may lose channels (`bpl.pruning.masks.prunable_sets`).
        cost: "macs" (multiply-accumulates of convolutions and linear layers, as `count_macs`) or "params"
            (parameters, classifier and batch normalisation included, as `count_params`).
        image_size: height and width of the images in pixels.

    Attributes:
        sizes: the full width of each set.
        full: the cost of the whole network.

    Raises:
        ValueError: unknown cost, or a network with partners.
    """

    def __init__(self, graph: ChannelGraph, sets: Sequence[Channels], cost: str, image_size: int):
        if cost not in COSTS:
            raise ValueError(f"unknown cost {cost!r}: allowed are {', '.join(COSTS)}")
        if blocks := partner_blocks(graph.model):
            raise ValueError(f"{next(iter(blocks))!r} has a partner: channels are counted in the fused network")
        self.sizes = [channels.size for channels in sets]
        self.full = count_macs(graph.model, image_size) if cost == "macs" else count_params(graph.model)
        self._terms = _terms(graph, sets, _uses(graph, image_size) if cost == "macs" else None)
        self._constant = 0
        self._constant = self.full - int(self.total(self.sizes))  # layers that no set touches

    def total(self, widths: Sequence[float]) -> float:
        """The network's cost.

        Args:
            widths: channels left in each set; an int for whole channels gives an exact int.
        """
        return self._constant + sum(a * math.prod(widths[s] for s in term) for term, a in self._terms.items())

    def of_channel(self, widths: Sequence[float]) -> list[float]:
        """What removing one more channel saves, for each set.

        Args:
            widths: channels left in each set, at least 1.
        """
        whole = self.total(widths)
        return [whole - self.total([n - (s == t) for t, n in enumerate(widths)]) for s in range(len(widths))]


def _terms(graph: ChannelGraph, sets: Sequence[Channels], uses: dict[str, int] | None) -> dict[tuple[int, ...], int]:
    """The coefficients of the polynomial: indices of one or two sets -> coefficient.

    Args:
        graph: the channel analysis.
        sets: the sets that may lose channels.
        uses: as `_uses` counts them, for multiply-accumulates; None to count parameters.
    """
    produced = {name: s for s, channels in enumerate(sets) for name in channels.convs}
    read = {name: (s, features) for s, channels in enumerate(sets) for name, features in channels.readers}
    terms: Counter[tuple[int, ...]] = Counter()
    for name in produced | read:
        layer = graph.model.get_submodule(name)
        outputs, inputs, *kernel = layer.weight.shape  # a depthwise convolution has 1 input, and reads no set
        coefficient = math.prod(kernel) * (1 if uses is None else uses[name])
        term: list[int] = []
        if name in produced:
            term.append(produced[name])
        else:
            coefficient *= outputs
        if name in read:
            s, features = read[name]  # features: inputs of a linear layer that one channel stands for
            term.append(s)
            coefficient *= features
        else:
            coefficient *= inputs
        terms[tuple(sorted(term))] += coefficient
        if uses is None and name in produced and layer.bias is not None:
            terms[(produced[name],)] += 1
    for s, channels in enumerate(sets if uses is None else []):
        norms = [graph.model.get_submodule(name) for name in channels.norms]
        terms[(s,)] += sum(value is not None for norm in norms for value in (norm.weight, norm.bias))  # gamma, beta
    return dict(terms)


def _uses(graph: ChannelGraph, image_size: int) -> Counter[str]:
    """Layer name -> how often one image uses each of its weights, from a pass in evaluation mode on the meta device.

    A convolution uses them once for every pixel of its output map, a linear layer once; what only training uses, never.
    """
    shapes = on_meta(graph.model)
    channels = image_channels(shapes, image_size)
    uses: Counter[str] = Counter()

    def count(name: str, output: Tensor) -> None:
        uses[name] += output.shape[2:].numel()  # of (1, N, H, W) or (1, N)

    for name in {*graph.sites, *(name for channels in graph.sets for name, _ in channels.readers)}:
        shapes.get_submodule(name).register_forward_hook(lambda _, __, output, name=name: count(name, output))
    pass_shapes(shapes, channels, image_size)
    return uses
