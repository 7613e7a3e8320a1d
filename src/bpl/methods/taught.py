"""What methods share that need the trained dense network, as a teacher or as what is pruned: its cost is theirs."""

from torch import nn

from bpl.measure import count_macs
from bpl.methods.base import Method
from bpl.schedule import images_an_epoch


class Taught(Method):
    """A method with a dense network of the same data and recipe behind it (`RunConfig.dense`).

    Its training is counted among the method's own multiply-accumulates, and its forward pass in every step where it
    teaches (`teaches`).
    """

    teaches = True

    @property
    def teacher(self) -> nn.Module:
        """The trained dense network, frozen; trained at the first call, or loaded where it was trained before."""
        return self.material.dense_network

    def macs_before(self) -> int:
        dense, images = self.config.dense(), len(self.material.train)
        seen = images_an_epoch(images, dense.batch_size) * dense.epochs
        return 3 * count_macs(self.teacher, dense.image_size) * seen

    def macs_per_image(self, model: nn.Module) -> int:
        forward = count_macs(self.teacher, self.config.image_size) if self.teaches else 0
        return super().macs_per_image(model) + forward
