"""Filter pruning by the alternating direction method of multipliers (ADMM), as pure functions.

    min L(W)   subject to   W = Z,   Z in S = {at most k channels of a layer are not zero}

    W step   some steps of SGD on L(W) + rho/2 |W - Z + U|^2
    Z step   Z <- projection of W + U on S
    U step   U <- U + W - Z

This is the scaled form (Boyd et al. 2011, section 3.1.1) with a constraint that is not convex (section 9.1), so there is
no guarantee, only the residuals to watch. W, Z and U are mappings from a parameter's name to a tensor of its shape; a
support is a mapping from the same names to masks that broadcast to these shapes, 1 = kept.
"""

import torch
from torch import Tensor

Tensors = dict[str, Tensor]


def penalty(w: Tensors, z: Tensors, u: Tensors) -> Tensor:
    """1/2 |W - Z + U|^2: rho times this is what the W step adds to the loss.

    Args:
        w: the parameters.
        z: their copy that keeps the constraint.
        u: the scaled multipliers.

    Returns:
        A scalar; its gradient in W is W - Z + U.
    """
    return sum((w[name] - z[name] + u[name]).square().sum() for name in z) / 2


def plus(one: Tensors, other: Tensors) -> Tensors:
    """The sum, tensor by tensor, of the names of the second."""
    return {name: one[name].detach() + other[name] for name in other}


def minus(one: Tensors, other: Tensors) -> Tensors:
    """The difference, tensor by tensor, of the names of the second."""
    return {name: one[name].detach() - other[name] for name in other}


def project(point: Tensors, support: Tensors) -> Tensors:
    """The Z step on a given support: the nearest point to `point` that is zero outside of it."""
    return {name: point[name].detach() * mask for name, mask in support.items()}


def rescale(u: Tensors, old: float | Tensor, new: float | Tensor) -> Tensors:
    """U for another rho: the multipliers rho U themselves stay (Boyd et al. 2011, section 3.4.1).

    Args:
        u: multipliers scaled by `old`.
        old: rho so far.
        new: rho from now on, above 0.
    """
    return {name: tensor * (old / new) for name, tensor in u.items()}


def norm(tensors: Tensors) -> Tensor:
    """Euclidean norm of all tensors as one vector, a scalar."""
    return torch.stack([tensor.detach().norm() for tensor in tensors.values()]).norm()


def residuals(w: Tensors, z: Tensors, z_before: Tensors) -> tuple[float, float]:
    """How far ADMM is from its end: 0 and 0 once W keeps the constraint and Z no longer moves.

    Args:
        w: the parameters after a W step.
        z: after the Z step that followed.
        z_before: before it.

    Returns:
        The primal residual |W - Z| and the dual one |Z - Z_before| (Boyd et al. 2011, section 3.3, there times rho),
        both over the larger of |W| and |Z|.
    """
    size = torch.maximum(norm({name: w[name] for name in z}), norm(z))
    primal, dual = norm(minus(w, z)) / size, norm(minus(z, z_before)) / size
    return float(primal), float(dual)
