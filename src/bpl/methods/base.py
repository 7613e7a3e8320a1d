"""What a method may decide; everything else is the one training loop's (`bpl.train`)."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bpl.config import RunConfig
from bpl.partner import fuse_partners


@dataclass
class Training:
    """A training under way, as a method sees it.

    Attributes:
        model: the network in training; a method may put a smaller one in its place.
        optimizer: the optimiser over its parameters.
        epoch: number of epochs finished.
        epochs: number of epochs in all.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    epoch: int
    epochs: int

    def swap(self, model: nn.Module, shrink: Callable[[nn.Module], nn.Module]) -> None:
        """Go on with a smaller network, the optimiser's buffers shrunk exactly as its weights were.

        A buffer has one entry per weight, so a copy of the old network that holds the buffers in place of the weights
        is shrunk by the same function.

        Args:
            model: the smaller network, `shrink` of the present one.
            shrink: removes the same channels from any network of the present one's shape.
        """
        carrier = shrink(_with_momentum(self.model, self.optimizer))
        options = {k: v for k, v in self.optimizer.param_groups[0].items() if k != "params"}
        optimizer = type(self.optimizer)(model.parameters(), **options)
        for parameter, momentum in zip(model.parameters(), carrier.parameters(), strict=True):
            optimizer.state[parameter]["momentum_buffer"] = momentum.detach()
        self.model, self.optimizer = model, optimizer


def _with_momentum(model: nn.Module, optimizer: torch.optim.Optimizer) -> nn.Module:
    """A copy of a network with the optimiser's momentum buffers in place of the weights."""
    carrier = copy.deepcopy(model)
    for parameter, held in zip(model.parameters(), carrier.parameters(), strict=True):
        buffer = optimizer.state.get(parameter, {}).get("momentum_buffer")
        held.data = torch.zeros_like(parameter) if buffer is None else buffer.detach().clone()
    return carrier


class Method:
    """The network as it is: the ``dense`` baseline, and the defaults of all other methods.

    Args:
        config: the run.
    """

    def __init__(self, config: RunConfig):
        self.config = config

    def prepare(self, model: nn.Module) -> nn.Module:
        """The network to train, made from a fresh dense one."""
        return model

    def loss(self, model: nn.Module) -> Tensor | None:
        """What is added to the cross entropy of a batch; None for nothing."""
        return None

    def after_step(self, training: Training) -> None:
        """Called after every optimiser step."""

    def after_epoch(self, training: Training) -> dict[str, float]:
        """Called after every epoch, before its accuracy is measured.

        Returns:
            Numbers to record in the curves, the same keys every epoch.
        """
        return {}

    def as_shipped(self, model: nn.Module) -> nn.Module:
        """The network whose accuracy is measured after an epoch: the one that would ship now."""
        return model

    def at_size(self, training: Training) -> bool:
        """Whether the network has reached its final size, so that this epoch's weights may be chosen."""
        return True

    def finish(self, model: nn.Module) -> nn.Module:
        """The ordinary smaller network that ships."""
        return fuse_partners(model)

    def state(self) -> dict[str, Any]:
        """Tensors and plain values from which `restore` goes on."""
        return {}

    def restore(self, model: nn.Module, state: dict[str, Any]) -> nn.Module:
        """The network to load a checkpoint's weights into.

        Args:
            model: what `prepare` returned.
            state: what `state` returned when the checkpoint was written.
        """
        return model
