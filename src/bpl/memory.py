"""How much memory a step needs, counted and not measured: the same number on every machine.

The step runs on the meta device, where tensors have shapes and no values, and every block of memory that is asked for
and given back is booked. What a kernel needs for itself while it runs, and what an allocator keeps in reserve, is not
in the count; neither is the rounding of a block's size.
"""

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bpl.diversity import diversity_loss
from bpl.measure import image_channels, on_meta
from bpl.partner import partner_blocks


class LiveBytes(TorchDispatchMode):
    """Books the bytes of all tensors that come into being within it, and the most that were there at once.

    Args:
        known: tensors that are there before: they are not counted.

    Attributes:
        live: bytes now.
        peak: the most so far.
    """

    def __init__(self, known: Iterable[Tensor] = ()):
        super().__init__()
        self.live = self.peak = 0
        self._known = [tensor.untyped_storage() for tensor in known]  # held, so that none of their ids is used again
        self._booked = {id(storage) for storage in self._known}

    def __torch_dispatch__(self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._book(leaf.untyped_storage())
        return result

    def _book(self, storage: torch.UntypedStorage) -> None:
        if id(storage) in self._booked:
            return
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        self._booked.add(id(storage))
        weakref.finalize(storage, self._free, id(storage), storage.nbytes()).atexit = False

    def _free(self, key: int, size: int) -> None:
        self._booked.remove(key)
        self.live -= size


@dataclass(frozen=True)
class StepMemory:
    """Bytes of a training step in float32.

    Attributes:
        weights: parameters and buffers.
        momentum: the optimiser's buffers.
        peak: the most that is there at once beside these two: feature maps kept for the backward pass, gradients, and
            what is on its way.
    """

    weights: int
    momentum: int
    peak: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.momentum + self.peak


def _bytes_of(tensors: Iterable[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def step_memory(model: nn.Module, image_size: int, batch_size: int) -> StepMemory:
    """What a step of stochastic gradient descent with momentum needs, with the diversity loss where there are partners.

    Args:
        model: the network; it is not changed, and nothing is computed.
        image_size: height and width of the images in pixels.
        batch_size: images a step.
    """
    network = on_meta(model).train()
    images = torch.empty(batch_size, image_channels(model, image_size), image_size, image_size, device="meta")
    labels = torch.empty(batch_size, dtype=torch.long, device="meta")
    there = [*network.parameters(), *network.buffers()]
    with LiveBytes([*there, images, labels]) as memory:
        loss = F.cross_entropy(network(images), labels)
        if partner_blocks(network):
            loss = loss + diversity_loss(network)
        loss.backward()
    return StepMemory(_bytes_of(there), _bytes_of(network.parameters()), memory.peak)


@torch.no_grad()
def inference_memory(model: nn.Module, image_size: int, batch_size: int = 1) -> int:
    """Bytes that a forward pass in evaluation mode needs in float32: weights, and the most of feature maps at once.

    Args:
        model: the network; it is not changed, and nothing is computed.
        image_size: height and width of the images in pixels.
        batch_size: images in a pass.
    """
    network = on_meta(model)
    images = torch.empty(batch_size, image_channels(model, image_size), image_size, image_size, device="meta")
    there = [*network.parameters(), *network.buffers()]
    with LiveBytes([*there, images]) as memory:
        network(images)
    return _bytes_of([*there, images]) + memory.peak
