"""Holding pruned channels at zero in a training loop of one's own."""

from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from bpl.pruning.mask_holder import MaskHolder

# Of each network the holder of its last masks, the layers and parameters that it was made for, and copies of these
# masks: a tensor does not tell that it was changed through `.data` or through the NumPy array that shares its memory.
_HELD: WeakKeyDictionary[nn.Module, tuple[Any, MaskHolder, dict[str, Tensor]]] = WeakKeyDictionary()


def apply_masks(model: nn.Module, masks: dict[str, Tensor]) -> nn.Module:
    """Zero the pruned filters, and the batch normalisation gamma and beta behind them, of all branches, in place.

    Called after every step of a training, it looks at the network the first time only, and again where layers,
    parameters or masks are not those of the call before.

    Args:
        model: a network, with or without partners.
        masks: conv name -> bool tensor (N,), True = kept.

    Returns:
        The model; its pruned channels emit exactly 0. Where a mask marks channels that cannot be removed, which
        `prune_masks` never does, that is so of the convolution and the batch normalisation right behind it.

    Raises:
        TypeError: not a network.
        ValueError: a mask that does not fit the model.
    """
    if not isinstance(model, nn.Module) or not isinstance(masks, Mapping):
        MaskHolder(model, masks)  # which says what is wrong with them
    made_for = _layers_and_parameters(model)
    held = _HELD.get(model)
    if held is None or held[0] != made_for or not _are_the_same(held[2], masks):
        holder = MaskHolder(model, masks)
        held = _HELD[model] = (made_for, holder, {name: mask.detach().clone() for name, mask in masks.items()})
    held[1].apply()
    return model


def _layers_and_parameters(model: nn.Module) -> Any:
    """Something that is equal while a network has the same layers and parameters, on the same device."""
    layers = ((id(layer), type(layer)) for layer in model.modules())
    parameters = ((id(parameter), parameter.device, parameter.dtype) for parameter in model.parameters())
    return tuple(layers), tuple(parameters)


def _are_the_same(masks: Mapping[str, Tensor], others: Mapping[str, Any]) -> bool:
    """Whether two networks' worth of masks mark the same filters of the same convolutions, in one order."""
    return list(masks) == list(others) and all(
        isinstance(other, Tensor)
        and (mask.device, mask.dtype) == (other.device, other.dtype)
        and torch.equal(mask, other)
        for mask, other in zip(masks.values(), others.values(), strict=True)
    )
