"""Distillation losses, as pure functions.

A teacher's logits are taken as they are: who must not be trained through them detaches them.
"""

import torch.nn.functional as F
from torch import Tensor


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(teacher || student) of the softened distributions (Hinton et al. 2015).

    Args:
        student: (B, classes) logits.
        teacher: (B, classes) logits.
        temperature: T, above 0; the factor T^2 keeps the gradients' size as T varies.

    Returns:
        Mean over the batch, a scalar, in float32.
    """
    log_student = F.log_softmax(student.float() / temperature, dim=1)
    log_teacher = F.log_softmax(teacher.float() / temperature, dim=1)
    return temperature**2 * F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)


def feature_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """|s / |s| - t / |t||^2 of two maps, each image's one vector (normalised as by Zagoruyko and Komodakis 2017).

    Args:
        student: (B, C, H, W).
        teacher: (B, C, H, W).

    Returns:
        Mean over the batch, a scalar of 0 (parallel) to 4 (opposite), in float32.
    """
    student, teacher = (F.normalize(maps.float().flatten(1), dim=1) for maps in (student, teacher))
    return (student - teacher).square().sum(1).mean()
