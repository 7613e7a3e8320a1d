"""What a method may decide; everything else is the one training loop's (`bpl.train`)."""

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bpl.config import RunConfig
from bpl.data import ImageSet, normalise
from bpl.measure import count_macs
from bpl.partner import fuse_partners


@dataclass
class Material:
    """What a method may use besides the batches that the loop gives it.

    Attributes:
        images: the data set, on the device of the training.
        train: (n,) indices of the training part; a method sees no other image.
        make_dense: trains the dense network of the same run, or loads it where it was trained before.
        autocast: a context in which forward passes run in the precision of the run.
        work: folder of the runs' checkpoints; None for the checkout's.
    """

    images: ImageSet
    train: Tensor
    make_dense: Callable[[], nn.Module]
    autocast: Callable[[], AbstractContextManager]
    work: Path | None = None

    @cached_property
    def dense_network(self) -> nn.Module:
        """The trained dense network, frozen, in evaluation mode."""
        network = self.make_dense().eval().requires_grad_(False)
        return network.to(self.images.images.device, memory_format=torch.channels_last)

    def inputs(self, indices: Tensor) -> Tensor:
        """Normalised images (n, 3, H, W) of the training part, not augmented.

        Args:
            indices: (n,) indices into the data set, of the training part.
        """
        chosen = self.images.images[indices.to(self.images.images.device)]
        return normalise(chosen, self.images.mean, self.images.std).contiguous(memory_format=torch.channels_last)

    @torch.no_grad()
    def infer(self, network: nn.Module, inputs: Tensor) -> Tensor:
        """Logits of a network that is not trained, float32, in the precision of the run."""
        with self.autocast():
            return network(inputs).float()


@dataclass(frozen=True)
class Batch:
    """One batch, as a method's loss sees it.

    Attributes:
        inputs: (B, 3, H, W) augmented, normalised images.
        labels: (B,) classes.
    """

    inputs: Tensor
    labels: Tensor


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

    def swap(self, shrink: Callable[[nn.Module], nn.Module]) -> None:
        """Go on with a smaller network, the optimiser's buffers shrunk exactly as its weights were.

        A buffer has one entry per weight, so a copy of the old network that holds the buffers in place of the weights
        is shrunk by the same function.

        Args:
            shrink: removes the same channels from the present network and from any other of its shape.
        """
        model = shrink(self.model)
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
        material: images and the dense network, for those who need them.

    Attributes:
        shares_batches: whether several processes may train it, each on its share of every batch: its loss is a mean
            over images plus terms of the weights alone, and one process decides for all (`processes.decide`).
    """

    shares_batches = True

    def __init__(self, config: RunConfig, material: Material):
        self.config = config
        self.material = material

    def prepare(self, model: nn.Module) -> nn.Module:
        """The network to train, made from a fresh dense one."""
        return model

    def prepare_again(self, model: nn.Module, state: dict[str, Any]) -> nn.Module:
        """What `prepare` returned when the run began, for a run that goes on from a checkpoint.

        Made anew, but for a method that decides something there at a cost: it takes that from the state.

        Args:
            model: a fresh dense network.
            state: what `state` returned when the checkpoint was written.
        """
        return self.prepare(model)

    def training_part(self, indices: Tensor) -> Tensor:
        """The images to train on: all of the training part, but for a method that holds some out."""
        return indices

    def cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The recipe's loss on labels.

        Args:
            logits: (B, classes).
            labels: (B,).
        """
        return F.cross_entropy(logits.float(), labels, label_smoothing=self.config.label_smoothing)

    def loss(self, training: Training, batch: Batch, outputs: Any) -> Tensor:
        """The loss of a batch.

        Args:
            training: the training under way.
            batch: images and labels.
            outputs: what the network in training returned: logits (B, classes), or more where a method made it so.

        Returns:
            A scalar.
        """
        return self.cross_entropy(outputs, batch.labels)

    def before_step(self, training: Training) -> None:
        """Called when the gradients are there, before the optimiser uses them."""

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

    def as_trained(self, model: nn.Module) -> nn.Module:
        """The trained network that `finish` makes the one that ships: the record compares the logits of the two.

        What was cut out before, at a freeze, is in neither of the two: that it was exact is for tests to show.
        """
        return model

    def at_size(self, training: Training) -> bool:
        """Whether the network has reached its final size, so that this epoch's weights may be chosen."""
        return True

    def finish(self, model: nn.Module) -> nn.Module:
        """The ordinary smaller network that ships."""
        return fuse_partners(model)

    # -- cost -----------------------------------------------------------------------------------------------------
    def macs_before(self) -> int:
        """Multiply-accumulates spent before the loop: the training of the dense network, for those who use one."""
        return 0

    def macs_per_image(self, model: nn.Module) -> int:
        """Multiply-accumulates of one image's share of a step: forward and backward, 3 x forward."""
        return 3 * count_macs(model, self.config.image_size)

    # -- checkpoints ----------------------------------------------------------------------------------------------
    def state(self) -> dict[str, Any]:
        """Tensors and plain values from which `restore` goes on."""
        return {}

    def restore(self, model: nn.Module, state: dict[str, Any]) -> nn.Module:
        """The network to load a checkpoint's weights into.

        Args:
            model: what `prepare_again` returned.
            state: what `state` returned when the checkpoint was written.
        """
        return model
