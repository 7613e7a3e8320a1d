"""Batch normalisations that hold an activation, as timm's `BatchNormAct2d`: taken apart into the two.

A partner's output is added behind the normalisation and before the activation, so a layer that is both has to become
two. No class is known here by its name: a subclass of `nn.BatchNorm2d` is taken for a plain one followed by its
children if the two compute the same on a trial.
"""

import copy
from collections import OrderedDict

import torch
from torch import Tensor, nn

from bpl.channels.chance import chance_kept, seed_all
from bpl.partner_conv import NORMS


def take_apart(norm: nn.Module) -> tuple[nn.BatchNorm2d | nn.SyncBatchNorm, nn.Module] | None:
    """Split a layer into a plain batch normalisation and what it does after it.

    Args:
        norm: any layer; it is not changed.

    Returns:
        The normalisation, with the layer's own parameters and buffers, and the rest: an `nn.Identity` behind a plain
        normalisation, else an `nn.Sequential` of the layer's own children, in order. None where this is not what the
        layer does.
    """
    if type(norm) in NORMS:
        return norm, nn.Identity().train(norm.training)
    if not isinstance(norm, nn.BatchNorm2d):
        return None
    plain = nn.BatchNorm2d(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    if norm._parameters.keys() != plain._parameters.keys() or norm._buffers.keys() != plain._buffers.keys():
        return None
    plain._parameters, plain._buffers = norm._parameters.copy(), norm._buffers.copy()
    rest = nn.Sequential(OrderedDict(norm.named_children()))  # each child stays in the mode that it is in
    for made in (plain, rest):
        made.training = norm.training
    return (plain, rest) if _same(norm, nn.Sequential(plain, rest)) else None


@torch.no_grad()
def _same(one: nn.Module, other: nn.Module) -> bool:
    """Whether two layers compute the same, in training (the same statistics after it) and then in evaluation mode."""
    try:
        return all(torch.allclose(*pair) for pair in zip(_trial(one), _trial(other), strict=True))
    except Exception:  # whatever the layer needs, it is not what a normalisation needs
        return False


def _trial(layer: nn.Module) -> list[Tensor]:
    """Outputs of a copy of a layer in both modes."""
    layer = copy.deepcopy(layer).to("cpu", torch.float64)
    with chance_kept():
        seed_all(0)  # for dropout, and for the values below
        norm = next(module for module in layer.modules() if isinstance(module, nn.BatchNorm2d))
        for tensor in (norm.weight, norm.bias):
            if tensor is not None:
                tensor.copy_(torch.randn_like(tensor))
        x = 3 * torch.randn(4, norm.num_features, 3, 3, dtype=torch.float64) + 1
        return [layer.train()(x), layer.eval()(x)]  # the second with the statistics that the first has moved
