"""The dean of DDSL: a small network that sets two strengths from the state of the training, and how it learns.

The objective of a step is linear in both strengths, L(W) = A(W) + alpha B(W) + rho C(W), so the weights after a step
of SGD are too, with or without momentum and weight decay:

    W'(alpha, rho) = const - lr (alpha grad B(W) + rho grad C(W))

and the slope of any loss H after the step is exact with first-order terms:

    dH(W') / dalpha = -lr <grad H(W'), grad B(W)>       dH(W') / drho = -lr <grad H(W'), grad C(W)>
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

BOUND = 4.0  # a strength lies between this part and this multiple of its given value
HIDDEN = 16


class Dean(nn.Module):
    """State of the training -> factors of the given strengths, at first exactly 1.

    Args:
        features: numbers that describe the state.
        strengths: numbers to set.
        seed: seed of the weights.
    """

    def __init__(self, features: int, strengths: int, seed: int):
        super().__init__()
        self.hidden, self.out = nn.Linear(features, HIDDEN), nn.Linear(HIDDEN, strengths)
        chance = torch.Generator().manual_seed(seed)
        nn.init.xavier_normal_(self.hidden.weight, generator=chance)
        for zero in (self.hidden.bias, self.out.weight, self.out.bias):
            nn.init.zeros_(zero)

    def forward(self, state: Tensor) -> Tensor:
        """Factors (strengths,) in (1 / BOUND, BOUND) from features (features,)."""
        return BOUND ** torch.tanh(self.out(torch.tanh(self.hidden(state))))


def slope(rate: float, after: Iterable[Tensor], term: Iterable[Tensor]) -> Tensor:
    """Derivative of a loss after a step of SGD by the strength of one term of the step's objective.

    Args:
        rate: learning rate of the step.
        after: gradient of the loss at the weights after the step, tensor by tensor.
        term: gradient of the term at the weights before the step, in the same order.

    Returns:
        -rate <after, term>, a scalar.
    """
    return -rate * torch.stack([(one * other).sum() for one, other in zip(after, term, strict=True)]).sum()
