"""What methods share that prune the trained dense network once, by its feature maps, and train on what is left.

The epochs of the run are those of the fine-tuning; those of the dense network (`teacher_epochs`) are spent before, and
counted. The schedule starts anew at its full rate ("learning rate rewinding", Renda, Frankle and Carbin 2020).
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from bpl.config import RunConfig
from bpl.machine.processes import decide
from bpl.measure import count_macs
from bpl.methods.base import Material
from bpl.methods.taught import Taught
from bpl.pruning import slim


class FineTuned(Taught):
    """A method that chooses filters of the trained dense network, removes the others and trains on.

    Args:
        config: the run: `ratio`, `scope`, `round_to`, `samples`, `teacher_epochs`, `epochs`.
        material: gives the dense network, and the images whose feature maps are looked at.
    """

    teaches = False

    def __init__(self, config: RunConfig, material: Material):
        super().__init__(config, material)
        self.masks: dict[str, Tensor] = {}

    def choose(self, network: nn.Module) -> dict[str, Tensor]:
        """Which filters stay.

        Args:
            network: the trained dense network.

        Returns:
            Conv name -> bool tensor (N,), True = kept.
        """
        raise NotImplementedError

    def sample(self) -> Tensor:
        """(n,) indices of the training images looked at: `samples` drawn at random, or all where there are fewer."""
        part = self.material.train
        chance = torch.Generator().manual_seed(self.config.seed)
        return part[torch.randperm(len(part), generator=chance)[: self.config.samples]]

    def batches(self) -> Iterator[Tensor]:
        """The images looked at, normalised and not augmented, (B, 3, H, W) each."""
        return (self.material.inputs(indices) for indices in self.sample().split(self.config.batch_size))

    def network(self, dense: nn.Module) -> nn.Module:
        """The network to train: a copy of a dense one without the filters that the masks remove."""
        return slim(dense, self.masks).requires_grad_(True)

    def prepare(self, model: nn.Module) -> nn.Module:
        dense = self.teacher  # all processes train it together; one looks at its maps
        self.masks = decide(lambda: self.choose(dense))
        return self.network(dense)

    def prepare_again(self, model: nn.Module, state: dict[str, Any]) -> nn.Module:
        self.masks = state["masks"]
        return self.network(model)  # the shape is all that counts: the weights come from the checkpoint

    def macs_before(self) -> int:
        looked_at = count_macs(self.teacher, self.config.image_size) * len(self.sample())
        return super().macs_before() + looked_at

    def state(self) -> dict[str, Any]:
        return {"masks": self.masks}
