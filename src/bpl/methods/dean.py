"""The dean of DDSL: a small network that sets the strengths of two terms of a loss, and how it learns from one step.

The loss A(W) + alpha B(W) + rho C(W) is linear in both strengths, and so are the weights after a step of SGD, with or
without momentum and weight decay:

    W'(alpha, rho) = constant - lr (alpha grad B(W) + rho grad C(W))

So the slope of any function H of the weights after the step is exact with first-order terms:

    dH(W') / dalpha = -lr <grad H(W'), grad B(W)>       dH(W') / drho = -lr <grad H(W'), grad C(W)>
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

BOUND = 4.0  # a strength stays between a quarter and four times what it would be without the dean
HIDDEN = 16  # units
RATE = 1e-3  # learning rate of its Adam


class Dean(nn.Module):
    """State of the training -> factors of the given strengths; at first they are exactly 1.

    Args:
        features: how many numbers describe the state.
        strengths: how many strengths it sets.
        seed: seed of its weights.
    """

    def __init__(self, features: int, strengths: int, seed: int):
        super().__init__()
        self.hidden, self.out = nn.Linear(features, HIDDEN), nn.Linear(HIDDEN, strengths)
        nn.init.xavier_normal_(self.hidden.weight, generator=torch.Generator().manual_seed(seed))
        for start in (self.hidden.bias, self.out.weight, self.out.bias):
            nn.init.zeros_(start)
        self.optimizer = torch.optim.Adam(self.parameters(), RATE)

    def forward(self, state: Tensor) -> Tensor:
        """Factors (strengths,), each in (1 / BOUND, BOUND), from a state (features,)."""
        return BOUND ** torch.tanh(self.out(torch.tanh(self.hidden(state))))

    def learn(self, factors: Tensor, slopes: Tensor) -> None:
        """One step of Adam down the slopes that its answer was found to have.

        Args:
            factors: (strengths,) what it answered, with the graph.
            slopes: (strengths,) derivative of what it is to make small by each factor.
        """
        self.optimizer.zero_grad()
        factors.backward(slopes)
        self.optimizer.step()


def slope(rate: float, after: Iterable[Tensor], term: Iterable[Tensor]) -> Tensor | float:
    """Derivative of a function of the weights after a step of SGD by the strength of one term of that step's loss.

    Args:
        rate: learning rate of the step.
        after: gradient of the function at the weights after the step, tensor by tensor.
        term: gradient of the term at the weights before the step, in the same order.

    Returns:
        -rate <after, term>, a scalar.
    """
    return -rate * sum((one * other).sum() for one, other in zip(after, term, strict=True))
