"""BPL: Block-Wise Partner Learning for Model Compression (Zhang et al., IEEE TNNLS 2023).

    extension   every k x k block gets a partner                       prepare
    diversity   + weight * DL(blocks, partners)                        loss
    pruning     filters are ranked once, early, and cut out            after_epoch (`Pruned`)
    fusion      block and partner become one convolution               finish

The partner takes its original's mask. What the released code does otherwise is one option, ``mask="released"``, but for
two details (the book's page on the released code). A control of the ablation is ``kernel_norm="fixed"`` (`HeldNorms`).
"""

import torch
from torch import Tensor, nn

from bpl.diversity import cosine, diversity_loss, raw_kernels
from bpl.methods.base import Batch, Training
from bpl.methods.held_norms import HeldNorms, kernel_norm
from bpl.methods.magnitude import Pruned
from bpl.partner import grow_partners, partner_blocks


class BPL(Pruned):
    """Partners in training, none in what ships."""

    def prepare(self, model: nn.Module) -> nn.Module:
        grown = grow_partners(super().prepare(model), self.config.partner)
        for block in partner_blocks(grown).values():
            block.keep_outputs = self.config.diversity_form.startswith("feature") and self.config.diversity_weight > 0
        return grown

    def loss(self, training: Training, batch: Batch, outputs: Tensor) -> Tensor:
        config, loss = self.config, super().loss(training, batch, outputs)
        if config.diversity_weight == 0:
            return loss
        loss = loss + config.diversity_weight * diversity_loss(training.model, config.diversity_form)
        for block in partner_blocks(training.model).values():
            block.outputs = []  # used; a network that holds graph tensors could not be copied
        return loss

    def before_step(self, training: Training) -> None:
        super().before_step(training)
        self._norms = HeldNorms(training.model) if self.config.kernel_norm == "fixed" else None

    def after_step(self, training: Training) -> None:
        super().after_step(training)
        if self._norms is not None:
            self._norms.restore()

    def after_epoch(self, training: Training) -> dict[str, float]:
        curves = super().after_epoch(training)
        model = training.model
        return curves | {"partner_cosine": partner_cosine(model), "kernel_norm": kernel_norm(model)}


@torch.no_grad()
def partner_cosine(model: nn.Module) -> float:
    """Mean over partner blocks of the cosine between the original's kernel and its partners' (their sum)."""
    values = [cosine(*(kernel.flatten() for kernel in raw_kernels(b))) for b in partner_blocks(model).values()]
    return float(torch.stack(values).mean())
