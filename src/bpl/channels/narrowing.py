"""Layers with fewer channels, in place: what slimming does to one layer, and what a trial tells of it beforehand."""

import torch
from torch import Tensor, nn


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
