"""``kd``: the narrow network from scratch, taught by the dense one (Hinton, Vinyals, Dean 2015).

    loss = CE(student, labels) + weight * T^2 KL(softmax(teacher / T) || softmax(student / T))

The plain neighbour of every method here that distils: what a teacher alone is worth, without partner or pruning.
"""

from torch import Tensor

from bpl.distill import distillation_loss
from bpl.methods.base import Batch, Training
from bpl.methods.scratch import Scratch
from bpl.methods.taught import Taught


class KD(Taught, Scratch):
    """The control ``scratch`` with the dense network's logits as a second target.

    Args:
        config: the run: `ratio`, `distill_weight`, `temperature`, `teacher_epochs`.
        material: gives the dense network.
    """

    def loss(self, training: Training, batch: Batch, outputs: Tensor) -> Tensor:
        taught = self.material.infer(self.teacher, batch.inputs)
        distilled = distillation_loss(outputs, taught, self.config.temperature)
        return super().loss(training, batch, outputs) + self.config.distill_weight * distilled
