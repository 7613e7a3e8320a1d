"""Widths for a limit: how many channels each layer keeps so that the network costs no more than it may.

Let N_s be the number of channels of set s, n_s how many of them stay, and e_s(n) the share of the set's importance that
its n most important channels hold; e_s(n) = n / N_s where nothing is known of them. We choose

    minimise  sum_s 1 / e_s(n_s)    subject to    cost(n) <= limit

so that the harmonic mean of the importance kept is as high as the limit allows: a layer that keeps a tenth of its
importance weighs as much as ten whole ones, and none is starved because its channels are dear.

The limit becomes a price p of a unit of cost (a Lagrange multiplier): minimise sum_s 1 / e_s(n_s) + p cost(n), set by
set, until no set changes. The price is bisected down to where the limit is just kept; then single sets are widened by a
step, where need be at the expense of another one, as long as that is a gain and the limit is kept. The cost of a
convolution between two sets depends on both, so what is found is a local optimum (`tests/test_hardware.py` holds it
against all choices of small problems).
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from bpl.pruning.masks import joint_score, kept_filters
from bpl.shown import check_whole

STEPS = 16  # widths to choose from, for each set
_BISECTIONS = 24
_PASSES = 50  # over the sets at one price; a few are enough


class OutOfReach(ValueError):
    """No choice of widths keeps the limit: even the narrowest network costs more."""


def width_options(size: int, round_to: int = 1) -> list[int]:
    """The widths that a set of channels may be cut to: sixteenths of it, rounded.

    Args:
        size: number of channels N.
        round_to: multiple that widths are rounded to.

    Returns:
        Widths in ascending order, N the last.

    Raises:
        ValueError: round_to is below 1.
    """
    check_whole("round_to", round_to, 1)
    return sorted({size} | {kept_filters(size, 1 - step / STEPS, round_to) for step in range(1, STEPS)})


def kept_importance(size: int, scores: list[Tensor] | None = None) -> Tensor:
    """e(n): the share of a set's importance in its n most important channels.

    Args:
        size: number of channels N.
        scores: what a criterion says of them, (N,) for each convolution of the set; None where nothing is known.

    Returns:
        (N,), in ascending order, the last entry 1; entry n - 1 is e(n).
    """
    score = None if scores is None else joint_score(scores)
    if score is None or not score.any():  # of channels that are all worth nothing, none is worth more
        score = torch.ones(size, dtype=torch.float64)
    kept = score.sort(descending=True).values.cumsum(0)
    return kept / kept[-1]


def search_widths(
    options: Sequence[Sequence[int]],
    importance: Sequence[Tensor],
    cost: Callable[[Sequence[int]], float],
    limit: float,
) -> list[int]:
    """The widths of highest kept importance that cost no more than the limit.

    Args:
        options: for each set the widths to choose from, in ascending order.
        importance: for each set e(n), as `kept_importance` returns it.
        cost: what the network costs with one width for each set.
        limit: what it may cost.

    Returns:
        One width for each set.

    Raises:
        OutOfReach: even the narrowest network costs more.
    """
    losses = [[1 / max(float(e[n - 1]), 1e-12) for n in widths] for widths, e in zip(options, importance, strict=True)]

    def widths_of(chosen: Sequence[int]) -> list[int]:
        return [widths[i] for widths, i in zip(options, chosen, strict=True)]

    def cost_of(chosen: Sequence[int]) -> float:
        return cost(widths_of(chosen))

    def loss_of(chosen: Sequence[int]) -> float:
        return sum(loss[i] for loss, i in zip(losses, chosen, strict=True))

    best = [0] * len(options)
    if cost_of(best) > limit:
        raise OutOfReach(f"the narrowest network costs {cost_of(best):g}: the limit is {limit:g}")
    whole = [len(widths) - 1 for widths in options]
    unit = loss_of(best) / cost_of(whole)
    cheap, dear = 1e-6 * unit, 1e6 * unit
    for _ in range(_BISECTIONS):
        price = (cheap * dear) ** 0.5
        chosen = _at_price(price, losses, cost_of, whole)
        if cost_of(chosen) <= limit:
            dear, best = price, min(best, chosen, key=loss_of)
        else:
            cheap = price
    return widths_of(_exchange(best, losses, cost_of, limit))


def _at_price(
    price: float, losses: list[list[float]], cost_of: Callable[[Sequence[int]], float], start: list[int]
) -> list[int]:
    """The choice that no change of a single set improves, at a price of cost; of equal choices the narrower."""
    chosen = list(start)
    for _ in range(_PASSES):
        before = list(chosen)
        for s, loss in enumerate(losses):
            totals = [loss[i] + price * cost_of([*chosen[:s], i, *chosen[s + 1 :]]) for i in range(len(loss))]
            chosen[s] = totals.index(min(totals))
        if chosen == before:
            break
    return chosen


def _exchange(
    chosen: list[int], losses: list[list[float]], cost_of: Callable[[Sequence[int]], float], limit: float
) -> list[int]:
    """Widen one set by a step, at the expense of another where need be, the greatest gain first, while any is there."""

    def gain(up: int, down: int | None) -> float:
        won = losses[up][chosen[up]] - losses[up][chosen[up] + 1]
        return won if down is None else won + losses[down][chosen[down]] - losses[down][chosen[down] - 1]

    while True:
        wider = [s for s, i in enumerate(chosen) if i + 1 < len(losses[s])]
        narrower = [None, *(s for s, i in enumerate(chosen) if i > 0)]
        moves = [(gain(up, down), up, down) for up in wider for down in narrower if up != down]
        for won, up, down in sorted(moves, key=lambda move: -move[0]):
            if won <= 1e-12:
                return chosen
            other = [i + (s == up) - (s == down) for s, i in enumerate(chosen)]
            if cost_of(other) <= limit:
                chosen = other
                break
        else:
            return chosen
