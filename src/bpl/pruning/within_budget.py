"""Which channels stay within a budget: the strongest of the whole network, as many as it pays for."""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from bpl.pruning.channel_cost import ChannelCost


def smallest_widths(sizes: Sequence[int], round_to: int = 1) -> list[int]:
    """The least that every set keeps: `round_to` channels, or all of a narrower one."""
    return [min(size, round_to) for size in sizes]


def masks_within(cost: ChannelCost, scores: Sequence[Tensor], allowed: float, round_to: int = 1) -> list[Tensor]:
    """Keep the channels above one threshold for all sets, the lowest that the budget allows, then fill up.

    Scores are relative to their set's mean, so that a layer of small scales is not taken for a layer of dead channels.
    The threshold is found by bisection: the cost rises with every channel. What is left of the budget then goes, in the
    same order, to channels below the threshold that still fit.

    Args:
        cost: the network's cost as a function of its widths.
        scores: one tensor (n_s,) for each set, larger = more important, none negative.
        allowed: the budget, in the cost's own unit.
        round_to: channels of a set are kept in groups of this many, so that widths are multiples of it.

    Returns:
        One bool tensor (n_s,) on the CPU for each set, True = kept; at least one group in each set. The cost of these
        widths is at most `allowed`, and no further group of any set fits.

    Raises:
        ValueError: the smallest widths cost more than is allowed.
    """
    widths = smallest_widths(cost.sizes, round_to)
    if cost.total(widths) > allowed:
        raise ValueError(f"a cost of {allowed:g} was asked: at least {cost.total(widths)} of {cost.full} must stay")
    steps: list[tuple[float, int, int]] = []  # (score of a group, its set, the set's width with it)
    orders = []
    for s, score in enumerate(scores):
        score = score.detach().to("cpu", torch.float64)
        ranked, order = (score / score.mean().clamp_min(1e-30)).sort(descending=True, stable=True)
        orders.append(order)
        ends = [*range(widths[s], len(score), round_to), len(score)]
        steps += [(float(ranked[start:end].mean()), s, end) for start, end in pairwise(ends)]
    steps.sort(key=lambda step: -step[0])  # stable: the groups of a set stay in their order

    def after(count: int) -> list[int]:
        grown = list(widths)
        for _, s, width in steps[:count]:
            grown[s] = width
        return grown

    above = bisect_right(range(len(steps) + 1), allowed, key=lambda count: cost.total(after(count))) - 1
    widths = after(above)
    full: set[int] = set()  # a set whose next group does not fit: none of its later ones may overtake it
    for _, s, width in steps[above:]:
        wider = [width if t == s else n for t, n in enumerate(widths)]
        if s in full or cost.total(wider) > allowed:
            full.add(s)
        else:
            widths = wider
    kept = [order[:n] for order, n in zip(orders, widths, strict=True)]
    return [torch.zeros(n, dtype=torch.bool).index_fill(0, k, True) for n, k in zip(cost.sizes, kept, strict=True)]
