"""Accuracy against cost, and the paper's claim beside it."""

import dataclasses
from typing import TYPE_CHECKING

from bpl.report.claims import Claim
from bpl.report.controls import control, find
from bpl.report.display import Drawing, Markdown
from bpl.report.rows import Row
from bpl.report.sentences import NO_RECORDS
from bpl.report.style import (
    COLOURS,
    GREY,
    MARKERS,
    End,
    beside_the_loss,
    colour_of,
    drawing,
    label_at_right,
    name_of,
    new_panels,
    role_of,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Point = tuple[Row, float, float | None, float | None]  # a row, its value, and the ends of the value's interval
_DODGE = 0.8  # percent of MACs between rows of about the same cost, so that intervals stand side by side
_MOST_DODGE = 8.0  # percent of MACs between the first and the last of them
_ALIKE = 2.0  # percent of MACs: nearer rows are of about the same cost
_FAR = "far below: on a scale of its own"


def tradeoff(rows: list[Row]) -> Drawing | Markdown:
    """Top-1 against the MACs removed, one point a row with its interval, and the dense network's line.

    Points far below all others stand in a strip of their own, else they would squeeze the rest of the axis.

    Args:
        rows: the rows of one table.

    Returns:
        The figure; one sentence where nothing is recorded.
    """
    pruned = [row for row in rows if row.method != "dense"]
    dense = find(rows, "dense")
    if not pruned:
        return Markdown(NO_RECORDS)
    points = [_of_accuracy(row) for row in pruned]
    figure, panels = _panels([_span(point) for point in [*points, *([_of_accuracy(dense)] if dense else [])]])
    ends = _draw_points(panels, points)
    if dense is not None:
        summary = dense.accuracy
        axes = _panel_of(panels, summary.mean)
        axes.axhline(summary.mean, color=COLOURS["dense"], linestyle="--", linewidth=1.2)
        if summary.low is not None:
            axes.axhspan(summary.low, summary.high, color=COLOURS["dense"], alpha=0.08, linewidth=0)
        ends.append(End(axes.get_xlim()[1], summary.mean, COLOURS["dense"], "Dense", line="--"))
    _name(panels, ends)
    panels[-1].set_xlabel("MACs removed, % of the dense network")
    panels[0].set_ylabel("Top-1 on the test part, %")
    return drawing(figure, "top-1 against MACs removed, one point a row with its 95 % interval")


def difference_to_dense(rows: list[Row], claim: Claim | None = None) -> Drawing | Markdown:
    """Top-1 lost or won against the dense network of the same seeds, and the paper's claim of the same kind.

    A claim is shown as what it is, a difference: the paper's accuracies are of another network and another training.
    Points far below all others stand in a strip of their own.

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
    values = [0.0] if claim is None else [0.0, -claim.accuracy_loss]
    figure, panels = _panels([*map(_span, points), *((value, value) for value in values)])
    ends = _draw_points(panels, points)
    _panel_of(panels, 0).axhline(0, color=COLOURS["dense"], linestyle="--", linewidth=1.2)
    if claim is not None:
        place = (claim.flops_reduction, -claim.accuracy_loss)
        star = {"marker": "*", "markersize": 13, "color": "#000000", "markerfacecolor": "#F0E442", "linestyle": "none"}
        _panel_of(panels, place[1]).plot(*place, **star)
        panels[0].set_xlim(None, max(panels[0].get_xlim()[1], claim.flops_reduction + 3))
        ends.append(End(*place, "#000000", f"the paper's claim, {claim.network}", "*", "#F0E442"))
    _name(panels, ends)
    panels[-1].set_xlabel("MACs removed, % of the dense network")
    panels[0].set_ylabel("Top-1 against the dense network, points")
    return drawing(figure, "difference to the dense network against MACs removed, and the paper's claim")


def price(rows: list[Row], ratio: float) -> Drawing | Markdown:
    """Top-1 against what the training cost, for the rows of one ratio; points far below in a strip of their own.

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
    points = [_of_accuracy(row) for row in shown]
    figure, panels = _panels([_span(point) for point in points])
    ends = []
    for point in points:
        cost = point[0].training_macs / dense.training_macs
        _draw_point(panels, cost, point)
        ends.append(_end(cost, point))
    panels[0].set_xlim(0, 1.1 * max(end.x for end in ends))
    _name(panels, ends)
    panels[-1].set_xlabel("MACs of the training, multiple of the dense network's")
    panels[0].set_ylabel("Top-1 on the test part, %")
    return drawing(figure, "top-1 against the cost of training, one point a row with its 95 % interval")


def _of_accuracy(row: Row) -> Point:
    return row, row.accuracy.mean, row.accuracy.low, row.accuracy.high


def _span(point: Point) -> tuple[float, float]:
    """Lowest and highest value that is drawn of a point."""
    _, value, low, high = point
    return (value, value) if low is None else (low, high)


def _panels(spans: list[tuple[float, float]]) -> tuple["Figure", tuple["Axes", ...]]:
    """The axes for what spans these values, or two with a strip below for what is far below; limits of y are set."""
    cut = far_below(spans)
    if cut is None:
        figure, panels = new_panels((1.0,))
    else:
        figure, panels = new_panels((4.2, 1.0), height=4.8)
    for axes, inside in zip(panels, (True, False), strict=False):
        here = [span for span in spans if cut is None or (span[0] >= cut) == inside]
        low, high = min(low for low, _ in here), max(high for _, high in here)
        margin = (0.05 if inside else 0.2) * ((high - low) or 1.0)
        axes.set_ylim(low - margin, high + margin if inside else min(high + margin, (high + cut) / 2))
    if cut is not None:
        _mark_as_broken(*panels)
    return figure, panels


def far_below(spans: list[tuple[float, float]]) -> float | None:
    """Where to part an axis, so that few points far below do not squeeze all others.

    Args:
        spans: lowest and highest value of each point.

    Returns:
        The lowest value above the widest gap that has at most a quarter of the points below it, if those above need
        less than half of the axis without them, and the gap is no small one; else None.
    """
    spans = sorted(spans)
    gaps = [(spans[n][0] - max(high for _, high in spans[:n]), spans[n][0]) for n in range(1, len(spans) // 4 + 1)]
    if not gaps:
        return None
    gap, cut = max(gaps)
    top, lowest = max(high for _, high in spans), spans[0][0]
    return cut if top - cut < min((top - lowest) / 2, 4 * gap) else None


def _mark_as_broken(above: "Axes", below: "Axes") -> None:
    """Leave the line between two axes out, with a stroke at either end of the y axis, and say what the lower one is."""
    above.spines["bottom"].set_visible(False)
    above.tick_params(axis="x", length=0)
    strokes = {"marker": [(-1, -0.5), (1, 0.5)], "markersize": 9, "color": "black", "linestyle": "none"}
    for axes, end in ((above, 0), (below, 1)):
        axes.plot([0], [end], transform=axes.transAxes, clip_on=False, **strokes)
    below.set_title(_FAR, loc="left", fontsize=8.5, color=GREY, pad=3)


def _name(panels: tuple["Axes", ...], ends: list[End]) -> None:
    """Name each series beside the axes in which it ends."""
    for axes in panels:
        if here := [end for end in ends if _panel_of(panels, end.y) is axes]:
            label_at_right(axes, here)


def _panel_of(panels: tuple["Axes", ...], value: float) -> "Axes":
    """The axes that a value is drawn in: the strip takes what is below the axes above it."""
    return panels[0] if value >= panels[0].get_ylim()[0] else panels[-1]


def _end(x: float, point: Point) -> End:
    row, value, *_ = point
    colour, marker, face = _look(row)
    return End(x, value, colour, name_of(_told_apart(row)), marker, face)


def _told_apart(row: Row) -> Row:
    """The row, without the words for what is so by default: a figure has little room for names."""
    return dataclasses.replace(row, said={knob: words for knob, words in row.said.items() if knob in row.knobs})


def _look(row: Row) -> tuple[str, str, str]:
    """Colour and marker of a row, and what fills the marker: nothing where it is a variant within its role."""
    colour = colour_of(row)
    return colour, MARKERS.get(role_of(row), "o"), "white" if beside_the_loss(_told_apart(row)) else colour


def _draw_point(panels: tuple["Axes", ...], x: float, point: Point) -> None:
    row, value, low, high = point
    colour, marker, face = _look(row)
    axes = _panel_of(panels, value)
    if low is not None:
        axes.plot([x, x], [low, high], color=colour, linewidth=1.4, solid_capstyle="butt")
    axes.plot(x, value, marker, color=colour, markerfacecolor=face, markersize=6.5)


def _draw_points(panels: tuple["Axes", ...], points: list[Point]) -> list[End]:
    """Rows as points with intervals, rows of one name joined by a line.

    Args:
        panels: where to draw: the same in all.
        points: what to draw.

    Returns:
        The right end of each line.
    """
    places = _side_by_side([row.macs_reduction for row, *_ in points])
    series: dict[str, list[tuple[float, Point]]] = {}
    for place, point in zip(places, points, strict=True):
        series.setdefault(point[0].label, []).append((place, point))
    ends = []
    for members in series.values():
        members.sort(key=lambda member: member[0])
        colour, values = colour_of(members[0][1][0]), [point[1] for _, point in members]
        for axes in panels:
            axes.plot([x for x, _ in members], values, color=colour, linewidth=0.8, alpha=0.5)
        for x, point in members:
            _draw_point(panels, x, point)
        ends.append(_end(*members[-1]))
    left, right = min(places), max(places)
    margin = max(2.0, 0.12 * (right - left))
    panels[0].set_xlim(left - margin, right + margin)
    return ends


def _side_by_side(costs: list[float]) -> list[float]:
    """Places on the axis for costs: those of about the same cost around their mean, in the order given."""
    columns: list[list[int]] = []
    for index in sorted(range(len(costs)), key=costs.__getitem__):
        if not columns or costs[index] - costs[columns[-1][-1]] > _ALIKE:
            columns.append([])
        columns[-1].append(index)
    places = list(costs)
    for column in columns:
        step = min(_DODGE, _MOST_DODGE / max(1, len(column) - 1))
        for rank, index in enumerate(sorted(column)):
            places[index] += step * (rank - (len(column) - 1) / 2)
    return places
