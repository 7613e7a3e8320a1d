"""Accuracy against cost, and the paper's claim beside it."""

from typing import TYPE_CHECKING

from bpl.report.claims import Claim
from bpl.report.display import Drawing, Markdown
from bpl.report.rows import Row, control, find
from bpl.report.sentences import NO_RECORDS
from bpl.report.style import COLOURS, GREY, MARKERS, drawing, label_at_right, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_DODGE = 0.8  # percent of MACs between rows of the same cost, so that intervals stand side by side
_MOST_DODGE = 2.0  # percent of MACs between the first and the last of them


def tradeoff(rows: list[Row]) -> Drawing | Markdown:
    """Top-1 against the MACs removed, one point a row with its interval, and the dense network's line.

    Args:
        rows: the rows of one table.

    Returns:
        The figure; one sentence where nothing is recorded.
    """
    pruned = [row for row in rows if row.method != "dense"]
    dense = find(rows, "dense")
    if not pruned:
        return Markdown(NO_RECORDS)
    figure, axes = new_axes()
    points = [(row, row.accuracy.mean, row.accuracy.low, row.accuracy.high) for row in pruned]
    ends = _draw_points(axes, points)
    if dense is not None:
        summary = dense.accuracy
        axes.axhline(summary.mean, color=COLOURS["dense"], linestyle="--", linewidth=1.2)
        if summary.low is not None:
            axes.axhspan(summary.low, summary.high, color=COLOURS["dense"], alpha=0.08, linewidth=0)
        ends.append((axes.get_xlim()[1], summary.mean, COLOURS["dense"], "Dense"))
    label_at_right(axes, ends)
    axes.set_xlabel("MACs removed, % of the dense network")
    axes.set_ylabel("Top-1 on the test part, %")
    return drawing(figure, "top-1 against MACs removed, one point a row with its 95 % interval")


def difference_to_dense(rows: list[Row], claim: Claim | None = None) -> Drawing | Markdown:
    """Top-1 lost or won against the dense network of the same seeds, and the paper's claim of the same kind.

    A claim is shown as what it is, a difference: the paper's accuracies are of another network and another training.

    Args:
        rows: the rows of one table.
        claim: the paper's claim, if there is one.

    Returns:
        The figure; one sentence where there is no row with a dense network to compare with.
    """
    points = []
    for row in rows:
        difference = row.difference(control(rows, row, "dense"))
        if difference is not None:
            points.append((row, difference.mean, difference.low, difference.high))
    if not points:
        return Markdown(NO_RECORDS)
    figure, axes = new_axes()
    ends = _draw_points(axes, points)
    axes.axhline(0, color=COLOURS["dense"], linestyle="--", linewidth=1.2)
    if claim is not None:
        place = (claim.flops_reduction, -claim.accuracy_loss)
        axes.plot(*place, marker="*", markersize=13, color="#000000", markerfacecolor="#F0E442", linestyle="none")
        axes.set_xlim(None, max(axes.get_xlim()[1], claim.flops_reduction + 3))
        ends.append((*place, "#000000", f"the paper's claim\n({claim.network})"))
    label_at_right(axes, ends)
    axes.set_xlabel("MACs removed, % of the dense network")
    axes.set_ylabel("Top-1 against the dense network, points")
    return drawing(figure, "difference to the dense network against MACs removed, and the paper's claim")


def price(rows: list[Row], ratio: float) -> Drawing | Markdown:
    """Top-1 against what the training cost, for the rows of one ratio.

    Args:
        rows: the rows of one table, the dense network among them.
        ratio: the pruning ratio whose rows are drawn.

    Returns:
        The figure; one sentence where nothing is recorded.
    """
    dense = find(rows, "dense")
    shown = [row for row in rows if row.method != "dense" and row.ratio == ratio]
    if not shown or dense is None:
        return Markdown(NO_RECORDS)
    figure, axes = new_axes()
    ends = []
    for row in shown:
        cost, summary, colour = row.training_macs / dense.training_macs, row.accuracy, COLOURS.get(row.method, GREY)
        if summary.low is not None:
            axes.plot([cost, cost], [summary.low, summary.high], color=colour, linewidth=1.4, solid_capstyle="butt")
        filled = colour if row.is_default else "white"
        axes.plot(
            cost, summary.mean, MARKERS.get(row.method, "o"), color=colour, markerfacecolor=filled, markersize=6.5
        )
        ends.append((cost, summary.mean, colour, row.label))
    axes.set_xlim(0, 1.1 * max(cost for cost, *_ in ends))
    label_at_right(axes, ends)
    axes.set_xlabel("MACs of the training, multiple of the dense network's")
    axes.set_ylabel("Top-1 on the test part, %")
    return drawing(figure, "top-1 against the cost of training, one point a row with its 95 % interval")


def _draw_points(
    axes: "Axes", points: list[tuple[Row, float, float | None, float | None]]
) -> list[tuple[float, float, str, str]]:
    """Rows as points with intervals, rows of one method joined by a line.

    Args:
        axes: where to draw.
        points: row, value, and the ends of its interval.

    Returns:
        x and y of the right end, colour and name of each line.
    """
    series: dict[str, list[tuple[float, float, float | None, float | None, Row]]] = {}
    costs: dict[float, list[Row]] = {}
    for row, *_ in points:
        costs.setdefault(round(row.macs_reduction, 1), []).append(row)
    for row, value, low, high in points:
        same = costs[round(row.macs_reduction, 1)]
        step = min(_DODGE, _MOST_DODGE / max(1, len(same) - 1))
        shift = step * (same.index(row) - (len(same) - 1) / 2)
        series.setdefault(row.label, []).append((row.macs_reduction + shift, value, low, high, row))

    ends = []
    for label, members in series.items():
        members.sort(key=lambda member: member[0])
        method = members[0][4].method
        colour, variant = COLOURS.get(method, GREY), members[0][4].variant
        filled = colour if not variant or members[0][4].is_default else "white"
        axes.plot([m[0] for m in members], [m[1] for m in members], color=colour, linewidth=0.8, alpha=0.5)
        for x, value, low, high, _ in members:
            if low is not None:
                axes.plot([x, x], [low, high], color=colour, linewidth=1.4, solid_capstyle="butt")
            axes.plot(x, value, MARKERS.get(method, "o"), color=colour, markerfacecolor=filled, markersize=6.5)
        ends.append((members[-1][0], members[-1][1], colour, label))

    left = min(member[0] for members in series.values() for member in members)
    right = max(end[0] for end in ends)
    margin = max(2.0, 0.12 * (right - left))
    axes.set_xlim(left - margin, right + margin)
    return ends
