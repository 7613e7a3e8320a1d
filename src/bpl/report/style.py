"""How figures look: one colour a role, also for colour-blind readers, and the same SVG for the same numbers."""

import io
import math
from typing import TYPE_CHECKING, NamedTuple

from bpl.report.display import Drawing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from bpl.report.rows import Row

# What most figures compare: these differ in lightness as well as in hue, so that they stay apart without red or green.
# Sixteen colours cannot all do that: the other methods are muted, and have markers and names.
MAIN_ROLES = ("dense", "scratch", "bpl_plain", "bpl", "bpl_orthogonal")
COLOURS = {
    "dense": "#000000",
    "scratch": "#1F4FE0",
    "bpl_plain": "#149480",  # partners without the diversity loss
    "bpl": "#C44010",  # with it, in the released form or another that draws kernels to opposite ones
    "bpl_orthogonal": "#7B2D8B",  # with it, in a form that draws them to orthogonal ones
    "compact_kd": "#5A783C",
    "oed": "#B0115E",
    "fcs_mlft": "#8C6A00",
    "ddsl": "#2B5563",
    "kd": "#3F87AD",
    "self_kd": "#8676C4",
    "sfp": "#C7518A",
    "fpgm": "#7A2433",
    "l1": "#A8754C",
    "hrank": "#3D3A7A",
    "random": "#7A7A7A",
}
MARKERS = {
    "scratch": "s", "bpl_plain": "D", "bpl": "o", "bpl_orthogonal": "H", "compact_kd": "p", "oed": "h", "fcs_mlft": "8",
    "ddsl": "*", "kd": "<", "self_kd": ">", "sfp": "^", "fpgm": "v", "l1": "P", "hrank": "d", "random": "X",
}  # fmt: skip
SERIES = ("#0E86B4", "#A3195B", "#6B7A00", "#4A3A5A", "#A5642B")  # of what is no method: none of them means a role
GREY = "#555555"
LINES = ("-", "--", ":", "-.")  # rows of one role in one figure
_SETTINGS = {
    "svg.hashsalt": "bpl",  # ids of clip paths and glyphs, else drawn by chance
    "svg.fonttype": "path",  # the same letters whatever fonts the reader has
    "font.family": ["DejaVu Sans"],  # comes with matplotlib
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "axes.axisbelow": True,
    "legend.frameon": False,
}
_LINE = 1.3  # height of a line of text, over the size of its letters
_MANY = 10  # labels that are set smaller
_FORMS = {"stage-cosine": "", "stage-squared": "orthogonal"}  # of the loss; the released one needs no name


class End(NamedTuple):
    """The end of a series, where its name belongs.

    Attributes:
        x: of the last point.
        y: of the last point.
        colour: of the series.
        name: for readers.
        marker: of the series, shown beside its name; empty for none.
        face: what fills the marker; empty for the colour.
        line: style of the series, shown beside its name; empty for none.
    """

    x: float
    y: float
    colour: str
    name: str
    marker: str = ""
    face: str = ""
    line: str = ""


def role_of(row: "Row") -> str:
    """What a row is in a figure, a key of `COLOURS`: BPL is three of them, any other method is itself.

    Args:
        row: the row.
    """
    if row.method != "bpl":
        return row.method
    if row.config["diversity_weight"] == 0:
        return "bpl_plain"
    return "bpl_orthogonal" if row.config["diversity_form"].endswith("-squared") else "bpl"


def colour_of(row: "Row") -> str:
    """The colour of a row's role; with the diversity loss it is lighter below weight 1 and darker above.

    Args:
        row: the row.

    Returns:
        The colour, such as "#C44010".
    """
    role = role_of(row)
    if role not in ("bpl", "bpl_orthogonal"):
        return COLOURS.get(role, GREY)
    decades = max(-2.0, min(2.0, math.log10(row.config["diversity_weight"])))
    toward, share = (255, -0.1 * decades) if decades < 0 else (0, 0.2 * decades)
    parts = [int(COLOURS[role][start : start + 2], 16) for start in (1, 3, 5)]
    return "#" + "".join(f"{round(part + share * (toward - part)):02X}" for part in parts)


def name_of(row: "Row") -> str:
    """The row's name in a figure: short, and for BPL always with the weight of its loss.

    Args:
        row: the row, whose words but those of the loss the name says besides.
    """
    if row.method != "bpl":
        return row.label
    weight, form = row.config["diversity_weight"], row.config["diversity_form"]
    said = ["BPL", f"weight {weight:g}" if weight else "no loss"]
    if weight:
        said.append(_FORMS.get(form, form))
    return ", ".join(part for part in [*said, *beside_the_loss(row)] if part)


def beside_the_loss(row: "Row") -> list[str]:
    """What sets a row apart, in words, but for its diversity loss.

    Args:
        row: the row.
    """
    return [words for knob, words in row.said.items() if knob not in ("diversity_weight", "diversity_form")]


def new_axes(height: float = 4.2, width: float = 6.4) -> tuple["Figure", "Axes"]:
    """A figure with one set of axes in the book's style, outside of pyplot: nothing is shown by itself.

    Args:
        height: in inches.
        width: in inches; 6.4 stays readable when a phone shrinks it.

    Returns:
        Figure and axes.
    """
    figure, (axes,) = new_panels((1.0,), height, width)
    return figure, axes


def new_panels(
    shares: tuple[float, ...], height: float = 4.2, width: float = 6.4
) -> tuple["Figure", tuple["Axes", ...]]:
    """A figure with axes one above the other that share x, in the book's style, outside of pyplot.

    Args:
        shares: how tall each is, from the top, relative to the others.
        height: of the figure, in inches.
        width: of the figure, in inches.

    Returns:
        Figure and axes, from the top.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_SETTINGS):
        figure = Figure(figsize=(width, height), layout="constrained")
        panels = figure.subplots(len(shares), sharex=True, squeeze=False, height_ratios=shares)
        return figure, tuple(panels[:, 0])


def drawing(figure: "Figure", title: str) -> Drawing:
    """A finished figure as SVG text.

    Args:
        figure: the figure.
        title: what it shows, in words.

    Returns:
        The drawing; equal numbers give equal text.
    """
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context(_SETTINGS):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return Drawing(buffer.getvalue(), title)


def label_at_right(axes: "Axes", ends: "list[End] | list[tuple[float, float, str, str]]") -> None:
    """Name series at the right edge, moved apart where they would overlap. Call it when all else is drawn.

    A leader runs level to the edge and slants outside of it only: since names stand in the order of their series, no
    leader crosses another. Where the names need more than the axes are tall, the figure grows.

    Args:
        axes: the axes; their limits are kept from now on.
        ends: the end of each series: `End`, or its first four values.
    """
    ends = [End(*end) for end in ends]
    limits, (bottom, top) = axes.get_xlim(), axes.get_ylim()
    size = 10 if len(ends) <= _MANY else 9
    heights = _label_heights(axes, [end.y for end in ends], size)
    beside = axes.get_yaxis_transform()  # x over the axes' width, y as the data
    words = 1.11 if any(end.marker or end.line for end in ends) else 1.055
    for end, height in zip(ends, heights, strict=True):
        edge = min(max(end.y, bottom), top)
        thin = {"color": end.colour, "linewidth": 0.6, "alpha": 0.6, "zorder": 1}
        axes.plot([end.x, limits[1]], [edge, edge], linestyle=":", **thin)
        axes.plot([1, 1.04], [edge, height], transform=beside, clip_on=False, **thin)
        axes.text(words, height, end.name, transform=beside, color=end.colour, va="center", fontsize=size)
        if not (end.marker or end.line):
            continue
        x, sample = [1.045, 1.095], {"linewidth": 1.6, "linestyle": end.line}
        if end.marker:
            x, sample = [1.065], {"linestyle": "none", "marker": end.marker, "markersize": 5.5}
            sample["markerfacecolor"] = end.face or end.colour
        axes.plot(x, [height] * len(x), transform=beside, clip_on=False, color=end.colour, **sample)
    axes.set(xlim=limits, ylim=(bottom, top))


def _label_heights(axes: "Axes", positions: list[float], size: float) -> list[float]:
    """Where names of a size in points stand beside axes, in the unit of y; a figure that is too low for them grows."""
    figure, line = axes.figure, _LINE * size / 72  # inches
    bottom, top = axes.get_ylim()

    def tall() -> float:
        figure.draw_without_rendering()  # the layout, and with it how tall the axes are, is made when drawing
        return axes.get_window_extent().height / figure.dpi

    for _ in range(3):  # what grows is shared with other axes
        if (missing := len(positions) * line - tall()) <= 0:
            break
        figure.set_figheight(figure.get_figheight() + 1.05 * missing * figure.get_figheight() / tall())
    least = line * (top - bottom) / tall()
    return spread_out(positions, least, (bottom, top))


def spread_out(positions: list[float], least: float, within: tuple[float, float] | None = None) -> list[float]:
    """Move labels apart so that neighbours do not overlap, each as little as possible, in their order.

    Args:
        positions: where the labels would stand.
        least: smallest distance between two.
        within: lowest and highest edge that labels may reach, if they have to stay between two; where that is less
            than they need, they begin at the lowest and stand apart all the same.

    Returns:
        Where they stand, in the order given.
    """
    order = sorted(range(len(positions)), key=positions.__getitem__)
    blocks: list[tuple[list[int], float]] = []  # labels that touch, and the position of the lowest
    for index in order:
        members, start = [index], positions[index]
        while blocks and blocks[-1][1] + least * len(blocks[-1][0]) > start:
            members = blocks.pop()[0] + members
            start = sum(positions[m] - least * rank for rank, m in enumerate(members)) / len(members)
        blocks.append((members, start))
    low, high = -math.inf, math.inf
    if within is not None:
        low, high = within[0] + least / 2, within[1] + least / 2
    placed, first, count = list(positions), 0, len(positions)
    for members, start in blocks:
        for rank, member in enumerate(members, first):
            # Labels below need their place too, and those above: of all places with both, the nearest.
            lowest, highest = low + least * rank, high - least * (count - rank)
            placed[member] = max(lowest, min(highest, start + least * (rank - first)))
        first += len(members)
    return placed
