"""How important a filter is: one score per filter, low scores go first.

Each criterion is a pure function of the filters of one convolution, with what a criterion may need besides: the batch
normalisation behind it. A block with a partner is ranked by its original branch (the partner takes its original's
indices, as in the released code), except by ``folded-l2``, which ranks by the fused kernel that will ship.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Filters:
    """The filters of one convolution, as criteria see them.

    Attributes:
        weight: the original branch's filters, (N, D) with D = C k k.
        folded: filters with batch normalisation folded in, all branches summed, (N, D).
        gamma: the original branch's batch normalisation scale, (N,); None where there is none.
        generator: source of chance for the random criterion.
    """

    weight: Tensor
    folded: Tensor
    gamma: Tensor | None
    generator: torch.Generator


def l1(filters: Filters) -> Tensor:
    """Sum of absolute weights (Li et al. 2017)."""
    return filters.weight.abs().sum(1)


def l2(filters: Filters) -> Tensor:
    """Euclidean norm (SFP, He et al. 2018; the released BPL code)."""
    return filters.weight.square().sum(1).sqrt()


def fpgm(filters: Filters) -> Tensor:
    """Sum of distances to the layer's other filters: filters near the geometric median go first (He et al. 2019)."""
    return torch.cdist(filters.weight, filters.weight, compute_mode="donot_use_mm_for_euclid_dist").sum(1)


def gamma(filters: Filters) -> Tensor:
    """Absolute batch normalisation scale (network slimming, Liu et al. 2017).

    Raises:
        ValueError: there is no scale to rank by.
    """
    if filters.gamma is None:
        raise ValueError("no batch normalisation follows: there is no gamma to rank its filters by")
    return filters.gamma.abs()


def folded_l2(filters: Filters) -> Tensor:
    """Euclidean norm of the filter that will ship: batch normalisation folded in, partner added."""
    return filters.folded.square().sum(1).sqrt()


def random(filters: Filters) -> Tensor:
    """No importance at all: a random order."""
    return torch.rand(len(filters.weight), generator=filters.generator)


CRITERIA: dict[str, Callable[[Filters], Tensor]] = {
    "l1": l1,
    "l2": l2,
    "fpgm": fpgm,
    "gamma": gamma,
    "folded-l2": folded_l2,
    "random": random,
}
