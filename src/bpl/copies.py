"""Copies of a network, whatever its forward pass has left on its layers."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from bpl.shown import shown


def check_is_network(model: object) -> None:
    """Raise a TypeError for what is no `nn.Module`."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"the model is {shown(model)}, a {type(model).__name__}: it must be a torch.nn.Module")


def check_is_bare(model: object) -> None:
    """Raise an error for what is no network, and for what a network is wrapped in or was turned into.

    Args:
        model: what was given as a network.

    Raises:
        TypeError: not a network.
        ValueError: a wrapper; the message says where the network itself is.
    """
    check_is_network(model)
    wrapped = f"cannot look into this {type(model).__name__}: "
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        raise ValueError(wrapped + "give it the network inside, model.module, and wrap the result again")
    if isinstance(model, AveragedModel):
        raise ValueError(wrapped + "give it the network inside, model.module")
    if hasattr(model, "_orig_mod"):  # of torch.compile
        raise ValueError(wrapped + "give it the network that was compiled, and compile the result")
    if isinstance(model, torch.jit.ScriptModule):
        raise ValueError(wrapped + "give it the network that was scripted or traced")


def check_has_values(model: nn.Module) -> None:
    """Raise a ValueError for a network that was made on the meta device and has shapes only."""
    if bare := next((name for name, tensor in model.named_parameters() if tensor.is_meta), None):
        raise ValueError(f"{bare!r} is on the meta device: it has a shape and no values to work with")


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
    return copy.deepcopy(model, _without_history(model))


def without_values(model: nn.Module) -> nn.Module:
    """A copy of a network whose parameters have a shape and no values, so that it costs next to nothing.

    Args:
        model: any network; it is not changed.

    Returns:
        The copy; its buffers have their values.

    Raises:
        TypeError: not a network.
    """
    check_is_network(model)
    return copy.deepcopy(model, _without_history(model) | _shapes_of_parameters(model))


def with_shapes_only(model: nn.Module) -> nn.Module:
    """A copy of a network on the meta device, with all tensors that layers keep beside parameters and buffers.

    Args:
        model: any network; it is not changed.

    Returns:
        The copy; no tensor of it has values.

    Raises:
        TypeError: not a network.
    """
    check_is_network(model)
    shapes = {id(tensor): torch.empty_like(tensor, device="meta") for tensor in _kept_on_layers(model)}
    return copy.deepcopy(model, shapes | _shapes_of_parameters(model)).to("meta")


def _shapes_of_parameters(model: nn.Module) -> dict[int, torch.Tensor]:
    """What `copy.deepcopy` is to take for parameters: id -> one on the meta device."""
    return {
        id(parameter): nn.Parameter(torch.empty_like(parameter, device="meta"), parameter.requires_grad)
        for parameter in model.parameters()
        if type(parameter) is nn.Parameter
    }


def _without_history(model: nn.Module) -> dict[int, torch.Tensor]:
    """What `copy.deepcopy` is to take for the tensors with a history that layers hold: id -> a copy of the values."""
    return {id(tensor): tensor.detach().clone() for tensor in _kept_on_layers(model) if not tensor.is_leaf}


def _kept_on_layers(model: nn.Module) -> Iterator[torch.Tensor]:
    """The tensors that layers have as attributes, or in plain lists, tuples and dictionaries at any depth."""
    waiting: list[object] = [value for module in model.modules() for value in vars(module).values()]
    seen: set[int] = set()
    while waiting:
        value = waiting.pop()
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, list | tuple | dict) and id(value) not in seen:
            seen.add(id(value))
            waiting += value.values() if isinstance(value, dict) else value


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
