"""Channels of zeros that could be gone: the mark of a network that was masked and never slimmed."""

import torch
from torch import Tensor, nn

from bpl.channels import ChannelGraph, Channels
from bpl.copies import check_has_values
from bpl.partner import refuse_unfused
from bpl.pruning.masks import prunable_sets


@torch.no_grad()
def masks_of_zeros(model: nn.Module) -> dict[str, Tensor]:
    """Find the channels that emit exactly 0 whatever the image, and that `bpl.slim` could remove.

    A channel is found where every convolution that feeds it is zero there: its filter and its bias, or gamma and beta
    of the batch normalisation behind it. Channels that something else feeds too (one side of an addition only) are no
    waste: they carry the other side's values.

    Args:
        model: a plain network; one that cannot be traced has nothing that could be slimmed.

    Returns:
        Conv name -> bool tensor (N,), True = kept: masks for `bpl.slim`, which then computes the same. At least one
        channel of each convolution stays. Empty where there is nothing to remove.

    Raises:
        ValueError: the network has partners, is inside a wrapper, or has weights without values.
    """
    refuse_unfused(model)
    check_has_values(model)
    try:
        graph = ChannelGraph(model)
    except ValueError:
        return {}
    masks: dict[str, Tensor] = {}
    for channels in prunable_sets(graph, "all"):
        live = _live(graph, channels)
        if not live.any():
            live[0] = True  # a convolution cannot have no filter at all
        if not live.all():
            masks |= {name: live.clone() for name in channels.convs}
    return masks


def _live(graph: ChannelGraph, channels: Channels) -> Tensor:
    """Which channels of a set are not zero for sure: bool (N,) on the CPU."""
    own_norms = {name: graph.sites[name].norm for name in channels.convs}
    live = torch.zeros(channels.size, dtype=torch.bool)
    for name, norm in own_norms.items():
        live |= _emits(graph.model.get_submodule(norm or name))
    for norm in set(channels.norms) - set(own_norms.values()):  # behind an addition: 0 comes out only where beta is 0
        live |= _emits(graph.model.get_submodule(norm))
    return live


def _emits(layer: nn.Conv2d | nn.BatchNorm2d) -> Tensor:
    """Which output channels of a layer have a weight or a bias other than 0: bool (N,) on the CPU."""
    used = (layer.weight != 0).flatten(1).any(1) if isinstance(layer, nn.Conv2d) else layer.weight != 0
    return (used if layer.bias is None else used | (layer.bias != 0)).cpu()
