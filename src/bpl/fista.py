"""FISTA, the fast iterative shrinkage-thresholding algorithm (Beck & Teboulle, SIAM J. Imaging Sciences 2009).

It minimises f(x) + g(x), f smooth, of which gradients can be had, and g simple enough to have a proximal map:

    x_k     = prox(y_k - step * grad f(y_k))                      shrink                        (4.1)
    a_{k+1} = (1 + sqrt(1 + 4 a_k^2)) / 2                         a_1 = 1                       (4.2)
    y_{k+1} = x_k + (a_k - 1) / a_{k+1} * (x_k - x_{k-1})         extrapolate                   (4.3)

Sparsity is in the proximal map alone: for g = penalty * |x|_1 it is the soft threshold at step * penalty. The gradient
must be that of f only, since an L1 term in the loss would count the penalty twice. With a step of at most 1 / L, L the
Lipschitz constant of the gradient, the objective is within 2 L |x_0 - x*|^2 / (k + 1)^2 of its minimum after k steps
(theorem 4.4); without the extrapolation, which is ISTA, within L |x_0 - x*|^2 / (2 k) (theorem 3.1).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Fista(NamedTuple):
    """Where the algorithm stands.

    Attributes:
        x: the iterate, the solution so far.
        y: the point at which the next gradient is asked, of the same shape.
        a: the number that sets the extrapolation, at least 1.
    """

    x: Tensor
    y: Tensor
    a: float

    @classmethod
    def start(cls, x: Tensor) -> "Fista":
        """Start, or start again, at a point: the first step is one of ISTA."""
        return cls(x.clone(), x.clone(), 1.0)


@torch.no_grad()
def fista_step(at: Fista, gradient: Tensor, step: float, prox: Callable[[Tensor], Tensor]) -> Fista:
    """One step of FISTA.

    Args:
        at: where the algorithm stands.
        gradient: gradient of the smooth part f at `at.y`.
        step: step size, at most 1 / L for the guarantee.
        prox: proximal map of step * g.

    Returns:
        Where it stands next.
    """
    x = prox(at.y - step * gradient)
    a = (1 + math.sqrt(1 + 4 * at.a**2)) / 2
    return Fista(x, x + (at.a - 1) / a * (x - at.x), a)


def shrink_nonnegative(z: Tensor, threshold: float) -> Tensor:
    """The proximal map of threshold * |x|_1 over x >= 0: max(z - threshold, 0).

    Args:
        z: any tensor.
        threshold: at least 0; what is no larger becomes exactly 0.
    """
    return (z - threshold).clamp(min=0)


def threshold_to_sum(z: Tensor, total: float) -> float:
    """The smallest threshold at which what `shrink_nonnegative` leaves of z sums to at most `total`.

    Shrinking at it projects z onto {x >= 0, sum x <= total} (Duchi et al., ICML 2008): threshold = step * penalty where
    the penalty is the multiplier of this constraint.

    Args:
        z: (n,) tensor.
        total: at least 0.

    Returns:
        max(0, max_j (sum of the j largest - total) / j).
    """
    largest = z.sort(descending=True).values.cumsum(0)  # (n,)
    return max(0.0, float(((largest - total) / torch.arange(1, len(z) + 1)).max()))
