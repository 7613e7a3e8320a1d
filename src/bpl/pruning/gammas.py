"""Batch normalisation scales as channel switches: how strong a channel is, how many are left, what they are charged.

A channel's *scale* is the mean of |gamma| over the batch normalisations that it passes: one for most channels, two for
the expanded channels of MobileNetV2 (behind the 1 x 1 and behind the depthwise convolution), several where an addition
ties channels together.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bpl.channels import Channels


def channel_scales(model: nn.Module, sets: Sequence[Channels]) -> list[Tensor]:
    """The scale of every channel, differentiable in the gammas.

    Args:
        model: the network, at its full widths, without partners.
        sets: its channel sets.

    Returns:
        One tensor (n_s,) for each set.

    Raises:
        ValueError: a set without batch normalisation has no gamma.
    """
    scales = []
    for channels in sets:
        gammas = [norm.weight.abs() for norm in map(model.get_submodule, channels.norms)]
        if not gammas:
            raise ValueError(f"the channels of {channels.convs[0]!r} have no gamma: no batch normalisation follows it")
        scales.append(torch.stack(gammas).mean(0))
    return scales


def effective_widths(scales: Sequence[Tensor]) -> list[float]:
    """How many channels of each set are at work: (sum |gamma|)^2 / sum gamma^2, the participation ratio.

    k equal scales among zeros give k; in between it varies smoothly. Unlike a count above a threshold it does not
    change when all scales of a set shrink together, which the next convolution's weights can undo.

    Args:
        scales: one tensor (n_s,) for each set.

    Returns:
        A number of 1 to n_s for each set; n_s where all scales are 0.
    """
    sums = [scale.detach().double() for scale in scales]
    return [float(s.sum() ** 2 / s.square().sum()) if s.any() else float(len(s)) for s in sums]


def gamma_penalty(scales: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """sum_s w_s sum_c |gamma_sc|: each channel pays for what it costs (MorphNet, Gordon et al. 2018).

    Args:
        scales: one tensor (n_s,) for each set.
        weights: what a unit of scale pays in each set.

    Returns:
        A scalar.
    """
    return torch.stack([weight * scale.sum() for weight, scale in zip(weights, scales, strict=True)]).sum()
