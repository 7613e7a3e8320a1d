"""Holding pruned channels at zero in a training loop of one's own."""

from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from bpl.pruning.mask_holder import MaskHolder

# Of each network the holder of its last masks, what it was made for, and these masks: while they are kept, no other
# tensor has the id of one of them.
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
    made_for = _what_is_held(model, masks)
    if made_for is None:
        MaskHolder(model, masks).apply()
        return model
    if model not in _HELD or _HELD[model][0] != made_for:
        _HELD[model] = (made_for, MaskHolder(model, masks), dict(masks))
    _HELD[model][1].apply()
    return model


def _what_is_held(model: nn.Module, masks: dict[str, Tensor]) -> Any:
    """Something that is equal while layers, parameters and masks are the same; None where that cannot be told."""
    if not isinstance(model, nn.Module) or not isinstance(masks, Mapping):
        return None
    if any(not isinstance(mask, Tensor) or mask.is_inference() for mask in masks.values()):
        return None  # no mask, or one that does not count its changes
    layers = ((id(layer), type(layer)) for layer in model.modules())
    parameters = ((id(parameter), parameter.device, parameter.dtype) for parameter in model.parameters())
    chosen = ((name, id(mask), mask._version) for name, mask in masks.items())
    return tuple(layers), tuple(parameters), tuple(chosen)
