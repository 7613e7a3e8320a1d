"""Kernels whose norm a step does not change: the control that separates direction from length in BPL's ablation.

Batch normalisation makes a branch blind to the length of its kernel, but not its training: the longer the kernel, the
less a step of the same rate turns it. The gradient of a cosine is orthogonal to its vector, in the released form to the
joined kernels of a stage, so the diversity loss lengthens kernels and lowers their effective learning rate, lr / |W|^2
(van Laarhoven 2017, arXiv 1706.05350). With the norms held, what remains of the loss's effect is what it does to
directions, nearly: the norm is held per kernel, and batch normalisation is blind per filter.
"""

import torch
from torch import Tensor, nn

from bpl.partner import partner_blocks


def branch_kernels(model: nn.Module) -> list[Tensor]:
    """The weights of all convolutions of a network's blocks and partners, (N, C, k, k) each.

    Args:
        model: a network with partners.
    """
    convs = [m for block in partner_blocks(model).values() for m in block.modules() if isinstance(m, nn.Conv2d)]
    return [conv.weight for conv in convs]


class HeldNorms:
    """The norms that the kernels of blocks and partners have now, to go back to after a step.

    Args:
        model: a network with partners.
    """

    @torch.no_grad()
    def __init__(self, model: nn.Module):
        self.kernels = branch_kernels(model)
        self.norms = torch._foreach_norm(self.kernels)

    @torch.no_grad()
    def restore(self) -> None:
        """Scale every kernel back to its norm; one that is zero stays zero."""
        now = torch._foreach_norm(self.kernels)
        factors = [old / new.clamp_min(torch.finfo(new.dtype).tiny) for old, new in zip(self.norms, now, strict=True)]
        torch._foreach_mul_(self.kernels, factors)


@torch.no_grad()
def kernel_norm(model: nn.Module) -> float:
    """Root mean square, over a network's blocks and partners, of the norm of a kernel.

    Args:
        model: a network with partners.
    """
    norms = torch.stack(torch._foreach_norm(branch_kernels(model)))  # (kernels,)
    return float(norms.square().mean().sqrt())
