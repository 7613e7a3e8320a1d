"""Exact removal: from a masked network to a smaller ordinary one that computes the same."""

import torch
from torch import Tensor, nn

from bpl.channels import ChannelGraph
from bpl.channels.narrowing import keep_channels, keep_filters, keep_inputs
from bpl.copies import copy_of
from bpl.pruning.mask_holder import MaskHolder
from bpl.pruning.masks import convs_of, norms_of, readers_of, removable


def slim(model: nn.Module, masks: dict[str, Tensor]) -> nn.Module:
    """Remove the masked channels for good.

    A masked channel emits exactly 0, so whoever reads it reads nothing, and the channel can go from every module that
    shares it (`bpl.channels`). Channels that something outside the masks still feeds (one side of an addition only)
    stay, as zeros.

    Args:
        model: a network, with or without partners; it is not changed.
        masks: conv name -> bool tensor (N,), True = kept.

    Returns:
        A new network of ordinary modules, without masks, that computes in evaluation mode exactly what `model` computes
        with these masks applied. Where the model has partners, so has the new one.

    Raises:
        TypeError: the model is no network.
        ValueError: a mask that does not fit the model, or a forward pass that cannot be traced.
    """
    small = copy_of(model)
    graph = ChannelGraph(small)
    MaskHolder(small, masks, graph=graph).apply()
    for channels in graph.sets:
        kept = removable(channels, masks)
        if kept is None:
            continue
        index = kept.nonzero().flatten()
        for name in channels.convs:
            module = small.get_submodule(name)
            for conv in convs_of(module):
                keep_filters(conv, index)
            for norm in norms_of(module):
                keep_channels(norm, index)
        for name in channels.norms:
            keep_channels(small.get_submodule(name), index)
        for name, features in channels.readers:
            per_channel = torch.arange(features)
            columns = (index[:, None] * features + per_channel).flatten()  # a channel's features lie side by side
            for layer in readers_of(small.get_submodule(name)):
                keep_inputs(layer, columns)
    return small
