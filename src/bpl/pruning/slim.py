"""Exact removal: from a masked network to a smaller ordinary one that computes the same."""

import torch
from torch import Tensor, nn

from bpl.channels import ChannelGraph
from bpl.copies import copy_of
from bpl.pruning.masks import MaskHolder, convs_of, norms_of, readers_of, removable


def _take(parameter: nn.Parameter | None, index: Tensor, dim: int) -> nn.Parameter | None:
    """The entries `index` of a parameter along `dim`, in its memory format."""
    if parameter is None:
        return None
    taken = parameter.detach().index_select(dim, index.to(parameter.device))
    if parameter.dim() == 4 and parameter.is_contiguous(memory_format=torch.channels_last):
        taken = taken.contiguous(memory_format=torch.channels_last)
    return nn.Parameter(taken, requires_grad=parameter.requires_grad)


def keep_filters(conv: nn.Conv2d, index: Tensor) -> None:
    """Keep only the output channels `index` of a convolution, in place. A depthwise one loses its inputs with them."""
    if conv.groups > 1:
        conv.groups = conv.in_channels = len(index)
    conv.weight = _take(conv.weight, index, 0)
    conv.bias = _take(conv.bias, index, 0)
    conv.out_channels = len(index)


def keep_channels(norm: nn.BatchNorm2d, index: Tensor) -> None:
    """Keep only the channels `index` of a batch normalisation, in place."""
    norm.weight = _take(norm.weight, index, 0)
    norm.bias = _take(norm.bias, index, 0)
    for name in ("running_mean", "running_var"):
        buffer = getattr(norm, name)
        if buffer is not None:
            setattr(norm, name, buffer.index_select(0, index.to(buffer.device)))
    norm.num_features = len(index)


def keep_inputs(layer: nn.Conv2d | nn.Linear, index: Tensor) -> None:
    """Keep only the input features `index` of a convolution or linear layer, in place."""
    layer.weight = _take(layer.weight, index, 1)
    if isinstance(layer, nn.Linear):
        layer.in_features = len(index)
    else:
        layer.in_channels = len(index)


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
        ValueError: a mask that does not fit the model.
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
