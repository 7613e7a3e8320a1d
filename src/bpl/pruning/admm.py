"""Filter pruning by the alternating direction method of multipliers (ADMM), as pure functions.

    min L(W)   subject to   W = Z,   Z in S = {at most k channels of a layer are not zero}

    W step   some steps of SGD on L(W) + rho/2 |W - Z + U|^2       `penalty`
    Z step   Z <- projection of W + U on S                         `z_step`
    U step   U <- U + W - Z                                        `u_step`

This is the scaled form (Boyd et al. 2011, section 3.1.1) with a set S that is not convex (section 9.1): nothing
guarantees where it ends, so the residuals are watched. W, Z and U map a parameter's name to a tensor of its shape.
"""

import torch
from torch import Tensor

Tensors = dict[str, Tensor]


def penalty(w: Tensors, z: Tensors, u: Tensors) -> Tensor | float:
    """1/2 |W - Z + U|^2: rho times this is what the W step adds to the loss.

    Args:
        w: the parameters; those without a Z are not looked at.
        z: their copy in S.
        u: the scaled multipliers.

    Returns:
        A scalar, whose gradient in W is W - Z + U; 0.0 without any Z.
    """
    return sum((w[name] - z[name] + u[name]).square().sum() for name in z) / 2


def difference(w: Tensors, z: Tensors) -> Tensors:
    """W - Z, of the names in Z."""
    return {name: w[name].detach() - z[name] for name in z}


def z_step(w: Tensors, u: Tensors, support: Tensors) -> Tensors:
    """The point nearest to W + U that is zero outside of a support.

    Args:
        w: the parameters.
        u: the scaled multipliers.
        support: masks that broadcast to the tensors' shapes, 1 = kept. With the k channels of largest norm of W + U in
            it, the result is the projection on S.
    """
    return {name: (w[name].detach() + u[name]) * mask for name, mask in support.items()}


def u_step(w: Tensors, z: Tensors, u: Tensors) -> Tensors:
    """U + W - Z: what is left of the constraint's violation is added up."""
    return {name: u[name] + w[name].detach() - z[name] for name in z}


def rescale(u: Tensors, old: float | Tensor, new: float | Tensor) -> Tensors:
    """U for another rho, so that the multipliers rho U themselves stay (Boyd et al. 2011, section 3.4.1).

    Args:
        u: multipliers scaled by `old`.
        old: rho so far.
        new: rho from now on, above 0.
    """
    return {name: tensor * (old / new) for name, tensor in u.items()}


def residuals(w: Tensors, z: Tensors, z_before: Tensors) -> tuple[float, float]:
    """How far ADMM is from its end: both are 0 once W keeps the constraint and Z no longer moves.

    Args:
        w: the parameters after a W step.
        z: after the Z step that followed.
        z_before: before it.

    Returns:
        The primal residual |W - Z| and the dual one |Z - Z_before| (Boyd et al. 2011, section 3.3, who multiply the
        second by rho), both as a share of the larger of |W| and |Z|.
    """
    size = max(_norm({name: w[name] for name in z}), _norm(z))
    return _norm(difference(w, z)) / size, _norm(difference(z, z_before)) / size


def _norm(tensors: Tensors) -> float:
    """Euclidean norm of all tensors as one vector."""
    return float(torch.stack([tensor.detach().norm() for tensor in tensors.values()]).norm())
