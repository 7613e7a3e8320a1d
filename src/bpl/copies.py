"""Copies of a network, whatever its forward pass has left on its layers."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from bpl.shown import shown


def check_is_network(model: object) -> None:
    """Raise a TypeError for what is no `nn.Module`."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"the model is {shown(model)}, a {type(model).__name__}: it must be a torch.nn.Module")


def copy_of(model: nn.Module) -> nn.Module:
    """A deep copy of a network.

    A tensor with a history, such as a feature map that the forward pass keeps on a layer for a loss or a picture, is
    copied without its history: PyTorch refuses to copy that.

    Args:
        model: any network; it is not changed.

    Returns:
        The copy.

    Raises:
        TypeError: not a network.
    """
    check_is_network(model)
    kept = [value for module in model.modules() for value in vars(module).values() if isinstance(value, torch.Tensor)]
    return copy.deepcopy(model, {id(value): value.detach().clone() for value in kept if not value.is_leaf})


@contextmanager
def attributes_kept(model: nn.Module) -> Iterator[None]:
    """Whatever is set on a network's layers within is undone, such as what its forward pass keeps there of a trace.

    Args:
        model: any network.
    """
    before = [(module, vars(module).copy()) for module in model.modules()]
    try:
        yield
    finally:
        for module, attributes in before:
            vars(module).clear()
            vars(module).update(attributes)


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Each layer of a network is in the mode again, behind, that it is in before: training or evaluation.

    Args:
        model: any network.
    """
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
